"""Rasterise the shapes that editors draw (rings, ellipses, strokes), in pixels of the image."""

import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from model.patches import Window
from model.types import Mask

Ring = NDArray[np.float64]  # (n, 2) xy; the last point joins the first
Ellipse = tuple[float, float, float, float, float]  # centre x and y, two radii, degrees clockwise

MAX_RING = 3600  # points of an ellipse
BLOCK = 1 << 18  # numbers in the arrays of rows that are painted together: they fit into caches


def window_of(points: Ring, shape: tuple[int, int], margin: float = 0.0) -> Window:
    """Return the window around points (n, 2), n >= 1, and a margin in pixels, cut to the image `shape`."""
    corners = [np.floor(points.min(axis=0) - margin), np.floor(points.max(axis=0) + margin) + 1]
    (left, top), (right, bottom) = np.clip(corners, 0, shape[::-1]).astype(int).tolist()
    return left, top, right, bottom


def crossings(ring: Ring, window: Window) -> int:
    """Return an upper bound of how often a ring's edges cross rows of a window. It is the cost of `fill`."""
    _, top, _, bottom = window
    y = np.clip(ring[:, 1], top, bottom)
    return int(np.abs(y - np.roll(y, -1)).sum()) + len(ring)


def fill(ring: Ring, window: Window) -> Mask:
    """Return a mask (h, w) of a window's pixels whose centres are inside a ring, by the even-odd rule."""
    left, top, right, bottom = window
    width, height = right - left, bottom - top
    mask = np.zeros((height, width), bool)
    xa, ya = (ring - (left, top)).T
    xb, yb = np.roll(xa, -1), np.roll(ya, -1)
    # The rows whose centres lie between the ends of an edge.
    first, last = np.clip(np.ceil(np.sort([ya, yb], axis=0) - 0.5), 0, height)
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


def ring_around(ellipse: Ellipse) -> Ring:
    """Approximate an ellipse by a ring. The error is below 0.001 pixels for radii up to 2500 pixels."""
    x, y, radius_x, radius_y, degrees = ellipse
    count = min(MAX_RING, 8 + int(72 * math.sqrt(max(radius_x, radius_y))))
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
    ring = np.stack([x + radius_x * np.cos(angles), y + radius_y * np.sin(angles)], axis=1)
    return _turned(ring, degrees, (x, y))


def _turned(ring: Ring, degrees: float, about: Any) -> Ring:
    """Return a ring turned clockwise about a point."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.asarray((ring - about) @ np.array([[cos, sin], [-sin, cos]]) + about)


def stroke(canvas: NDArray[np.uint8], points: Ring, width: float, *, add: bool) -> None:
    """Draw a round stroke of `width` pixels along points (n, 2): set the canvas to 1, or 0 if not `add`."""
    fine = 4  # bits below the pixel; cv2 has pixel centres on whole numbers
    path = np.round((points - 0.5) * 2**fine).astype(np.int32)
    # cv2 4.12 draws a line of even thickness one pixel too wide, and an odd one two.
    thickness = max(1, 2 * round((width - 1) / 2))
    cv2.polylines(canvas, [path], False, int(add), thickness=thickness, shift=fine)


def corners(
    x: float, y: float, width: float, height: float, rotation: float, shape: tuple[int, int]
) -> NDArray[np.float64]:
    """Return the corners (4, 2), in pixels, of a rectangle in percent, turned clockwise about (x, y)."""
    ring = pixels_of(np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]]), shape)
    return _turned(ring, rotation, ring[0])


def pixels_of(percent: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.float64]:
    """Convert points (n, 2) from percent to pixels of an image (height, width) = `shape`."""
    return percent * (shape[1] / 100, shape[0] / 100)
