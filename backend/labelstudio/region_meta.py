"""Write the evidence of a region into the `meta` of its result, and read it back, validated.

Label Studio 1.23.2 keeps keys of `meta` other than `text` through drafts, annotations and predictions, and
does not show them. So the request of a later click contains the prompt of its region, and the server stores
nothing.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from backend.labelstudio import geometry
from backend.labelstudio.region_reading import decode
from backend.labelstudio.results import mask_hash, unit
from model import patches
from model.types import Box, Detection, Mask, Prompt

KEY = "vlsam"
MAX_BYTES = 2000  # of JSON, as ASCII
MAX_POINTS = 64
MAX_TEXT = 200
SUPERSEDES = "Supersedes region "  # in `meta.text` of a region that stands beside the one it corrects
_WRITTEN_POINTS = 40
_WRITTEN_TEXT = 64


@dataclass(frozen=True, eq=False)
class Stored:
    """The evidence of a region that is stored in `meta`. Coordinates are pixels of the image."""

    term: str
    prompt: Prompt  # without a mask: that is the region's geometry
    mask_hash: str


def write(detection: Detection, value_result: Mapping[str, Any]) -> dict[str, Any]:
    """Return `meta` for a result of a detection. The oldest points are left out to fit MAX_BYTES of JSON."""
    height, width = detection.mask.shape
    prompt = detection.evidence.prompt
    # The mask as decoded from this result: for a polygon or a rectangle it differs from the model's.
    exact = str(value_result.get("type")).startswith(("brush", "bitmask"))
    shown = detection.mask if exact else decode(value_result, (height, width))
    points = [
        [_share(x, width), _share(y, height), int(label)]
        for (x, y), label in zip(prompt.points, prompt.labels, strict=True)
    ]
    sides = zip(prompt.box or (), (width, height) * 2, strict=False)
    # The model placed all points of a detection that a question found.
    model_points = len(points) if detection.evidence.question else prompt.model_points
    stored: dict[str, Any] = {
        "v": 1,
        "term": detection.term[:_WRITTEN_TEXT],
        "points": points[-_WRITTEN_POINTS:],
        "found": max(0, model_points - max(0, len(points) - _WRITTEN_POINTS)),
        "box": [_share(side, extent) for side, extent in sides] or None,
        "scores": {
            name[:24]: round(unit(score), 4) for name, score in list(detection.evidence.scores.items())[:6]
        },
        "model": detection.evidence.model_version[:_WRITTEN_TEXT],
        "mask": "" if shown is None else mask_hash(shown),
    }
    if detection.evidence.reduced:
        stored["reduced"] = True
    while len(json.dumps({KEY: stored})) > MAX_BYTES and stored["points"]:
        stored["points"] = stored["points"][1:]
        stored["found"] = max(0, stored["found"] - 1)
    return {KEY: stored}


def read(meta: Any, shape: tuple[int, int]) -> Stored | None:
    """Return the evidence in a result's `meta`, None if it is missing or any value is invalid."""
    stored: Any = meta.get(KEY) if isinstance(meta, Mapping) else None
    match stored:
        case {"v": 1, "term": str(term), "model": str(model), "mask": str(digest), "points": list(points)}:
            box, found, reduced = stored.get("box"), stored.get("found", 0), stored.get("reduced", False)
        case _:
            return None
    valid = (
        max(map(len, (term, model, digest))) <= MAX_TEXT
        and len(points) <= MAX_POINTS
        and all(_are_percent(point, 3) and type(point[2]) is int and point[2] <= 1 for point in points)
        and (box is None or (_are_percent(box, 4) and box[0] < box[2] and box[1] < box[3]))
        and (type(found) is int and 0 <= found <= len(points))
        and isinstance(reduced, bool)
    )
    if not valid:
        return None
    xy = geometry.pixels_of(np.array([point[:2] for point in points], float).reshape(-1, 2), shape)
    pixels: Box | None = None
    if box is not None:
        (x0, y0), (x1, y1) = geometry.pixels_of(np.reshape(box, (2, 2)), shape).tolist()
        pixels = (x0, y0, x1, y1)
    labels = np.array([point[2] for point in points], np.int64)
    prompt = Prompt(points=xy.astype(np.float32), labels=labels, box=pixels, model_points=found)
    return Stored(term, prompt, digest)


def same(one: Any, other: Any) -> bool:
    """Return whether two results' `meta` hold the same evidence."""
    stored = one.get(KEY) if isinstance(one, Mapping) else None
    return stored is not None and isinstance(other, Mapping) and stored == other.get(KEY)


def notes_with(meta: Any, notes: Sequence[str]) -> list[str]:
    """Return the lines of `meta.text` and `notes`. New notes replace lines that begin with SUPERSEDES."""
    text = meta.get("text") if isinstance(meta, Mapping) else None
    lines = [line for line in (text if isinstance(text, list) else [text]) if isinstance(line, str)]
    return [line for line in lines if not (notes and line.startswith(SUPERSEDES))] + list(notes)


def consistent(stored: Stored, mask: Mask) -> Prompt:
    """Return the stored prompt without its points and box that contradict the region's present mask."""
    prompt = stored.prompt
    if stored.mask_hash == mask_hash(mask):
        return prompt
    inside = patches.contains(mask, prompt.points)
    keep = inside == (prompt.labels == 1)
    box = prompt.box
    if box is not None:
        x0, y0, x1, y1 = patches.tight_window(mask)
        slack = 2.0  # pixels by which a mask may exceed the box that prompted it
        fits = mask.any() and (
            x0 >= box[0] - slack and y0 >= box[1] - slack and x1 <= box[2] + slack and y1 <= box[3] + slack
        )
        box = box if fits else None
    return replace(prompt.of_points(keep), box=box)


def _share(pixels: float, side: int) -> float:
    return round(min(100.0, max(0.0, 100.0 * float(pixels) / side)), 4)


def _are_percent(values: Any, count: int) -> bool:
    """Return whether an untrusted value is a list of `count` numbers from 0 to 100."""
    return (
        isinstance(values, list)
        and len(values) == count
        and all(type(value) in (int, float) and 0 <= value <= 100 for value in values)  # nor NaN
    )
