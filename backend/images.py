"""Files to pixels: image formats decoded to 8-bit RGB."""

import math
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image as Pillow
from PIL import ImageOps, UnidentifiedImageError

from backend.fetch import Fetcher, ImageError, Refused, Server
from backend.settings import Settings
from model.types import Image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # MPO, of two-lens cameras, is a JPEG


class Images:
    """Loads images within the limits of the settings. Safe to share among threads."""

    def __init__(self, settings: Settings) -> None:
        self.fetcher = Fetcher(settings)
        self._max_pixels = settings.max_image_pixels

    def load(
        self, source: Any, server: Server | None = None, *, task: Any = None, deadline: float = math.inf
    ) -> Image:
        """uint8 (H, W, 3) RGB, upright, for the value of the image field of the task with the id `task`.

        Raises ImageError, also when `deadline` (of time.monotonic) passes before the file is here.
        """
        if not isinstance(source, str) or not source.strip():
            raise Refused("The task has no image address.")
        data = self.fetcher.fetch(source.strip(), server, task=task, deadline=deadline)
        return decode(data, max_pixels=self._max_pixels)


def decode(data: bytes, *, max_pixels: int) -> Image:
    """The pixels of an image file: uint8 (H, W, 3) RGB, EXIF orientation applied as browsers do.

    Transparency shows white, of animations the first frame counts, 16 bits are scaled to 8.
    Raises ImageError, for too large an image before its pixels are decoded.
    """
    if not data:
        raise ImageError("The image file is empty.")
    too_large = f"The image has more than {max_pixels} pixels (VLSAM_MAX_IMAGE_PIXELS)."
    try:
        with Pillow.open(BytesIO(data), formats=FORMATS) as opened:
            width, height = opened.size
            if width < 1 or height < 1:
                raise ImageError(f"The image is {width} x {height} pixels.")
            if width * height > max_pixels:
                raise ImageError(f"{too_large[:-1]}: {width} x {height}.")
            ImageOps.exif_transpose(opened, in_place=True)
            pixels = np.array(_rgb(opened), np.uint8)
    except ImageError:
        raise
    except (Pillow.DecompressionBombError, Pillow.DecompressionBombWarning):
        raise ImageError(too_large) from None
    except UnidentifiedImageError:
        raise ImageError(_not_an_image(data)) from None
    except Exception as error:  # a decoder may fail in any way on bytes from outside
        raise ImageError(f"The image file is broken ({type(error).__name__}).") from None
    return pixels


def _rgb(image: Pillow.Image) -> Pillow.Image:
    if image.mode.startswith("I"):  # 16 bits, in 16 or 32
        values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        image = Pillow.fromarray((values / 257).round().astype(np.uint8))
    elif image.mode == "F":
        raise ImageError("Images of floating point numbers are not supported.")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Pillow.new("RGBA", image.size, "white")
        return Pillow.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


def _not_an_image(data: bytes) -> str:
    start = data[:200].lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<svg", b"{", b"[")) or (
        all(byte in b"\t\n\r" or byte >= 32 for byte in start) and b"\0" not in start
    ):
        return "There is text where an image should be."
    return f"The file is broken or none of {', '.join(FORMATS)}."
