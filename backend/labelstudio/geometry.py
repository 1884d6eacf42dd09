"""Masks to and from what editors draw: rings, ellipses, points and strokes. All in pixels of the image."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from model.types import Mask, box_of

Ring = NDArray[np.float64]  # (n, 2) xy; the last point joins the first
Window = tuple[int, int, int, int]  # whole pixels of an image: left, top, right, bottom
Ellipse = tuple[float, float, float, float, float]  # centre x and y, two radii, degrees clockwise

TOLERANCE = 1.0  # pixels between a mask's outline and its ring; less where the mask is below 20 x 20
SPECK = 0.002  # of the largest part: what is smaller is left out of a ring, and so is a smaller hole
MAX_POINTS = 1000  # of a ring that is made: editors draw a handle for each
MAX_PARTS = 100
MAX_HOLES, MAX_CORNERS = 300, 200_000  # of a mask whose rings are exact
MAX_PAIRS = 1_000_000  # of points that are compared each time a ring is joined to the others
BLOCK = (
    1 << 18
)  # numbers in the arrays that shapes are painted with, a few rows at a time: they fit into caches


@dataclass(frozen=True, eq=False)
class Patch:
    """A mask as its box and the pixels in it."""

    shape: tuple[int, int]  # of the image
    corner: tuple[int, int]  # x, y
    pixels: NDArray[np.bool_]

    @classmethod
    def of(cls, mask: Mask) -> "Patch":
        x0, y0, x1, y1 = (int(side) for side in box_of(mask))
        return cls((mask.shape[0], mask.shape[1]), (x0, y0), mask[y0:y1, x0:x1].copy())

    @property
    def mask(self) -> Mask:
        """(H, W) of the image, a new array."""
        mask = np.zeros(self.shape, bool)
        left, top, right, bottom = self.window
        mask[top:bottom, left:right] = self.pixels
        return mask

    @property
    def window(self) -> Window:
        (left, top), (height, width) = self.corner, self.pixels.shape
        return left, top, left + width, top + height

    @cached_property
    def area(self) -> int:
        """How many pixels the mask has."""
        return int(np.count_nonzero(self.pixels))

    def holds(self, points: NDArray[Any]) -> bool:
        """Whether any of points (n, 2), xy pixels, is on a pixel of the mask."""
        return bool(contains(self.pixels, np.asarray(points, float) - self.corner).any())

    def iou(self, other: "Patch") -> float:
        """Intersection over union with a mask of the same image; 0 where both are empty."""
        shared = common(self.window, other.window)
        both = int(np.count_nonzero(self._within(shared) & other._within(shared)))
        union = self.area + other.area - both
        return both / union if union else 0.0

    def count(self, window: Window) -> int:
        """How many of its pixels are in a part of the image."""
        return int(np.count_nonzero(self._within(common(self.window, window))))

    def _within(self, window: Window) -> NDArray[np.bool_]:
        x, y = self.corner
        left, top, right, bottom = window
        return self.pixels[top - y : bottom - y, left - x : right - x]


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


def exact_rings_of(mask: Mask) -> list[Ring] | None:
    """A ring (n, 2), n >= 4, along the edges of its pixels for each part of a mask that is not empty.

    Holes are joined to their part as in `rings_of`, and every speck is there: `fill` and pycocotools make the
    same mask of them again. None where it has more than MAX_HOLES holes or MAX_CORNERS corners.
    """
    left, top, right, bottom = (int(side) for side in box_of(mask))
    part = mask[top:bottom, left:right]
    rows, columns = _row_edges(part), _row_edges(part.T)[:, ::-1, ::-1]
    if len(rows) + len(columns) > MAX_CORNERS:
        return None
    _, number = cv2.connectedComponents(part.astype(np.uint8), connectivity=4)
    parts: dict[int, list[Ring]] = {}
    for ring in _followed(rows, columns):
        (x, y), (towards, _) = ring[:2].astype(int).tolist()
        inside = number[y, x] if towards > x else number[y - 1, x - 1]
        parts.setdefault(int(inside), []).append(np.add(ring, (left, top)))
    if sum(map(len, parts.values())) - len(parts) > MAX_HOLES:
        return None
    # Only the outline runs clockwise.
    return [_bridged(sorted(rings, key=_area, reverse=True)) for rings in parts.values()]


def _followed(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Iterator[Ring]:
    """The rings (n, 2) that lines along rows and along columns make, each (n, 2, 2): from and to, as xy.

    Each ring begins with a line along a row. Pixels that share a corner alone are in different rings.
    """
    lines = np.concatenate([rows, columns])
    ends = lines[:, 1].tolist()
    ways = np.sign(lines[:, 1] - lines[:, 0]).tolist()
    starts = zip(lines[:, 0].tolist(), ways, strict=True)
    beginning = {(*start, *way): number for number, (start, way) in enumerate(starts)}
    left = dict.fromkeys(range(len(rows)))
    while left:
        ring = [number := next(iter(left))]
        while True:
            left.pop(number, None)
            (x, y), (dx, dy) = ends[number], ways[number]
            # Where two lines begin, the one to the right goes around the same pixel.
            turned = beginning.get((x, y, -dy, dx))
            number = beginning[x, y, dy, -dx] if turned is None else turned
            if number == ring[0]:
                break
            ring.append(number)
        yield lines[ring, 0].astype(np.float64)


def _row_edges(mask: Mask) -> NDArray[np.int64]:
    """(n, 2, 2): the lines between rows of pixels with the mask on one side, from and to, as xy.

    The mask lies to the right of where a line goes.
    """
    # 1 where the mask is below, and -1 where it is above.
    below = np.pad(np.diff(np.pad(mask.astype(np.int8), ((1, 1), (0, 0))), axis=0), ((0, 0), (1, 1)))
    y, x = np.nonzero(np.diff(below, axis=1))
    side = below[y, x + 1]
    (first,) = np.nonzero(side)
    lines = np.stack([np.stack([x[first], y[first]], 1), np.stack([x[first + 1], y[first]], 1)], 1)
    lines[side[first] < 0] = lines[side[first] < 0, ::-1]
    return lines


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
    pairs = MAX_PAIRS // len(rings)
    near = [_nearest(joined, ring, pairs) for ring in left]
    while left:
        number = min(range(len(left)), key=lambda i: near[i][0])
        ring, (_, (x, y), there) = left.pop(number), near.pop(number)
        here = int(np.argmax((joined == (x, y)).all(axis=1)))
        round_trip = np.concatenate([ring[there:], ring[: there + 1]])
        joined = np.concatenate([joined[: here + 1], round_trip, joined[here:]])
        near = [
            min(old, _nearest(ring, other, pairs), key=lambda n: n[0])
            for old, other in zip(near, left, strict=True)
        ]
    return joined


def _nearest(one: Ring, other: Ring, pairs: int) -> tuple[float, tuple[float, float], int]:
    """The least squared distance of two rings' points, the point of `one`, and the number of `other`'s.

    No more than so many pairs are compared: of long rings not every point is looked at.
    """
    step = math.ceil(math.sqrt(len(one) * len(other) / pairs))
    squared = ((one[::step, None] - other[None, ::step]) ** 2).sum(axis=2)
    here, there = divmod(int(squared.argmin()), squared.shape[1])
    x, y = one[here * step].tolist()
    return float(squared[here, there]), (x, y), there * step


def fill(ring: Ring, shape: tuple[int, int]) -> Mask:
    """The pixels of (height, width) whose centres lie inside a ring, by the even-odd rule."""
    mask = np.zeros(shape, bool)
    window = window_of(ring, shape)
    mask[slices(window)] = fill_window(ring, window)
    return mask


def window_of(points: Ring, shape: tuple[int, int], margin: float = 0.0) -> Window:
    """The pixels of an image (height, width) that points (n, 2), n >= 1, span, and `margin` around them."""
    low = np.floor(points.min(axis=0) - margin)
    high = np.floor(points.max(axis=0) + margin) + 1
    (x0, y0), (x1, y1) = (
        np.clip(corner, 0, (shape[1], shape[0])).astype(int).tolist() for corner in (low, high)
    )
    return x0, y0, x1, y1


def slices(window: Window) -> tuple[slice, slice]:
    """What an image's array is indexed with for the pixels of a window."""
    x0, y0, x1, y1 = window
    return slice(y0, y1), slice(x0, x1)


