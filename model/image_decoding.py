"""Decode images to upright 8-bit RGB."""

import importlib
import os
import stat
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageOps, UnidentifiedImageError, features

from model.types import Image, ImageError

ImageLike = str | os.PathLike[str] | Pillow.Image | Image
MAX_PIXELS = 80_000_000

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # MPO, of two-lens cameras, counts as JPEG
HEIC = "HEIC images need one more library: pip install pi-heif"
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_ORIENTATION = 0x0112
# Greatest values of floats from 0 to 1, and of 8, 10, 12, 14 and 16 bits.
_WHITES = (1.0, 255.0, 1023.0, 4095.0, 16383.0, 65535.0)


def read_image(image: ImageLike, *, max_pixels: int = MAX_PIXELS) -> Image:
    """Return the pixels of an image file, a Pillow image or an array.

    The EXIF orientation of files and Pillow images is applied. Their transparency becomes white. Their
    values of more than 8 bits are scaled.

    Args:
        image: a path, a Pillow image, or a uint8 array (H, W, 3), RGB. An array is returned as it is.
        max_pixels: refuse files and Pillow images with more pixels than this.

    Returns:
        uint8 (H, W, 3), RGB, upright.

    Raises:
        ImageError: the file is missing or is no image, the image is too large, or the array has another type
            or shape.

    Example:
        >>> import numpy as np
        >>> read_image(np.zeros((4, 6, 3), np.uint8)).shape
        (4, 6, 3)
        >>> read_image("street.jpg").shape
        (549, 427, 3)
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ImageError(f"An array must be uint8 (H, W, 3) RGB, not {image.dtype} {image.shape}.")
        return image
    if isinstance(image, Pillow.Image):
        return _pillow_pixels(image, max_pixels)
    if not isinstance(image, str | os.PathLike):
        raise ImageError(f"A path, a Pillow image or an array is expected, not {type(image).__name__}.")
    try:
        if not stat.S_ISREG(os.stat(image).st_mode):
            raise ImageError(f"{os.fspath(image)!r} is not a file.")
        data = Path(image).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null character
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError(f"{os.fspath(image)!r} cannot be read: {reason}.") from None
    try:
        return decode(data, max_pixels=max_pixels)
    except ImageError as error:
        raise ImageError(f"{os.fspath(image)!r}: {error}") from None


def _pillow_pixels(image: Pillow.Image, max_pixels: int) -> Image:
    """Return the pixels of a Pillow image, uint8 (H, W, 3), without changing it. Raises ImageError."""
    _check_size(image, max_pixels, "max_pixels")
    try:
        raw = _raw_mode(image)
        if (";16" in raw or "I;32N" in raw) and image.format in formats() and image.tell() == 0:
            file: Any = image.fp  # type: ignore[attr-defined]
            place = file.tell()
            file.seek(0)
            data = file.read()
            file.seek(place)
            return decode(data, max_pixels=max_pixels)
        return np.array(_rgb(_upright(image.copy(), b"")), np.uint8)
    except ImageError:
        raise
    except Exception as error:  # a file that Pillow decodes only now may be broken in any way
        raise ImageError(f"The Pillow image cannot be decoded ({type(error).__name__}).") from None


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS, limit: str = "max_pixels") -> Image:
    """Decode the bytes of an image file to uint8 (H, W, 3), RGB. Raises ImageError.

    Apply the EXIF orientation as browsers do. Show transparency as white. Take the first frame of an
    animation. Scale values of more than 8 bits to the range of the image, see `eight_bits`. Refuse an image
    with more than `max_pixels` before decoding it. The error names that setting by `limit`.
    """
    if not data:
        raise ImageError("The image file is empty.")
    is_heic = data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS and b"avif" not in data[8:64]
    if is_heic and "HEIF" not in formats():
        raise ImageError(f"{HEIC}.")
    try:
        with Pillow.open(BytesIO(data), formats=formats()) as opened:
            _check_size(opened, max_pixels, limit)
            return np.array(_rgb(_upright(opened, data)), np.uint8)
    except ImageError:
        raise
    except (Pillow.DecompressionBombError, Pillow.DecompressionBombWarning):
        raise ImageError(f"The image has more than {max_pixels} pixels ({limit}).") from None
    except UnidentifiedImageError:
        raise ImageError(_not_an_image(data)) from None
    except Exception as error:  # a decoder may fail in any way on bytes from outside
        raise ImageError(f"The image file is broken ({type(error).__name__}).") from None


def _check_size(image: Pillow.Image, max_pixels: int, limit: str) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(f"The image is {width} x {height} pixels.")
    if width * height > max_pixels:
        raise ImageError(f"The image has more than {max_pixels} pixels ({limit}): {width} x {height}.")


@cache
def formats() -> tuple[str, ...]:
    """Return Pillow's names of the image formats that the installed libraries can read."""
    names = [*FORMATS, *(["AVIF"] if features.check("avif") else [])]
    for library in ("pi_heif", "pillow_heif"):  # the second is the first with an encoder
        try:
            importlib.import_module(library).register_heif_opener()
        except ImportError:
            continue
        names.append("HEIF")
        break
    return tuple(names)


