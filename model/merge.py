"""Duplicates among detections of one image."""

from collections.abc import Sequence

import numpy as np

from model.types import Detection, Mask


def iou(one: Mask, other: Mask) -> float:
    union = int(np.count_nonzero(one | other))
    return int(np.count_nonzero(one & other)) / union if union else 0.0


def suppress(detections: Sequence[Detection], *, same_term: float, other_term: float) -> list[Detection]:
    """Greedy mask NMS, best score first: one of two masks goes if their IoU exceeds the limit for them."""
    kept: list[Detection] = []
    for new in sorted(detections, key=lambda d: -d.score):
        limits = (same_term if new.term == old.term else other_term for old in kept)
        if all(iou(new.mask, old.mask) <= limit for old, limit in zip(kept, limits, strict=True)):
            kept.append(new)
    return kept
