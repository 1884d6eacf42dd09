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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from uuid import uuid4

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from backend.labelstudio import brush_rle, geometry
from backend.labelstudio.brush_rle import Spans
from backend.labelstudio.geometry import Patch, Window
from backend.labelstudio.labeling_config import STATUS, Control, Naming
from backend.labelstudio.reading_budget import Reading, TooMuch
from model.segmentation.non_maximum_suppression import iou
from model.types import Mask, box_of

Result = dict[str, Any]

ELLIPSE_IOU = 0.8  # of a mask and its ellipse: below, a prediction has none
KEYPOINT_WIDTH = 0.75  # percent of the image: the size of the marker
MAX_RING = 10_000  # points of a ring, or of strokes together, that are read
MAX_PERCENT = 1e6  # of a coordinate
# Units of work for a region however small it is, measured: to read it, its run lengths besides, to paint it.
READ, RUN_LENGTHS = 25_000, 80_000
PAINT, PAINT_RING = 60_000, 130_000
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
    for specks, within geometry.TOLERANCE pixels. A rectangle is the tight box, a keypoint the
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
            return {"points": _percent(geometry.ring_of(mask), mask.shape), "closed": True}
        case "vector":
            ring = _percent(geometry.ring_of(mask), mask.shape)
            return {"vertices": [{"x": x, "y": y} for x, y in ring], "closed": True}
        case "rectangle":
            (x0, y0), (x1, y1) = _percent(np.array(box_of(mask)).reshape(2, 2), mask.shape)
            return {"x": x0, "y": y0, "width": round(x1 - x0, 6), "height": round(y1 - y0, 6), "rotation": 0}
        case "ellipse":
            value = _ellipse(mask)
            drawn = (
                None if compact else decode({"type": shape, "value": value}, (mask.shape[0], mask.shape[1]))
            )
            return value if compact or (drawn is not None and iou(drawn, mask) >= ELLIPSE_IOU) else None
        case "keypoint":
            ((x, y),) = _percent(np.array([geometry.deepest(mask)]), mask.shape)
            return {"x": x, "y": y, "width": KEYPOINT_WIDTH}
    raise ValueError(f"no shape {shape!r}")


@dataclass(frozen=True, eq=False)
class Drawn:
    """A region as it was read. Its pixels are painted when somebody asks for them, for most never are."""

    shape: tuple[int, int]  # of the image
    window: Window  # outside of which it has no pixels
    _paint: Callable[[], Mask]
    reading: Reading
    spans: Spans | None = None  # of run lengths, which need not be painted to be looked at

    @cached_property
    def patch(self) -> Patch:
        """Its pixels. Raises TooMuch."""
        return Patch(self.shape, self.window[:2], self._paint())

    def holds(self, points: NDArray[Any]) -> bool:
        """Whether any of points (n, 2), xy pixels, is on one of its pixels. Raises TooMuch."""
        left, top, right, bottom = self.window
        inside = (points >= (left, top)).all(axis=1) & (points < (right, bottom)).all(axis=1)
        if not inside.any():
            return False
        return self.spans.hold(points[inside]) if self.spans else self.patch.holds(points[inside])

    def count(self, window: Window) -> int:
        """How many of its pixels are in a part of the image. Raises TooMuch."""
        self.reading.spend(geometry.area(geometry.common(self.window, window)))
        return self.patch.count(window)

    def may_be(self, patch: Patch, share: float, held: float = 0.0) -> bool:
        """Whether its IoU with a mask can be `share` or more, and the mask hold `held` of it; not painted."""
        least, most = (self.spans.area,) * 2 if self.spans else (0, geometry.area(self.window))
        if min(most, patch.area, geometry.area(geometry.common(self.window, patch.window))) == 0:
            return False
        common = min(most, patch.count(self.window))
        return common >= max(share * max(least, patch.area), held * least)

    def iou(self, patch: Patch) -> float:
        """Intersection over union with a mask of the same image. Raises TooMuch."""
        self.reading.spend(geometry.area(geometry.common(self.window, patch.window)))
        return self.patch.iou(patch)


