"""The protocol that Label Studio's development branch has and 1.23.2 has not: `context.event`.

There the browser asks once what a backend can do, sends prompts without id and label, and makes regions of
every kind out of the mask by itself.
"""

from typing import Any

from backend.labelstudio import results
from backend.labelstudio.results import Result
from model.types import Mask

# Tags the browser knows, and what it makes of the mask for each.
_TARGETS = {
    "BitmaskLabels": "mask",
    "RectangleLabels": "bbox",
    "PolygonLabels": "polygon",
    "VectorLabels": "polygon",
}


def mask(pixels: Mask, score: float) -> list[Result]:
    """The answer to prompts without id and label: white where the mask is, transparent elsewhere."""
    if not pixels.any():
        return []
    value = {"format": "png", "imageDataURL": results.png(pixels)}
    return [{"type": "bitmasklabels", "score": results.unit(score), "value": value}]


class UnknownEvent(Exception):
    """There is no answer to an event. The message is the reason, one sentence."""


def answer(event: Any, version: str) -> list[Result]:
    """Return the result for an event. Raises UnknownEvent."""
    if event == "capabilities":
        value = {
            "prompts": ["point", "box"],
            "targets": [{"tag": tag, "output": output} for tag, output in _TARGETS.items()],
            "model_info": {"name": "VL-SAM", "version": version},
        }
        return [{"type": "capabilities", "score": 1.0, "value": value}]
    if event == "release":  # what we keep is bounded, and others may be at the same task
        return []
    raise UnknownEvent(f"This model has no answer to the event {ascii(event)[:80]}.")
