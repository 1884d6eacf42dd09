"""Convert regions of Label Studio's results to masks, within a budget. Results are untrusted.

Coordinates are percent of the image, 0 to 100, origin at its upper left corner.
"""

import base64
import hashlib
import io
import logging
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray
from PIL import Image as PILImage

from backend.labelstudio import brush_rle, geometry
from backend.labelstudio.brush_rle import Spans
from model import patches
from model.deadline import NEVER, Deadline
from model.patches import Patch, Window
from model.types import Mask

log = logging.getLogger(f"vlsam.{__name__}")

MAX_RING = 10_000  # points of a ring, or of strokes together, that are read
MAX_PERCENT = 1e6  # of a coordinate
# Units of work for a region however small it is, measured: to read it, its run lengths besides, to paint it.
READ, RUN_LENGTHS = 25_000, 80_000
PAINT, PAINT_RING = 60_000, 130_000
RING = 40_000  # to make the ring of an ellipse
PNG = "data:image/png;base64,"
# Limit per request. A unit is about 1 ns; 100 masks of 12 megapixels with ragged outlines take a third.
UNITS = 3_000_000_000
CACHE_BYTES = 64_000_000


class TooMuch(Exception):
    """The budget of the request is spent. The message is one sentence."""


class OutOfTime(TooMuch):
    """The deadline of the request has passed."""


class RegionCache:
    """Thread-safe cache of decoded run lengths. Each click sends all regions of its task again."""

    def __init__(self, capacity: int = CACHE_BYTES) -> None:
        # 500 bytes for the entry itself.
        self._spans: LRUCache[Hashable, Spans] = LRUCache(capacity, lambda spans: spans.edges.nbytes + 500)
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Spans | None:
        with self._lock:
            return self._spans.get(key)

    def put(self, key: Hashable, spans: Spans) -> None:
        with self._lock, suppress(ValueError):  # larger than the cache
            self._spans[key] = spans


@dataclass
class ReadingBudget:
    """The remaining work units, about 1 ns each, and the deadline for reading the regions of a request."""

    units: float = UNITS  # that are left
    deadline: Deadline = NEVER
    cache: RegionCache = field(default_factory=RegionCache)
    unread: list[str] = field(default_factory=list)  # a sentence for each region that cannot be read

    def spend(self, units: float) -> None:
        """Subtract units from the budget. Raises TooMuch if fewer are left, OutOfTime after the deadline."""
        if self.deadline.passed:
            raise OutOfTime("The regions of the task could not be read in time.")
        if units > self.units:
            raise TooMuch(
                "The task's regions are too much to read in one request: simplify or delete the largest."
            )
        self.units -= units

    def log_unread(self, task: str, consequence: str) -> None:
        """Log a warning if regions of a task could not be read, with their number. Then clear `unread`."""
        if self.unread:
            count, first = len(self.unread), self.unread[0]
            log.warning(
                "Task %s: %d regions cannot be read, so %s; the first is %s", task, count, consequence, first
            )
            self.unread.clear()


