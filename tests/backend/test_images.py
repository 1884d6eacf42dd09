import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow

from backend.fetch import ImageError, Refused
from backend.images import Images, decode
from backend.settings import Settings
from tests.backend.conftest import data_url

MAX = 10_000_000


def png(mode: str = "RGB", size: tuple[int, int] = (8, 6), color: Any = None) -> bytes:
    return file(Pillow.new(mode, size, color if color is not None else 0), "PNG")


def file(image: Pillow.Image, kind: str, **options: Any) -> bytes:
    out = BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that says it is this large and holds next to nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


# Decoding


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "MPO"])
def test_f11_formats(kind: str) -> None:
    pixels = decode(file(Pillow.new("RGB", (8, 6), (250, 0, 0)), kind), max_pixels=MAX)
    assert pixels.shape == (6, 8, 3)
    assert pixels.dtype == np.uint8
    assert pixels[3, 4, 0] > 240
    assert pixels[3, 4, 1] < 10


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Pillow.new("L", (8, 6), 77), (77, 77, 77)),
        (Pillow.new("1", (8, 6), 1), (255, 255, 255)),
        (Pillow.new("RGBA", (8, 6), (0, 0, 0, 0)), (255, 255, 255)),
        (Pillow.new("LA", (8, 6), (0, 255)), (0, 0, 0)),
        (Pillow.fromarray(np.full((6, 8), 65535, np.uint16)), (255, 255, 255)),
        (Pillow.fromarray(np.full((6, 8), 257 * 9, np.uint16)), (9, 9, 9)),
    ],
)
def test_f11_modes_become_rgb_on_white(image: Pillow.Image, expected: tuple[int, int, int]) -> None:
    assert decode(file(image, "PNG"), max_pixels=MAX)[3, 4].tolist() == list(expected)


def test_f11_cmyk_and_palettes() -> None:
    assert decode(file(Pillow.new("CMYK", (8, 6), (0, 0, 0, 0)), "JPEG"), max_pixels=MAX)[0, 0].min() > 250
    palette = Pillow.new("RGB", (8, 6), (0, 204, 0)).convert("P")
    assert decode(file(palette, "PNG"), max_pixels=MAX)[0, 0].tolist() == [0, 204, 0]
    see_through = file(palette, "PNG", transparency=palette.getpixel((0, 0)))
    assert decode(see_through, max_pixels=MAX)[0, 0].tolist() == [255, 255, 255]


def test_f11_the_first_frame_of_an_animation() -> None:
    frames = [Pillow.new("RGB", (8, 6), (shade, 0, 0)) for shade in (250, 10)]
    animated = file(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(animated, max_pixels=MAX)[0, 0, 0] > 240


@pytest.mark.parametrize("orientation", range(1, 9))
def test_f12_exif_orientation_is_applied(orientation: int) -> None:
    upright = np.zeros((40, 60, 3), np.uint8)
    upright[:20, :30] = 255  # white upper left
    undo = {
        1: None,
        2: Pillow.Transpose.FLIP_LEFT_RIGHT,
        3: Pillow.Transpose.ROTATE_180,
        4: Pillow.Transpose.FLIP_TOP_BOTTOM,
        5: Pillow.Transpose.TRANSPOSE,
        6: Pillow.Transpose.ROTATE_90,
        7: Pillow.Transpose.TRANSVERSE,
        8: Pillow.Transpose.ROTATE_270,
    }[orientation]
    stored = Pillow.fromarray(upright)
    stored = stored if undo is None else stored.transpose(undo)
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    pixels = decode(file(stored, "JPEG", exif=exif), max_pixels=MAX)
    assert pixels.shape == (40, 60, 3)
    corners = [int(pixels[y, x, 0]) > 128 for y, x in ((5, 5), (5, 55), (35, 5), (35, 55))]
    assert corners == [True, False, False, False]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"hello, I am a text", "text where an image should be"),
        (b"<!DOCTYPE html><html>login</html>", "text where an image should be"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "text where an image should be"),
        (b"\0\1\2\3" * 50, "broken or none of JPEG"),
        (file(Pillow.new("RGB", (8, 6)), "ICO"), "broken or none of JPEG"),
        (png()[:40], "broken"),
        (png()[:8] + b"\0" * 90, "broken"),
        (file(Pillow.new("RGB", (99, 99)), "JPEG")[:300], "broken"),
        (png_of_size(0, 0), "broken|none of|0 x 0"),
        (png_of_size(30000, 30000), "more than 10000000 pixels"),
        (png_of_size(10_000, 10_000), "more than 10000000 pixels"),
        (png_of_size(4000, 2501), "more than 10000000 pixels.*4000 x 2501"),
        (file(Pillow.new("F", (8, 6)), "TIFF"), "floating point"),
    ],
)
def test_f11_what_is_no_image(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason) as caught:
        decode(data, max_pixels=MAX)
    assert "\n" not in str(caught.value)


@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"BM", b"II*\0"]),
)
def test_f11_hostile_bytes_are_image_errors(data: bytes, magic: bytes) -> None:
    try:
        pixels = decode(magic + data, max_pixels=1000)
    except ImageError:
        return
    assert pixels.dtype == np.uint8


# Fetching, of which test_fetch.py has the rest


@pytest.mark.parametrize("source", [None, 3, "", "  ", ["/data/upload/1.jpg"], {"url": "x"}])
def test_a_field_without_an_address(source: Any) -> None:
    with pytest.raises(Refused, match="no image address"):
        Images(Settings()).load(source)


def test_a_file_is_fetched_and_decoded() -> None:
    assert Images(Settings()).load(data_url(8, 6)).shape == (6, 8, 3)
    with pytest.raises(ImageError, match="more than 40 pixels"):
        Images(Settings(max_image_pixels=40)).load(data_url(8, 6))
