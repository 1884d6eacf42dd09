"""Match a mask or a box with the existing region of the same object, by overlap."""

from collections.abc import Sequence

from backend.labelstudio.region_reading import Drawn
from model.patches import Patch, area, common
from model.types import Box, Mask

# A mask and a region of this IoU are of one object.
SAME_OBJECT = 0.5
# The mask of a click beside a region shows its object if it holds this share of the region
HELD = 0.5
# and overlaps it by this IoU: less is a background, or a group of objects.
LEAST_SHARE = 0.25


def matching(regions: Sequence[Drawn], mask: Mask, box: Box | None) -> int | None:
    """Return the index of the region that shows the same object as a mask; None if there is none.

    It is the region with the highest IoU with the mask, at least LEAST_SHARE, if the mask covers HELD of it.
    Else, with a `box`, it is the region whose bounding box has the highest IoU with the box, at least
    SAME_OBJECT. Else it is the first region that covers half of the box. Raises TooMuch.
    """
    patch = Patch.of(mask)
    best, most = None, 0.0
    for number, region in enumerate(regions):
        if not region.may_be(patch, LEAST_SHARE, HELD):
            continue
        overlap = region.iou(patch)
        if overlap < LEAST_SHARE or overlap <= most:
            continue
        # The shared area follows from the IoU of two areas.
        shared = overlap * (region.patch.area + patch.area) / (1 + overlap)
        if round(shared) >= HELD * region.patch.area:
            best, most = number, overlap
    if best is not None or box is None:
        return best
    left, top, right, bottom = (round(side) for side in box)
    window = (left, top, max(right, left + 1), max(bottom, top + 1))
    most, holder = SAME_OBJECT, None
    for number, region in enumerate(regions):
        shared = area(common(region.window, window))
        overlap = shared / (area(region.window) + area(window) - shared)
        if overlap > most or (best is None and overlap == most):
            best, most = number, overlap
        if holder is None and 2 * shared >= area(window) and 2 * region.count(window) >= area(window):
            holder = number
    return holder if best is None else best
