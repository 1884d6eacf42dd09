"""Measure `vlsam prelabel` against the models alone, and the growth of its memory: `vlsam bench prelabel`."""

import contextlib
import io
import os
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
from backend.datasets.run_state import State
from backend.images.fetch import decode
from model.builtin.measure import paste_scene
from model.pipeline import VLSAM
from model.profiles import choose

TIMED, LEGS = 200, 10
MAX_PIXELS = 10**8  # of an image, more than any scene has

Command = Callable[[Sequence[str]], int]  # `vlsam prelabel`: its arguments to its exit status


def measure(images: int, seed: int, device: str, command: Command) -> dict[str, Any]:
    """Return the figures of the built-in models for so many drawn scenes, JPEG files in a folder.

    The first TIMED take turns in LEGS: the models alone, then the command, which continues from its own
    state. The rest measures the memory: its growth over all rows but the first quarter.
    """
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
        legs = min(LEGS, timed)
        for leg in range(legs):
            begin, end = timed * leg // legs, timed * (leg + 1) // legs
            pixels = [decode(path.read_bytes(), max_pixels=MAX_PIXELS) for path in paths[begin:end]]
            with _own_time(model) as spent:
                since = time.perf_counter()
                for image in pixels:
                    model.annotate(image)
                pipeline += time.perf_counter() - since
            own += spent[0]
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
    """Have the command use a loaded model, and append the process's memory after each row."""
    save = State.save

    def save_and_measure(state: State, row: Any) -> None:
        save(state, row)
        memory.append(resident_mb())

    with patch.object(VLSAM, "load", lambda *args: model), patch.object(State, "save", save_and_measure):
        yield


@contextlib.contextmanager
def _own_time(model: VLSAM) -> Iterator[list[float]]:
    """Yield a list of one number: the seconds inside the VLM and the segmenter, not in the code between."""
    spent, inside = [0.0], [False]

    def timing(method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            if inside[0]:
                return method(*args, **kwargs)
            inside[0], since = True, time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                spent[0] += time.perf_counter() - since
                inside[0] = False

        return timed

    with contextlib.ExitStack() as stack:
        parts: tuple[tuple[Any, tuple[str, ...]], ...] = (
            (model.vlm, ("answer", "attention_maps", "background_map", "presence", "boxes")),
            (model.segmenter, ("encode", "decode")),
        )
        for part, names in parts:
            for name in names:
                stack.enter_context(patch.object(part, name, timing(getattr(part, name))))
        yield spent


def resident_mb() -> float:
    """Return the resident memory of this process, as Linux reports it."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