def area(window: Window) -> int:
    """How many pixels a window has."""
    left, top, right, bottom = window
    return (right - left) * (bottom - top)


def common(one: Window, other: Window) -> Window:
    """What two windows have in common; (0, 0, 0, 0) for nothing."""
    left, top = max(one[0], other[0]), max(one[1], other[1])
    right, bottom = min(one[2], other[2]), min(one[3], other[3])
    return (left, top, right, bottom) if left < right and top < bottom else (0, 0, 0, 0)


def contains(mask: Mask, points: Any) -> Any:
    """(n,) bool: which points (n, 2) of xy pixels lie on a pixel of the mask. Outside the image: none."""
    height, width = mask.shape
    xy = np.floor(np.asarray(points, float).reshape(-1, 2)).astype(np.int64)
    on_image = (xy[:, 0] >= 0) & (xy[:, 0] < width) & (xy[:, 1] >= 0) & (xy[:, 1] < height)
    found = np.zeros(len(xy), bool)
    found[on_image] = mask[xy[on_image, 1], xy[on_image, 0]]
    return found


def crossings(ring: Ring, window: Window) -> int:
    """How often edges and rows of pixels meet in a window at most: what `fill_window` takes its time for."""
    _, top, _, bottom = window
    y = np.clip(ring[:, 1], top, bottom)
    return int(np.abs(y - np.roll(y, -1)).sum()) + len(ring)


