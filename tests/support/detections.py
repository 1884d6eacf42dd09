"""Builders of masks and detections."""

import numpy as np

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
