import base64
import struct
import sys
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from PIL import Image as Pillow

from model.image_decoding import decode, eight_bits, formats, read_image
from model.types import ImageError
from tests.support.images import file, png

MAX = 10_000_000

# 16 x 12, orange, the upper left quarter (8 x 6) white; turned by its EXIF orientation, so upright 12 x 16.
HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAcdtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAADRp"
    "bG9jAAAAAERAAAIAAQAAAAAB6wABAAAAAAAAAFEAAgAAAAACPAABAAAAAAAAACQAAAA4aWluZgAAAAAAAgAAABVpbmZlAgAAAAABAABo"
    "dmMxAAAAABVpbmZlAgAAAQACAABFeGlmAAAAAA5waXRtAAAAAAABAAABBmlwcnAAAADlaXBjbwAAAHVodmNDAQNwAAAAkAAAAAAAHvAA"
    "/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQApQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbqrprm4CGgwIAAAAyA"
    "AAADAIRiAAEABkQBwXPBiQAAABNjb2xybmNseAABAA0ABoAAAAAUaXNwZQAAAAAAAABAAAAAQAAAAChjbGFwAAAAEAAAAAEAAAAMAAAA"
    "Af///9AAAAAC////zAAAAAIAAAAQcGl4aQAAAAADCAgIAAAACWlyb3QDAAAAGWlwbWEAAAAAAAAAAQABBoECAwWEhgAAABppcmVmAAAA"
    "AAAAAA5jZHNjAAIAAQABAAAAfW1kYXQAAABNKAGvEyGsKGjlMikXf8A8sKijIdlFDXPNr/OhQbXW5q/8ire1MTn7twjhOxlo6flDpSJp"
    "9Gj2rHxK0jhPbZnIUNUZr9+0wlCWClNoDs4AAAAGRXhpZgAATU0AKgAAAAgAAQESAAMAAAABAAYAAAAAAAA="
)


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that says it is this large and holds next to nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def tiff(values: NDArray[Any], orientation: int = 1) -> bytes:
    """Plain TIFF of any kind of number, (height, width) or (height, width, channels)."""
    height, width = values.shape[:2]
    channels = 1 if values.ndim == 2 else values.shape[2]
    body = values.astype(values.dtype.newbyteorder("<")).tobytes()
    tags = {
        256: ("I", [width]), 257: ("I", [height]), 258: ("H", [values.dtype.itemsize * 8] * channels),
        259: ("H", [1]), 262: ("H", [1 if channels == 1 else 2]), 273: ("I", [8]), 274: ("H", [orientation]),
        277: ("H", [channels]), 278: ("I", [height]), 279: ("I", [len(body)]),
        339: ("H", [{"u": 1, "i": 2, "f": 3}[values.dtype.kind]] * channels),
    }  # fmt: skip
    entries, beyond, start = b"", b"", 8 + len(body) + 2 + 12 * len(tags) + 4
    for tag, (kind, numbers) in tags.items():
        packed = struct.pack(f"<{len(numbers)}{kind}", *numbers)
        entries += struct.pack("<HHI", tag, {"H": 3, "I": 4}[kind], len(numbers))
        entries += packed.ljust(4, b"\0") if len(packed) <= 4 else struct.pack("<I", start + len(beyond))
        beyond += packed if len(packed) > 4 else b""
    head = b"II*\0" + struct.pack("<I", 8 + len(body))
    return head + body + struct.pack("<H", len(tags)) + entries + bytes(4) + beyond


def slope(low: float, high: float, kind: Any) -> NDArray[Any]:
    """From `low`, on the left, to `high`."""
    return np.tile(np.linspace(low, high, 60), (40, 1)).astype(kind)


# Decoding


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "MPO", "AVIF"])
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


def test_heic_is_read_upright_where_its_library_is() -> None:
    pixels = decode(HEIC, max_pixels=MAX)
    assert pixels.shape == (16, 12, 3)
    assert pixels[3, 9].min() > 230
    assert pixels[3, 3].tolist() == pytest.approx([200, 40, 0], abs=12)
    with pytest.raises(ImageError, match=r"more than 100 pixels.*: 1[26] x 1[26]"):
        decode(HEIC, max_pixels=100)
    with pytest.raises(ImageError, match="broken"):
        decode(HEIC[:-150], max_pixels=MAX)


def test_heic_without_its_library_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("pi_heif", "pillow_heif"):
        monkeypatch.setitem(sys.modules, library, None)
    formats.cache_clear()
    try:
        with pytest.raises(ImageError, match=r"pip install pi-heif"):
            decode(HEIC, max_pixels=MAX)
    finally:
        formats.cache_clear()


