"""Store a mask as its tight window and the pixels in it, so that masks are fast to compare."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from model.types import Mask

Window = tuple[int, int, int, int]  # whole pixels of an image: left, top, right, bottom


@dataclass(frozen=True, eq=False)
class Patch:
    """A mask, stored as the smallest window around it and the pixels in that window."""

    shape: tuple[int, int]  # of the image
    corner: tuple[int, int]  # x, y
    pixels: NDArray[np.bool_]

    @classmethod
    def of(cls, mask: Mask) -> "Patch":
        left, top, right, bottom = tight_window(mask)
        height, width = mask.shape
        return cls((height, width), (left, top), mask[top:bottom, left:right].copy())

    @property
    def mask(self) -> Mask:
        """Return the mask (H, W) of the image, a new array."""
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
        return int(np.count_nonzero(self.pixels))

    def holds(self, points: NDArray[Any]) -> bool:
        """Return whether at least one of `points` (n, 2), x and y in pixels, is on the mask."""
        return bool(contains(self.pixels, np.asarray(points, float) - self.corner).any())

    def iou(self, other: "Patch") -> float:
        """Return the intersection over union with a mask of the same image; 0 if both are empty."""
        both = self.shared(other)
        union = self.area + other.area - both
        return both / union if union else 0.0

    def shared(self, other: "Patch") -> int:
        """Count the pixels that are also on another mask of the same image."""
        window = common(self.window, other.window)
        return int(np.count_nonzero(self._within(window) & other._within(window)))

    def count(self, window: Window) -> int:
        """Count the mask's pixels in a window."""
        return int(np.count_nonzero(self._within(common(self.window, window))))

    def _within(self, window: Window) -> NDArray[np.bool_]:
        x, y = self.corner
        left, top, right, bottom = window
        return self.pixels[top - y : bottom - y, left - x : right - x]


def tight_window(mask: Mask) -> Window:
    """Return the smallest window with all pixels of a mask; (0, 0, 0, 0) if the mask is empty."""
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    return left, top, left + width, top + height


def area(window: Window) -> int:
    left, top, right, bottom = window
    return (right - left) * (bottom - top)


def common(one: Window, other: Window) -> Window:
    """Return the intersection of two windows; (0, 0, 0, 0) if they share nothing."""
    left, top = max(one[0], other[0]), max(one[1], other[1])
    right, bottom = min(one[2], other[2]), min(one[3], other[3])
    return (left, top, right, bottom) if left < right and top < bottom else (0, 0, 0, 0)


def contains(mask: Mask, points: Any) -> Any:
    """Return bool (n,): which `points` (n, 2), x and y in pixels, are on a mask. False outside the image."""
    height, width = mask.shape
    xy = np.floor(np.asarray(points, float).reshape(-1, 2)).astype(np.int64)
    on_image = (xy[:, 0] >= 0) & (xy[:, 0] < width) & (xy[:, 1] >= 0) & (xy[:, 1] < height)
    inside = np.zeros(len(xy), bool)
    inside[on_image] = mask[xy[on_image, 1], xy[on_image, 0]]
    return inside