@dataclass(frozen=True, eq=False)
class Drawn:
    """A region that was read from a result. Its pixels are computed when they are first used."""

    shape: tuple[int, int]  # of the image
    window: Window  # outside of which it has no pixels
    _paint: Callable[[], Mask]
    budget: ReadingBudget
    spans: Spans | None = None  # of run lengths, which can be queried without painting

    @cached_property
    def patch(self) -> Patch:
        """The pixels of the region. Raises TooMuch."""
        return Patch(self.shape, self.window[:2], self._paint())

    def holds(self, points: NDArray[Any]) -> bool:
        """Return whether any of points (n, 2), xy pixels, is on the region. Raises TooMuch."""
        left, top, right, bottom = self.window
        inside = (points >= (left, top)).all(axis=1) & (points < (right, bottom)).all(axis=1)
        if not inside.any():
            return False
        return self.spans.hold(points[inside]) if self.spans else self.patch.holds(points[inside])

    def count(self, window: Window) -> int:
        """Count the region's pixels in a window. Raises TooMuch."""
        self.budget.spend(patches.area(patches.common(self.window, window)))
        return self.patch.count(window)

    def may_be(self, patch: Patch, share: float, held: float = 0.0) -> bool:
        """Return whether a mask may have the IoU `share` with the region and cover the part `held` of it."""
        least, most = (self.spans.area,) * 2 if self.spans else (0, patches.area(self.window))
        if min(most, patch.area, patches.area(patches.common(self.window, patch.window))) == 0:
            return False
        common = min(most, patch.count(self.window))
        return common >= max(share * max(least, patch.area), held * least)

    def iou(self, patch: Patch) -> float:
        """Return the intersection over union with a mask of the same image. Raises TooMuch."""
        self.budget.spend(patches.area(patches.common(self.window, patch.window)))
        return self.patch.iou(patch)


def read(result: Mapping[str, Any], shape: tuple[int, int], budget: ReadingBudget) -> Drawn | None:
    """Read the region of a result; None if it has no pixels or cannot be read. Raises TooMuch.

    Keypoints, choices and labels without geometry have no pixels. A keypoint has none even with RLE, which
    Label Studio 1.23.2 makes of accepted regions. A mask of another image's size and values of wrong types
    cannot be read, and the reason is appended to `budget.unread`. A ring or an ellipse has the pixels whose
    centres are inside. The curves of a vector count as straight. A mask has the pixels with an alpha of 128
    or more. The strokes of a draft are painted on top.
    """
    value, kind = result.get("value"), result.get("type")
    if not isinstance(value, Mapping) or not isinstance(kind, str):
        return None
    try:
        budget.spend(READ)
        drawn = _read(kind.removesuffix("labels"), value, shape, budget)
    except TooMuch:
        raise
    except Exception as error:  # a decoder may raise anything for untrusted values
        why = str(error) if isinstance(error, ValueError) else type(error).__name__
        budget.unread.append(
            f"{ascii(kind)[1:-1][:40]} {ascii(result.get('id'))[:40]}: {ascii(why)[1:-1][:100]}"
        )
        return None
    left, top, right, bottom = drawn.window if drawn else (0, 0, 0, 0)
    return drawn if left < right and top < bottom else None


def decode(result: Mapping[str, Any], shape: tuple[int, int]) -> Mask | None:
    """Return the mask (height, width) = `shape` of an untrusted result; None if empty or unreadable."""
    with suppress(TooMuch):
        drawn = read(result, shape, ReadingBudget())
        if drawn is not None and (mask := drawn.patch.mask).any():
            return mask
    return None


def _read(
    shape_name: str, value: Mapping[str, Any], shape: tuple[int, int], budget: ReadingBudget
) -> Drawn | None:
    """Read a region from its `value`; None if it has no pixels. Invalid values may raise any exception."""
    match shape_name:
        case "brush":
            return _read_brush(value, shape, budget)
        case "bitmask":
            return painted(_from_png(value["imageDataURL"], shape, budget))
        case "polygon":
            return _filled(_ring(value["points"], shape, budget), shape, budget)
        case "vector" if value.get("closed") is True:
            points = [(vertex["x"], vertex["y"]) for vertex in value["vertices"][: MAX_RING + 1]]
            return _filled(_ring(points, shape, budget), shape, budget)
        case "rectangle":
            x, y, width, height, turned = _placed(value, "width", "height")
            return _filled(geometry.corners(x, y, width, height, turned, shape), shape, budget)
        case "ellipse":
            x, y, radius_x, radius_y, turned = _placed(value, "radiusX", "radiusY")
            if radius_x > 0 and radius_y > 0:
                budget.spend(RING)
                (x, y), (radius_x, radius_y) = geometry.pixels_of(
                    np.array([[x, y], [radius_x, radius_y]]), shape
                )
                ring = geometry.ring_around((x, y, radius_x, radius_y, turned))
                return _filled(ring, shape, budget)
    return None


