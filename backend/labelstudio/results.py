"""Encode masks as results of Label Studio's control tags.

Coordinates are percent of the image, 0 to 100, origin at its upper left corner. Label Studio 1.23.2 requires
of a result: `type` is the control's tag in lower case, `score` a float, `origin` one of its own values
(another type or origin replaces the editor by an error box), RLE of plain ints 0..255 over four channels.
"""

import base64
import hashlib
import math
import struct
import zlib
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.labelstudio import brush_rle, outlines
from backend.labelstudio.labeling_config import Control, Naming
from backend.labelstudio.region_reading import PNG, decode
from model.types import Mask

Result = dict[str, Any]

ELLIPSE_IOU = 0.8  # minimum IoU of a mask and its ellipse in predictions
KEYPOINT_WIDTH = 0.75  # percent of the image: the size of the marker


def region(
    mask: Mask,
    *,
    control: Control,
    labels: Sequence[str],
    region_id: str,
    score: float,
    compact: bool = False,
) -> list[Result]:
    """Return the results of one region for a mask (H, W) of the whole image, [] if `encode` returns None.

    A control that takes its labels from a <Labels> tag gets two results of one id, if there are `labels`: the
    geometry, and the labels. The second repeats the geometry unless `compact`, since Label Studio's
    validation and exports need it. Other controls get one result. Its list of labels may be empty.
    """
    value = encode(mask, control.shape, compact=compact)
    if value is None:
        return []
    height, width = mask.shape
    result = {
        "id": region_id,
        "from_name": control.name,
        "to_name": control.to_name,
        "type": control.type,
        "origin": "prediction",
        "original_width": int(width),
        "original_height": int(height),
        "image_rotation": 0,
        "score": unit(score),
    }
    if not control.takes_labels or (control.labels_name is not None and not labels):
        return [{**result, "value": value}]
    if control.labels_name is None:
        return [{**result, "value": {**value, control.type: list(labels)}}]
    named = {"labels": list(labels)} if compact else {**value, "labels": list(labels)}
    return [
        {**result, "value": value},
        {**result, "from_name": control.labels_name, "type": "labels", "value": named},
    ]


def naming(region: Result, control: Naming, words: Sequence[Any]) -> Result:
    """Return the result that adds the `words` of a `perRegion` control to a region with this first result."""
    shared = {key: held for key, held in region.items() if key not in ("meta", "value")}
    return {
        **shared,
        "from_name": control.name,
        "to_name": control.to_name,
        "type": control.type,
        "value": {control.key: list(words)},
    }


def unit(score: float) -> float:
    """Clip a score to 0..1, as a Python float. NaN and infinity become 0."""
    number = float(score)
    return min(1.0, max(0.0, number)) if math.isfinite(number) else 0.0


def encode(mask: Mask, shape: str, *, compact: bool = False) -> dict[str, Any] | None:
    """Encode a mask (H, W) as the `value` of a shape in labeling_config.SHAPES. None for an empty mask.

    brush and bitmask store the mask exactly. polygon and vector are one ring around all parts except specks,
    within outlines.TOLERANCE pixels. A rectangle is the bounding box. A keypoint is the pixel farthest from
    the mask's edge. An ellipse has the mask's centre and second moments. It is None if its IoU with the mask
    is below ELLIPSE_IOU, unless `compact`, which is for answers to clicks.
    """
    if not mask.any():
        return None
    match shape:
        case "brush":
            # Never as `maskDataURL`: where Label Studio 1.23.2 replaces a region by one of the same id, it
            # shows the new PNG and submits the old one.
            return {"format": "rle", "rle": brush_rle.encode(mask)}
        case "bitmask":
            return {"imageDataURL": png(mask)}
        case "polygon" | "vector":
            ring = _percent(outlines.ring_of(mask), mask.shape)
            if shape == "polygon":
                return {"points": ring, "closed": True}
            return {"vertices": [{"x": x, "y": y} for x, y in ring], "closed": True}
        case "rectangle":
            left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
            corners = np.array([[left, top], [left + width, top + height]])
            (x0, y0), (x1, y1) = _percent(corners, mask.shape)
            return {"x": x0, "y": y0, "width": round(x1 - x0, 6), "height": round(y1 - y0, 6), "rotation": 0}
        case "ellipse":
            value = _ellipse(mask)
            return value if compact or _fits(value, mask) else None
        case "keypoint":
            ((x, y),) = _percent(np.array([outlines.innermost_of(mask)]), mask.shape)
            return {"x": x, "y": y, "width": KEYPOINT_WIDTH}
    raise ValueError(f"no shape {shape!r}")


def mask_hash(mask: Mask) -> str:
    """Return a hash of the shape and pixels of a mask, as 16 hex digits."""
    digest = hashlib.blake2b(repr(mask.shape).encode(), digest_size=8)
    digest.update(np.packbits(mask).tobytes())
    return digest.hexdigest()


def prediction_id(image: str, model_version: str, control: str, term: str, number: int) -> str:
    """Return the id of a predicted region: a hash of the arguments, as 20 hex digits."""
    key = "\0".join((image, model_version, control, term, str(number)))
    return hashlib.blake2b(key.encode("utf-8", "replace"), digest_size=10).hexdigest()


def new_id() -> str:
    """Return a random id of 32 hex digits. Label Studio 1.23.2 replaces a region that has the same id."""
    return uuid4().hex


def _percent(points: NDArray[np.float64], shape: Sequence[int]) -> list[list[float]]:
    percent = np.clip(100 * points / (shape[1], shape[0]), 0, 100)
    return [[round(float(x), 6), round(float(y), 6)] for x, y in percent]


def _fits(ellipse: dict[str, Any], mask: Mask) -> bool:
    drawn = decode({"type": "ellipse", "value": ellipse}, (mask.shape[0], mask.shape[1]))
    if drawn is None:
        return False
    return np.count_nonzero(drawn & mask) >= ELLIPSE_IOU * np.count_nonzero(drawn | mask)


def _ellipse(mask: Mask) -> dict[str, Any]:
    x, y, along, aside, degrees = outlines.ellipse_of(mask)
    height, width = mask.shape
    # Radii are percent of the width and of the height however the ellipse is turned; 50 is the most.
    radius_x, radius_y = min(50.0, 100 * along / width), min(50.0, 100 * aside / height)
    numbers = (100 * x / width, 100 * y / height, radius_x, radius_y, degrees)
    keys = ("x", "y", "radiusX", "radiusY", "rotation")
    return {key: round(number, 6) for key, number in zip(keys, numbers, strict=True)}


def png(mask: Mask) -> str:
    """Return the data URL of a 1-bit PNG that is white on the mask and transparent elsewhere.

    12 million pixels take 4 ms, or 12 ms if the mask is noise. Pillow takes three times as long.
    """
    height, width = mask.shape
    packer = zlib.compressobj(strategy=zlib.Z_RLE)  # for runs: others take twice the time
    rows = np.zeros((height, 1 + (width + 7) // 8), np.uint8)  # before each row 0: not filtered
    rows[:, 1:] = np.packbits(mask, axis=1)
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 1, 3, 0, 0, 0),  # 1 bit, palette
        b"PLTE": b"\xff\xff\xff" * 2,
        b"tRNS": b"\x00\xff",
        b"IDAT": packer.compress(rows.tobytes()) + packer.flush(),
        b"IEND": b"",
    }
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks.items()
    )
    return PNG + base64.b64encode(png).decode("ascii")
