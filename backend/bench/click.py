"""Measure a click over HTTP against the bare models: `vlsam bench click`.

Server, client and file server run in this process. The bare calls run in the queue's own thread between the
clicks, so both have the same cores and caches. A stopwatch measures the functions of each stage during real
clicks.
"""

import json
import logging
import statistics
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from PIL import Image as Pillow
from safetensors.torch import save_file
from segment_anything import sam_model_registry
from tqdm import tqdm
from werkzeug import Request, Response
from werkzeug.serving import make_server

from backend.answers import click_target, task_image
from backend.answers.placement import Place, describe
from backend.answers.resources import PROCESS, Resources
from backend.bench.stopwatch import Stopwatch
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
from model.types import Detection, Evidence, Image, Mask, Prompt
from model.versions import version_of
from model.vlm.vlm import VLM

T = TypeVar("T")

CLICKS = 20  # on two images in turn
HOUR = 3600.0
RATIOS = (
    "server_over_decoder", "cold_over_encoder", "encodes_per_image", "objects20_over_1", "regions30_over_0",
)  # fmt: skip
REGIONS = 30

# Each click has a label of its own, so that it starts a new object instead of correcting the last one.
LABELS = tuple(f"Object {number}" for number in range(CLICKS))

# Functions of each stage of a click.
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
        resized = cv2.resize(scene.image, size, interpolation=cv2.INTER_CUBIC)
        Pillow.fromarray(resized).save(written, "JPEG", quality=92)
        points = []
        for number in range(CLICKS):
            ys, xs = np.nonzero(scene.objects[number % len(scene.objects)].visible)
            at = rng.integers(len(ys))
            points.append(((float(xs[at]) + 0.5) * scale, (float(ys[at]) + 0.5) * scale))
        file = written.getvalue()
        pixels = image_decoding.decode(file, max_pixels=10**9)
        return cls(f"{megapixels:g}-{seed}.jpg", file, pixels, tuple(points))


def neighbours(picture: Picture) -> list[dict[str, Any]]:
    """Return predicted regions with outlines like hair or leaves. None covers a point of the picture."""
    rng = np.random.default_rng(len(picture.file))
    height, width = picture.pixels.shape[:2]
    radius, regions = width / 8, []
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
        regions.append(predicted_region(mask, Prompt.of((x, y, 1)), LABELS[0], f"region {number}"))
    return regions


def labeling_config_of(labels: Sequence[str]) -> str:
    """Return a labeling config (XML) with a brush and a keypoint tool for these labels."""
    values = "".join(f'<Label value="{label}"/>' for label in labels)
    return f"""
<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="brush" toName="image">{values}</BrushLabels>
  <KeyPointLabels name="point" toName="image" smart="true">{values}</KeyPointLabels>
</View>
"""


def predicted_region(mask: Mask, prompt: Prompt, label: str, region_id: str) -> dict[str, Any]:
    """Return Label Studio's JSON of a predicted brush region, with `prompt` as its evidence."""
    height, width = mask.shape
    evidence = Evidence("What is there?", (0.0, 0.0, float(width), float(height)), prompt, {}, "bench")
    (control,) = labeling_config.parse(labeling_config_of([label])).outputs
    (region,) = describe(Detection("object", mask, 0.5, evidence), Place(control, (label,), region_id))
    return region


def click_of(
    x: float, y: float, shape: tuple[int, ...], label: str, click_id: str, *, positive: bool = True
) -> dict[str, Any]:
    """Return Label Studio's JSON of a click at pixel x, y. `shape` is the image's (height, width, ...)."""
    height, width = shape[:2]
    value = {"x": 100 * x / width, "y": 100 * y / height, "width": 0.2, "keypointlabels": [label]}
    return {
        "id": click_id, "type": "keypointlabels", "from_name": "point", "to_name": "image",
        "origin": "manual", "is_positive": positive, "value": value,
        "original_width": width, "original_height": height, "image_rotation": 0,
    }  # fmt: skip