def painted(patch: Patch) -> Drawn:
    return Drawn(patch.shape, patch.window, lambda: patch.pixels, ReadingBudget())


def _filled(ring: NDArray[np.float64], shape: tuple[int, int], budget: ReadingBudget) -> Drawn:
    window = geometry.window_of(ring, shape)

    def paint() -> Mask:
        budget.spend(PAINT_RING + 10 * geometry.crossings(ring, window) + 5 * patches.area(window))
        return geometry.fill(ring, window)

    return Drawn(shape, window, paint, budget)


def _ring(points: Any, shape: tuple[int, int], budget: ReadingBudget) -> NDArray[np.float64]:
    if not isinstance(points, list) or not 3 <= len(points) <= MAX_RING:
        raise ValueError(f"a ring has 3 to {MAX_RING} points")
    return _pixels(points, shape, budget)


def _pixels(points: list[Any], shape: tuple[int, int], budget: ReadingBudget) -> NDArray[np.float64]:
    budget.spend(500 * len(points))
    percent = _numbers(points)
    if percent.shape != (len(points), 2):
        raise ValueError("points that are not pairs of numbers")
    return geometry.pixels_of(percent, shape)


def _numbers(values: Any) -> NDArray[np.float64]:
    numbers = np.array(values, np.float64)
    if not (np.abs(numbers) <= MAX_PERCENT).all():  # nor NaN
        raise ValueError("a coordinate is far outside the image")
    return numbers


def _placed(value: Mapping[str, Any], *size: str) -> Iterator[float]:
    """Return x, y, the two numbers under the keys `size`, and the rotation of a rectangle or an ellipse."""
    given = [*(value[key] for key in ("x", "y", *size)), value.get("rotation") or 0]
    return map(float, _numbers([float(number) for number in given]))


def _read_brush(value: Mapping[str, Any], shape: tuple[int, int], budget: ReadingBudget) -> Drawn | None:
    """Read a brush: the PNG or else the RLE, and a draft's strokes on top. None if it has none of them."""
    below = None
    if value.get("maskDataURL"):
        below = painted(_from_png(value["maskDataURL"], shape, budget))
    elif value.get("rle"):
        below = _from_rle(value["rle"], shape, budget)
    strokes = _strokes(value.get("touches") or [], shape, budget)
    if not strokes:
        return below
    windows = [stroke.window for stroke in strokes] + [below.window for _ in range(1) if below]
    sides = np.array([window for window in windows if patches.area(window)] or [(0, 0, 0, 0)])
    (left, top), (right, bottom) = sides[:, :2].min(axis=0).tolist(), sides[:, 2:].max(axis=0).tolist()
    window = (left, top, right, bottom)

    def paint() -> Mask:
        budget.spend(2 * patches.area(window))
        canvas = np.zeros((bottom - top, right - left), np.uint8)
        if below is not None and patches.area(below.window):
            x, y, _, _ = below.window
            pixels = below.patch.pixels
            canvas[y - top : y - top + len(pixels), x - left : x - left + pixels.shape[1]] = pixels
        for stroke in strokes:
            budget.spend(stroke.work)
            geometry.stroke(canvas, stroke.points - (left, top), stroke.width, add=stroke.add)
        return canvas.astype(bool)

    return Drawn(shape, window, paint, budget)


@dataclass(frozen=True, eq=False)
class _Stroke:
    points: NDArray[np.float64]  # (n, 2) xy pixels
    width: float  # pixels
    add: bool
    window: Window
    work: float


