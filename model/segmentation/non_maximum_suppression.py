"""Drop duplicates and fragments among the detections of one image, from all views and questions."""

from collections.abc import Sequence

from model.patches import Patch
from model.types import Box, Detection, Mask

# A mask ends at its view's border if it is this near, as a share of the view's side: the segmenter's low
# resolution may miss the last pixels.
_NEAR = 0.01


def iou(one: Mask, other: Mask) -> float:
    """Return the intersection over union of two masks (H, W); 0 for two empty ones."""
    return Patch.of(one).iou(Patch.of(other))


def suppress(
    detections: Sequence[Detection], *, same_term: float, other_term: float, fragment: float = 0.7
) -> list[Detection]:
    """Return the detections of one image without fragments and duplicates, best score first.

    First drop fragments: a mask that ends at a border of its view inside the image, while a detection of the
    same term in a larger view covers at least `fragment` of it. The score does not count, since a part in
    a small view often has a higher score than the whole object in the whole image. If only smaller views
    found an object, its halves stay two detections.
    Then apply greedy non-maximum suppression by masks: drop the one of lower score if the IoU of two exceeds
    `same_term` or `other_term`. Of equal scores, the earlier stays.
    """
    ranked = [(d, Patch.of(d.mask)) for d in sorted(detections, key=lambda d: -d.score)]
    kept: list[tuple[Detection, Patch]] = []
    for new, patch in ranked:
        if any(_is_fragment(new, patch, *whole, fragment) for whole in ranked):
            continue
        limits = (same_term if new.term == old.term else other_term for old, _ in kept)
        if not any(_overlap_exceeds(patch, old, limit) for (_, old), limit in zip(kept, limits, strict=True)):
            kept.append((new, patch))
    return [detection for detection, _ in kept]


def _overlap_exceeds(one: Patch, other: Patch, limit: float) -> bool:
    """Return whether the IoU exceeds the limit. Compare no pixels if the sizes rule it out."""
    smaller, larger = sorted((one.area, other.area))
    return smaller > limit * larger and one.iou(other) > limit


def _is_fragment(part: Detection, patch: Patch, whole: Detection, other: Patch, share: float) -> bool:
    view, larger = part.evidence.view, whole.evidence.view
    if part.term != whole.term or _area(view) >= _area(larger) or not _ends_at_border(patch, view):
        return False
    return patch.shared(other) >= share * patch.area > 0


def _ends_at_border(patch: Patch, view: Box) -> bool:
    """Return whether a mask reaches a border of its view inside the image."""
    x0, y0, x1, y1 = view
    near = _NEAR * min(x1 - x0, y1 - y0)
    (left, top, right, bottom), (height, width) = patch.window, patch.shape
    return (
        (x0 > 0 and left - x0 <= near)
        or (y0 > 0 and top - y0 <= near)
        or (x1 < width and x1 - right <= near)
        or (y1 < height and y1 - bottom <= near)
    )


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
