"""Masks to and from the result JSON of Label Studio's control tags.

Coordinates are percent of the image, 0 to 100, origin at its upper left corner. What Label Studio 1.23.2
needs of a result: `type` is the control's tag in lower case, `score` a float, `origin` one of its own words
(another type or origin replaces the editor by an error box), RLE of plain ints 0..255 over four channels.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

import cv2
import numpy as np
from label_studio_sdk.converter.brush import decode_rle, mask2rle
from numpy.typing import NDArray

from backend.labels import Control
from model.types import Mask, box_of

Result = dict[str, Any]

POLYGON_TOLERANCE = 0.75  # pixels between a mask's outline and its polygon
MAX_RING = 10_000  # points of a polygon that is read


def region(mask: Mask, *, control: Control, label: str, region_id: str, score: float) -> Result | None:
    """One result of `control` for a mask of the whole image; None where the mask is empty."""
    value = encode(mask, control.type)
    if value is None:
        return None
    height, width = mask.shape
    return {
        "id": region_id,
        "from_name": control.name,
        "to_name": control.to_name,
        "type": control.type,
        "origin": "prediction",
        "original_width": int(width),
        "original_height": int(height),
        "image_rotation": 0,
        "score": unit(score),
        "value": {**value, control.type: [label]},
    }


def unit(score: float) -> float:
    """A score as Label Studio accepts it: a plain float from 0 to 1; 0 for NaN."""
    number = float(score)
    return min(1.0, max(0.0, number)) if math.isfinite(number) else 0.0


def encode(mask: Mask, kind: str) -> dict[str, Any] | None:
    """The geometry of `value` for a result type: brushlabels, polygonlabels or rectanglelabels.

    None for an empty mask. A polygon is the outer ring of the mask's largest part, for Label Studio's
    polygons have one ring; a rectangle is the tight box.
    """
    if not mask.any():
        return None
    if kind == "brushlabels":
        # The SDK repeats each value over four channels; the fourth, alpha, is the mask.
        return {"format": "rle", "rle": mask2rle(mask.astype(np.uint8) * 255)}
    if kind == "polygonlabels":
        return {"points": _percent(_outline(mask), mask.shape), "closed": True}
    if kind == "rectanglelabels":
        (x0, y0), (x1, y1) = _percent(np.array(box_of(mask)).reshape(2, 2), mask.shape)
        return {"x": x0, "y": y0, "width": round(x1 - x0, 6), "height": round(y1 - y0, 6), "rotation": 0}
    raise ValueError(f"no result type {kind!r}")


def decode(result: Mapping[str, Any], shape: tuple[int, int]) -> Mask | None:
    """The mask (height, width) = `shape` of a result that came from outside, or None where it has none.

    None stands for: another type, another image size, values of wrong types, a brush that so far only is
    strokes (drafts may hold `touches` or a `maskDataURL` in place of `rle`), or an empty mask. A pixel is
    in a polygon when its centre is, and in a brush when its alpha is 128 or more.
    """
    value, kind = result.get("value"), result.get("type")
    if not isinstance(value, Mapping):
        return None
    try:
        if kind == "brushlabels":
            mask = _decode_brush(value, shape)
        elif kind == "polygonlabels":
            mask = fill(_pixels(_ring(value["points"]), shape), shape)
        elif kind == "rectanglelabels":
            x, y, width, height = (_percentage(value[key]) for key in ("x", "y", "width", "height"))
            turned = _percentage(value.get("rotation") or 0)
            mask = fill(corners(x, y, width, height, turned, shape), shape)
        else:
            return None
    except (KeyError, TypeError, ValueError, IndexError, OverflowError):
        return None
    return mask if mask is not None and mask.any() else None


def mask_hash(mask: Mask) -> str:
    """16 hex digits that tell whether two masks are the same."""
    digest = hashlib.blake2b(repr(mask.shape).encode(), digest_size=8)
    digest.update(np.packbits(mask).tobytes())
    return digest.hexdigest()


def image_hash(image: NDArray[np.uint8]) -> str:
    """Names an image by its pixels."""
    digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def prediction_id(image: str, model_version: str, control: str, term: str, number: int) -> str:
    """The id of a predicted region: the same for the same content, 20 characters, one per control."""
    key = "\0".join((image, model_version, control, term, str(number)))
    return hashlib.blake2b(key.encode("utf-8", "replace"), digest_size=10).hexdigest()


def new_id() -> str:
    """The id of a clicked region. Long, for Label Studio 1.23.2 replaces a region that has the same id."""
    return uuid4().hex


def corners(
    x: float, y: float, width: float, height: float, rotation: float, shape: tuple[int, int]
) -> NDArray[np.float64]:
    """The corners (4, 2) in pixels of a rectangle in percent; rotation turns clockwise about the first."""
    ring = _pixels(np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]]), shape)
    angle = math.radians(rotation)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return np.asarray((ring - ring[0]) @ turn + ring[0])


def fill(ring: NDArray[np.float64], shape: tuple[int, int]) -> Mask:
    """The pixels of (height, width) whose centres lie inside a ring (n, 2) of xy, by the even-odd rule."""
    height, width = shape
    crossings = np.zeros((height, width + 1), np.int32)
    for (xa, ya), (xb, yb) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        first, last = (max(0, math.ceil(min(y, height + 1.0) - 0.5)) for y in sorted((ya, yb)))
        rows = np.arange(first, min(last, height))
        if len(rows):
            x = xa + (rows + 0.5 - ya) * ((xb - xa) / (yb - ya))
            # Every pixel from the first centre right of the edge on changes sides.
            np.add.at(crossings, (rows, np.clip(np.ceil(x - 0.5), 0, width).astype(np.intp)), 1)
    return np.asarray(np.cumsum(crossings[:, :width], axis=1) % 2 == 1)


def _outline(mask: Mask) -> NDArray[np.float64]:
    """The outer ring (n, 2) of the mask's largest part, in pixels of the image, n >= 3."""
    count, parts, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    largest = 1 + int(np.argmax(stats[1:count, cv2.CC_STAT_AREA]))
    left, top, width, height = (int(stats[largest, i]) for i in range(4))
    part = parts[top : top + height, left : left + width] == largest
    # cv2 walks through the centres of border pixels. Doubled, these lie a quarter pixel inside the true
    # outline, and a part one pixel wide still has two sides.
    doubled = part.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    rings, _ = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    ring = max(rings, key=cv2.contourArea)
    simple = cv2.approxPolyDP(ring, 2 * POLYGON_TOLERANCE, True)
    points = (simple if len(simple) >= 3 else ring)[:, 0, :].astype(float)
    return np.asarray((points + 0.5) / 2 + (left, top))


