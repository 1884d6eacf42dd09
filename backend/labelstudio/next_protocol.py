"""Answer events (`context.event`), a protocol of Label Studio's development branch and not of 1.23.2.

The browser requests the capabilities of a backend once. It sends prompts without id and label, and makes
regions of every kind from the returned mask.
"""

from typing import Any

from backend.labelstudio import results
from model.types import Mask

# The tags that the browser supports, each with the output that it makes of a mask.
_TARGETS = {
    "BitmaskLabels": "mask",
    "RectangleLabels": "bbox",
    "PolygonLabels": "polygon",
    "VectorLabels": "polygon",
}


def mask(pixels: Mask, score: float) -> list[results.Result]:
    """Return a mask as one PNG result, white on the mask and transparent elsewhere. [] for an empty mask."""
    if not pixels.any():
        return []
    value = {"format": "png", "imageDataURL": results.png(pixels)}
    return [{"type": "bitmasklabels", "score": results.unit(score), "value": value}]


def answer(event: Any, version: str) -> list[results.Result] | None:
    """Return the results that answer an event; None for an unknown event."""
    if event == "capabilities":
        value = {
            "prompts": ["point", "box"],
            "targets": [{"tag": tag, "output": output} for tag, output in _TARGETS.items()],
            "model_info": {"name": "VL-SAM", "version": version},
        }
        return [{"type": "capabilities", "score": 1.0, "value": value}]
    if event == "release":  # nothing to release: caches are bounded, and others may work on the same task
        return []
    return None