def read(result: Mapping[str, Any], shape: tuple[int, int], reading: Reading) -> Drawn | None:
    """The region of an image (height, width) = `shape` that a result shows, or None where it has no pixels.

    `result` came from outside. Types without pixels are a keypoint (even one that holds RLE, which Label
    Studio 1.23.2 makes of accepted regions), a choice, and the labels of a region, whose geometry is in
    another result. A mask of another image's size, and values of wrong types, cannot be read, which
    `reading.unread` tells. Rings and ellipses have the pixels whose centres are inside; a vector's curves
    count as straight; masks those whose alpha is 128 or more, and a draft's strokes go on top of them.

    Raises TooMuch.
    """
    value, kind = result.get("value"), result.get("type")
    if not isinstance(value, Mapping) or not isinstance(kind, str):
        return None
    try:
        reading.spend(READ)
        drawn = _read(kind.removesuffix("labels"), value, shape, reading)
    except TooMuch:
        raise
    except Exception as error:  # a decoder may fail in any way on values from outside
        said = str(error) if isinstance(error, ValueError) else type(error).__name__
        reading.unread.append(
            f"{ascii(kind)[1:-1][:40]} {ascii(result.get('id'))[:40]}: {ascii(said)[1:-1][:100]}"
        )
        return None
    left, top, right, bottom = drawn.window if drawn else (0, 0, 0, 0)
    return drawn if left < right and top < bottom else None


def decode(result: Mapping[str, Any], shape: tuple[int, int], reading: Reading | None = None) -> Mask | None:
    """The mask (height, width) = `shape` of a result that came from outside, or None where `read` finds none.

    Raises TooMuch where a `reading` is given; without one there is None for what is too much to read.
    """
    try:
        drawn = read(result, shape, reading or Reading())
        mask = drawn.patch.mask if drawn else None
    except TooMuch:
        if reading:
            raise
        return None
    return mask if mask is not None and mask.any() else None


def _read(
    shape_name: str, value: Mapping[str, Any], shape: tuple[int, int], reading: Reading
) -> Drawn | None:
    """Raises whatever may go wrong with values of wrong types."""
    match shape_name:
        case "brush":
            return _read_brush(value, shape, reading)
        case "bitmask":
            return painted(_from_png(value["imageDataURL"], shape, reading))
        case "polygon":
            return _filled(_ring(value["points"], shape, reading), shape, reading)
        case "vector" if value.get("closed") is True:
            corners_of = [(vertex["x"], vertex["y"]) for vertex in value["vertices"][: MAX_RING + 1]]
            return _filled(_ring(corners_of, shape, reading), shape, reading)
        case "rectangle":
            x, y, width, height = (_percentage(value[key]) for key in ("x", "y", "width", "height"))
            turned = _percentage(value.get("rotation") or 0)
            return _filled(corners(x, y, width, height, turned, shape), shape, reading)
        case "ellipse":
            return _read_ellipse(value, shape, reading)
    return None


def painted(patch: Patch) -> Drawn:
    """A region that is painted already."""
    return Drawn(patch.shape, patch.window, lambda: patch.pixels, Reading())


def _filled(ring: NDArray[np.float64], shape: tuple[int, int], reading: Reading) -> Drawn:
    window = geometry.window_of(ring, shape)

    def paint() -> Mask:
        reading.spend(PAINT_RING + 10 * geometry.crossings(ring, window) + 5 * geometry.area(window))
        return geometry.fill_window(ring, window)

    return Drawn(shape, window, paint, reading)


def mask_hash(mask: Mask) -> str:
    """16 hex digits that tell whether two masks are the same."""
    digest = hashlib.blake2b(repr(mask.shape).encode(), digest_size=8)
    digest.update(np.packbits(mask).tobytes())
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


def _ring(points: Any, shape: tuple[int, int], reading: Reading) -> NDArray[np.float64]:
    if not isinstance(points, list) or not 3 <= len(points) <= MAX_RING:
        raise ValueError(f"a ring has 3 to {MAX_RING} points")
    return _pixels(_percentages(points, reading), shape)


