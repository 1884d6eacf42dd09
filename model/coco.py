"""Convert masks to and from the COCO format."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco


def encode(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Return a mask (H, W) as compressed RLE: {"size": [H, W], "counts": text}."""
    rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode(rle: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Return the bool mask (H, W) of a compressed RLE."""
    return np.asarray(coco.decode(rle).astype(bool))


def annotation(
    rle: Mapping[str, Any], box: Sequence[float], score: float | None, *, image_id: int, category_id: int
) -> dict[str, Any]:
    """Return an instance annotation in COCO's format, without its `id`.

    `rle` is the mask as compressed RLE. `box` is x0, y0, x1, y1 in pixels. None for `score` leaves it out.

    `iscrowd` is 0 although the segmentation is RLE, because evaluation and loaders skip annotations with 1.
    """
    x0, y0, x1, y1 = box
    found = {
        "image_id": image_id,
        "category_id": category_id,
        "segmentation": rle,
        "area": int(coco.area(rle)),
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "iscrowd": 0,
    }
    return found if score is None else {**found, "score": score}
