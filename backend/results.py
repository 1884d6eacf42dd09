"""Masks to and from the result JSON of Label Studio's control tags.

Coordinates are percent of the image, 0 to 100, origin at its upper left corner. What Label Studio 1.23.2
needs of a result: `type` is the control's tag in lower case, `score` a float, `origin` one of its own words
(another type or origin replaces the editor by an error box), RLE of plain ints 0..255 over four channels.
"""

import base64
import hashlib
import io
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

import cv2
import numpy as np
from label_studio_sdk.converter.brush import decode_rle
from numpy.typing import NDArray
from PIL import Image as PILImage
from pycocotools import mask as coco

from backend import shapes
from backend.labels import STATUS, Control, Naming
from model.merge import iou
from model.types import Mask, box_of

Result = dict[str, Any]

ELLIPSE_IOU = 0.8  # of a mask and its ellipse: below, a prediction has none
KEYPOINT_WIDTH = 0.75  # percent of the image: the size of the marker
MAX_RING = 10_000  # points of a ring, or of strokes together, that are read
PNG = "data:image/png;base64,"


def region(
    mask: Mask,
    *,
    control: Control,
    labels: Sequence[str],
    region_id: str,
    score: float,
    compact: bool = False,
) -> list[Result]:
    """The results of one region of `control` for a mask of the whole image: none where `encode` has none.

    One result, or for a control that takes its labels from a <Labels> tag two of one id: the geometry, and
    the labels with the geometry again, which Label Studio's validation and exports want. No `labels` give a
    region without one: an empty list where the control has labels of its own.
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
    """What a `perRegion` control says of a region, given the region's first result."""
    shared = {key: held for key, held in region.items() if key not in ("meta", "value")}
    return {
        **shared,
        "from_name": control.name,
        "to_name": control.to_name,
        "type": control.type,
        "value": {control.key: list(words)},
    }


def status(text: str, to_name: str) -> Result:
    """What Label Studio 1.23.2 writes at once into the <TextArea> named labels.STATUS; "" empties it."""
    return {
        "id": new_id(),
        "from_name": STATUS,
        "to_name": to_name,
        "type": "textarea",
        "origin": "prediction",
        "value": {"text": [text] if text else []},
    }


def unit(score: float) -> float:
    """A score as Label Studio accepts it: a plain float from 0 to 1; 0 for NaN."""
    number = float(score)
    return min(1.0, max(0.0, number)) if math.isfinite(number) else 0.0


def encode(mask: Mask, shape: str, *, compact: bool = False) -> dict[str, Any] | None:
    """The geometry of `value` for a shape, one of labels.SHAPES; None for an empty mask.

    brush and bitmask hold the mask exactly. polygon and vector are one ring around all parts and holes, but
    for specks, within shapes.TOLERANCE pixels. A rectangle is the tight box, a keypoint the
    deepest pixel. An ellipse has the mask's centre and moments; where it is less alike than ELLIPSE_IOU, it
    is None.

    `compact` is for an answer to a click, which only the editor reads: an ellipse comes also where it does
    not fit, for a person asked for it.
    """
    if not mask.any():
        return None
    match shape:
        case "brush":
            # Never as `maskDataURL`: where Label Studio 1.23.2 replaces a region by one of the same id, it
            # shows the new PNG and submits the old one.
            return {"format": "rle", "rle": rle(mask)}
        case "bitmask":
            return {"imageDataURL": png(mask)}
        case "polygon":
            return {"points": _percent(shapes.ring_of(mask), mask.shape), "closed": True}
        case "vector":
            ring = _percent(shapes.ring_of(mask), mask.shape)
            return {"vertices": [{"x": x, "y": y} for x, y in ring], "closed": True}
        case "rectangle":
            (x0, y0), (x1, y1) = _percent(np.array(box_of(mask)).reshape(2, 2), mask.shape)
            return {"x": x0, "y": y0, "width": round(x1 - x0, 6), "height": round(y1 - y0, 6), "rotation": 0}
        case "ellipse":
            value = _ellipse(mask)
            fits = compact or iou(_decode_ellipse(value, (mask.shape[0], mask.shape[1])), mask) >= ELLIPSE_IOU
            return value if fits else None
        case "keypoint":
            ((x, y),) = _percent(np.array([shapes.deepest(mask)]), mask.shape)
            return {"x": x, "y": y, "width": KEYPOINT_WIDTH}
    raise ValueError(f"no shape {shape!r}")


