"""Objects that a task has a region of already, which are not predicted again."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from backend.labelstudio import results, tasks
from backend.labelstudio.geometry import Patch
from backend.labelstudio.labeling_config import LabelConfig
from backend.labelstudio.reading_budget import Reading, TooMuch
from backend.labelstudio.results import MAX_PERCENT, Drawn
from backend.labelstudio.tasks import Region
from model.types import Detection, Mask

# A fresh mask that overlaps a region of the same label by this IoU is the same object.
SAME_OBJECT = 0.5
PAIR = 3000  # units of work to see whether a detection and a region may be alike


def made(task: Mapping[str, Any], config: LabelConfig) -> Iterator[Region]:
    """The regions that people made or accepted, of every annotation that was not skipped and every draft."""
    for entry in (*tasks.entries(task.get("drafts")), *tasks.entries(task.get("annotations"))):
        if entry.get("was_cancelled") is not True:
            yield from tasks.regions(tasks.result_of(entry), config)


def without(
    named: Iterable[tuple[Detection, Collection[str | None]]], known: Iterable[Region], reading: Reading
) -> list[Detection]:
    """The detections, each with the labels that it would get, less those of the objects of known regions.

    Where reading the regions takes too much, those that are left are not looked at, which `reading` tells.
    """
    left = [(_Found(detection), labels) for detection, labels in named]
    for region in known:
        try:
            reading.spend(PAIR * len(left))
            made = _Made(region, reading)
            left = [(f, ls) for f, ls in left if not (_may_be(region, ls) and f.is_of(made))]
        except TooMuch as error:
            reading.unread.append(f"the others: {error}")
            break
    return [found.detection for found, _ in left]


def of(detection: Detection, label: str | None, known: Iterable[Region], reading: Reading) -> Region | None:
    """The first of the known regions that is of a detection's object. Raises TooMuch."""
    found = _Found(detection)
    for region in known:
        reading.spend(PAIR)
        if tasks.alike(region.labels, () if label is None else (label,)) and found.is_of(
            _Made(region, reading)
        ):
            return region
    return None


def _may_be(region: Region, labels: Collection[str | None]) -> bool:
    """Whether an object with these labels may have become a region; to one without, people give any label."""
    return None in labels or any(label in labels for label in region.labels)


@dataclass(frozen=True, eq=False)
class _Made:
    """A region, read once for all that are compared with it."""

    region: Region
    reading: Reading
    _drawn: list[Drawn | None] = field(default_factory=list)

    def drawn(self, shape: tuple[int, int]) -> Drawn | None:
        """Raises TooMuch."""
        if not self._drawn:
            self._drawn.append(results.read(self.region.result, shape, self.reading))
        return self._drawn[0]


@dataclass(frozen=True, eq=False)
class _Found:
    """A detection, and what of it is compared with regions."""

    detection: Detection
    _patches: dict[str, Patch] = field(default_factory=dict)  # by the shape of the control

    def is_of(self, made: _Made) -> bool:
        """Whether it is of the object of a region. Raises TooMuch.

        A rectangle or an ellipse is compared with that of the mask, and a keypoint has to be on it.
        """
        region, shape = made.region, made.region.control.shape
        if shape == "keypoint":
            value, (height, width) = tasks.value_of(region.result), self.detection.mask.shape
            spot: list[Any] = [value.get("x"), value.get("y")]
            if not all(type(side) in (int, float) and abs(side) <= MAX_PERCENT for side in spot):
                return False
            return self._patch("").holds(np.array([spot], float) * (width / 100, height / 100))
        mine = self._patch(shape if shape in ("rectangle", "ellipse") else "")
        drawn = made.drawn(mine.shape)
        return drawn is not None and drawn.may_be(mine, SAME_OBJECT) and drawn.iou(mine) >= SAME_OBJECT

    def _patch(self, shape: str) -> Patch:
        if shape not in self._patches:
            mask: Mask | None = self.detection.mask
            if shape:
                value = results.encode(self.detection.mask, shape, compact=True)
                size = (self.detection.mask.shape[0], self.detection.mask.shape[1])
                mask = results.decode({"type": shape, "value": value}, size)
            self._patches[shape] = Patch.of(np.zeros_like(self.detection.mask) if mask is None else mask)
        return self._patches[shape]
