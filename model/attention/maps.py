"""Attention maps among each other: contrast, sinks, smoothing. All pure, float32 (terms, rows, columns)."""

import cv2
import numpy as np
from numpy.typing import NDArray

Maps = NDArray[np.float32]

SINK = 3.0  # a sink stands out of its neighbours by this factor, in every map


def normalised(maps: Maps) -> Maps:
    """Each map from 0 to 1; all zero where it is flat."""
    low, high = maps.min((-2, -1), keepdims=True), maps.max((-2, -1), keepdims=True)
    spread = np.where(high > low, high - low, 1)
    return np.asarray((maps - low) / spread, np.float32)


def against(maps: Maps, background: Maps) -> Maps:
    """What each map has beyond a background map (rows, columns), both from 0 to 1: DecAF's contrast."""
    return (normalised(maps) - normalised(background)).clip(0).astype(np.float32)


def against_each_other(maps: Maps) -> Maps:
    """What each map has beyond the mean of the others; a single map stays as it is."""
    if len(maps) < 2:
        return maps
    each = normalised(maps)
    others = (each.sum(0) - each) / (len(each) - 1)
    return np.asarray((each - others).clip(0), np.float32)


def level_sinks(maps: Maps) -> Maps:
    """Level the lone cells that stand high above their neighbours in every map, to the neighbours' mean.

    Such tokens draw attention whatever is asked (RefAM, arXiv 2509.22650). One map alone cannot tell a sink
    from its object, so it stays as it is.
    """
    if len(maps) < 2 or min(maps.shape[1:]) < 2:
        return maps
    ring = np.ones((3, 3), np.float32)
    ring[1, 1] = 0
    count = cv2.filter2D(np.ones(maps.shape[1:], np.float32), -1, ring, borderType=cv2.BORDER_CONSTANT)
    around = np.stack([cv2.filter2D(m, -1, ring, borderType=cv2.BORDER_CONSTANT) / count for m in maps])
    sinks = (maps > SINK * around).all(0)
    return np.where(sinks, around, maps).astype(np.float32)


def smoothed(maps: Maps, sigma: float) -> Maps:
    """Each map under a Gaussian of `sigma` cells; 0 leaves it as it is."""
    if sigma <= 0:
        return maps
    return np.stack([cv2.GaussianBlur(m, (0, 0), sigma) for m in maps])


def product(maps: Maps, others: Maps) -> Maps:
    """Two maps of each term multiplied, each from 0 to 1 before."""
    return (normalised(maps) * normalised(others)).astype(np.float32)
