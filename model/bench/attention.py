"""Compare our attention maps with `output_attentions=True` and equation 3: `vlsam bench attention`."""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from model.attention.attention_flow import flow
from model.attention.capture import capturing, implementations
from model.recipes import RECIPES

TERMS = 8  # rows whose maps are made, the last of the text tokens
PATCH, MERGE = 14, 2
WAYS = ("plain", "ours", "theirs")
TAIL = 32  # text tokens that follow the image


@dataclass(frozen=True)
class Shape:
    """Size of a random Qwen2.5-VL. Its decoder is measured; its vision tower is tiny."""

    tokens: int
    layers: int
    heads: int
    key_heads: int
    width: int
    dtype: str
    device: str

    @property
    def grid(self) -> tuple[int, int]:
        """The rows and columns of image tokens, nearly square. At least TAIL text tokens remain."""
        count = self.tokens - TAIL - 2
        rows = int(count**0.5)
        return rows, count // rows


def compare(shape: Shape, repeats: int = 3) -> dict[str, Any]:
    """Measure time, memory and difference of the WAYS on one model and input. Show progress on stderr."""
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    memory: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        for way in tqdm(WAYS * repeats, desc="bench attention", unit="run", file=sys.stderr, disable=None):
            figures = _in_a_process(way, shape, Path(folder) / f"{way}.npy")
            seconds[way].append(figures["seconds"])
            memory[way].append(figures["peak"])
        ours, theirs = (np.load(Path(folder) / f"{way}.npy") for way in ("ours", "theirs"))
    took = {way: statistics.median(values) for way, values in seconds.items()}
    peak = {way: statistics.median(values) for way, values in memory.items()}
    return {
        **asdict(shape),
        "time_ratio": round(took["theirs"] / took["ours"], 3),
        "overhead": round(took["ours"] / took["plain"], 3),
        "peak_memory_ratio": round(peak["theirs"] / peak["ours"], 2),
        "max_abs_diff": float(np.abs(ours - theirs).max() / np.abs(theirs).max()),
        "seconds": {way: round(value, 3) for way, value in took.items()},
        "peak_mib": {way: round(value / 2**20) for way, value in peak.items()},
        "repeats": repeats,
    }


def _in_a_process(way: str, shape: Shape, maps: Path) -> dict[str, float]:
    """Measure one way in a new process, so that the peak memory includes no other way.

    Return `seconds` and `peak` (bytes). Write the maps to the file `maps`. Raises RuntimeError.
    """
    job = json.dumps({"way": way, "shape": asdict(shape), "maps": str(maps)})
    done = subprocess.run(
        [sys.executable, "-m", "model.bench.attention", job],
        capture_output=True,
        text=True,
        check=False,
        # glibc returns freed memory at once, so that the resident size is the memory in use.
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 20)},
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        raise RuntimeError(f"measuring {way!r} at {shape.tokens} tokens failed: {last}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def build(shape: Shape) -> tuple[Any, dict[str, torch.Tensor]]:
    """Return a Qwen2.5-VL with random weights of a fixed seed, and an input for it."""
    vocabulary, image_token, start, end = 64, 60, 61, 62
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": vocabulary,
            "hidden_size": shape.width,
            "intermediate_size": shape.width * 8 // 3,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.key_heads,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 1e6, "mrope_section": _sections(shape),
            },
        },
        vision_config={
            "depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2,
            "out_hidden_size": shape.width, "patch_size": PATCH, "spatial_merge_size": MERGE,
            "fullatt_block_indexes": [],
        },
        image_token_id=image_token, vision_start_token_id=start, vision_end_token_id=end,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(shape.device):
        model = Qwen2_5_VLForConditionalGeneration(config).to(getattr(torch, shape.dtype)).eval()
    # Larger random weights give attention with peaks, like trained ones.
    for name, weight in model.named_parameters():
        if "language_model" in name and ("q_proj.weight" in name or "k_proj.weight" in name):
            weight.data.mul_(3)
    rows, columns = shape.grid
    count = rows * columns
    text = torch.arange(shape.tokens - count - 2) % 60
    ids = torch.cat([torch.tensor([start]), torch.full((count,), image_token), torch.tensor([end]), text])
    patches = count * MERGE**2
    inputs = {
        "input_ids": ids[None],
        "mm_token_type_ids": (ids == image_token).int()[None],
        "pixel_values": torch.randn(patches, 3 * 2 * PATCH**2).to(getattr(torch, shape.dtype)),
        "image_grid_thw": torch.tensor([[1, rows * MERGE, columns * MERGE]]),
    }
    return model, {key: value.to(shape.device) for key, value in inputs.items()}