@pytest.mark.parametrize(
    ("values", "black", "white"),
    [
        (slope(0, 4095, np.uint16), 0, 4095),  # 12 bits in 16
        (slope(0, 3000, np.uint16), 0, 4095),
        (slope(100, 900, np.uint16), 0, 1023),
        (slope(0, 65535, np.uint16), 0, 65535),  # a photograph of 16 bits
        (slope(2000, 50000, np.uint16), 0, 65535),
        (slope(27315, 31000, np.uint16), 27315, 31000),  # temperatures of a thermal camera
        (slope(0, 1, np.uint16), 0, 1),
        (slope(-1024, 3071, np.int16), -1024, 3071),  # a CT's
        (slope(-30, -10, np.int16), -30, -10),
        (slope(0, 4095, np.int32), 0, 4095),
        (slope(0, 4e9, np.uint32), 0, 4e9),
        (slope(0, 1, np.float32), 0, 1),
        (slope(0.1, 0.9, np.float32), 0, 1),
        (slope(0.5, 8.5, np.float32), 0.5, 8.5),  # metres
        (slope(-1e30, 1e30, np.float32), -1e30, 1e30),
    ],
)  # fmt: skip
def test_more_than_8_bits_are_scaled_by_what_the_image_holds(
    values: NDArray[Any], black: float, white: float
) -> None:
    pixels = decode(tiff(values), max_pixels=MAX)
    expected = (values.astype(np.float64) - black) * 255 / (white - black)
    assert np.abs(pixels - expected[..., None]).max() <= 1
    if values.dtype == np.uint16:
        png = file(Pillow.fromarray(values), "PNG")
        assert np.array_equal(decode(png, max_pixels=MAX), pixels)


@pytest.mark.parametrize("scale", [16, 257])
def test_a_photograph_of_12_or_16_bits_is_the_one_of_8(scale: int) -> None:
    with Pillow.open("model/builtin/samples/scene-04.jpg") as opened:
        photo = np.asarray(opened.convert("RGB"))
    deep = photo.astype(np.uint16) * scale
    written = cv2.imencode(".png", deep[..., ::-1])[1].tobytes()
    for data in (written, tiff(deep)):
        assert np.abs(decode(data, max_pixels=MAX).astype(int) - photo).max() <= 1
    grey = decode(tiff(deep[..., 1]), max_pixels=MAX)
    assert np.abs(grey[..., 0].astype(int) - photo[..., 1]).max() <= 1


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_f12_colours_of_16_bits_are_upright(orientation: int) -> None:
    values = np.zeros((40, 60, 3), np.uint16)
    values[:20, :30] = 4095  # white upper left
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    chunk = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    png = cv2.imencode(".png", values)[1].tobytes()
    place = png.index(b"IDAT") - 4
    png = (
        png[:place]
        + struct.pack(">I", len(chunk) - 4)
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
        + png[place:]
    )
    corner = {1: (5, 5), 3: (-5, -5), 6: (5, -5), 8: (-5, 5)}[orientation]
    for data in (png, tiff(values, orientation)):
        pixels = decode(data, max_pixels=MAX)
        assert pixels.shape == ((40, 60, 3) if orientation in (1, 3) else (60, 40, 3))
        assert pixels[corner].tolist() == [255, 255, 255]
        assert pixels.mean() == pytest.approx(255 / 4)


def test_see_through_colours_of_16_bits_show_white() -> None:
    values = np.zeros((8, 8, 4), np.uint16)
    values[:4, :, 3] = 4095
    values[0, 0] = 4095
    pixels = decode(cv2.imencode(".png", values)[1].tobytes(), max_pixels=MAX)
    assert pixels[2, 2].tolist() == [0, 0, 0]
    assert pixels[6, 6].tolist() == [255, 255, 255]


def test_single_pixels_do_not_set_the_scale() -> None:
    values = slope(0, 3000, np.uint16)
    values[7, 7] = 65535
    assert eight_bits(values)[0, -1] == round(3000 * 255 / 4095)
    odd = slope(0, 1, np.float32)
    odd[0, :3] = (np.nan, np.inf, -np.inf)
    assert eight_bits(odd)[0, :3].tolist() == [0, 255, 0]
    assert eight_bits(odd)[1, -1] == 255


@pytest.mark.slow
@given(
    st.sampled_from([np.uint16, np.int16, np.int32, np.uint32, np.float32]).flatmap(
        lambda kind: arrays(kind, array_shapes(min_dims=2, max_dims=2, max_side=40))
    )
)
def test_brighter_stays_brighter_whatever_the_numbers(values: NDArray[Any]) -> None:
    shades = eight_bits(values)
    assert shades.shape == values.shape
    known = np.isfinite(values)
    order = np.argsort(values[known], kind="stable")
    assert (np.diff(shades[known][order].astype(int)) >= 0).all()
    if known.any() and values[known].min() < values[known].max() and values.dtype.kind != "f":
        assert shades.min() < shades.max()


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
        (b"\0\5\x16\7\0\2\0\0Mac OS X" + b"\0" * 60, "what macOS keeps beside another file"),
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


# Images for the Python API: a path, a Pillow image or an array


