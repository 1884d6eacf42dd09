import base64
import json
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow

from backend.images import ImageError, Images, Server, decode
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
def test_formats(kind: str) -> None:
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
def test_modes_become_rgb_on_white(image: Pillow.Image, expected: tuple[int, int, int]) -> None:
    assert decode(file(image, "PNG"), max_pixels=MAX)[3, 4].tolist() == list(expected)


def test_cmyk_and_palettes() -> None:
    assert decode(file(Pillow.new("CMYK", (8, 6), (0, 0, 0, 0)), "JPEG"), max_pixels=MAX)[0, 0].min() > 250
    palette = Pillow.new("RGB", (8, 6), (0, 204, 0)).convert("P")
    assert decode(file(palette, "PNG"), max_pixels=MAX)[0, 0].tolist() == [0, 204, 0]
    see_through = file(palette, "PNG", transparency=palette.getpixel((0, 0)))
    assert decode(see_through, max_pixels=MAX)[0, 0].tolist() == [255, 255, 255]


def test_the_first_frame_of_an_animation() -> None:
    frames = [Pillow.new("RGB", (8, 6), (shade, 0, 0)) for shade in (250, 10)]
    animated = file(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(animated, max_pixels=MAX)[0, 0, 0] > 240


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
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
def test_what_is_no_image(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason) as caught:
        decode(data, max_pixels=MAX)
    assert "\n" not in str(caught.value)


@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"BM", b"II*\0"]),
)
def test_hostile_bytes_are_image_errors(data: bytes, magic: bytes) -> None:
    try:
        pixels = decode(magic + data, max_pixels=1000)
    except ImageError:
        return
    assert pixels.dtype == np.uint8


# Fetching


def jwt(kind: str) -> str:
    parts = ({"alg": "HS256"}, {"token_type": kind, "exp": 9999999999})
    return (
        ".".join(base64.urlsafe_b64encode(json.dumps(p).encode()).decode().rstrip("=") for p in parts)
        + ".sig"
    )