def _sections(shape: Shape) -> list[int]:
    half = shape.width // shape.heads // 2
    return [half - 2 * (half * 3 // 8), half * 3 // 8, half * 3 // 8]


def plain(model: Any, inputs: dict[str, torch.Tensor], rows: list[int]) -> torch.Tensor:
    """Run the forward pass with SDPA and without maps. Return an empty tensor."""
    model.set_attn_implementation("sdpa")
    model(**inputs, use_cache=False, logits_to_keep=1)
    return torch.zeros(0)


def ours(model: Any, inputs: dict[str, torch.Tensor], rows: list[int]) -> torch.Tensor:
    model.set_attn_implementation(implementations(model.config))
    with capturing() as capture:
        model(**inputs, use_cache=False, logits_to_keep=1)
    return flow(capture, rows, RECIPES["paper"])


def theirs(model: Any, inputs: dict[str, torch.Tensor], rows: list[int]) -> torch.Tensor:
    """Compute equations 1 to 3 from every N x N attention matrix. Return rows of the flow: (rows, N)."""
    model.set_attn_implementation("eager")
    kept = model(**inputs, use_cache=False, logits_to_keep=1, output_attentions=True).attentions
    count = kept[0].shape[-1]
    eye = torch.eye(count, device=kept[0].device)
    factor = (torch.arange(count, device=kept[0].device) + 1) / count
    rolled = torch.zeros_like(eye)
    for layer in kept:
        scores = layer[0].float()
        weights = scores.amax(-1).mean(-1)
        mixed = (scores * weights[:, None, None]).mean(0) * factor
        rolled = (eye + mixed) @ (eye + rolled)
    return rolled[rows]


def _measure(way: str, shape: Shape, maps: Path) -> dict[str, float]:
    model, inputs = build(shape)
    run: Callable[..., torch.Tensor] = {"plain": plain, "ours": ours, "theirs": theirs}[way]
    rows = list(range(shape.tokens - TERMS, shape.tokens))
    with torch.inference_mode():
        _, small = build(replace(shape, tokens=64, layers=1))
        run(model, small, [60])  # the first call loads libraries and starts threads
        with _peak(shape.device) as peak:
            since = time.perf_counter()
            found = run(model, inputs, rows)
            if shape.device != "cpu":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - since
    if way != "plain":
        np.save(maps, found[:, 1 : 1 + shape.grid[0] * shape.grid[1]].float().cpu().numpy())
    return {"seconds": seconds, "peak": peak[0]}


@contextmanager
def _peak(device: str) -> Iterator[list[float]]:
    """Measure the peak memory of the `with` block, in bytes above its start. Yield [peak], set at the end."""
    peak = [0.0]
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        allocated = torch.cuda.memory_allocated()
        yield peak
        peak[0] = float(torch.cuda.max_memory_allocated() - allocated)
        return
    start, stop = resident_bytes(), threading.Event()

    def watch() -> None:
        while not stop.wait(0.002):
            peak[0] = max(peak[0], resident_bytes() - start)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    yield peak
    stop.set()
    thread.join()


def resident_bytes() -> float:
    """Return the resident memory of this process in bytes, from Linux's /proc."""
    return float(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    _job = json.loads(sys.argv[1])
    print(json.dumps(_measure(_job["way"], Shape(**_job["shape"]), Path(_job["maps"]))))
