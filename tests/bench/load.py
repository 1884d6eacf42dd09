"""Measure a server under load (`make load`): annotators who click, first alone, then beside a batch.

Every answer is compared with what the models alone say of the very image that was asked about. The last line
of stdout is one JSON object; the exit status is 1 where an answer was lost or was another image's.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow

from backend.images.image_cache import image_hash
from backend.labelstudio import labeling_config, region_reading, results
from model.builtin.scenes import NAMES, draw_scene
from model.pipeline import VLSAM
from model.profiles import choose
from model.segmentation.mask_cleanup import innermost_pixel
from model.segmentation.non_maximum_suppression import iou
from model.types import Image, Mask, Prompt
from tests.support.processes import free_port

WIDTH, HEIGHT, SPOTS = 480, 360, 3
CLICKED = 24  # pictures that annotators click on
COMPARED = 10  # pictures of the batch whose masks are compared; of all others the ids, which hash the pixels
ALIKE = 0.95  # IoU with the models' own answer: another number of threads moves a pixel or two
DISTINCT = 0.8  # IoU that no two pictures' answers have
CACHE_MB = 64  # full within seconds, so that it is not its filling that makes memory grow
_VALUES = "".join(f'<Label value="{name}"/>' for name in NAMES)
CONFIG = f"""
<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="brush" toName="image">{_VALUES}</BrushLabels>
  <KeyPointLabels name="point" toName="image">{_VALUES}</KeyPointLabels>
</View>
"""


@dataclass(frozen=True, eq=False)
class Picture:
    """An image, places in its objects, and what the models alone answer to a click on each."""

    name: str
    pixels: Image
    spots: tuple[tuple[float, float], ...]  # xy pixels
    masks: tuple[Mask, ...]


@dataclass
class Tally:
    """Measurements. Threads may share it: each list is only appended to."""

    seconds: list[float] = field(default_factory=list)  # of each click
    rounds: list[float] = field(default_factory=list)  # of each whole batch
    predicted: list[int] = field(default_factory=list)  # tasks of the batch, as they were answered
    busy: list[int] = field(default_factory=list)  # answers of status 503
    lost: list[str] = field(default_factory=list)
    swapped: list[str] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)  # seconds and MB

    def figures(self) -> dict[str, Any]:
        later = np.array(self.memory[len(self.memory) // 4 :])
        slope = np.polyfit(later[:, 0], later[:, 1], 1)[0] if len(later) > 1 else 0.0
        return {
            "clicks": len(self.seconds),
            "click_ms_p50": _ms(self.seconds, 50),
            "click_ms_p95": _ms(self.seconds, 95),
            "click_ms_max": _ms(self.seconds, 100),
            "batch_tasks": sum(self.predicted),
            "batch_seconds": [round(seconds, 1) for seconds in self.rounds],
            "busy": len(self.busy),
            "lost": len(self.lost),
            "swapped": len(self.swapped),
            "rss_mb": round(self.memory[-1][1]) if self.memory else None,
            "rss_mb_per_minute": round(60 * float(slope), 2),
        }


def draw(model: VLSAM, folder: Path, count: int) -> list[Picture]:
    """Draw `count` pictures. No answer to a click on one is like an answer on another."""
    pictures: list[Picture] = []
    for seed in range(10 * count):
        scene = draw_scene(np.random.default_rng(seed), width=WIDTH, height=HEIGHT, count=4)
        large = sorted(scene.objects, key=lambda thing: -int(thing.visible.sum()))[:SPOTS]
        if len(large) < SPOTS or large[-1].visible.sum() < 400:
            continue
        middles = [innermost_pixel(thing.visible)[0] for thing in large]
        spots = tuple((column + 0.5, row + 0.5) for row, column in middles)
        embedding = model.encode(scene.image)
        masks = tuple(model.refine(embedding, Prompt.of((*spot, 1))).mask for spot in spots)
        others = [mask for picture in pictures for mask in picture.masks]
        if not all(mask.any() for mask in masks) or any(iou(a, b) > DISTINCT for a in masks for b in others):
            continue
        pictures.append(Picture(f"click-{seed}.png", scene.image, spots, masks))
        Pillow.fromarray(scene.image).save(folder / pictures[-1].name)
        if len(pictures) == count:
            return pictures
    raise ValueError("too few pictures are distinct")


def is_answer(region: dict[str, Any], picture: Picture, spot: int) -> bool:
    """Return whether a region is the models' own answer to a click on this spot of this picture."""
    mask = region_reading.decode(region, (HEIGHT, WIDTH))
    labelled = region["value"]["brushlabels"] == [NAMES[spot]]
    return labelled and mask is not None and iou(mask, picture.masks[spot]) >= ALIKE


