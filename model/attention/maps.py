"""Contrast, smooth and clean attention maps, float32 (terms, rows, columns). Pure functions."""

import cv2
import numpy as np
from numpy.typing import NDArray

Maps = NDArray[np.float32]

SINK = 3.0  # factor by which a sink exceeds the mean of its neighbours, in every map


def normalised(maps: Maps) -> Maps:
    """Scale each map linearly to 0..1. A constant map becomes 0."""
    low, high = maps.min((-2, -1), keepdims=True), maps.max((-2, -1), keepdims=True)
    spread = np.where(high > low, high - low, 1)
    return np.asarray((maps - low) / spread, np.float32)


def against(maps: Maps, background: Maps) -> Maps:
    """Scale all maps to 0..1, subtract a background map (rows, columns) from each, and clip at 0."""
    return (normalised(maps) - normalised(background)).clip(0).astype(np.float32)


def against_each_other(maps: Maps) -> Maps:
    """Scale maps to 0..1, subtract from each the others' mean, clip at 0. Return a single map unchanged."""
    if len(maps) < 2:
        return maps
    each = normalised(maps)
    others = (each.sum(0) - each) / (len(each) - 1)
    return np.asarray((each - others).clip(0), np.float32)


def level_sinks(maps: Maps) -> Maps:
    """Replace attention sinks by the mean of their neighbours.

    A sink is a single cell that stands out in every map, for any question (RefAM, arXiv 2509.22650).
    Return a single map unchanged, since its sink and its object cannot be told apart.
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
    """Blur each map with a Gaussian of `sigma` cells. With 0 return the maps unchanged."""
    if sigma <= 0:
        return maps
    return np.stack([cv2.GaussianBlur(m, (0, 0), sigma) for m in maps])


def product(maps: Maps, others: Maps) -> Maps:
    """Multiply each map by the map of the same term in `others`, after both are scaled to 0..1."""
    return (normalised(maps) * normalised(others)).astype(np.float32)
