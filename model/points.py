"""Attention map -> point prompts. VL-SAM section 3.3."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from model.types import Mask


@dataclass(frozen=True)
class Pair:
    """One positive and one negative point, xy in shares of the view (0..1), and the peak's height."""

    positive: tuple[float, float]
    negative: tuple[float, float]
    peak: float  # of the map, which has its maximum at 1 before anything is masked out


def normalised(attention: NDArray[np.float32]) -> NDArray[np.float32]:
    """The map from 0 to 1; all zero where it is flat."""
    low, high = float(attention.min()), float(attention.max())
    if high <= low:
        return np.zeros_like(attention)
    return ((attention - low) / (high - low)).astype(np.float32)


def pair(attention: NDArray[np.float32], *, threshold: float) -> Pair | None:
    """The paper's pair from a map (rows, columns) of 0..1, or None where nothing is left.

    Weak activations below `threshold` x maximum are dropped; the largest 8-connected area of the rest
    is positive, all else negative; the strongest of the one and the weakest of the other are the pair.
    """
    peak = float(attention.max())
    if peak <= 0:
        return None
    strong = (attention >= threshold * peak).astype(np.uint8)
    _, areas, stats, _ = cv2.connectedComponentsWithStats(strong, connectivity=8)
    largest = areas == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    row, column = np.unravel_index(np.where(largest, attention, -1).argmax(), attention.shape)
    if largest.all():
        return None
    low_row, low_column = np.unravel_index(np.where(largest, np.inf, attention).argmin(), attention.shape)
    rows, columns = attention.shape
    return Pair(
        positive=((float(column) + 0.5) / columns, (float(row) + 0.5) / rows),
        negative=((float(low_column) + 0.5) / columns, (float(low_row) + 0.5) / rows),
        peak=float(attention[row, column]),
    )


def mask_out(attention: NDArray[np.float32], mask: Mask) -> NDArray[np.float32]:
    """The map without what a mask (of the same view, any size) explains. VL-SAM section 3.4."""
    rows, columns = attention.shape
    share = cv2.resize(mask.astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA)
    # A token's attention spreads over its neighbours: they are explained as well.
    near = cv2.dilate((share > 0.1).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    return np.where(near, np.float32(0), attention)


def consistency(attention: NDArray[np.float32], mask: Mask) -> float:
    """How much of the map's activation above its mean lies on a mask, less what it misses: 0..1.

    The attention-consistency score of DecAF (arXiv 2510.19592): what is below the mean counts against.
    """
    rows, columns = attention.shape
    share = cv2.resize(mask.astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA)
    signed = np.where(attention >= attention.mean(), attention, -float(attention.max()))
    best = float(signed[signed > 0].sum())
    return float(np.clip((share * signed).sum() / best, 0, 1)) if best > 0 else 0.0
