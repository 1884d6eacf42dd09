"""Builders of masks and detections."""

import numpy as np
from numpy.typing import NDArray

from backend.labelstudio import geometry
from model.types import Detection, Evidence, Mask, Prompt


def disc(x: float, y: float, radius: float, *, width: int = 80, height: int = 60) -> Mask:
    rows, columns = np.mgrid[:height, :width]
    return np.asarray((columns + 0.5 - x) ** 2 + (rows + 0.5 - y) ** 2 <= radius**2)


def detection(term: str, mask: Mask, prompt: Prompt | None = None, *, score: float = 0.8) -> Detection:
    if prompt is None:
        rows, columns = np.nonzero(mask)
        middle = len(rows) // 2
        point = [[columns[middle] + 0.5, rows[middle] + 0.5]] if len(rows) else [[1, 1]]
        prompt = Prompt(np.array(point, np.float32), np.array([1]))
    view = (0.0, 0.0, float(mask.shape[1]), float(mask.shape[0]))
    return Detection(term, mask, score, Evidence("", view, prompt, {"predicted_iou": score}, "v1"))


def ring_mask(ring: NDArray[np.float64], shape: tuple[int, int]) -> Mask:
    """Return the mask (height, width) of the pixels inside a ring."""
    mask = np.zeros(shape, bool)
    left, top, right, bottom = window = geometry.window_of(ring, shape)
    mask[top:bottom, left:right] = geometry.fill(ring, window)
    return mask


def ellipse_mask(ellipse: geometry.Ellipse, shape: tuple[int, int]) -> Mask:
    """An ellipse, painted on an image: centre, two radii, degrees clockwise."""
    return ring_mask(geometry.ring_around(ellipse), shape)