def decode(result: Mapping[str, Any], shape: tuple[int, int]) -> Mask | None:
    """The mask (height, width) = `shape` of a result that came from outside, or None where it has none.

    None stands for: a type without pixels (a keypoint, even one that holds RLE, which Label Studio 1.23.2
    makes of accepted regions; a choice; the labels of a region, whose geometry is in another result), an
    image of another size, values of wrong types, or an empty mask. Rings and ellipses have the pixels whose
    centres are inside; a vector's curves count as straight; masks those whose alpha is 128 or more, and a
    draft's strokes go on top of them.
    """
    value, kind = result.get("value"), result.get("type")
    if not isinstance(value, Mapping) or not isinstance(kind, str):
        return None
    try:
        match kind.removesuffix("labels"):
            case "brush":
                mask = _decode_brush(value, shape)
            case "bitmask":
                mask = _from_png(value["imageDataURL"], shape)
            case "polygon":
                mask = shapes.fill(_ring(value["points"], shape), shape)
            case "vector" if value.get("closed") is True:
                mask = shapes.fill(_ring([(v["x"], v["y"]) for v in value["vertices"]], shape), shape)
            case "rectangle":
                x, y, width, height = (_percentage(value[key]) for key in ("x", "y", "width", "height"))
                turned = _percentage(value.get("rotation") or 0)
                mask = shapes.fill(corners(x, y, width, height, turned, shape), shape)
            case "ellipse":
                mask = _decode_ellipse(value, shape)
            case _:
                return None
    except (KeyError, TypeError, ValueError, IndexError, OverflowError, AttributeError):
        return None
    return mask if mask.any() else None


def coco_rle(mask: Mask) -> dict[str, Any]:
    """A mask as COCO's compressed RLE: {"size": [height, width], "counts": text}."""
    encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


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


def _percent(points: NDArray[np.float64], shape: Sequence[int]) -> list[list[float]]:
    percent = np.clip(100 * points / (shape[1], shape[0]), 0, 100)
    return [[round(float(x), 6), round(float(y), 6)] for x, y in percent]


def _pixels(percent: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.float64]:
    return percent * (shape[1] / 100, shape[0] / 100)


def _ring(points: Any, shape: tuple[int, int]) -> NDArray[np.float64]:
    if not isinstance(points, list) or not 3 <= len(points) <= MAX_RING:
        raise ValueError("a ring has three points or more")
    return _pixels(np.array([[_percentage(x), _percentage(y)] for x, y in points]), shape)


def _percentage(value: Any) -> float:
    number = float(value)
    if not abs(number) <= 1e6:  # nor NaN
        raise ValueError("a coordinate is far outside the image")
    return number


def _ellipse(mask: Mask) -> dict[str, Any]:
    x, y, along, aside, degrees = shapes.ellipse_of(mask)
    height, width = mask.shape
    # Radii are percent of the width and of the height however the ellipse is turned; 50 is the most.
    radius_x, radius_y = min(50.0, 100 * along / width), min(50.0, 100 * aside / height)
    return {
        "x": round(100 * x / width, 6),
        "y": round(100 * y / height, 6),
        "radiusX": round(radius_x, 6),
        "radiusY": round(radius_y, 6),
        "rotation": round(degrees, 6),
    }


def _decode_ellipse(value: Mapping[str, Any], shape: tuple[int, int]) -> Mask:
    x, y, radius_x, radius_y = (_percentage(value[key]) for key in ("x", "y", "radiusX", "radiusY"))
    ((x, y), (radius_x, radius_y)) = _pixels(np.array([[x, y], [radius_x, radius_y]]), shape)
    return shapes.fill_ellipse((x, y, radius_x, radius_y, _percentage(value.get("rotation") or 0)), shape)


