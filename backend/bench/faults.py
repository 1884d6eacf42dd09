"""Count the clicks that correct a faulty mask, answered by the server's own code: `vlsam bench noc --faults`.

A fault is a region in a task. A simulated person clicks the middle of the largest error, in requests like
Label Studio's. So the measurement includes how a click finds its region, and the region's geometry and
evidence in JSON.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image as Pillow
from tqdm import tqdm

from backend.answers.ml_backend import VLSAMBackend
from backend.answers.resources import Resources
from backend.bench.click import click_of, labeling_config_of, markdown, predicted_region
from backend.labelstudio import region_reading
from backend.settings import AnswerSettings, ImageSettings, Settings
from model.bench.noc import Sample
from model.builtin.measure import corrective_click
from model.pipeline import VLSAM
from model.profiles import choose
from model.segmentation.mask_cleanup import innermost_pixel
from model.segmentation.non_maximum_suppression import iou
from model.segmentation.segmenter import Segmenter
from model.types import Image, Mask, Prompt, box_of
from model.vlm.vlm import VLM

CAP = 10  # clicks on a region before it counts as failed
GOAL = 0.85  # IoU
TOUCHED = 0.1  # share of another object that a mask must newly cover to touch it
WORST = 5  # cases that are printed for each kind
LEAST = 0.25  # of the object's area: a fault that adds less leaves the mask good
LABEL = "Object"
_REGION = "region of a fault"

Fault = Callable[[np.random.Generator, Mask, Sequence[Mask]], Mask | None]


def _two_objects(rng: np.random.Generator, truth: Mask, others: Sequence[Mask]) -> Mask | None:
    """Return the object and its nearest neighbour as one mask, or None if there is no neighbour."""
    return truth | others[0] if others else None


def _missed_part(rng: np.random.Generator, truth: Mask, others: Sequence[Mask]) -> Mask | None:
    """Return the part of the object on one side of a random line, 55 to 75 % of its area."""
    rows, columns = np.nonzero(truth)
    angle = rng.uniform(0, 2 * np.pi)
    along = rows * np.sin(angle) + columns * np.cos(angle)
    mask = np.zeros_like(truth)
    inside = along <= np.quantile(along, rng.uniform(0.55, 0.75))
    mask[rows[inside], columns[inside]] = True
    return mask


def _on_a_neighbour(rng: np.random.Generator, truth: Mask, others: Sequence[Mask]) -> Mask | None:
    """Return the mask of the nearest neighbour, or None if there is no neighbour."""
    return others[0] if others else None


def _into_a_neighbour(rng: np.random.Generator, truth: Mask, others: Sequence[Mask]) -> Mask | None:
    """Return the object and the nearer half of its nearest neighbour, or None if there is none."""
    if not others:
        return None
    distance = _distance(truth)
    return truth | (others[0] & (distance <= np.median(distance[others[0]])))


def _bite(rng: np.random.Generator, truth: Mask, others: Sequence[Mask]) -> Mask | None:
    """Return the object without the quarter of its area that is nearest to a random pixel of its edge."""
    distance = _distance(_spot_on_edge(rng, truth))
    return np.asarray(truth & (distance > np.quantile(distance[truth], 0.25)))


def _spill(rng: np.random.Generator, truth: Mask, others: Sequence[Mask]) -> Mask | None:
    """Return the object and a disc around a random pixel of its edge, which adds a third of its area."""
    distance = _distance(_spot_on_edge(rng, truth))
    outside = np.sort(distance[~truth])
    return np.asarray(truth | (distance <= outside[min(len(outside), np.count_nonzero(truth) // 3) - 1]))


KINDS: Mapping[str, Fault] = {
    "two objects": _two_objects,
    "missed part": _missed_part,
    "on a neighbour": _on_a_neighbour,
    "into a neighbour": _into_a_neighbour,
    "bite": _bite,
    "spill": _spill,
    "another object": _on_a_neighbour,  # no fault: a click on the object starts a new region
}


def _distance(area: Mask) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the distance of each pixel to the area, in pixels: (H, W), 0 inside."""
    return np.asarray(cv2.distanceTransform((~area).view(np.uint8), cv2.DIST_L2, 5))


def _spot_on_edge(rng: np.random.Generator, truth: Mask) -> Mask:
    edge = np.argwhere(truth & (cv2.erode(truth.view(np.uint8), np.ones((3, 3), np.uint8)) == 0))
    spot = np.zeros_like(truth)
    spot[tuple(rng.choice(edge))] = True
    return spot


