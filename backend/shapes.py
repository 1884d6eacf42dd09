"""Masks to and from what editors draw: rings, ellipses, points and strokes. All in pixels of the image."""

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from model.types import Mask, box_of

Ring = NDArray[np.float64]  # (n, 2) xy; the last point joins the first
Ellipse = tuple[float, float, float, float, float]  # centre x and y, two radii, degrees clockwise

TOLERANCE = 1.0  # pixels between a mask's outline and its ring; less where the mask is below 20 x 20
SPECK = 0.002  # of the largest part: what is smaller is left out of a ring, and so is a smaller hole
MAX_POINTS = 1000  # of a ring that is made: editors draw a handle for each
MAX_PARTS = 100


def ring_of(mask: Mask) -> Ring:
    """One ring (n, 2), n >= 3, around all of a mask that is not empty.

    Parts and holes are joined to the largest part by bridges of no width, there and back on one line, so the
    ring covers what the mask does by the even-odd rule and by the nonzero one: holes run the other way round.
    Where `MAX_POINTS` do not suffice the tolerance doubles until they do.
    """
    return _bridged([ring for part in _outlines(mask) for ring in part])


def rings_of(mask: Mask) -> list[Ring]:
    """A ring (n, 2), n >= 3, for each part of a mask that is not empty, the largest part first.

    As `ring_of`, but only the holes of a part are joined to it: COCO's polygons have no other way to leave
    them out, since all pixels of all rings count.
    """
    return [_bridged(part) for part in _outlines(mask)]


def _outlines(mask: Mask) -> list[list[Ring]]:
    """Of each part, the largest first, its outline and then those of its holes, which run the other way."""
    left, top, right, bottom = (int(side) for side in box_of(mask))
    part = mask[top:bottom, left:right].astype(np.uint8)
    # cv2 walks through the centres of border pixels. Doubled, these lie a quarter pixel inside the true
    # outline, and a part one pixel wide still has two sides.
    doubled = part.repeat(2, axis=0).repeat(2, axis=1)
    outlines, tree = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    sizes = [cv2.contourArea(outline) for outline in outlines]
    kept = [i for i in np.argsort(sizes)[::-1][:MAX_PARTS] if sizes[i] >= SPECK * max(sizes)]
    tolerance = min(2 * TOLERANCE, math.sqrt(max(sizes)) / 20)
    rings = [_simplified(outlines[i], tolerance) for i in kept]
    while sum(len(ring) + 2 for ring in rings) > MAX_POINTS:
        tolerance *= 2
        rings = [_simplified(outlines[i], tolerance) for i in kept]
    parts: dict[int, list[Ring]] = {}
    for i, ring in zip(kept, rings, strict=True):
        around = tree[0, i, 3]  # of a hole the part that it is in, which is larger and so came before it
        placed = np.clip((ring + 0.5) / 2 + (left, top), (left, top), (right, bottom))
        parts.setdefault(int(i if around < 0 else around), []).append(placed)
    return list(parts.values())


def _simplified(outline: NDArray[np.int32], tolerance: float) -> Ring:
    """The outline with fewer points, which runs round the same way."""
    simple = cv2.approxPolyDP(outline, tolerance, True)[:, 0, :].astype(float)
    if len(simple) >= 3:
        return np.asarray(simple)
    # All of it is about one line.
    box = np.asarray(cv2.boxPoints(cv2.minAreaRect(outline)), np.float64)
    same = (_area(box) > 0) == (_area(outline) > 0)
    return box if same else box[::-1]


def _area(ring: NDArray[Any]) -> float:
    return float(cv2.contourArea(ring.astype(np.float32), oriented=True))


def _bridged(rings: Sequence[Ring]) -> Ring:
    """All rings as one: next is the nearest to those joined, entered and left at its nearest point."""
    joined, left = rings[0], list(rings[1:])
    near = [_nearest(joined, ring) for ring in left]
    while left:
        number = min(range(len(left)), key=lambda i: near[i][0])
        ring, (_, (x, y), there) = left.pop(number), near.pop(number)
        here = int(np.argmax((joined == (x, y)).all(axis=1)))
        round_trip = np.concatenate([ring[there:], ring[: there + 1]])
        joined = np.concatenate([joined[: here + 1], round_trip, joined[here:]])
        near = [
            min(old, _nearest(ring, other), key=lambda n: n[0]) for old, other in zip(near, left, strict=True)
        ]
    return joined


