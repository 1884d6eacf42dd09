"""Measure a click over HTTP against the bare models: `vlsam bench click`.

Server, client and file server run in this process. The bare calls run in the queue's own thread between the
clicks, so both have the same cores and caches. A stopwatch around the functions of a stage takes its time
during real clicks.
"""

import contextlib
import json
import logging
import statistics
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial, wraps
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import cv2
import numpy as np
import torch
from PIL import Image as Pillow
from safetensors.torch import save_file
from segment_anything import sam_model_registry
from tqdm import tqdm
from werkzeug.serving import make_server

from backend.answers import click_target, task_image
from backend.answers.resources import PROCESS, Resources
from backend.images import fetch, image_cache
from backend.labelstudio import labeling_config, region_meta, results
from backend.runtime.job_queue import CLICK
from backend.settings import AnswerSettings, ImageSettings, Settings
from backend.web import app
from model import image_decoding, pipeline
from model.builtin.scenes import draw_scene
from model.deadline import NEVER
from model.pipeline import VLSAM
from model.profiles import BUILTIN, choose
from model.segmentation.embedding import Embedding
from model.segmentation.segmenter import Levels, Segmenter
from model.types import Detection, Evidence, Image, Prompt
from model.versions import version_of
from model.vlm.vlm import VLM

T = TypeVar("T")

CLICKS = 20  # on two images in turn
HOUR = 3600.0
RATIOS = (
    "server_over_decoder",
    "cold_over_encoder",
    "encodes_per_image",
    "objects20_over_1",
    "regions30_over_0",
)
REGIONS = 30

# Each click has a label of its own, so that it starts a new object instead of correcting the last one.
LABELS = tuple(f"Object {number}" for number in range(CLICKS))
_VALUES = "".join(f'<Label value="{label}"/>' for label in LABELS)
CONFIG = f"""
<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="brush" toName="image">{_VALUES}</BrushLabels>
  <KeyPointLabels name="point" toName="image" smart="true">{_VALUES}</KeyPointLabels>
</View>
"""

# Functions of each stage of a click. Of nested functions each counts its own time only.
STAGES: dict[str, tuple[tuple[Any, str], ...]] = {
    "parse": ((app, "_body"), (app, "parse_body"), (labeling_config, "parse"), (click_target, "read")),
    "look up": ((task_image, "load"),),
    "fetch": ((fetch.Fetcher, "fetch"),),
    "decode file": ((fetch, "decode"),),
    "hash pixels": ((image_cache, "image_hash"),),
    "encode": ((Segmenter, "encode"),),
    "decode": ((Segmenter, "decode"),),
    "upsample": ((Levels, "__getitem__"),),
    "obey": ((pipeline, "refine_by_clicks"),),
    "encode mask": ((results, "region"),),
    "evidence": ((region_meta, "write"),),
    "json": ((app, "jsonify"),),
}