def _ms(seconds: Sequence[float]) -> float:
    return round(1000 * statistics.median(seconds), 2)


def _split(totals: Sequence[float], stages: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the median milliseconds of each stage, and of "rest": the total less all stages."""
    rest = [total - sum(stage.values()) for total, stage in zip(totals, stages, strict=True)]
    split = {name: _ms([stage.get(name, 0.0) for stage in stages]) for name in STAGES}
    return {**{name: took for name, took in split.items() if took}, "rest": _ms(rest)}


def measure(
    models: Sequence[str], megapixels: Sequence[float], *, cold: int, repeats: int, device: str
) -> dict[str, Any]:
    """Measure each model at each image size. Return the figures in `rows`, and the ratios of one row.

    That row is the last model's at 2 megapixels, or else at its last size.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in models:
            sam = {"builtin": str(BUILTIN / "segmenter"), "vit_b": ""}.get(name, name)
            with closing(_Bench(sam or str(random_vit_b(Path(folder))), device)) as bench:
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
    """Return a Markdown table of the rows, with the milliseconds of each stage of a click."""
    stages = [s for s in (*STAGES, "rest") if any(s in row["click_ms"] for row in rows)]
    columns = ("model", "megapixels", *RATIOS)
    lines = [[*columns, "click, ms", *stages]]
    for row in rows:
        split = [f"{row['click_ms'].get(stage, 0):.1f}" for stage in stages]
        lines.append([*(row[key] for key in columns), row["ms"]["click"], *split])
    return markdown(lines)


def markdown(lines: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table of lines of cells. The first line is the header."""
    heads, *rows = lines
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in (heads, ["---"] * len(heads), *rows))


def random_vit_b(folder: Path) -> Path:
    """Write a checkpoint of SAM ViT-B at its published size, with random weights."""
    torch.manual_seed(0)
    save_file(sam_model_registry["vit_b"]().state_dict(), folder / "random_vit_b.safetensors")
    return folder / "random_vit_b.safetensors"


def _row(bench: "_Bench", name: str, megapixels: float, cold: int, repeats: int) -> dict[str, Any]:
    seconds: dict[str, list[float]] = defaultdict(list)
    stages: dict[str, list[Mapping[str, float]]] = {"click": [], "first click": []}
    calls: Counter[str] = Counter()

    def click(picture: Picture, number: int, kind: str) -> None:
        took, watch = bench.click(picture, number)
        seconds[kind].append(took)
        stages[kind].append(watch.seconds)
        calls["encode"] += watch.calls["encode"]
        calls[f"decode, {kind}"] += watch.calls["decode"]

    drawn = [Picture.draw(seed, megapixels) for seed in range(cold)]
    embeddings: list[Embedding] = []
    for picture in drawn:
        click(picture, 0, "first click")
        took, embedding = bench.bare(partial(bench.segmenter.encode, picture.pixels))
        seconds["encoder"].append(took)
        embeddings.append(embedding)
    beside = [neighbours(picture) for picture in drawn[:2]]
    for number in range(CLICKS):
        picture = drawn[number % 2]
        click(picture, number, "click")
        took, _ = bench.click(picture, number, beside[number % 2])
        seconds["30 regions" if number >= 2 else "30 regions, first click"].append(took)
        prompts = [Prompt.of((*picture.points[number], 1))]
        seconds["decoder"].append(bench.decode(embeddings[number % 2], prompts))
    prompts = [Prompt.of((*point, 1)) for point in drawn[0].points]
    for number in range(repeats):
        seconds["20 objects"].append(bench.decode(embeddings[0], prompts))
        seconds["1 object"] += [
            bench.decode(embeddings[0], [prompts[(number + i) % CLICKS]]) for i in range(3)
        ]

    def ratio(over: str, under: str, digits: int) -> float:
        return round(statistics.median(seconds[over]) / statistics.median(seconds[under]), digits)

    height, width, _ = drawn[0].pixels.shape
    return {
        "model": name,
        "megapixels": megapixels,
        "size": [width, height],
        "server_over_decoder": ratio("click", "decoder", 3),
        "cold_over_encoder": ratio("first click", "encoder", 3),
        "encodes_per_image": calls["encode"] / cold,
        "objects20_over_1": ratio("20 objects", "1 object", 2),
        "regions30_over_0": ratio("30 regions", "click", 2),
        "decodes_per_click": calls["decode, click"] / CLICKS,
        "ms": {kind: _ms(values) for kind, values in seconds.items()},
        "click_ms": _split(seconds["click"], stages["click"]),
        "first_click_ms": _split(seconds["first click"], stages["first click"]),
    }


class _Bench:
    """A server with one segmenter, a file server, and a client. `close` ends the servers."""

    def __init__(self, sam: str, device: str) -> None:
        profile = choose(sam=sam)
        self.segmenter = Segmenter.load(sam, device=device)
        version = version_of(profile)
        vlm = VLM.load(profile.vlm, device=device)
        images = ImageSettings(allowed_hosts=(("127.0.0.1", None),))
        settings = Settings(answers=AnswerSettings(deadline=HOUR), images=images)
        model = VLSAM(vlm, self.segmenter, version=version)
        self._resources = Resources(lambda: model, settings, version=version)
        self._files: dict[str, bytes] = {}
        logging.getLogger("werkzeug").setLevel(logging.WARNING)
        self._server = make_server("127.0.0.1", 0, app.create_app(resources=self._resources), threaded=True)
        files = Request.application(lambda request: Response(self._files[request.path]))
        self._source = make_server("127.0.0.1", 0, files, threaded=True)
        for server in (self._server, self._source):
            threading.Thread(target=server.serve_forever, daemon=True).start()

    def close(self) -> None:
        for server in (self._server, self._source):
            server.shutdown()
            server.server_close()
        PROCESS.install(None)

    def click(
        self, picture: Picture, number: int, beside: Sequence[dict[str, Any]] = ()
    ) -> tuple[float, Stopwatch]:
        """Click on point `number` of the picture. Return the seconds to the last byte, and of each stage."""
        self._files[f"/{picture.name}"] = picture.file
        body = json.dumps(self._request(picture, number, beside)).encode()
        with Stopwatch().running(STAGES) as watch:
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

    def _request(self, picture: Picture, number: int, beside: Sequence[dict[str, Any]]) -> dict[str, Any]:
        label = LABELS[number]
        click = click_of(*picture.points[number], picture.pixels.shape, label, f"{picture.name} {number}")
        regions = [{**region, "value": {**region["value"], "brushlabels": [label]}} for region in beside]
        task = {
            "id": picture.name,
            "data": {"image": f"http://127.0.0.1:{self._source.server_port}/{picture.name}"},
            "drafts": [],
            "annotations": [],
            "predictions": [{"id": 1, "result": regions}] if regions else [],
        }
        return {
            "tasks": [task],
            "project": "1.1",
            "label_config": labeling_config_of(LABELS),
            "params": {"login": None, "password": None, "context": {"result": [click]}},
        }

    def decode(self, embedding: Embedding, prompts: Sequence[Prompt]) -> float:
        return self.bare(lambda: self.segmenter.decode(embedding, prompts, multimask=True))[0]

    def bare(self, work: Callable[[], T]) -> tuple[float, T]:
        """Run `work` in the thread that answers clicks. Return its seconds and its result."""

        def timed(_: object) -> tuple[float, T]:
            since = time.perf_counter()
            made = work()
            if self.segmenter.device.type == "cuda":
                torch.cuda.synchronize()
            return time.perf_counter() - since, made

        return self._resources.queue.run(timed, priority=CLICK, deadline=NEVER)