def _percent(points: NDArray[np.float64], shape: Sequence[int]) -> list[list[float]]:
    percent = np.clip(100 * points / (shape[1], shape[0]), 0, 100)
    return [[round(float(x), 6), round(float(y), 6)] for x, y in percent]


def _pixels(percent: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.float64]:
    return percent * (shape[1] / 100, shape[0] / 100)


def _ring(points: Any) -> NDArray[np.float64]:
    if not isinstance(points, list) or not 3 <= len(points) <= MAX_RING:
        raise ValueError("a ring has three points or more")
    return np.array([[_percentage(x), _percentage(y)] for x, y in points])


def _percentage(value: Any) -> float:
    number = float(value)
    if not abs(number) <= 1e6:  # nor NaN
        raise ValueError("a coordinate is far outside the image")
    return number


def _decode_brush(value: Mapping[str, Any], shape: tuple[int, int]) -> Mask | None:
    rle = bytes(value["rle"]) if isinstance(value.get("rle"), list) else b""
    pixels = shape[0] * shape[1]
    # The first four bytes say how much the decoder allocates.
    if len(rle) < 8 or int.from_bytes(rle[:4]) != 4 * pixels:
        return None
    return np.asarray(decode_rle(rle).reshape(*shape, 4)[:, :, 3] >= 128)
