"""Drop duplicates and fragments among the detections of one image, from all views and questions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.types import Box, Detection, Mask, box_of

# A mask ends at its view's border if it is this near, as a share of the view's side: the segmenter's low
# resolution may miss the last pixels.
_NEAR = 0.01


@dataclass(frozen=True, eq=False)
class _Crop:
    """A mask's tight box and the pixels in it, for fast comparison."""

    corners: tuple[int, int, int, int]  # x0, y0, x1, y1
    pixels: NDArray[np.bool_]  # a view of the mask, not a copy
    area: int


@dataclass(frozen=True, eq=False)
class _Candidate:
    detection: Detection
    crop: _Crop


def iou(one: Mask, other: Mask) -> float:
    """Return the intersection over union of two masks (H, W); 0 for two empty ones."""
    a, b = _cropped(one), _cropped(other)
    shared = _intersection(a, b)
    union = a.area + b.area - shared
    return shared / union if union else 0.0


def suppress(
    detections: Sequence[Detection], *, same_term: float, other_term: float, fragment: float = 0.7
) -> list[Detection]:
    """Return the detections of one image without fragments and duplicates, best score first.

    First drop fragments: a mask that ends at a border of its view inside the image, while a detection of the
    same term in a larger view holds at least `fragment` of it. The score does not count, since a part in
    a small view often has a higher score than the whole object in the whole image. Halves of an object that
    only smaller views found stay two.
    Then greedy non-maximum suppression by masks: drop the weaker of two if their IoU exceeds `same_term` or
    `other_term`. The earlier of two equals stays.
    """
    ranked = [_Candidate(d, _cropped(d.mask)) for d in sorted(detections, key=lambda d: -d.score)]
    kept: list[_Candidate] = []
    for new in ranked:
        if any(_is_fragment(new, whole, fragment) for whole in ranked):
            continue
        limits = (same_term if new.detection.term == old.detection.term else other_term for old in kept)
        if not any(
            _overlap_exceeds(new.crop, old.crop, limit) for old, limit in zip(kept, limits, strict=True)
        ):
            kept.append(new)
    return [candidate.detection for candidate in kept]


def _cropped(mask: Mask) -> _Crop:
    x0, y0, x1, y1 = (int(n) for n in box_of(mask))
    pixels = mask[y0:y1, x0:x1]
    return _Crop((x0, y0, x1, y1), pixels, int(np.count_nonzero(pixels)))


def _common_box(one: _Crop, other: _Crop) -> tuple[int, int, int, int] | None:
    x0, y0 = max(one.corners[0], other.corners[0]), max(one.corners[1], other.corners[1])
    x1, y1 = min(one.corners[2], other.corners[2]), min(one.corners[3], other.corners[3])
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def _intersection(one: _Crop, other: _Crop) -> int:
    """Count the pixels that two masks share, within the overlap of their boxes."""
    common = _common_box(one, other)
    if common is None:
        return 0
    x0, y0, x1, y1 = common
    a, b = (
        crop.pixels[y0 - crop.corners[1] : y1 - crop.corners[1], x0 - crop.corners[0] : x1 - crop.corners[0]]
        for crop in (one, other)
    )
    return int(np.count_nonzero(a & b))


def _overlap_exceeds(one: _Crop, other: _Crop, limit: float) -> bool:
    """Return whether the IoU exceeds the limit. Compare no pixels if the sizes rule it out."""
    common = _common_box(one, other)
    if common is None:
        return False
    total = one.area + other.area
    most = min(one.area, other.area, (common[2] - common[0]) * (common[3] - common[1]))
    if most / (total - most) <= limit:
        return False
    shared = _intersection(one, other)
    return shared / (total - shared) > limit


def _is_fragment(part: _Candidate, whole: _Candidate, share: float) -> bool:
    if part.detection.term != whole.detection.term:
        return False
    view, larger = part.detection.evidence.view, whole.detection.evidence.view
    if _area(view) >= _area(larger) or not _ends_at_border(part.crop, view, part.detection.mask.shape):
        return False
    return _intersection(part.crop, whole.crop) >= share * part.crop.area > 0


def _ends_at_border(crop: _Crop, view: Box, size: tuple[int, ...]) -> bool:
    """Return whether a mask reaches a border of its view inside the image (height, width)."""
    x0, y0, x1, y1 = view
    near = _NEAR * min(x1 - x0, y1 - y0)
    left, top, right, bottom = crop.corners
    return (
        (x0 > 0 and left - x0 <= near)
        or (y0 > 0 and top - y0 <= near)
        or (x1 < size[1] and x1 - right <= near)
        or (y1 < size[0] and y1 - bottom <= near)
    )


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