def _strokes(touches: Any, shape: tuple[int, int], budget: ReadingBudget) -> list[_Stroke]:
    if not isinstance(touches, list) or len(touches) > MAX_RING:
        raise ValueError(f"a region has at most {MAX_RING} strokes")
    if sum(len(touch["relativePoints"]) for touch in touches) > 2 * MAX_RING:
        raise ValueError(f"a region's strokes have at most {MAX_RING} points")
    strokes = []
    for touch in touches:
        numbers = touch["relativePoints"]
        budget.spend(20_000)
        if len(numbers):
            pixels = _pixels([numbers[at : at + 2] for at in range(0, len(numbers), 2)], shape, budget)
            # Of the width also where the brush goes up and down. Four images wide paints everything.
            thick = min(400.0, float(_numbers(float(touch["relativeStrokeWidth"])))) / 100 * shape[1]
            points = np.clip(pixels, -4 * max(shape), 4 * max(shape))
            window = geometry.window_of(points, shape, max(0.0, thick) / 2 + 4)
            lengths = np.hypot(*np.diff(points, axis=0, append=points[-1:]).T)
            areas = np.minimum(patches.area(window), (lengths + thick + 4) * (abs(thick) + 4))
            work = 20_000 + 1000 * len(points) + float(areas.sum())
            strokes.append(_Stroke(points, thick, touch.get("type") != "eraser", window, work))
    return strokes


def _from_rle(rle: Any, shape: tuple[int, int], budget: ReadingBudget) -> Drawn:
    if isinstance(rle, memoryview):  # of `bounded_json`
        source: memoryview | bytes = rle
    elif isinstance(rle, list) and set(map(type, rle)) <= {int}:
        budget.spend(10 * len(rle))
        source = bytes(rle)
    else:
        raise ValueError("run lengths that are not a list of whole numbers")
    budget.spend(2 * len(source))
    key = (hashlib.sha256(source).digest(), type(source), shape)
    spans = budget.cache.get(key)
    if spans is None:
        budget.spend(RUN_LENGTHS)
        stream = np.frombuffer(source, np.uint8)
        if isinstance(source, memoryview):
            stream = brush_rle.numbers(source, budget.spend)
        spans = brush_rle.spans(stream, shape, budget.spend)
        budget.cache.put(key, spans)

    def paint(spans: Spans = spans) -> Mask:
        budget.spend(PAINT + 5 * len(spans.edges) + 2 * patches.area(spans.window))
        return spans.paint()

    return Drawn(shape, spans.window, paint, budget, spans)


def _from_png(url: Any, shape: tuple[int, int], budget: ReadingBudget) -> Patch:
    """Decode a PNG data URL, resized to `shape`. Return the pixels with an alpha of 128 or more.

    Raises TooMuch, OutOfTime, ValueError, and any error of the decoder.
    """
    if not isinstance(url, str) or not url.startswith(PNG):
        raise ValueError("no PNG")
    budget.spend(2 * len(url))
    data = _plain(base64.b64decode(url[len(PNG) :], validate=True), shape, budget)
    height, width = shape
    with PILImage.open(io.BytesIO(data), formats=["PNG"]) as picture:
        budget.spend((40 if data[24] == 16 else 20) * picture.width * picture.height)  # bits of a value
        clear = picture.info.get("transparency")
        if picture.mode == "P" and isinstance(clear, bytes):  # as ours: a third of the time of RGBA
            alpha = np.frombuffer(clear.ljust(256, b"\xff"), np.uint8)[np.asarray(picture)]
        elif "A" in picture.getbands():
            alpha = np.asarray(picture.getchannel("A"))
        else:
            alpha = np.asarray(picture.convert("RGBA").getchannel("A"))
    if alpha.shape != shape:
        budget.spend(3 * height * width)
        alpha = cv2.resize(alpha, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    budget.spend(2 * height * width)
    return Patch.of(np.asarray(alpha >= 128))


def _plain(data: bytes, shape: tuple[int, int], budget: ReadingBudget) -> bytes:
    """Strip texts, profiles and animations from a PNG. Raises ValueError if broken or too large."""
    parts = [data[:8]]
    at, names = 8, list[bytes]()
    while not names or names[-1] != b"IEND":
        budget.spend(1000)
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