class Stopwatch:
    """Seconds and calls of each stage, for one click at a time, in any threads."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()
        self._inner: list[float] = []  # seconds of nested functions, for each function on the stack

    @contextmanager
    def running(self) -> Iterator["Stopwatch"]:
        with contextlib.ExitStack() as stack:
            for stage, places in STAGES.items():
                for owner, name in places:
                    stack.enter_context(
                        mock.patch.object(owner, name, self._around(stage, getattr(owner, name)))
                    )
            yield self

    def _around(self, stage: str, function: Callable[..., T]) -> Callable[..., T]:
        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> T:
            self._inner.append(0.0)
            since = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                took = time.perf_counter() - since
                self.seconds[stage] += took - self._inner.pop()
                self.calls[stage] += 1
                if self._inner:
                    self._inner[-1] += took

        return timed


@dataclass(frozen=True, eq=False)
class Picture:
    """An image file, and points on its objects."""

    name: str
    file: bytes
    pixels: Image
    points: tuple[tuple[float, float], ...]  # xy pixels

    @classmethod
    def draw(cls, seed: int, megapixels: float) -> "Picture":
        rng = np.random.default_rng(seed)
        scene = draw_scene(rng, width=640, height=480, count=6)
        width = round((megapixels * 1e6 * 4 / 3) ** 0.5)
        size, scale = (width, width * 3 // 4), width / 640
        written = BytesIO()
        Pillow.fromarray(cv2.resize(scene.image, size, interpolation=cv2.INTER_CUBIC)).save(
            written, "JPEG", quality=92
        )
        points = []
        for number in range(CLICKS):
            ys, xs = np.nonzero(scene.objects[number % len(scene.objects)].visible)
            at = rng.integers(len(ys))
            points.append(((float(xs[at]) + 0.5) * scale, (float(ys[at]) + 0.5) * scale))
        file = written.getvalue()
        return cls(
            f"{megapixels:g}-{seed}.jpg", file, image_decoding.decode(file, max_pixels=10**9), tuple(points)
        )


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Predicted regions with outlines like hair or leaves, none at the points of the picture."""

    regions: tuple[dict[str, Any], ...]  # with the number of an item of run_lengths as its rle
    run_lengths: tuple[str, ...]  # JSON

    @classmethod
    def draw(cls, picture: Picture) -> "Neighbours":
        rng = np.random.default_rng(len(picture.file))
        height, width = picture.pixels.shape[:2]
        (control,) = labeling_config.parse(CONFIG).outputs
        radius, made, run_lengths = width / 8, [], []
        for number in range(REGIONS):
            x, y = rng.uniform(0.1, 0.9, 2) * (width, height)
            mask = np.zeros((height, width), bool)
            left, top = (max(0, int(side - 2 * radius)) for side in (x, y))
            window = mask[top : int(y + 2 * radius), left : int(x + 2 * radius)]
            rows, columns = np.mgrid[: window.shape[0], : window.shape[1]]
            rough = rng.standard_normal((window.shape[0] // 8 + 1, window.shape[1] // 8 + 1), np.float32)
            rough = cv2.resize(rough, window.shape[::-1])
            window[:] = np.hypot(columns + left - x, rows + top - y) + radius / 4 * rough < radius
            for px, py in picture.points:
                mask[max(0, int(py) - 5) : int(py) + 6, max(0, int(px) - 5) : int(px) + 6] = False
            (made_of,) = results.region(
                mask, control=control, labels=LABELS[:1], region_id=f"region {number}", score=0.5
            )
            prompt = Prompt.of((x, y, 1))
            view = (0.0, 0.0, float(width), float(height))
            found = Detection("object", mask, 0.5, Evidence("", view, prompt, {}, "bench"))
            run_lengths.append(json.dumps(made_of["value"]["rle"]))
            value = {**made_of["value"], "rle": f"run lengths {number}"}
            made.append({**made_of, "value": value, "meta": region_meta.write(found, made_of)})
        return cls(tuple(made), tuple(run_lengths))

    def beside(self, asked: dict[str, Any], label: str) -> str:
        """Return the JSON of a request whose task has these regions, all with the label of the click."""
        regions = [{**made, "value": {**made["value"], "brushlabels": [label]}} for made in self.regions]
        (task,) = asked["tasks"]
        body = json.dumps({**asked, "tasks": [{**task, "predictions": [{"id": 1, "result": regions}]}]})
        for number, written in enumerate(self.run_lengths):
            body = body.replace(f'"run lengths {number}"', written)
        return body


@dataclass
class Times:
    """Seconds of one model on images of one size."""

    cold: list[float] = field(default_factory=list)
    encoder: list[float] = field(default_factory=list)
    warm: list[float] = field(default_factory=list)
    decoder: list[float] = field(default_factory=list)
    one: list[float] = field(default_factory=list)
    many: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    first_beside: list[float] = field(default_factory=list)
    cold_stages: list[Mapping[str, float]] = field(default_factory=list)
    warm_stages: list[Mapping[str, float]] = field(default_factory=list)
    encodes: int = 0
    decodes: int = 0

    def row(self, name: str, megapixels: float, size: tuple[int, int]) -> dict[str, Any]:
        p50 = statistics.median
        return {
            "model": name,
            "megapixels": megapixels,
            "size": list(size),
            "server_over_decoder": round(p50(self.warm) / p50(self.decoder), 3),
            "cold_over_encoder": round(p50(self.cold) / p50(self.encoder), 3),
            "encodes_per_image": self.encodes / len(self.cold),
            "objects20_over_1": round(p50(self.many) / p50(self.one), 2),
            "regions30_over_0": round(p50(self.beside) / p50(self.warm), 2),
            "decodes_per_click": self.decodes / len(self.warm),
            "ms": {
                "click": _ms(self.warm),
                "decoder": _ms(self.decoder),
                "first click": _ms(self.cold),
                "encoder": _ms(self.encoder),
                "20 objects": _ms(self.many),
                "1 object": _ms(self.one),
                "30 regions": _ms(self.beside),
                "30 regions, first click": _ms(self.first_beside),
            },
            "click_ms": _split(self.warm, self.warm_stages),
            "first_click_ms": _split(self.cold, self.cold_stages),
        }


def _ms(seconds: Sequence[float]) -> float:
    return round(1000 * statistics.median(seconds), 2)


def _split(totals: Sequence[float], stages: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the median milliseconds of each stage, and of the rest: HTTP, threads, the queue."""
    rest = [total - sum(stage.values()) for total, stage in zip(totals, stages, strict=True)]
    split = {name: _ms([stage.get(name, 0.0) for stage in stages]) for name in STAGES}
    return {**{name: took for name, took in split.items() if took}, "rest": _ms(rest)}


def measure(
    models: Sequence[str], megapixels: Sequence[float], *, cold: int, repeats: int, device: str
) -> dict[str, Any]:
    """Return all figures. Those of the last model at 2 megapixels, or else at its last size, come first.

    Args:
        models: "builtin", "vit_b" (random weights at the published size) or a value of VLSAM_SAM.
        megapixels: sizes of images.
        cold: images of each size, at least 2.
        repeats: calls of the decoder with 20 prompts.
        device: device of the models.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in models:
            sam = {"builtin": str(BUILTIN / "segmenter"), "vit_b": ""}.get(name, name)
            with _Bench(sam or str(random_vit_b(Path(folder))), device) as bench:
                bench.click(Picture.draw(cold, 0.1), 0)  # the first call loads libraries and starts threads
                rows += [
                    _row(bench, name, size, cold, repeats)
                    for size in tqdm(megapixels, desc=f"bench click, {name}", unit="size", disable=None)
                ]
                where = str(bench.segmenter.device)
    last = [row for row in rows if row["model"] == models[-1]]
    shown = next((row for row in last if row["megapixels"] == 2), last[-1])
    return {
        **{key: shown[key] for key in RATIOS},
        "model": shown["model"],
        "megapixels": shown["megapixels"],
        "device": where,
        "threads": torch.get_num_threads(),
        "clicks": CLICKS,
        "cold": cold,
        "repeats": repeats,
        "rows": rows,
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows and the stages of a click as Markdown tables."""
    stages = [s for s in (*STAGES, "rest") if any(s in row["click_ms"] for row in rows)]
    heads = ["model", "megapixels", *RATIOS, "click, ms", *stages]
    lines = [" | ".join(heads), " | ".join("---" for _ in heads)]
    for row in rows:
        split = [f"{row['click_ms'].get(stage, 0):.1f}" for stage in stages]
        cells = [row["model"], row["megapixels"], *(row[key] for key in RATIOS), row["ms"]["click"], *split]
        lines.append(" | ".join(str(cell) for cell in cells))
    return "\n".join(f"| {line} |" for line in lines)


def random_vit_b(folder: Path) -> Path:
    """Write a checkpoint of SAM ViT-B at its published size, with random weights."""
    torch.manual_seed(0)
    save_file(sam_model_registry["vit_b"]().state_dict(), folder / "random_vit_b.safetensors")
    return folder / "random_vit_b.safetensors"


def _row(bench: "_Bench", name: str, megapixels: float, cold: int, repeats: int) -> dict[str, Any]:
    times = Times()
    drawn = [Picture.draw(seed, megapixels) for seed in range(cold)]
    embeddings: list[Embedding] = []
    for picture in drawn:
        seconds, watch = bench.click(picture, 0)
        times.cold.append(seconds)
        times.cold_stages.append(watch.seconds)
        times.encodes += watch.calls["encode"]
        seconds, embedding = bench.bare(partial(bench.segmenter.encode, picture.pixels))
        times.encoder.append(seconds)
        embeddings.append(embedding)
    beside = [Neighbours.draw(picture) for picture in drawn[:2]]
    for number in range(CLICKS):
        picture, embedding = drawn[number % 2], embeddings[number % 2]
        seconds, watch = bench.click(picture, number)
        times.warm.append(seconds)
        times.warm_stages.append(watch.seconds)
        times.encodes += watch.calls["encode"]
        times.decodes += watch.calls["decode"]
        seconds, _ = bench.click(picture, number, beside[number % 2])
        (times.beside if number >= 2 else times.first_beside).append(seconds)
        prompts = [Prompt.of((*picture.points[number], 1))]
        times.decoder.append(bench.decode(embedding, prompts))
    prompts = [Prompt.of((*point, 1)) for point in drawn[0].points]
    for number in range(repeats):
        times.many.append(bench.decode(embeddings[0], prompts))
        times.one += [bench.decode(embeddings[0], [prompts[(number + i) % CLICKS]]) for i in range(3)]
    height, width, _ = drawn[0].pixels.shape
    return times.row(name, megapixels, (width, height))


class _Bench(AbstractContextManager["_Bench"]):
    """A server with one segmenter, a file server, and a client."""

    def __init__(self, sam: str, device: str) -> None:
        profile = choose(sam=sam)
        self.segmenter = Segmenter.load(sam, device=device)
        version = version_of(profile)
        vlm = VLM.load(profile.vlm, device=device)
        settings = Settings(
            answers=AnswerSettings(deadline=HOUR), images=ImageSettings(allowed_hosts=(("127.0.0.1", None),))
        )
        self._resources = Resources(
            lambda: VLSAM(vlm, self.segmenter, version=version), settings, version=version
        )
        self._files: dict[str, bytes] = {}

    def __enter__(self) -> "_Bench":
        logging.getLogger("werkzeug").setLevel(logging.WARNING)
        self._server = make_server("127.0.0.1", 0, app.create_app(resources=self._resources), threaded=True)
        self._source = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self._files))
        for server in (self._server, self._source):
            threading.Thread(target=server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in (self._server, self._source):
            server.shutdown()
            server.server_close()
        PROCESS.install(None)

    def click(
        self, picture: Picture, number: int, beside: "Neighbours | None" = None
    ) -> tuple[float, Stopwatch]:
        """Click on the picture's point of that number. Return the seconds from request to last byte."""
        self._files[f"/{picture.name}"] = picture.file
        request = self._request(picture, number)
        body = (beside.beside(request, LABELS[number]) if beside else json.dumps(request)).encode()
        with Stopwatch().running() as watch:
            since = time.perf_counter()
            connection = HTTPConnection("127.0.0.1", self._server.server_port, timeout=HOUR)
            connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = response.read()
            seconds = time.perf_counter() - since
            connection.close()
        if response.status != 200 or len(json.loads(answer)["results"][0]["result"]) != 1:
            raise RuntimeError(f"a click was answered with {answer[:200]!r}")
        return seconds, watch

    def _request(self, picture: Picture, number: int) -> dict[str, Any]:
        height, width = picture.pixels.shape[:2]
        x, y = picture.points[number]
        click = {
            "id": f"{picture.name} {number}", "type": "keypointlabels", "origin": "manual",
            "from_name": "point", "to_name": "image", "is_positive": True,
            "original_width": width, "original_height": height, "image_rotation": 0,
            "value": {
                "x": 100 * x / width, "y": 100 * y / height, "width": 0.2,
                "keypointlabels": [LABELS[number]],
            },
        }  # fmt: skip
        url = f"http://127.0.0.1:{self._source.server_port}/{picture.name}"
        seen = {
            "id": picture.name,
            "data": {"image": url},
            "drafts": [],
            "annotations": [],
            "predictions": [],
        }
        return {
            "tasks": [seen],
            "project": "1.1",
            "label_config": CONFIG,
            "params": {"login": None, "password": None, "context": {"result": [click]}},
        }

    def decode(self, embedding: Embedding, prompts: Sequence[Prompt]) -> float:
        return self.bare(lambda: self.segmenter.decode(embedding, prompts, multimask=True))[0]

    def bare(self, work: Callable[[], T]) -> tuple[float, T]:
        """Return the seconds of `work` in the thread that answers clicks, and its result."""

        def timed(_: object) -> tuple[float, T]:
            since = time.perf_counter()
            made = work()
            if self.segmenter.device.type == "cuda":
                torch.cuda.synchronize()
            return time.perf_counter() - since, made

        return self._resources.queue.run(timed, priority=CLICK, deadline=NEVER)


def _handler(files: dict[str, bytes]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(files[self.path])))
            self.end_headers()
            self.wfile.write(files[self.path])

        def log_message(self, *_: Any) -> None:
            pass

    return Handler
