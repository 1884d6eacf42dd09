"""Files to pixels: image formats decoded to 8-bit RGB."""

import importlib
from functools import cache
from io import BytesIO
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageOps, UnidentifiedImageError, features

from backend.images.errors import ImageError, Refused
from backend.images.fetch import Fetcher
from backend.images.studio_urls import Server
from backend.settings import ImageSettings, LabelStudioSettings
from model.deadline import NEVER, Deadline
from model.types import Image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # MPO, of two-lens cameras, is a JPEG
HEIC = "HEIC images need one more library: pip install 'vlsam[heic]'"
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_ORIENTATION = 0x0112
# Greatest values of usual sensors, and of floating point numbers that are shares.
_WHITES = (1.0, 255.0, 1023.0, 4095.0, 16383.0, 65535.0)


class Images:
    """Loads images within the limits of the settings. Safe to share among threads."""

    def __init__(self, images: ImageSettings, label_studio: LabelStudioSettings) -> None:
        self.fetcher = Fetcher(images, label_studio)
        self._max_pixels = images.max_image_pixels

    def load(
        self, source: Any, server: Server | None = None, *, task: Any = None, deadline: Deadline = NEVER
    ) -> Image:
        """uint8 (H, W, 3) RGB, upright, for the value of the image field of the task with the id `task`.

        Raises ImageError, also when the `deadline` passes before the file is read.
        """
        return self.read(source, server, task=task, deadline=deadline)[1]

    def read(
        self, source: Any, server: Server | None = None, *, task: Any = None, deadline: Deadline = NEVER
    ) -> tuple[bytes, Image]:
        """As `load`, with the file itself before its pixels."""
        if not isinstance(source, str) or not source.strip():
            raise Refused("The task has no image address.")
        data = self.fetcher.fetch(source.strip(), server, task=task, deadline=deadline)
        return data, decode(data, max_pixels=self._max_pixels)


def decode(data: bytes, *, max_pixels: int) -> Image:
    """The pixels of an image file: uint8 (H, W, 3) RGB, EXIF orientation applied as browsers do.

    Transparency shows white, of animations the first frame counts, and values of more than 8 bits are scaled
    by what the image holds: see `eight_bits`. Raises ImageError, for too large an image before its pixels are
    decoded.
    """
    if not data:
        raise ImageError("The image file is empty.")
    if _is_heic(data) and "HEIF" not in formats():
        raise ImageError(f"{HEIC}.")
    too_large = f"The image has more than {max_pixels} pixels (VLSAM_MAX_IMAGE_PIXELS)."
    try:
        with Pillow.open(BytesIO(data), formats=formats()) as opened:
            width, height = opened.size
            if width < 1 or height < 1:
                raise ImageError(f"The image is {width} x {height} pixels.")
            if width * height > max_pixels:
                raise ImageError(f"{too_large[:-1]}: {width} x {height}.")
            pixels = np.array(_rgb(_upright(opened, data)), np.uint8)
    except ImageError:
        raise
    except (Pillow.DecompressionBombError, Pillow.DecompressionBombWarning):
        raise ImageError(too_large) from None
    except UnidentifiedImageError:
        raise ImageError(_not_an_image(data)) from None
    except Exception as error:  # a decoder may fail in any way on bytes from outside
        raise ImageError(f"The image file is broken ({type(error).__name__}).") from None
    return pixels


@cache
def formats() -> tuple[str, ...]:
    """What can be read here, by Pillow's names."""
    found = [*FORMATS, *(["AVIF"] if features.check("avif") else [])]
    for library in ("pi_heif", "pillow_heif"):  # the second is the first with an encoder
        try:
            importlib.import_module(library).register_heif_opener()
        except ImportError:
            continue
        found.append("HEIF")
        break
    return tuple(found)


def eight_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Integers or floating point numbers of any range, as shades from 0 to 255 of the same shape.

    Black is 0 and white the greatest value of the smallest usual depth that holds the image: 8, 10, 12, 14 or
    16 bits, or 1.0 for shares. So 12 bits in 16 are bright, and a photograph of 16 bits stays as it is. Where
    the image is in less than an eighth of that, or has negative values, black and white are its own least and
    greatest value. A thousandth of the values at either end is left out of account: broken pixels of sensors.
    An image of one integer is shown as of 16 bits.
    """
    black, white = _window(values)
    shades: NDArray[Any] = values.astype(np.float32 if values.dtype.itemsize <= 2 else np.float64)
    with np.errstate(all="ignore"):  # infinite ones
        shades = (shades - black) * (255 / (white - black))
    return np.nan_to_num(shades, copy=False).clip(0, 255).round().astype(np.uint8)


def _window(values: NDArray[Any]) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    few = finite.size // 1000
    ranked = np.partition(finite, (few, finite.size - 1 - few))
    low, high = float(ranked[few]), float(ranked[-1 - few])
    if low == high:
        low, high = float(finite.min()), float(finite.max())
    white = next((white for white in _WHITES if high <= white), high)
    if low == high:
        return 0.0, 65535.0 if values.dtype.kind in "iu" else white
    return (low, high) if low < 0 or (high - low) * 8 < white else (0.0, white)


def _upright(image: Pillow.Image, data: bytes) -> Pillow.Image:
    """The image, of 8 bits, turned as its EXIF data say."""
    tiles: list[Any] = getattr(image, "tile", [])
    raw = str(tiles[0][3]) if tiles else ""  # how the values lie in the file; gone once it is read
    turn = image.getexif().get(_ORIENTATION)
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        return Pillow.fromarray(eight_bits(values.view(np.uint32) if "I;32N" in raw else values))
    if ";16" not in raw or (deep := _deep(data)) is None:
        return image
    if image.format == "PNG" and turn:  # OpenCV turns TIFF files itself
        deep.getexif()[_ORIENTATION] = turn
        ImageOps.exif_transpose(deep, in_place=True)
    return deep


def _deep(data: bytes) -> Pillow.Image | None:
    """Colours of 16 bits, of which Pillow reads the upper 8: of 12 bits in 16 little is left there."""
    try:
        read = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    if read is None or read.dtype != np.uint16 or read.ndim != 3 or read.shape[2] not in (3, 4):
        return None
    colours = eight_bits(read[..., 2::-1])  # one scale for all three, which keeps their hue
    if read.shape[2] == 3:
        return Pillow.fromarray(np.ascontiguousarray(colours))
    white = next(white for white in _WHITES if read[..., 3].max() <= white)
    alpha = (read[..., 3:] * np.float32(255 / white)).round().astype(np.uint8)
    return Pillow.fromarray(np.concatenate([colours, alpha], 2))


def _rgb(image: Pillow.Image) -> Pillow.Image:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Pillow.new("RGBA", image.size, "white")
        return Pillow.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


def _is_heic(data: bytes) -> bool:
    return data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS and b"avif" not in data[8:64]


def _not_an_image(data: bytes) -> str:
    if data[:4] == b"\x00\x05\x16\x07":
        return "The file holds no picture: it is what macOS keeps beside another file (AppleDouble)."
    start = data[:200].lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<svg", b"{", b"[")) or (
        all(byte in b"\t\n\r" or byte >= 32 for byte in start) and b"\0" not in start
    ):
        return "There is text where an image should be."
    return f"The file is broken or none of {', '.join(formats())}."
