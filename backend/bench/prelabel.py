"""Measure `vlsam prelabel` against the models alone, and the growth of its memory: `vlsam bench prelabel`."""

import contextlib
import io
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from PIL import Image as Pillow
from tqdm import tqdm

import backend.prelabel.job  # noqa: F401  imported by the command when it first runs, and not to be measured
from backend.bench.stopwatch import Stopwatch
from backend.datasets.run_state import State
from backend.images.fetch import decode
from model.bench.attention import resident_bytes
from model.builtin.measure import paste_scene
from model.pipeline import VLSAM
from model.profiles import choose

TIMED, BLOCKS = 200, 10
VLM_CALLS = ("answer", "attention_maps", "background_map", "presence", "boxes")
MAX_PIXELS = 10**8  # of an image, more than any scene has

Command = Callable[[Sequence[str]], int]  # `vlsam prelabel`: its arguments to its exit status


def measure(images: int, seed: int, device: str, command: Command) -> dict[str, Any]:
    """Run `command` on JPEG files of drawn scenes. Return its time over the models' own, and its memory."""
    model = VLSAM.load(choose(), device)
    with tempfile.TemporaryDirectory() as name:
        folder, target = Path(name) / "images", Path(name) / "out.json"
        folder.mkdir()
        rng = np.random.default_rng(seed)
        for number in tqdm(range(images), desc="scenes"):
            Pillow.fromarray(paste_scene(rng).image).save(folder / f"{number:05}.jpg", quality=90)
        paths = sorted(folder.iterdir())
        memory: list[float] = []

        def prelabel(limit: int) -> float:
            """Run the command on the first `limit` images and return its wall time, in seconds."""
            since = time.perf_counter()
            arguments = [str(folder), "--to", str(target), "--limit", str(limit)]
            with _with_model(model, memory), contextlib.redirect_stderr(io.StringIO()) as stderr:
                status = command(arguments)
            if status:
                raise ValueError(f"the run failed: {stderr.getvalue()[-500:]}")
            return time.perf_counter() - since

        model.annotate(decode(paths[0].read_bytes(), max_pixels=MAX_PIXELS))  # the first call is slower
        timed = min(images, TIMED)
        wall = pipeline = own = 0.0
        parts: list[tuple[Any, str]] = [(model.vlm, name) for name in VLM_CALLS]
        parts += [(model.segmenter, name) for name in ("encode", "decode")]
        blocks = min(BLOCKS, timed)
        for block in range(blocks):
            begin, end = timed * block // blocks, timed * (block + 1) // blocks
            pixels = [decode(path.read_bytes(), max_pixels=MAX_PIXELS) for path in paths[begin:end]]
            with Stopwatch().running({"models": parts}) as own_time:
                since = time.perf_counter()
                for image in pixels:
                    model.annotate(image)
                pipeline += time.perf_counter() - since
            own += own_time.seconds["models"]
            del pixels
            wall += prelabel(end)
        if images > timed:
            prelabel(images)
    later = memory[len(memory) // 4 :]
    slope = float(np.polyfit(np.arange(len(later)), later, 1)[0]) if images > timed else None
    return {
        "images": images,
        "overhead": round(wall / own, 3),
        "overhead_over_pipeline": round(wall / pipeline, 3),
        "images_per_second": round(timed / wall, 3),
        "rss_mb": round(memory[-1]),
        "rss_mb_per_1000_images": None if slope is None else round(1000 * slope, 2),
    }


@contextlib.contextmanager
def _with_model(model: VLSAM, memory: list[float]) -> Iterator[None]:
    """Make the command use a loaded model. After each row, append this process's memory in MB to `memory`."""
    save = State.save

    def save_and_measure(state: State, row: Any) -> None:
        save(state, row)
        memory.append(resident_mb())

    with patch.object(VLSAM, "load", lambda *args: model), patch.object(State, "save", save_and_measure):
        yield


def resident_mb() -> float:
    """Return the resident memory of this process in MB (10^6 bytes)."""
    return resident_bytes() / 1e6