def _decode_brush(value: Mapping[str, Any], shape: tuple[int, int]) -> Mask:
    """What the editor paints: the PNG or else the RLE, and over it the strokes of a draft, in their order."""
    if value.get("maskDataURL"):
        mask = _from_png(value["maskDataURL"], shape)
    elif value.get("rle"):
        mask = _from_rle(bytes(value["rle"]), shape)
    else:
        mask = np.zeros(shape, bool)
    strokes = value.get("touches") or []
    if sum(len(stroke["relativePoints"]) for stroke in strokes) > 2 * MAX_RING:
        raise ValueError("too many strokes")
    for touch in strokes:
        percent = np.array([_percentage(number) for number in touch["relativePoints"]]).reshape(-1, 2)
        if len(percent):
            # Of the width also where the brush goes up and down. Four images wide paints everything.
            width = min(400.0, _percentage(touch["relativeStrokeWidth"])) / 100 * shape[1]
            clipped = np.clip(_pixels(percent, shape), -4 * max(shape), 4 * max(shape))
            mask = shapes.stroke(mask, clipped, width, add=touch.get("type") != "eraser")
    return mask


def _from_rle(rle: bytes, shape: tuple[int, int]) -> Mask:
    # The first four bytes say how much the decoder allocates.
    if len(rle) < 8 or int.from_bytes(rle[:4]) != 4 * shape[0] * shape[1]:
        raise ValueError("run lengths of an image of another size")
    return np.asarray(decode_rle(rle).reshape(*shape, 4)[:, :, 3] >= 128)


def rle(mask: Mask) -> list[int]:
    """Label Studio's run lengths of a mask as alpha, 0 or 255, and three more channels of the same.

    As label_studio_sdk.converter.brush.mask2rle has them but for a last byte of zeros. That takes 50 ms and
    more for 12 million pixels and goes through each run in Python.
    """
    flat = np.ascontiguousarray(mask).reshape(-1)
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    lengths = 4 * np.diff(starts, append=flat.size)
    pieces = -(-lengths // 2**16)  # the longest run that there is a code for
    values = np.repeat(255 * flat[starts].astype(np.int64), pieces)
    runs = np.full(len(values), 2**16)
    runs[np.cumsum(pieces) - 1] = lengths - 2**16 * (pieces - 1)
    # A run: 1, the number of its size, length - 1 in so many bits, the value in 8. Ahead of all: how many
    # values there are, the bits of a value - 1, the sizes - 1.
    sizes = np.array([3, 4, 8, 16])
    number = np.searchsorted([8, 16, 256], runs)
    size = sizes[number]
    codes = np.concatenate([[4 * flat.size, 7], sizes - 1, ((4 + number) << size | runs - 1) << 8 | values])
    widths = np.concatenate([[32, 5, 4, 4, 4, 4], size + 11])
    bits = np.unpackbits(codes.astype(">u4").view(np.uint8).reshape(-1, 4), axis=1)
    packed: list[int] = np.packbits(bits[np.arange(32) >= 32 - widths[:, None]]).tolist()
    return packed


def png(mask: Mask) -> str:
    """A data URL of white pixels where the mask is and transparent ones elsewhere, one bit each.

    So every reader finds it: alpha, and brightness too. Written by hand, for Pillow takes many times as
    long: 12 million pixels cost some 4 ms, and 12 where the mask is noise.
    """
    height, width = mask.shape
    packer = zlib.compressobj(strategy=zlib.Z_RLE)  # runs are what a mask has: others take twice the time
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


def _from_png(url: Any, shape: tuple[int, int]) -> Mask:
    """Where a PNG is opaque, scaled to the image as the editor does it."""
    if not isinstance(url, str) or not url.startswith(PNG):
        raise ValueError("no PNG")
    data = base64.b64decode(url[len(PNG) :], validate=True)
    height, width = shape
    # Its first chunk says how much is decoded; no mask needs more pixels than its image.
    if not (int.from_bytes(data[16:20]) <= width and int.from_bytes(data[20:24]) <= height):
        raise ValueError("a PNG larger than the image")
    try:
        with PILImage.open(io.BytesIO(data), formats=["PNG"]) as picture:
            clear = picture.info.get("transparency")
            if picture.mode == "P" and isinstance(clear, bytes):  # as ours: a third of the time of RGBA
                alpha = np.frombuffer(clear.ljust(256, b"\xff"), np.uint8)[np.asarray(picture)]
            else:
                alpha = np.asarray(picture.convert("RGBA").getchannel("A"))
    except (OSError, SyntaxError, zlib.error, struct.error) as error:
        raise ValueError("a broken PNG") from error
    if alpha.shape != shape:
        alpha = cv2.resize(alpha, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return np.asarray(alpha >= 128)
