"""Build the gestures that Label Studio's editor sends, as recorded from 1.23.2, and read masks as it does."""

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
Size = tuple[int, int]  # width, height, in pixels


SIZE: Size = (80, 60)  # of the image of `images.data_url`


def click(
    x: float, y: float, label: str | None = "Cat", *, size: Size = SIZE, positive: bool = True, **more: Any
) -> dict[str, Any]:
    """Return a smart KeyPointLabels click at x, y in pixels of an image of `size`; Alt makes it negative.

    `more`: keys of the item, such as "id". The default id depends on the position alone.
    """
    value = {"x": 100 * x / size[0], "y": 100 * y / size[1], "width": 0.2}
    names = [label] if label else []
    named = {"labels": names, "keypointlabels": names}
    return _gesture("keypointlabels", "kp", size, {**value, **named}, {"is_positive": positive, **more})


def click_on_pixel(x: int, y: int, size: Size, label: str, *, positive: bool = True) -> dict[str, Any]:
    """Return a click at the centre of a pixel, of the recommended config's control; each has its own id."""
    number, control = uuid4().hex[:10], "click"
    return click(x + 0.5, y + 0.5, label, size=size, positive=positive, id=number, from_name=control)


def box(
    x0: float, y0: float, x1: float, y1: float, label: str = "Cat", *, size: Size = SIZE, **more: Any
) -> dict[str, Any]:
    """Return a smart RectangleLabels box in pixels, drawn from one corner to the other.

    Label Studio gives it neither `is_positive` nor `labels`. `more`: keys of the item.
    """
    value = {
        "x": 100 * x0 / size[0],
        "y": 100 * y0 / size[1],
        "width": 100 * (x1 - x0) / size[0],
        "height": 100 * (y1 - y0) / size[1],
        "rotation": 0,
        "rectanglelabels": [label],
    }
    return _gesture("rectanglelabels", "rect", size, value, more)


def context(*gestures: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `context` of a request with these gestures, oldest first."""
    return {"result": list(gestures)}


def click_context(x: float, y: float, label: str | None = "Cat", **more: Any) -> dict[str, Any]:
    """Return the `context` of a request with one click, as `click` takes it."""
    return context(click(x, y, label, **more))


def mask_of(region: Mapping[str, Any]) -> Mask:
    """Return the pixels of a brush or bitmask region: alpha, of a PNG or of RGBA run lengths, is 0 or 255."""
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
    """Return x, y of the mask's pixel that is farthest from its outside and from the image's edge."""
    padded = np.pad(mask.astype(np.uint8), 1)
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, 5)[1:-1, 1:-1]
    y, x = np.unravel_index(int(distance.argmax()), distance.shape)
    return int(x), int(y)


def _gesture(
    kind: str, control: str, size: Size, value: dict[str, Any], more: dict[str, Any]
) -> dict[str, Any]:
    return {
        "original_width": size[0],
        "original_height": size[1],
        "image_rotation": 0,
        "value": value,
        "id": f"{kind}-{value['x']:g}-{value['y']:g}",
        "from_name": control,
        "to_name": "image",
        "type": kind,
        "origin": "manual",
        **more,
    }