@dataclass(frozen=True, eq=False)
class Load:
    """A running server and its clients, which send requests until `end`, of time.monotonic."""

    server: str
    files: str
    version: str
    think: float  # mean seconds between an answer and the next click
    end: float
    tally: Tally

    def annotator(self, number: int, pictures: Sequence[Picture]) -> None:
        """Open tasks and click on each spot of each, for another label."""
        chance = random.Random(number)
        task = number * 1_000_000
        while time.monotonic() < self.end:
            task += 1
            picture = chance.choice(pictures)
            for spot in range(SPOTS):
                time.sleep(chance.expovariate(1 / self.think) if self.think else 0)
                since = time.monotonic()
                found = self._ask([self._task(task, picture.name)], _click(picture, spot, f"{task}-{spot}"))
                self.tally.seconds.append(time.monotonic() - since)
                region = next(iter(found[0].get("result", [])), None) if found else None
                what = f"{picture.name}, spot {spot}"
                if region is None:
                    self.tally.lost.append(f"{what}: {found}")
                elif not is_answer(region, picture, spot):
                    self.tally.swapped.append(what)

    def batches(self, batch: Sequence["Expected"]) -> None:
        """Request a batch again and again; repeat the tasks that were not reached in time."""
        while time.monotonic() < self.end:
            since, left = time.monotonic(), list(batch)
            while left:
                found = self._ask([self._task(number, each.name) for number, each in enumerate(left)], None)
                if len(found) != len(left):
                    self.tally.lost.append(f"{len(left)} tasks had {len(found)} answers")
                    break
                done = [(each, item) for each, item in zip(left, found, strict=True) if item]
                self.tally.predicted.append(len(done))
                for each, item in done:
                    if not each.fits(item["result"], self.version):
                        self.tally.swapped.append(each.name)
                left = [each for each, item in zip(left, found, strict=True) if not item]
                if not done:
                    break
            self.tally.lost += [f"{each.name} was never predicted" for each in left]
            self.tally.rounds.append(time.monotonic() - since)

    def _task(self, number: int, name: str) -> dict[str, Any]:
        return {"id": number, "data": {"image": f"{self.files}/{name}"}}

    def _ask(self, tasks: list[dict[str, Any]], context: Any) -> list[Any]:
        """Return the results, or none if there is no proper answer. Retry while the server is busy."""
        params = {"context": context}
        body = {"tasks": tasks, "project": "1.1", "label_config": CONFIG, "params": params}
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.server}/predict", json.dumps(body).encode(), headers)
        while True:
            try:
                with urllib.request.urlopen(request, timeout=120) as answer:
                    return list(json.load(answer)["results"])
            except urllib.error.HTTPError as error:
                if error.code != 503:
                    return []
                self.tally.busy.append(1)
                time.sleep(0.5)
            except OSError:
                return []


@dataclass(frozen=True, eq=False)
class Expected:
    """A task of the batch, by its picture."""

    name: str
    content: str  # image_hash
    masks: tuple[tuple[str, Mask], ...] | None  # (term, mask) pairs, where they are compared

    def fits(self, regions: list[dict[str, Any]], version: str) -> bool:
        terms = [region["meta"]["vlsam"]["term"] for region in regions]
        ids = [
            results.prediction_id(self.content, version, "brush", term, terms[:number].count(term))
            for number, term in enumerate(terms)
        ]
        if ids != [region["id"] for region in regions]:
            return False
        if self.masks is None:
            return True
        found = [region_reading.decode(region, (HEIGHT, WIDTH)) for region in regions]
        return terms == [term for term, _ in self.masks] and all(
            mask is not None and iou(mask, own) >= ALIKE
            for mask, (_, own) in zip(found, self.masks, strict=True)
        )


def draw_batch(model: VLSAM, folder: Path, count: int) -> list[Expected]:
    expected = []
    for number in range(count):
        rng = np.random.default_rng(1_000_000 + number)
        image = draw_scene(rng, width=WIDTH, height=HEIGHT, count=3).image
        name = f"batch-{number}.png"
        Pillow.fromarray(image).save(folder / name)
        masks = None
        if number < COMPARED:
            named = labeling_config.parse(CONFIG).named
            masks = tuple((d.term, d.mask) for d in model.annotate(image) if named(d.term))
        expected.append(Expected(name, image_hash(image), masks))
    return expected