@dataclass(frozen=True, eq=False)
class Case:
    name: str  # image and object, to find the case again
    kind: str
    picture: str  # file name
    truth: Mask
    others: tuple[Mask, ...]  # the image's other objects, the nearest first
    mask: Mask  # the faulty one
    # The region is a prediction with evidence, else a person's brush without.
    predicted: bool
    # Each answer is saved before the next click, else all clicks are sent and none is saved.
    saved: bool


@dataclass
class Session:
    case: Case
    reached: list[float] = field(default_factory=list)  # IoU after each click
    touched: bool = False  # a click's answer covers a part of a further object
    strayed: bool = False  # an answer changed another region than the clicked one

    @property
    def clicks(self) -> int:
        return next((number for number, value in enumerate(self.reached, 1) if value >= GOAL), CAP)

    @property
    def corrected(self) -> bool:
        return bool(self.reached) and max(self.reached) >= GOAL


def cases(samples: Iterable[tuple[str, Sample]], seed: int) -> Iterator[tuple[str, Image, list[Case]]]:
    """Yield each image's name, pixels and cases: each object with each kind of fault that applies to it."""
    rng = np.random.default_rng(seed)
    number = 0
    for picture, sample in samples:
        applicable = []
        for index, truth in enumerate(sample.objects):
            distance = _distance(truth)
            others = sorted(
                (other for i, other in enumerate(sample.objects) if i != index),
                key=lambda other: float(distance[other].min()),
            )
            for kind, fault in KINDS.items():
                mask = fault(rng, truth, others)
                least = 0.0 if kind == "another object" else LEAST
                if mask is None or np.count_nonzero(mask ^ truth) < least * np.count_nonzero(truth) - 1:
                    continue
                name = f"{picture}, object {index}"
                number += 1
                applicable.append(
                    Case(name, kind, picture, truth, tuple(others), mask, number % 2 == 0, number % 4 < 2)
                )
        yield picture, sample.image, applicable


@contextmanager
def serving(segmenter: Segmenter) -> Iterator["Server"]:
    """Yield a server in this process that answers clicks with this segmenter."""
    vlm = VLM.load(choose().vlm, device=str(segmenter.device))  # never called
    with tempfile.TemporaryDirectory() as folder:
        images = ImageSettings(local_files_document_root=Path(folder))
        settings = Settings(answers=AnswerSettings(deadline=3600.0), images=images)
        model = VLSAM(vlm, segmenter, version="bench")
        resources = Resources(lambda: model, settings, version="bench")
        resources.start()
        try:
            yield Server(resources, Path(folder))
        finally:
            resources.queue.stop()


class Server:
    """The server's own code, called without HTTP. It reads the images from `folder`."""

    def __init__(self, resources: Resources, folder: Path) -> None:
        self._backend = VLSAMBackend(labeling_config_of([LABEL]), resources=resources, project="1.1")
        self._folder = folder
        self._tasks = 0

    def show(self, picture: str, image: Image) -> None:
        Pillow.fromarray(image).save(self._folder / picture)

    def simulate_clicks(self, case: Case) -> Session:
        """Simulate at most CAP clicks, until IoU GOAL.

        Stop early if an answer changes nothing, or changes another region than the clicked one.
        """
        self._tasks += 1
        session, mask, height, width = Session(case), case.mask, *case.truth.shape
        regions = {_REGION: _region(case)}
        ours = None if case.kind == "another object" else _REGION
        clicks: list[dict[str, Any]] = []
        while len(clicks) < CAP and not session.corrected:
            start = np.zeros_like(mask) if ours is None else mask
            x, y, inside = corrective_click(start, case.truth)
            click_id = f"click {len(clicks)}"
            clicks.append(click_of(x, y, (height, width), LABEL, click_id, positive=bool(inside)))
            answer = self._asked(case, list(regions.values()), clicks)
            mask_after = None if answer is None else region_reading.decode(answer, (height, width))
            if answer is None or mask_after is None:
                session.reached.append(iou(start, case.truth))
                break
            covered = mask | start
            session.touched |= any(
                np.count_nonzero(mask_after & other & ~covered) > TOUCHED * np.count_nonzero(other)
                for other in case.others
            )
            if ours is None and answer["id"] != _REGION:
                ours = answer["id"]
            if answer["id"] != ours:
                session.strayed = True
                session.reached.append(iou(start, case.truth))
                break
            same = (mask_after == mask).all()
            mask = mask_after
            session.reached.append(iou(mask, case.truth))
            if case.saved and ours is not None:
                regions[ours] = answer
            if same:
                break
        return session

    def _asked(
        self, case: Case, regions: list[dict[str, Any]], clicks: list[dict[str, Any]]
    ) -> dict[str, Any] | None:
        held = "drafts" if case.saved else "predictions"
        task = {
            "id": self._tasks,
            "data": {"image": f"/data/local-files/?d={case.picture}"},
            "drafts": [],
            "annotations": [],
            "predictions": [],
            held: [{"id": 1, "result": regions, "created_at": f"2026-01-01T00:00:{len(clicks):02}Z"}],
        }
        asked = json.loads(json.dumps([task, {"result": clicks[-1:] if case.saved else clicks}]))
        (answer,) = self._backend.predict([asked[0]], asked[1])
        found: list[dict[str, Any]] = answer["result"]
        return found[0] if found else None


