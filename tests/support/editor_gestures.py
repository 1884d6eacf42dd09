"""What Label Studio's editor sends after a gesture, as recorded from 1.23.2, and how it reads masks."""

import base64
from collections.abc import Mapping
from io import BytesIO
from typing import Any
from uuid import uuid4

import cv2
import numpy as np
from label_studio_sdk.converter.brush import decode_rle
from numpy.typing import NDArray
from PIL import Image

Mask = NDArray[np.bool_]
Size = tuple[int, int]  # width, height


def click(x: float, y: float, size: Size, label: str, *, positive: bool = True) -> dict[str, Any]:
    """A smart KeyPointLabels click at the centre of pixel x, y; Alt makes it negative."""
    width, height = size
    value = {
        "x": 100 * (x + 0.5) / width,
        "y": 100 * (y + 0.5) / height,
        "width": 0.23,
        "labels": [label],
        "keypointlabels": [label],
    }
    return {**_gesture("click", "keypointlabels", size, value), "is_positive": positive}


def box(x0: float, y0: float, x1: float, y1: float, size: Size, label: str) -> dict[str, Any]:
    """A smart RectangleLabels box: it knows neither `is_positive` nor `labels`."""
    width, height = size
    value = {
        "x": 100 * x0 / width,
        "y": 100 * y0 / height,
        "width": 100 * (x1 - x0) / width,
        "height": 100 * (y1 - y0) / height,
        "rotation": 0,
        "rectanglelabels": [label],
    }
    return _gesture("box", "rectanglelabels", size, value)


def context(*gestures: Mapping[str, Any]) -> dict[str, Any]:
    return {"result": list(gestures)}


def mask_of(region: Mapping[str, Any]) -> Mask:
    """The pixels of a brush or bitmask region: alpha, of a PNG or of RGBA run lengths, is 0 or 255."""
    width, height = region["original_width"], region["original_height"]
    painted = region["value"].get("maskDataURL") or region["value"].get("imageDataURL")
    if painted:
        picture = Image.open(BytesIO(base64.b64decode(painted.partition(",")[2])))
        assert picture.size == (width, height)
        alpha = np.asarray(picture.convert("RGBA"))[..., 3]
    else:
        alpha = np.asarray(decode_rle(region["value"]["rle"])).reshape(height, width, 4)[..., 3]
    assert set(np.unique(alpha)) <= {0, 255}
    mask: Mask = alpha == 255
    return mask


def deepest(mask: Mask) -> tuple[int, int]:
    """x, y of the pixel of the mask that is farthest from everything else, the image's edge too."""
    padded = np.pad(mask.astype(np.uint8), 1)
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, 5)[1:-1, 1:-1]
    y, x = np.unravel_index(int(distance.argmax()), distance.shape)
    return int(x), int(y)


def _gesture(control: str, kind: str, size: Size, value: dict[str, Any]) -> dict[str, Any]:
    return {
        "original_width": size[0],
        "original_height": size[1],
        "image_rotation": 0,
        "value": value,
        "id": uuid4().hex[:10],
        "from_name": control,
        "to_name": "image",
        "type": kind,
        "origin": "manual",
    }
