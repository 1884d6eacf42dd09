"""Find the detected objects that already have a region in the task, so that none is predicted twice."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from backend.labelstudio import region_reading, results, tasks
from backend.labelstudio.region_matching import SAME_OBJECT
from backend.labelstudio.region_reading import MAX_PERCENT, Drawn, ReadingBudget, TooMuch
from backend.labelstudio.tasks import Region
from model.patches import Patch
from model.types import Detection

PAIR = 3000  # units of work to see whether a detection and a region may be alike


def without(
    labelled: Iterable[tuple[Detection, Collection[str | None]]],
    regions: Iterable[Region],
    budget: ReadingBudget,
) -> list[Detection]:
    """Drop detections whose object already has a region with one of their labels.

    `labelled` pairs each detection with its labels, None for no label. If the budget is spent, keep the
    remaining detections and add the reason to `budget.unread`.
    """
    remaining = [(_Candidate(detection), labels) for detection, labels in labelled]
    for region in regions:
        try:
            budget.spend(PAIR * len(remaining))
            # People give any label to an object that has none.
            rivals = [
                candidate
                for candidate, labels in remaining
                if None in labels or any(label in labels for label in region.labels)
            ]
            same = _same_object(rivals, region, budget)
        except TooMuch as error:
            budget.unread.append(f"the others: {error}")
            break
        remaining = [(candidate, labels) for candidate, labels in remaining if candidate not in same]
    return [candidate.detection for candidate, _ in remaining]


def of(
    detection: Detection, label: str | None, regions: Iterable[Region], budget: ReadingBudget
) -> Region | None:
    """Return the first region that has `label` and shows a detection's object, or None. Raises TooMuch."""
    candidate, labels = _Candidate(detection), () if label is None else (label,)
    for region in regions:
        budget.spend(PAIR)
        if tasks.alike(region.labels, labels) and _same_object([candidate], region, budget):
            return region
    return None


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A detection, and a cache of its mask as a control of each shape would draw it."""

    detection: Detection
    patches: dict[str, Patch] = field(default_factory=dict)

    def patch(self, shape: str) -> Patch:
        """Return the mask as a control of this shape would draw it: a rectangle or an ellipse around it."""
        shape = shape if shape in ("rectangle", "ellipse") else ""
        if shape not in self.patches:
            mask = self.detection.mask
            value = results.encode(mask, shape, compact=True) if shape else None
            if shape:
                drawn = region_reading.decode({"type": shape, "value": value}, (mask.shape[0], mask.shape[1]))
                mask = np.zeros_like(mask) if drawn is None else drawn
            self.patches[shape] = Patch.of(mask)
        return self.patches[shape]


def _same_object(candidates: Iterable[_Candidate], region: Region, budget: ReadingBudget) -> list[_Candidate]:
    """Return the candidates that show the same object as a region, by their overlap. Raises TooMuch."""
    same: list[_Candidate] = []
    drawn: Drawn | None = None
    for number, candidate in enumerate(candidates):
        patch = candidate.patch(region.control.shape)
        if region.control.shape == "keypoint":
            if _holds(patch, tasks.value_of(region.result)):
                same.append(candidate)
            continue
        if number == 0:
            drawn = region_reading.read(region.result, patch.shape, budget)
        if drawn is None:
            break
        if drawn.may_be(patch, SAME_OBJECT) and drawn.iou(patch) >= SAME_OBJECT:
            same.append(candidate)
    return same


def _holds(patch: Patch, value: Any) -> bool:
    """Return whether a keypoint is on a mask. Its value has "x" and "y" in percent of the image."""
    spot: list[Any] = [value.get("x"), value.get("y")]
    if not all(type(side) in (int, float) and abs(side) <= MAX_PERCENT for side in spot):
        return False
    height, width = patch.shape
    return patch.holds(np.array([spot], float) * (width / 100, height / 100))