def _nearest(one: Ring, other: Ring) -> tuple[float, tuple[float, float], int]:
    """The least squared distance of two rings' points, the point of `one`, and the number of `other`'s."""
    squared = ((one[:, None] - other[None]) ** 2).sum(axis=2)
    here, there = divmod(int(squared.argmin()), len(other))
    return float(squared[here, there]), (float(one[here, 0]), float(one[here, 1])), there


def fill(ring: Ring, shape: tuple[int, int]) -> Mask:
    """The pixels of (height, width) whose centres lie inside a ring, by the even-odd rule."""
    height, width = shape
    # Only in the ring's own box: what is outside holds nothing.
    top, bottom = (int(np.clip(math.floor(y), 0, height)) for y in (ring[:, 1].min(), ring[:, 1].max() + 1))
    left, right = (int(np.clip(math.floor(x), 0, width)) for x in (ring[:, 0].min(), ring[:, 0].max() + 1))
    crossings = np.zeros((bottom - top, right - left + 1), np.uint8)  # odd or even is what counts
    local = ring - (left, top)
    for (xa, ya), (xb, yb) in zip(local, np.roll(local, -1, axis=0), strict=True):
        first, last = (max(0, math.ceil(min(y, height + 1.0) - 0.5)) for y in sorted((ya, yb)))
        rows = np.arange(first, min(last, len(crossings)))
        if len(rows):
            x = xa + (rows + 0.5 - ya) * ((xb - xa) / (yb - ya))
            # Every pixel from the first centre right of the edge on changes sides.
            columns = np.clip(np.ceil(x - 0.5), 0, right - left).astype(np.intp)
            crossings[rows, columns] += 1  # no row comes twice
    mask = np.zeros(shape, bool)
    mask[top:bottom, left:right] = np.cumsum(crossings[:, :-1], axis=1, dtype=np.uint8) % 2 == 1
    return mask


def ellipse_of(mask: Mask) -> Ellipse:
    """The ellipse of the same centre and second moments as a mask that is not empty."""
    rows, columns = np.nonzero(mask)
    x, y = columns + 0.5, rows + 0.5
    centre = (float(x.mean()), float(y.mean()))
    # A pixel is no point but a square, whose variance is 1/12.
    spread = np.cov(np.stack([x, y]), bias=True) + np.eye(2) / 12
    (short, long), axes = np.linalg.eigh(spread)
    turned = math.degrees(math.atan2(axes[1, 1], axes[0, 1])) % 180
    return (*centre, 2 * math.sqrt(long), 2 * math.sqrt(short), turned)


def fill_ellipse(ellipse: Ellipse, shape: tuple[int, int]) -> Mask:
    """The pixels of (height, width) whose centres lie inside an ellipse."""
    x, y, radius_x, radius_y, degrees = ellipse
    mask = np.zeros(shape, bool)
    if not (radius_x > 0 and radius_y > 0):
        return mask
    reach = max(radius_x, radius_y)
    top, bottom = (int(np.clip(math.floor(side), 0, shape[0])) for side in (y - reach, y + reach + 1))
    left, right = (int(np.clip(math.floor(side), 0, shape[1])) for side in (x - reach, x + reach + 1))
    down = np.arange(top, bottom)[:, None] + 0.5 - y
    across = np.arange(left, right)[None] + 0.5 - x
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    along = (across * cos + down * sin) / radius_x
    aside = (down * cos - across * sin) / radius_y
    mask[top:bottom, left:right] = along**2 + aside**2 <= 1
    return mask


def deepest(mask: Mask) -> tuple[float, float]:
    """The centre x, y of the pixel of a mask, not empty, that is farthest from all that is not in it."""
    left, top, right, bottom = (int(side) for side in box_of(mask))
    # The edge of the image is an edge of the mask too.
    padded = np.pad(mask[top:bottom, left:right].astype(np.uint8), 1)
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, 5)[1:-1, 1:-1]
    row, column = np.unravel_index(int(distance.argmax()), distance.shape)
    return float(left + column + 0.5), float(top + row + 0.5)


def stroke(mask: Mask, points: NDArray[np.float64], width: float, *, add: bool) -> Mask:
    """The mask after a round brush of `width` was drawn along points (n, 2), or an eraser was."""
    drawn = mask.astype(np.uint8)
    fine = 4  # bits below the pixel; cv2 has pixel centres on whole numbers
    path = np.round((points - 0.5) * 2**fine).astype(np.int32)
    # cv2 4.12 draws a line of even thickness one pixel wider than asked, and an odd one two.
    thickness = max(1, 2 * round((width - 1) / 2))
    cv2.polylines(drawn, [path], False, int(add), thickness=thickness, shift=fine)
    return drawn.astype(bool)