def measure(
    *, seconds: float, annotators: int, tasks: int, think: float, clicked: int = CLICKED
) -> dict[str, Any]:
    """Measure two phases of `seconds`: clicks alone, then clicks beside an endless batch."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _say("drawing")
        model = VLSAM.load(choose(), device="cpu")
        pictures, batch = draw(model, folder, clicked), draw_batch(model, folder, tasks)
        del model
        figures: dict[str, Any] = {
            "seconds": seconds,
            "annotators": annotators,
            "tasks": tasks,
            "think": think,
        }
        problems: list[str] = []
        with _files(folder) as files, _server(folder) as (server, pid):
            version = _get(f"{server}/health")["model_version"]
            for phase in ("clicks", "clicks_beside_batch"):
                tally = Tally()
                load = Load(server, files, version, think, time.monotonic() + seconds, tally)
                with ThreadPoolExecutor(annotators + 2) as pool:
                    begun = [pool.submit(load.annotator, n, pictures) for n in range(annotators)]
                    if phase != "clicks":
                        begun.append(pool.submit(load.batches, batch))
                    watch = pool.submit(_watch, pid, load, phase)
                    for each in [*begun, watch]:
                        each.result()
                figures[phase] = tally.figures()
                problems += tally.lost + tally.swapped
                _say(f"{phase}: {figures[phase]}")
        for problem in problems[:20]:
            _say(problem)
        return figures


def _click(picture: Picture, spot: int, prompt: str) -> dict[str, Any]:
    x, y = picture.spots[spot]
    value = {"x": 100 * x / WIDTH, "y": 100 * y / HEIGHT, "width": 0.2, "keypointlabels": [NAMES[spot]]}
    point = {"id": prompt, "from_name": "point", "to_name": "image", "type": "keypointlabels", "value": value}
    return {"result": [{**point, "is_positive": True}]}


def _watch(pid: int, load: Load, phase: str) -> None:
    """Record the server's memory each second."""
    begun = time.monotonic()
    while (now := time.monotonic()) < load.end:
        load.tally.memory.append((now - begun, resident_mb(pid)))
        if len(load.tally.memory) % 15 == 0:
            done = f"{len(load.tally.seconds)} clicks, {sum(load.tally.predicted)} tasks"
            _say(f"{phase}: {now - begun:.0f} s, {done}, {load.tally.memory[-1][1]:.0f} MB")
        time.sleep(1)


def resident_mb(pid: int) -> float:
    """Return the resident memory of a process, in MB. Needs Linux."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@contextmanager
def _files(folder: Path) -> Iterator[str]:
    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextmanager
def _server(folder: Path) -> Iterator[tuple[str, int]]:
    """Start `vlsam serve`; yield its address and the id of its process."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "backend.commands.cli",
        "serve",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    set_to = {"VLSAM_ALLOWED_HOSTS": "127.0.0.1", "VLSAM_CACHE_MB": str(CACHE_MB), "VLSAM_DEVICE": "cpu"}
    log = folder / "log.txt"
    with log.open("wb") as file:
        process = subprocess.Popen(command, env={**os.environ, **set_to}, stdout=file, stderr=file)
    url = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 120
        while _get(f"{url}/health").get("model") != "ready":
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the server does not start: {log.read_text('utf-8')[-2000:]}")
            time.sleep(0.3)
        (worker,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        yield url, int(worker)
    finally:
        process.terminate()
        process.wait(60)


def _get(url: str) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return dict(json.load(answer))
    except OSError:
        return {}


def _ms(seconds: Sequence[float], percent: int) -> float | None:
    return round(1000 * float(np.percentile(seconds, percent)), 1) if seconds else None


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=180, help="of each of the two phases (default: 180)")
    parser.add_argument("--annotators", type=int, default=8, help="who click at a time (default: 8)")
    parser.add_argument("--tasks", type=int, default=200, help="of the batch (default: 200)")
    parser.add_argument(
        "--think", type=float, default=1.0, help="mean seconds before each click, at random (default: 1)"
    )
    figures = measure(**vars(parser.parse_args()))
    print(json.dumps(figures))
    phases = (figures["clicks"], figures["clicks_beside_batch"])
    return int(any(phase["lost"] or phase["swapped"] or not phase["clicks"] for phase in phases))


if __name__ == "__main__":
    sys.exit(main())