def oriented(kind: str, orientation: int) -> bytes:
    """A file of 60 x 40 pixels, its upper left quarter white, of 8 bits, or as TIFF and PNG of 16."""
    stored = np.zeros((40, 60, 3), np.uint8)
    stored[:20, :30] = 255
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    if kind == "TIFF of 12 bits":
        return tiff(stored.astype(np.uint16) * 16, orientation)
    if kind == "grey TIFF of 12 bits":
        return tiff(stored[..., 0].astype(np.uint16) * 16, orientation)
    if kind == "PNG of 12 bits":
        return cv2.imencode(".png", stored.astype(np.uint16) * 16)[1].tobytes()
    return file(Pillow.fromarray(stored), kind, exif=exif)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize(
    "kind", ["JPEG", "PNG", "TIFF", "WEBP", "TIFF of 12 bits", "grey TIFF of 12 bits", "PNG of 12 bits"]
)
def test_a_pillow_image_has_the_pixels_of_its_file(kind: str, orientation: int) -> None:
    data = oriented(kind, orientation)
    expected = decode(data)
    with Pillow.open(BytesIO(data)) as image:
        assert np.array_equal(read_image(image), expected)
        image.load()
        before = np.array(image)
        found = read_image(image)
        assert np.array_equal(np.asarray(image), before)  # the caller's image stays as it is
    assert found.shape == expected.shape
    if kind not in ("TIFF of 12 bits", "PNG of 12 bits"):  # of which Pillow has dropped 4
        assert np.array_equal(found, expected)


def test_edits_of_a_pillow_image_count() -> None:
    with Pillow.open(BytesIO(png())) as image:
        image.putpixel((0, 0), (9, 9, 9))
        assert read_image(image)[0, 0].tolist() == [9, 9, 9]


def test_a_pillow_image_that_is_decoded_smaller_stays_smaller() -> None:
    with Pillow.open("model/builtin/samples/scene-04.jpg") as image:
        image.draft("RGB", (100, 100))
        assert read_image(image).shape == (image.height, image.width, 3) == (138, 107, 3)


def test_the_frame_counts_that_a_pillow_image_is_at() -> None:
    frames = [Pillow.new("RGB", (8, 6), (shade, 0, 0)) for shade in (250, 10)]
    animated = file(frames[0], "GIF", save_all=True, append_images=frames[1:])
    with Pillow.open(BytesIO(animated)) as image:
        image.seek(1)
        assert read_image(image)[0, 0, 0] < 20


def test_a_path_may_be_text_or_a_path(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(png(color=(1, 2, 3)))
    assert read_image(path)[0, 0].tolist() == read_image(str(path))[0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Pillow.new("L", (8, 6), 77), (77, 77, 77)),
        (Pillow.new("1", (8, 6), 1), (255, 255, 255)),
        (Pillow.new("RGBA", (8, 6), (0, 0, 0, 0)), (255, 255, 255)),
        (Pillow.fromarray(np.full((6, 8), 257 * 9, np.uint16)), (9, 9, 9)),
        (Pillow.fromarray(slope(0, 1, np.float32)), (0, 0, 0)),
        (Pillow.new("CMYK", (8, 6), (0, 0, 0, 0)), (255, 255, 255)),
    ],
)
def test_a_pillow_image_of_any_mode(image: Pillow.Image, expected: tuple[int, int, int]) -> None:
    pixels = read_image(image)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (image.height, image.width, 3)
    assert pixels[0, 0].tolist() == list(expected)


def test_an_array_is_taken_as_it_is() -> None:
    pixels = np.zeros((4, 6, 3), np.uint8)
    assert read_image(pixels) is pixels


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (np.zeros((4, 6, 3)), r"uint8 \(H, W, 3\) RGB, not float64 \(4, 6, 3\)"),
        (np.zeros((4, 6), np.uint8), r"not uint8 \(4, 6\)"),
        (np.zeros((4, 6, 4), np.uint8), r"not uint8 \(4, 6, 4\)"),
        (np.zeros((0, 6, 3), np.uint8), r"not uint8 \(0, 6, 3\)"),
        (Pillow.new("RGB", (0, 6)), "0 x 6 pixels"),
        (Pillow.new("RGB", (80, 60)), r"more than 4000 pixels \(max_pixels\): 80 x 60"),
        ("nowhere.jpg", r"'nowhere\.jpg' cannot be read: No such file"),
        (Path("model"), "'model' is not a file"),
        ("/dev/null", "'/dev/null' is not a file"),
        ("a\0b", "cannot be read: embedded null"),
        ("pyproject.toml", r"'pyproject\.toml': There is text where an image should be"),
        (b"bytes", "A path, a Pillow image or an array is expected, not bytes"),
        (None, "not NoneType"),
    ],
)
def test_what_is_no_image_is_said_in_one_sentence(image: Any, reason: str) -> None:
    with pytest.raises(ImageError, match=reason) as caught:
        read_image(image, max_pixels=4000)
    assert "\n" not in str(caught.value)


def test_a_pillow_image_whose_file_is_broken(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(file(Pillow.new("RGB", (99, 99)), "JPEG")[:700])
    with Pillow.open(path) as image, pytest.raises(ImageError, match="cannot be decoded"):
        read_image(image)