def fill_window(ring: Ring, window: Window) -> Mask:
    """What `fill` gives, of a window alone."""
    left, top, right, bottom = window
    width, height = right - left, bottom - top
    mask = np.zeros((height, width), bool)
    xa, ya = (ring - (left, top)).T
    xb, yb = np.roll(xa, -1), np.roll(ya, -1)
    # The rows whose centres lie between the ends of an edge.
    first, last = (
        np.clip(np.ceil(side - 0.5), 0, height) for side in (np.minimum(ya, yb), np.maximum(ya, yb))
    )
    edges = np.stack([xa, ya, xb, yb, first, last])[:, first < last]
    if not (mask.size and edges.size):
        return mask
    step = max(1, BLOCK // max(width, edges.shape[1]))
    for begin in range(0, height, step):
        y = np.arange(begin, min(begin + step, height))
        xa, ya, xb, yb, first, last = edges[:, (edges[4] <= y[-1]) & (edges[5] > begin)][:, :, None]
        x = (y + 0.5) - ya
        x *= (xb - xa) / (yb - ya)
        x += xa
        # Every pixel from the first centre right of an edge on changes sides: behind the last one, none.
        x -= 0.5
        columns = np.clip(np.ceil(x, out=x), 0, width, out=x)
        if (first > begin).any() or (last <= y[-1]).any():
            columns[(y < first) | (y >= last)] = width
        columns += (y - begin) * (width + 1)
        changes = np.bincount(columns.astype(np.intp).ravel(), minlength=len(y) * (width + 1))
        odd = (changes.reshape(len(y), -1)[:, :-1] & 1).astype(bool)
        np.logical_xor.accumulate(odd, axis=1, out=mask[begin : begin + step])
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
    mask = np.zeros(shape, bool)
    window = ellipse_window(ellipse, shape)
    mask[slices(window)] = fill_ellipse_window(ellipse, window)
    return mask


def ellipse_window(ellipse: Ellipse, shape: tuple[int, int]) -> Window:
    """The pixels of an image (height, width) outside of which an ellipse has none."""
    x, y, radius_x, radius_y, _ = ellipse
    if not (radius_x > 0 and radius_y > 0):
        return 0, 0, 0, 0
    return window_of(np.array([[x, y]]), shape, max(radius_x, radius_y))


def fill_ellipse_window(ellipse: Ellipse, window: Window) -> Mask:
    """What `fill_ellipse` gives, of a window alone."""
    x, y, radius_x, radius_y, degrees = ellipse
    left, top, right, bottom = window
    mask = np.zeros((bottom - top, right - left), bool)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    across = np.arange(left, right) + 0.5 - x
    step = max(1, BLOCK // max(1, right - left))
    for begin in range(top, bottom, step):
        down = np.arange(begin, min(begin + step, bottom))[:, None] + 0.5 - y
        along = (across * cos + down * sin) / radius_x
        aside = (down * cos - across * sin) / radius_y
        mask[begin - top : begin - top + step] = along**2 + aside**2 <= 1
    return mask


def deepest(mask: Mask) -> tuple[float, float]:
    """The centre x, y of the pixel of a mask, not empty, that is farthest from all that is not in it."""
    left, top, right, bottom = (int(side) for side in box_of(mask))
    # The edge of the image is an edge of the mask too.
    padded = np.pad(mask[top:bottom, left:right].astype(np.uint8), 1)
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, 5)[1:-1, 1:-1]
    row, column = np.unravel_index(int(distance.argmax()), distance.shape)
    return float(left + column + 0.5), float(top + row + 0.5)


def stroke(canvas: NDArray[np.uint8], points: Ring, width: float, *, add: bool) -> None:
    """Draws a round brush of `width` along points (n, 2), or an eraser, into a canvas of 0 and 1."""
    fine = 4  # bits below the pixel; cv2 has pixel centres on whole numbers
    path = np.round((points - 0.5) * 2**fine).astype(np.int32)
    # cv2 4.12 draws a line of even thickness one pixel wider than asked, and an odd one two.
    thickness = max(1, 2 * round((width - 1) / 2))
    cv2.polylines(canvas, [path], False, int(add), thickness=thickness, shift=fine)
