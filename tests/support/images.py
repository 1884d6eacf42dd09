"""Builders of images, as files, bytes and data URLs."""

import base64
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image as Pillow

from model.types import Image


def data_url(width: int = 80, height: int = 60, *, shade: int = 200) -> str:
    return image_url(np.full((height, width, 3), (shade, 10, 10), np.uint8))


def image_url(image: Image) -> str:
    file = BytesIO()
    Pillow.fromarray(image).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def png(mode: str = "RGB", size: tuple[int, int] = (8, 6), color: Any = None) -> bytes:
    return file(Pillow.new(mode, size, color if color is not None else 0), "PNG")


def file(image: Pillow.Image, kind: str, **options: Any) -> bytes:
    out = BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()