def _region(case: Case) -> dict[str, Any]:
    """Return the faulty region's JSON. A predicted one has a box and a point per large piece as evidence."""
    count, pieces = cv2.connectedComponents(case.mask.view(np.uint8), connectivity=8)
    points = []
    for piece in range(1, count):
        (row, column), _ = innermost_pixel(pieces == piece)
        if np.count_nonzero(pieces == piece) > 0.1 * np.count_nonzero(case.mask):
            points.append((column + 0.5, row + 0.5, 1))
    region = predicted_region(case.mask, Prompt.of(*points, box=box_of(case.mask)), LABEL, _REGION)
    if not case.predicted:
        del region["meta"]
    return region


def row(kind: str, sessions: Sequence[Session]) -> dict[str, Any]:
    """Return the figures of a kind of fault over its sessions.

    `median` and `p90` count the clicks until IoU 0.85. `within1` to `within5`, `failed`, `touched` and
    `strayed` are shares of the sessions. `within2` means that at most 2 clicks were needed, `touched` that an
    answer covered a further object, and `strayed` that an answer changed another region.
    """
    clicks = np.array([session.clicks if session.corrected else CAP + 1 for session in sessions])
    median, p90 = np.minimum(np.quantile(clicks, [0.5, 0.9], method="higher"), CAP).astype(float).tolist()
    worst = sorted((g for g in sessions if not g.corrected), key=lambda g: g.reached[-1])[:WORST]
    return {
        "kind": kind,
        "cases": len(sessions),
        "median": median,
        "p90": p90,
        **{f"within{most}": _share(clicks <= most) for most in (1, 2, 5)},
        "failed": _share(clicks > CAP),
        "touched": _share(session.touched for session in sessions),
        "strayed": _share(session.strayed for session in sessions),
        "iou1": round(float(np.mean([session.reached[0] for session in sessions])), 4),
        "worst": [f"{_way(g.case)}: {g.case.name}, IoU {g.reached[-1]:.2f}" for g in worst],
    }


def _share(true: Iterable[bool]) -> float:
    return round(float(np.mean(list(true))), 4)


def _way(case: Case) -> str:
    return f"{'predicted' if case.predicted else 'brush'}, {'saved' if case.saved else 'unsaved'}"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the figures of the kinds as a Markdown table, with the worst cases below."""
    heads = [name for name in rows[0] if name != "worst"]
    worst = [f"{each['kind']}: {case}" for each in rows for case in each["worst"]]
    lines = [heads, *([each[name] for name in heads] for each in rows)]
    return "\n".join([markdown(lines), "", "worst:", *worst])


def measure(segmenter: Segmenter, samples: Iterable[Sample], total: int, seed: int) -> dict[str, Any]:
    """Simulate the clicks on `total` samples. Return the figures of each kind of fault. Show progress."""
    sessions: list[Session] = []
    named = ((f"image {number}.png", sample) for number, sample in enumerate(samples))
    bar = tqdm(cases(named, seed), "bench noc --faults", total, unit="image", file=sys.stderr, disable=None)
    with serving(segmenter) as server:
        for picture, image, found in bar:
            server.show(picture, image)
            sessions += [server.simulate_clicks(case) for case in found]
    by_kind = {kind: [session for session in sessions if session.case.kind == kind] for kind in KINDS}
    rows = [row(kind, of_kind) for kind, of_kind in by_kind.items() if of_kind]
    faults = [session for session in sessions if session.case.kind != "another object"]
    if not faults:
        raise ValueError("the masks hold no object: every pixel is 0")
    return {
        "images": total,
        "cases": len(faults),
        "goal": GOAL,
        "cap": CAP,
        "within2": _share(session.corrected and session.clicks <= 2 for session in faults),
        "touched": _share(session.touched for session in faults),
        "kinds": rows,
    }
