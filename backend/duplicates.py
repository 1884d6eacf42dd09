"""Objects that a task has a region of already, which are not predicted again."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from backend import evidence, results, tasks
from backend.labels import LabelConfig
from backend.tasks import Region
from model.merge import iou
from model.types import Detection, Mask

# A fresh mask that overlaps a region of the same label by this IoU is the same object.
SAME_OBJECT = 0.5


def made(task: Mapping[str, Any], config: LabelConfig) -> Iterator[Region]:
    """The regions that people made or accepted, of every annotation that was not skipped and every draft."""
    for entry in (*tasks.entries(task.get("drafts")), *tasks.entries(task.get("annotations"))):
        if entry.get("was_cancelled") is not True:
            yield from tasks.regions(tasks.result_of(entry), config)


def without(
    named: Iterable[tuple[Detection, Collection[str | None]]], known: Iterable[Region]
) -> list[Detection]:
    """The detections, each with the labels that it would get, less those of the objects of known regions."""
    left = list(named)
    for region in known:
        if not any(_may_be(region, labels) for _, labels in left):
            continue
        drawn = _mask_of(region, left[0][0].mask.shape)
        left = [(d, ls) for d, ls in left if not (_may_be(region, ls) and _is_of(d.mask, region, drawn))]
    return [detection for detection, _ in left]


def of(detection: Detection, label: str | None, known: Iterable[Region]) -> Region | None:
    """The first of the known regions that is of a detection's object."""
    for region in known:
        mine = tasks.alike(region.labels, () if label is None else (label,))
        if mine and _is_of(detection.mask, region, _mask_of(region, detection.mask.shape)):
            return region
    return None


def _may_be(region: Region, labels: Collection[str | None]) -> bool:
    """Whether an object with these labels may have become a region; to one without, people give any label."""
    return None in labels or any(label in labels for label in region.labels)


def _mask_of(region: Region, shape: tuple[int, ...]) -> Mask | None:
    return results.decode(region.result, (shape[0], shape[1]))


def _is_of(mask: Mask, region: Region, drawn: Mask | None) -> bool:
    """Whether a mask is of the object of a region, whose own mask is `drawn`.

    A rectangle or an ellipse is compared with that of the mask, and a keypoint has to be on it.
    """
    if region.control.shape == "keypoint":
        value = tasks.value_of(region.result)
        x, y = value.get("x"), value.get("y")
        if type(x) not in (int, float) or type(y) not in (int, float):
            return False
        point = np.array([[x, y]], float) * (mask.shape[1] / 100, mask.shape[0] / 100)
        return bool((np.abs(point) < max(mask.shape) + 1).all() and evidence.contains(mask, point).any())
    if drawn is None:
        return False
    alike: Mask | None = mask
    if region.control.shape in ("rectangle", "ellipse"):
        value = results.encode(mask, region.control.shape, compact=True) or {}
        alike = _mask_of(replace(region, result={"type": region.control.type, "value": value}), drawn.shape)
    return alike is not None and iou(alike, drawn) >= SAME_OBJECT