def _percentages(points: list[Any], reading: Reading) -> NDArray[np.float64]:
    """Points (n, 2)."""
    reading.spend(500 * len(points))
    found = np.array(points, np.float64)
    if found.shape != (len(points), 2):
        raise ValueError("points that are no pairs of numbers")
    if not (np.abs(found) <= MAX_PERCENT).all():  # nor NaN
        raise ValueError("a coordinate is far outside the image")
    return found


def _percentage(value: Any) -> float:
    number = float(value)
    if not abs(number) <= MAX_PERCENT:  # nor NaN
        raise ValueError("a coordinate is far outside the image")
    return number


def _ellipse(mask: Mask) -> dict[str, Any]:
    x, y, along, aside, degrees = geometry.ellipse_of(mask)
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


def _read_ellipse(value: Mapping[str, Any], shape: tuple[int, int], reading: Reading) -> Drawn:
    x, y, radius_x, radius_y = (_percentage(value[key]) for key in ("x", "y", "radiusX", "radiusY"))
    ((x, y), (radius_x, radius_y)) = _pixels(np.array([[x, y], [radius_x, radius_y]]), shape)
    ellipse = (x, y, radius_x, radius_y, _percentage(value.get("rotation") or 0))
    window = geometry.ellipse_window(ellipse, shape)

    def paint() -> Mask:
        reading.spend(20_000 + 6 * geometry.area(window))
        return geometry.fill_ellipse_window(ellipse, window)

    return Drawn(shape, window, paint, reading)


def _read_brush(value: Mapping[str, Any], shape: tuple[int, int], reading: Reading) -> Drawn | None:
    """What the editor paints: the PNG or else the RLE, and over it the strokes of a draft, in their order."""
    below = None
    if value.get("maskDataURL"):
        below = painted(_from_png(value["maskDataURL"], shape, reading))
    elif value.get("rle"):
        below = _from_rle(value["rle"], shape, reading)
    strokes = _strokes(value.get("touches") or [], shape, reading)
    if not strokes:
        return below
    windows = [stroke.window for stroke in strokes] + [below.window for _ in range(1) if below]
    sides = np.array([window for window in windows if geometry.area(window)] or [(0, 0, 0, 0)])
    left, top, right, bottom = window = (
        *sides[:, :2].min(axis=0).tolist(),
        *sides[:, 2:].max(axis=0).tolist(),
    )

    def paint() -> Mask:
        reading.spend(2 * geometry.area(window))
        canvas = np.zeros((bottom - top, right - left), np.uint8)
        if below is not None and geometry.area(below.window):
            x, y, _, _ = below.window
            pixels = below.patch.pixels
            canvas[y - top : y - top + len(pixels), x - left : x - left + pixels.shape[1]] = pixels
        for stroke in strokes:
            reading.spend(stroke.work)
            geometry.stroke(canvas, stroke.points - (left, top), stroke.width, add=stroke.add)
        return canvas.astype(bool)

    return Drawn(shape, window, paint, reading)


@dataclass(frozen=True, eq=False)
class _Stroke:
    points: NDArray[np.float64]  # (n, 2) xy pixels
    width: float  # pixels
    add: bool
    window: Window
    work: float


def _strokes(touches: Any, shape: tuple[int, int], reading: Reading) -> list[_Stroke]:
    if not isinstance(touches, list) or len(touches) > MAX_RING:
        raise ValueError(f"a region has at most {MAX_RING} strokes")
    if sum(len(touch["relativePoints"]) for touch in touches) > 2 * MAX_RING:
        raise ValueError(f"a region's strokes have at most {MAX_RING} points")
    width = shape[1]
    found = []
    for touch in touches:
        numbers = touch["relativePoints"]
        reading.spend(20_000)
        if len(numbers):
            percent = _percentages([numbers[at : at + 2] for at in range(0, len(numbers), 2)], reading)
            # Of the width also where the brush goes up and down. Four images wide paints everything.
            thick = min(400.0, _percentage(touch["relativeStrokeWidth"])) / 100 * width
            points = np.clip(_pixels(percent, shape), -4 * max(shape), 4 * max(shape))
            window = geometry.window_of(points, shape, max(0.0, thick) / 2 + 4)
            lengths = np.hypot(*np.diff(points, axis=0, append=points[-1:]).T)
            each = np.minimum(geometry.area(window), (lengths + thick + 4) * (abs(thick) + 4))
            work = 20_000 + 1000 * len(points) + float(each.sum())
            found.append(_Stroke(points, thick, touch.get("type") != "eraser", window, work))
    return found