class Web:
    """A server on 127.0.0.1: routes are functions of the request, and it notes who came with which token."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, str | None]] = []
        self.routes: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                web.seen.append((self.command, self.path, self.headers.get("Authorization")))
                route = web.routes.get(self.path.partition("?")[0])
                if "*/*" not in self.headers.get("Accept", ""):
                    # Label Studio 1.23.2 does so: its upload views offer JSON only.
                    web.answer(self, b"not acceptable", status=406)
                elif route is None:
                    web.answer(self, b"nothing here", status=404)
                else:
                    route(self)

            do_POST = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def answer(
        self, handler: BaseHTTPRequestHandler, body: bytes, *, status: int = 200, **headers: str
    ) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def serve(self, path: str, body: bytes, *, status: int = 200, **headers: str) -> str:
        self.routes[path] = lambda handler: self.answer(handler, body, status=status, **headers)
        return self.url + path

    def redirect(self, path: str, to: str) -> str:
        return self.serve(path, b"", status=302, Location=to)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def make_web() -> Iterator[Callable[[], Web]]:
    webs: list[Web] = []

    def make() -> Web:
        webs.append(Web())
        return webs[-1]

    yield make
    for web in webs:
        web.close()


@pytest.fixture
def web(make_web: Callable[[], Web]) -> Web:
    return make_web()


@pytest.fixture
def images() -> Images:
    return Images(Settings(image_timeout=2))


PATH = "/data/upload/2/59a4d59c-img.jpg"


def test_a_data_url(images: Images) -> None:
    assert images.load(data_url(8, 6)).shape == (6, 8, 3)


@pytest.mark.parametrize(
    "source", ["data:", "data:image/png,abc", "data:image/png;base64,a b!", "data:;base64,"]
)
def test_data_urls_without_an_image(images: Images, source: str) -> None:
    with pytest.raises(ImageError):
        images.load(source)


def test_an_address_of_anybody_is_fetched_without_a_token(web: Web, images: Images) -> None:
    url = web.serve("/dog.png", png())
    assert images.load(url, Server("http://127.0.0.1:1", "secret")).shape == (6, 8, 3)
    assert web.seen == [("GET", "/dog.png", None)]


def test_an_upload_is_fetched_with_a_legacy_token(web: Web, images: Images) -> None:
    web.serve(PATH, png())
    images.load(PATH, Server(web.url, "a" * 40))
    assert web.seen == [("GET", PATH, "Token " + "a" * 40)]


def test_a_local_file_keeps_its_query(web: Web, images: Images) -> None:
    web.serve("/data/local-files/", png())
    images.load("/data/local-files/?d=pets/dog.png", Server(web.url))
    assert web.seen[0][1] == "/data/local-files/?d=pets/dog.png"


def test_a_label_studio_below_a_path(web: Web, images: Images) -> None:
    web.serve("/studio" + PATH, png())
    server = Server(web.url + "/studio")
    assert images.load(PATH, server).shape == images.load("/studio" + PATH, server).shape


def test_a_personal_access_token_is_exchanged_once(web: Web, images: Images) -> None:
    refresh, access = jwt("refresh"), jwt("access")
    web.serve("/api/token/refresh/", json.dumps({"access": access}).encode())
    web.serve(PATH, png())
    server = Server(web.url, refresh)
    images.load(PATH, server)
    images.load(PATH, server)
    assert web.seen == [
        ("POST", "/api/token/refresh/", None),
        ("GET", PATH, f"Bearer {access}"),
        ("GET", PATH, f"Bearer {access}"),
    ]


def test_an_access_token_that_was_refused_is_exchanged_anew(web: Web, images: Images) -> None:
    web.serve("/api/token/refresh/", json.dumps({"access": jwt("access")}).encode())
    web.serve(PATH, b"", status=401)
    server = Server(web.url, jwt("refresh"))
    for _ in range(2):
        with pytest.raises(ImageError, match="refused the token"):
            images.load(PATH, server)
    assert [seen[0] for seen in web.seen] == ["POST", "GET", "POST", "GET"]


def test_a_refused_personal_access_token(web: Web, images: Images) -> None:
    web.serve("/api/token/refresh/", b"{}", status=401)
    with pytest.raises(ImageError, match="refused the personal access token: HTTP 401"):
        images.load(PATH, Server(web.url, jwt("refresh")))
    web.serve("/api/token/refresh/", b"[]")
    with pytest.raises(ImageError, match="did not answer with an access token"):
        images.load(PATH, Server(web.url, jwt("refresh")))


def test_no_token_follows_a_redirect_to_another_host(make_web: Callable[[], Web], images: Images) -> None:
    studio, bucket = make_web(), make_web()
    studio.redirect(PATH, to=bucket.serve("/signed.png", png()))
    images.load(PATH, Server(studio.url, "secret"))
    assert studio.seen[0][2] == "Token secret"
    assert bucket.seen == [("GET", "/signed.png", None)]


def test_a_token_goes_along_a_redirect_within_the_host(web: Web, images: Images) -> None:
    web.redirect("/data/upload/a.png", to=PATH)
    web.serve(PATH, png())
    images.load("/data/upload/a.png", Server(web.url, "secret"))
    assert [token for _, _, token in web.seen] == ["Token secret", "Token secret"]


def test_redirects_end(web: Web, images: Images) -> None:
    with pytest.raises(ImageError, match="redirects more than 5 times"):
        images.load(web.redirect("/again", to="/again"))
    with pytest.raises(ImageError, match="not supported"):
        images.load(web.redirect("/file", to="file:///etc/hostname"))


@pytest.mark.parametrize(
    "source",
    [
        "file:///etc/hostname",
        "ftp://127.0.0.1/x.png",
        "s3://bucket/key.png",
        "http:///nowhere",
        "dog.png",
        "http://[::1/x",
        "//127.0.0.1/data/x.png",
        "/etc/hostname",
        "/data/../api/users",
        "/data/%2e%2e/api/users",
        "/api/current-user/token",
    ],
)
def test_addresses_that_are_not_fetched(web: Web, images: Images, source: str) -> None:
    with pytest.raises(ImageError):
        images.load(source, Server(web.url, "secret"))
    assert web.seen == []


@pytest.mark.parametrize("source", [None, 3, "", "  ", ["/data/upload/1.jpg"], {"url": "x"}])
def test_a_field_without_an_address(images: Images, source: Any) -> None:
    with pytest.raises(ImageError, match="no image address"):
        images.load(source)


def test_an_upload_without_a_label_studio(images: Images) -> None:
    with pytest.raises(ImageError, match="set LABEL_STUDIO_URL"):
        images.load(PATH)


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (404, b"", "HTTP 404"),
        (500, b"", "HTTP 500"),
        (401, b"", "refused the token"),
        (403, b"", "refused the token"),
        (200, b"", "is empty"),
        (200, b"<html>login</html>", "text where an image should be"),
        (200, b"\x89PNG\r\n\x1a\n broken", "broken"),
    ],
)
def test_answers_without_an_image(web: Web, images: Images, status: int, body: bytes, reason: str) -> None:
    web.serve(PATH, body, status=status)
    with pytest.raises(ImageError, match=reason) as caught:
        images.load(PATH + "?signature=hidden", Server(web.url, "secret"))
    assert "secret" not in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_a_login_without_a_token_names_the_setting(web: Web, images: Images) -> None:
    web.serve(PATH, b"", status=401)
    with pytest.raises(ImageError, match="set LABEL_STUDIO_API_KEY"):
        images.load(PATH, Server(web.url))


def test_nobody_is_there(images: Images) -> None:
    with pytest.raises(ImageError, match="cannot be reached"):
        images.load("http://127.0.0.1:1/dog.png")


def test_more_bytes_than_allowed(web: Web) -> None:
    url = web.serve("/large.png", png() + b"\0" * 5000)
    with pytest.raises(ImageError, match="more than 4000 bytes"):
        Images(Settings(max_image_bytes=4000)).load(url)
    with pytest.raises(ImageError, match="more than 50 bytes"):
        Images(Settings(max_image_bytes=50)).load(data_url(400, 300))


@pytest.mark.parametrize("drip", [b"", b"\0"])
def test_a_server_that_stalls_or_drips(web: Web, drip: bytes) -> None:
    over = threading.Event()

    def slow(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(60):
            handler.wfile.write(drip)
            if over.wait(0.05):
                return

    web.routes["/slow.png"] = slow
    started = time.monotonic()
    with pytest.raises(ImageError, match="in time"):
        Images(Settings(image_timeout=0.3)).load(web.url + "/slow.png")
    with pytest.raises(ImageError, match="in time"):
        Images(Settings()).load(web.url + "/slow.png", deadline=started + 0.6)
    assert time.monotonic() - started < 2
    over.set()


def test_a_server_shows_no_token() -> None:
    assert "sesame" not in repr(Server("http://studio", "sesame"))
