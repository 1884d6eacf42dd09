"""Fit outlines to masks: rings (polygons) and ellipses, in pixels of the image."""

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.labelstudio.geometry import Ellipse
from model.types import Mask

Ring = NDArray[np.float64]  # (n, 2) xy; the last point joins the first

TOLERANCE = 1.0  # pixels between a mask's outline and its ring; less where the mask is below 20 x 20
SPECK = 0.002  # share of the largest part: smaller parts and holes are left out of a ring
MAX_POINTS = 1000  # limit for a new ring, since editors draw a handle for each point
MAX_PARTS = 100
MAX_HOLES, MAX_CORNERS = 300, 200_000  # limits for exact rings
MAX_PAIRS = 1_000_000  # limit of compared points each time a ring is joined to the others


def ring_of(mask: Mask) -> Ring:
    """Return one ring (n, 2), n >= 3, around all parts of a mask that is not empty.

    Bridges join parts and holes to the largest part. A bridge is a line that the ring follows there and back.
    Holes have the opposite direction, so the even-odd rule and the nonzero rule give the same pixels. The
    tolerance is doubled until the ring has at most MAX_POINTS.
    """
    return _bridged([ring for part in _outlines(mask) for ring in part])


def rings_of(mask: Mask) -> list[Ring]:
    """Return a ring (n, 2), n >= 3, for each part of a mask that is not empty, the largest part first.

    Each ring is made as in `ring_of`: bridges join the holes to their part. COCO's polygons need this, since
    a separate ring for a hole would add pixels.
    """
    return [_bridged(part) for part in _outlines(mask)]


def exact_rings_of(mask: Mask) -> list[Ring] | None:
    """Return a ring (n, 2), n >= 4, along the pixel edges of each part of a mask that is not empty.

    Holes are joined to their part as in `rings_of`, and specks are kept: `fill` and pycocotools restore the
    same mask. Return None for a mask with more than MAX_HOLES holes or MAX_CORNERS corners.
    """
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    # cv2 joins pixels that share a corner alone: as holes of the background, parts of the mask stay apart.
    background = np.pad(~mask[top : top + height, left : left + width], 1, constant_values=True)
    # Where the border between two rows begins, ends or changes sides, there are corners.
    if np.count_nonzero(np.diff(np.diff(background.astype(np.int8), axis=0), axis=1)) > MAX_CORNERS:
        return None
    contours, tree = cv2.findContours(_doubled(background), cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    parts: dict[int, list[Ring]] = {}
    for number, (contour, around) in enumerate(zip(contours, tree[0, :, 3].tolist(), strict=True)):
        corners = (contour[:, 0] + 1) // 2  # of pixels; a concave one is there twice
        ring = corners[(corners != np.roll(corners, 1, axis=0)).any(axis=1)] + (left - 1.0, top - 1.0)
        if around in parts:
            parts[around].append(ring)
        elif around >= 0:
            parts[number] = [ring]
    if sum(map(len, parts.values())) - len(parts) > MAX_HOLES:
        return None
    return [_bridged(rings) for rings in parts.values()]


def _doubled(mask: Mask) -> NDArray[np.uint8]:
    """Return the mask at twice its size, uint8 (2 h, 2 w).

    cv2 walks through the centres of border pixels. Doubled, these lie a quarter pixel inside the true
    outline, and a part one pixel wide still has two sides.
    """
    return mask.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)


def _outlines(mask: Mask) -> list[list[Ring]]:
    """Return the rings of each part, the largest first: its outline, and its holes in opposite direction."""
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    part = _doubled(mask[top : top + height, left : left + width])
    outlines, tree = cv2.findContours(part, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
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
        placed = np.clip((ring + 0.5) / 2 + (left, top), (left, top), (left + width, top + height))
        parts.setdefault(int(i if around < 0 else around), []).append(placed)
    return list(parts.values())


def _simplified(outline: NDArray[np.int32], tolerance: float) -> Ring:
    """Return an outline (n, 1, 2) as a ring of fewer points, at least 3, in the same direction."""
    simple = cv2.approxPolyDP(outline, tolerance, True)[:, 0, :].astype(float)
    if len(simple) >= 3:
        return np.asarray(simple)
    # The outline is close to a line.
    box = np.asarray(cv2.boxPoints(cv2.minAreaRect(outline)), np.float64)
    same = (_area(box) > 0) == (_area(outline) > 0)
    return box if same else box[::-1]


def _area(ring: NDArray[Any]) -> float:
    return float(cv2.contourArea(ring.astype(np.float32), oriented=True))


def _bridged(rings: Sequence[Ring]) -> Ring:
    """Join rings to one ring by bridges. Each step adds the ring that is nearest to those already joined."""
    joined, remaining = rings[0], list(rings[1:])
    pairs = MAX_PAIRS // len(rings)
    near = [nearest_points(joined, ring, pairs) for ring in remaining]
    while remaining:
        number = min(range(len(remaining)), key=lambda i: near[i][0])
        ring, (_, (x, y), there) = remaining.pop(number), near.pop(number)
        here = int(np.argmax((joined == (x, y)).all(axis=1)))
        round_trip = np.concatenate([ring[there:], ring[: there + 1]])
        joined = np.concatenate([joined[: here + 1], round_trip, joined[here:]])
        near = [
            min(old, nearest_points(ring, other, pairs), key=lambda n: n[0])
            for old, other in zip(near, remaining, strict=True)
        ]
    return joined


def ellipse_of(mask: Mask) -> Ellipse:
    """Return the ellipse with the centre and second moments of a mask that is not empty."""
    rows, columns = np.nonzero(mask)
    x, y = columns + 0.5, rows + 0.5
    centre = (float(x.mean()), float(y.mean()))
    # A pixel is a square, whose variance is 1/12, and not a point.
    spread = np.cov(np.stack([x, y]), bias=True) + np.eye(2) / 12
    (short, long), axes = np.linalg.eigh(spread)
    turned = math.degrees(math.atan2(axes[1, 1], axes[0, 1])) % 180
    return (*centre, 2 * math.sqrt(long), 2 * math.sqrt(short), turned)


def innermost_of(mask: Mask) -> tuple[float, float]:
    """Return x and y of the centre of the pixel farthest from the edge of a mask that is not empty."""
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    # The edge of the image is an edge of the mask, too.
    part = np.pad(mask[top : top + height, left : left + width], 1).view(np.uint8)
    *_, (x, y) = cv2.minMaxLoc(cv2.distanceTransform(part, cv2.DIST_L2, 5))
    return left + x - 0.5, top + y - 0.5


def nearest_points(one: Ring, other: Ring, pairs: int) -> tuple[float, tuple[float, float], int]:
    """Find the nearest points of two rings. Return squared distance, point of `one`, index in `other`.

    At most `pairs` pairs are compared: points of long rings are sampled.
    """
    step = math.ceil(math.sqrt(len(one) * len(other) / pairs))
    squared = ((one[::step, None] - other[None, ::step]) ** 2).sum(axis=2)
    here, there = divmod(int(squared.argmin()), squared.shape[1])
    x, y = one[here * step].tolist()
    return float(squared[here, there]), (x, y), there * step
