"""Remove specks and holes from masks, and check masks against points."""

import cv2
import numpy as np

from model.patches import tight_window
from model.types import Mask, Prompt

# Holes and specks are smaller than this share of the mask.
SPECK = 0.01


def without_specks_and_holes(mask: Mask, prompt: Prompt) -> Mask:
    """Remove specks, then holes, of less than SPECK of the mask's area. Return `mask` itself if it has none.

    Keep those that hold a point of the prompt, and larger ones: a partly hidden object has several pieces.
    """
    x0, y0, x1, y1 = tight_window(mask)
    if x0 == x1:
        return mask
    area = np.pad(mask[y0:y1, x0:x1], 1).view(np.uint8)  # joins all of the outside
    least = SPECK * np.count_nonzero(area)
    held = [(r - y0 + 1, c - x0 + 1) for r, c in prompt.pixels(mask.shape) if y0 <= r < y1 and x0 <= c < x1]
    changed = False
    for kind, connectivity in ((1, 8), (0, 4)):
        pieces, stats = cv2.connectedComponentsWithStats(
            (area == kind).view(np.uint8), None, None, connectivity
        )[1:3]
        goes = stats[:, cv2.CC_STAT_AREA] < least
        goes[[0, pieces[0, 0], *(pieces[pixel] for pixel in held)]] = False
        if kind:
            goes[1 + stats[1:, cv2.CC_STAT_AREA].argmax()] = False  # of specks alone the largest stays
        if goes.any():
            changed = True
            area[goes[pieces]] = 1 - kind
    if not changed:
        return mask
    result = mask.copy()
    result[y0:y1, x0:x1] = area[1:-1, 1:-1]
    return result


def innermost_pixel(area: Mask) -> tuple[tuple[int, int], float]:
    """Return row and column of the pixel farthest from the area's edge, and its distance in pixels."""
    left, top, right, bottom = tight_window(area)
    inside = area[top : max(bottom, 1), left : max(right, 1)]  # a pixel at least
    # The edge of the image is an edge of the area, too.
    depth = cv2.distanceTransform(np.pad(inside, 1).view(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    row, column = np.unravel_index(depth.argmax(), depth.shape)
    return (top + int(row), left + int(column)), float(depth[row, column])


def unmet_points(mask: Mask, prompt: Prompt) -> tuple[int, ...]:
    """Return the indices of the prompt's points on the wrong side of the mask."""
    pairs = zip(prompt.pixels(mask.shape), prompt.labels, strict=True)
    return tuple(number for number, (pixel, label) in enumerate(pairs) if mask[pixel] != bool(label))