def _from_rle(given: Any, shape: tuple[int, int], reading: Reading) -> Drawn:
    """Raises ValueError."""
    if isinstance(given, brush_rle.Text):
        source: memoryview | bytes = given.characters
    elif isinstance(given, list) and set(map(type, given)) <= {int}:
        reading.spend(10 * len(given))
        source = bytes(given)
    else:
        raise ValueError("run lengths that are no list of whole numbers")
    reading.spend(2 * len(source))
    key = (hashlib.sha256(source).digest(), type(source), shape)
    kept = reading.cache.get(key)
    if isinstance(kept, Spans):
        spans = kept
    else:
        reading.spend(RUN_LENGTHS)
        text = isinstance(given, brush_rle.Text)
        stream = brush_rle.numbers(given, reading) if text else np.frombuffer(source, np.uint8)
        spans = brush_rle.spans(stream, shape, reading)
        reading.cache.put(key, spans)

    def paint() -> Mask:
        reading.spend(PAINT + 5 * len(spans.edges) + 2 * geometry.area(spans.window))
        return spans.paint()

    return Drawn(shape, spans.window, paint, reading, spans)


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


def _from_png(url: Any, shape: tuple[int, int], reading: Reading) -> Patch:
    """Where a PNG is opaque, scaled to the image as the editor does it. Raises what its decoder raises."""
    if not isinstance(url, str) or not url.startswith(PNG):
        raise ValueError("no PNG")
    reading.spend(2 * len(url))
    data = _plain(base64.b64decode(url[len(PNG) :], validate=True), shape, reading)
    height, width = shape
    with PILImage.open(io.BytesIO(data), formats=["PNG"]) as picture:
        reading.spend((40 if data[24] == 16 else 20) * picture.width * picture.height)  # bits of a value
        clear = picture.info.get("transparency")
        if picture.mode == "P" and isinstance(clear, bytes):  # as ours: a third of the time of RGBA
            alpha = np.frombuffer(clear.ljust(256, b"\xff"), np.uint8)[np.asarray(picture)]
        elif "A" in picture.getbands():
            alpha = np.asarray(picture.getchannel("A"))
        else:
            alpha = np.asarray(picture.convert("RGBA").getchannel("A"))
    if alpha.shape != shape:
        reading.spend(3 * height * width)
        alpha = cv2.resize(alpha, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    reading.spend(2 * height * width)
    return Patch.of(np.asarray(alpha >= 128))


def _plain(data: bytes, shape: tuple[int, int], reading: Reading) -> bytes:
    """The PNG with nothing but its pixels: no texts, profiles or films. Raises ValueError.

    What it says of its size is checked here, once, so that no later part of it says otherwise.
    """
    parts = [data[:8]]
    at, names = 8, list[bytes]()
    while not names or names[-1] != b"IEND":
        reading.spend(1000)
        size, name = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        if at + 12 + size > len(data) or (name == b"IHDR") != (not names):
            raise ValueError("a broken PNG")
        names.append(name)
        if name in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            parts.append(data[at : at + 12 + size])
        at += 12 + size
    width, height = (int.from_bytes(data[start : start + 4]) for start in (16, 20))
    if not (1 <= width <= shape[1] and 1 <= height <= shape[0]):  # no mask needs more pixels than its image
        raise ValueError("a PNG larger than the image")
    return b"".join(parts)