def eight_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Scale integers or floats of any range to 0..255, in an array of the same shape.

    Black is 0. White is the greatest value of the smallest usual depth that holds the image: 8, 10, 12, 14 or
    16 bits, or 1.0. So 12 bits stored in 16 come out bright, and a 16-bit photograph keeps its exposure. Use
    the image's own minimum and maximum if it has negative values or covers less than an eighth of that depth.
    Ignore the lowest and highest thousandth of the values, which may be broken pixels of a sensor. Treat an
    image of one integer value as 16 bits deep.
    """
    black, white = _window(values)
    shades: NDArray[Any] = values.astype(np.float32 if values.dtype.itemsize <= 2 else np.float64)
    with np.errstate(all="ignore"):  # infinite values
        shades = (shades - black) * (255 / (white - black))
    return np.nan_to_num(shades, copy=False).clip(0, 255).round().astype(np.uint8)


def _window(values: NDArray[Any]) -> tuple[float, float]:
    """Return the values that become 0 (black) and 255 (white) in `eight_bits`."""
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


def _raw_mode(image: Pillow.Image) -> str:
    """Return Pillow's raw mode of an image file, such as "RGB;16B"; "" if the image is decoded already."""
    tiles: list[Any] = getattr(image, "tile", [])
    return str(tiles[0][3]) if tiles else ""


def _upright(image: Pillow.Image, data: bytes) -> Pillow.Image:
    """Return an image upright, with 16-bit values scaled to 8. `data` is its file; `image` may change."""
    raw = _raw_mode(image)
    turn = image.getexif().get(_ORIENTATION)
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        return Pillow.fromarray(eight_bits(values.view(np.uint32) if "I;32N" in raw else values))
    if ";16" not in raw or (deep := _deep(data)) is None:
        return image
    if image.format == "PNG" and turn:  # OpenCV applies the orientation of TIFF files
        deep.getexif()[_ORIENTATION] = turn
        ImageOps.exif_transpose(deep, in_place=True)
    return deep


def _deep(data: bytes) -> Pillow.Image | None:
    """Decode 16-bit colours with OpenCV, since Pillow keeps their upper 8 bits only. None for other files."""
    try:
        read = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    if read is None or read.dtype != np.uint16 or read.ndim != 3 or read.shape[2] not in (3, 4):
        return None
    colours = eight_bits(read[..., 2::-1])  # one scale for all channels keeps the hue
    if read.shape[2] == 3:
        return Pillow.fromarray(np.ascontiguousarray(colours))
    white = next(white for white in _WHITES if read[..., 3].max() <= white)
    alpha = (read[..., 3:] * np.float32(255 / white)).round().astype(np.uint8)
    return Pillow.fromarray(np.concatenate([colours, alpha], 2))


def _rgb(image: Pillow.Image) -> Pillow.Image:
    """Convert an image to RGB, and show its transparency as white."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Pillow.new("RGBA", image.size, "white")
        return Pillow.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # a conversion copies


def _not_an_image(data: bytes) -> str:
    """Return why Pillow cannot identify these bytes."""
    if data[:4] == b"\x00\x05\x16\x07":
        return "The file holds no picture: it is what macOS keeps beside another file (AppleDouble)."
    start = data[:200].lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<svg", b"{", b"[")) or (
        all(byte in b"\t\n\r" or byte >= 32 for byte in start) and b"\0" not in start
    ):
        return "There is text where an image should be."
    return f"The file is broken or none of {', '.join(formats())}."
