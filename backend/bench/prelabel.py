"""What `vlsam bench prelabel` measures: a run of `vlsam prelabel` beside the models alone, and its memory."""

import argparse
import contextlib
import io
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from PIL import Image as Pillow
from tqdm import tqdm

import backend.prelabel.job  # noqa: F401  the command loads it, and the SDK with it, when it is first called
from backend.commands import prelabel
from backend.datasets.run_state import State
from backend.images.load import decode
from model.builtin.measure import paste_scene
from model.pipeline import VLSAM
from model.profiles import choose

TIMED, LEGS = 200, 10


def measure(images: int, seed: int, device: str) -> dict[str, Any]:
    """Figures for so many drawn scenes, as JPEG files in a folder, by the built-in models.

    The first TIMED are done in LEGS, each time by the models alone and then by the command, which goes on
    from its own state. The rest is for the memory: its growth over all rows but the first quarter's.
    """
    model = VLSAM.load(choose(), device)
    with tempfile.TemporaryDirectory() as name:
        folder, target = Path(name) / "images", Path(name) / "out.json"
        folder.mkdir()
        rng = np.random.default_rng(seed)
        for number in tqdm(range(images), desc="scenes"):
            Pillow.fromarray(paste_scene(rng).image).save(folder / f"{number:05}.jpg", quality=90)
        paths = sorted(folder.iterdir())
        model.annotate(decode(paths[0].read_bytes(), max_pixels=10**8))  # the first call is never like others
        timed = min(images, TIMED)
        wall = pipeline = own = 0.0
        memory: list[float] = []
        legs = min(LEGS, timed)
        for leg in range(legs):
            begin, end = timed * leg // legs, timed * (leg + 1) // legs
            pixels = [decode(path.read_bytes(), max_pixels=10**8) for path in paths[begin:end]]
            with _own_time(model) as spent:
                since = time.perf_counter()
                for each in pixels:
                    model.annotate(each)
                pipeline += time.perf_counter() - since
            own += spent[0]
            del pixels
            since = time.perf_counter()
            _prelabel(folder, target, model, end, memory)
            wall += time.perf_counter() - since
        if images > timed:
            _prelabel(folder, target, model, images, memory)
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


def _prelabel(folder: Path, target: Path, model: VLSAM, limit: int, memory: list[float]) -> None:
    """The command itself, but for the loading of the models; notes the memory after each row."""
    save = State.save

    def noting(state: State, row: Any) -> None:
        save(state, row)
        memory.append(resident_mb())

    arguments = ["prelabel", str(folder), "--to", str(target), "--limit", str(limit)]
    with (
        patch.object(VLSAM, "load", lambda *args: model),
        patch.object(State, "save", noting),
        contextlib.redirect_stderr(io.StringIO()) as told,
    ):
        parser = argparse.ArgumentParser()
        prelabel.add_to(parser.add_subparsers())
        args = parser.parse_args(arguments)
        status = args.run(args)
    if status:
        raise ValueError(f"the run failed: {told.getvalue()[-500:]}")


@contextlib.contextmanager
def _own_time(model: VLSAM) -> Iterator[list[float]]:
    """The seconds inside the VLM and the segmenter, without what comes between: maps, points, merging."""
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
    """This process's memory; Linux tells."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
