"""Task data to pixels: uploads of Label Studio, http(s) and data URLs, decoded to 8-bit RGB."""

import base64
import binascii
import json
import math
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import numpy as np
import requests
import urllib3
from PIL import Image as Pillow
from PIL import ImageOps, UnidentifiedImageError

from backend.settings import Settings
from model.types import Image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # MPO, of two-lens cameras, is a JPEG
ACCESS_SECONDS = 240  # Label Studio's access tokens live 300 s
MAX_REDIRECTS = 5


class ImageError(Exception):
    """An image cannot be had. The message is one sentence without secrets."""


@dataclass(frozen=True)
class Server:
    """A Label Studio and the token it takes; the two belong together."""

    url: str  # without a final slash
    token: str | None = field(default=None, repr=False)


def origin(url: str) -> tuple[str, str]:
    """The scheme and netloc of a URL, which decide whether a token may go there."""
    parts = urlsplit(url)
    return parts.scheme.lower(), parts.netloc.lower()


class Images:
    """Loads images within the limits of the settings. Safe to share among threads.

    A token goes to the exact scheme, host and port of its Label Studio, and not on after a redirect to
    another. A personal access token of Label Studio 1.23.2 is a refresh token: it is exchanged for an access
    token that is sent as Bearer, while a legacy token is sent as it is.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._access: dict[Server, tuple[float, str]] = {}
        self._lock = threading.Lock()

    def load(self, source: Any, server: Server | None = None, *, deadline: float = math.inf) -> Image:
        """uint8 (H, W, 3) RGB, upright, for the value of a task's image field.

        Raises ImageError, also when `deadline` (of time.monotonic) passes before the file is here.
        """
        if not isinstance(source, str) or not source.strip():
            raise ImageError("The task has no image address.")
        deadline = min(deadline, time.monotonic() + self._settings.image_timeout)
        data = self._bytes(source.strip(), server, deadline)
        return decode(data, max_pixels=self._settings.max_image_pixels)

    def _bytes(self, source: str, server: Server | None, deadline: float) -> bytes:
        if source[:5].lower() == "data:":
            return _data_url(source, self._settings.max_image_bytes)
        try:
            url = _upload_url(source, server) if source.startswith("/") else source
            for _ in range(MAX_REDIRECTS + 1):
                if origin(url)[0] not in ("http", "https") or not urlsplit(url).hostname:
                    raise ImageError(f"{_shown(url)} is not supported: it is no http, https or data address.")
                body, moved = self._get(url, server, deadline)
                if moved is None:
                    return body
                url = urljoin(url, moved)
        except (requests.Timeout, urllib3.exceptions.TimeoutError):
            raise ImageError(f"{_shown(source)} did not answer in time.") from None
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise ImageError(f"{_shown(source)} cannot be reached ({type(error).__name__}).") from None
        raise ImageError(f"{_shown(source)} redirects more than {MAX_REDIRECTS} times.")

    def _get(self, url: str, server: Server | None, deadline: float) -> tuple[bytes, str | None]:
        """The body of a URL, or the address it redirects to."""
        headers = {"Accept": "*/*"}  # Label Studio answers 406 to "image/*"
        trusted = server is not None and origin(url) == origin(server.url)
        if server is not None and trusted and server.token:
            headers["Authorization"] = self._authorization(server, deadline)
        with _request("GET", url, deadline, headers=headers) as response:
            if response.is_redirect:
                return b"", response.headers["Location"]
            if response.status_code in (401, 403):
                if not trusted or server is None:
                    raise ImageError(f"{_shown(url)} needs a login that this server does not have.")
                if not server.token:
                    raise ImageError(
                        f"Label Studio asks for a token for {_shown(url)}: set LABEL_STUDIO_API_KEY."
                    )
                with self._lock:
                    self._access.pop(server, None)
                raise ImageError(
                    f"Label Studio refused the token for {_shown(url)} with HTTP {response.status_code}."
                )
            if not response.ok:
                raise ImageError(f"{_shown(url)} answered HTTP {response.status_code}.")
            return _read(response, url, deadline, self._settings.max_image_bytes), None

    def _authorization(self, server: Server, deadline: float) -> str:
        token = server.token or ""
        kind = _jwt_type(token)
        if kind is None:
            return f"Token {token}"
        if kind != "refresh":
            return f"Bearer {token}"
        with self._lock:
            until, access = self._access.get(server, (0.0, ""))
        if time.monotonic() < until:
            return f"Bearer {access}"
        url = f"{server.url}/api/token/refresh/"
        with _request("POST", url, deadline, json={"refresh": token}) as response:
            if not response.ok:
                raise ImageError(
                    f"Label Studio refused the personal access token: HTTP {response.status_code} at {url}."
                )
            try:
                access = json.loads(_read(response, url, deadline, 100_000))["access"]
            except (ValueError, KeyError, TypeError):
                raise ImageError(f"{url} did not answer with an access token.") from None
        if not isinstance(access, str) or _jwt_type(access) is None:
            raise ImageError(f"{url} did not answer with an access token.")
        with self._lock:
            if len(self._access) >= 256:
                self._access.clear()
            self._access[server] = (time.monotonic() + ACCESS_SECONDS, access)
        return f"Bearer {access}"


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


def _upload_url(path: str, server: Server | None) -> str:
    """Label Studio's own address for a path such as /data/upload/1/dog.jpg or /data/local-files/?d=..."""
    if server is None:
        raise ImageError(f"To fetch {_shown(path)} set LABEL_STUDIO_URL to Label Studio's address.")
    parts, base = urlsplit(path), urlsplit(server.url)
    # A Label Studio below a path of its host may give addresses with that path already in front.
    route = parts.path.removeprefix(base.path) if base.path else parts.path
    if (
        parts.netloc
        or not route.startswith(("/data/", "/storage-data/"))
        or ".." in unquote(route).split("/")
    ):
        raise ImageError(f"{_shown(path)} is not the path of a file in Label Studio.")
    query = f"?{parts.query}" if parts.query else ""
    return f"{server.url}{route}{query}"


def _data_url(source: str, max_bytes: int) -> bytes:
    head, comma, body = source.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise ImageError("The data: address is not base64.")
    if len(body) * 3 // 4 > max_bytes + 3:
        raise ImageError(f"The image file has more than {max_bytes} bytes (VLSAM_MAX_IMAGE_BYTES).")
    try:
        return base64.b64decode(unquote(body), validate=True)
    except (binascii.Error, ValueError):
        raise ImageError("The data: address is not base64.") from None


def _request(method: str, url: str, deadline: float, **kwargs: Any) -> requests.Response:
    left = _left(deadline)
    return requests.request(
        method,
        url,
        timeout=(min(5.0, left), min(10.0, left)),
        stream=True,
        allow_redirects=False,
        auth=_no_netrc,
        **kwargs,
    )


def _no_netrc(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Keeps requests from adding passwords of ~/.netrc."""
    return request


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise requests.Timeout
    return left


def _read(response: requests.Response, url: str, deadline: float, max_bytes: int) -> bytes:
    # read1 returns what is there, so a server that sends a byte a second meets the deadline, too.
    read: Callable[[int], bytes] = lambda size: response.raw.read1(size, decode_content=True)  # noqa: E731
    chunks, size = [], 0
    while chunk := read(1 << 16):
        chunks.append(chunk)
        size += len(chunk)
        if size > max_bytes:
            raise ImageError(f"{_shown(url)} has more than {max_bytes} bytes (VLSAM_MAX_IMAGE_BYTES).")
        _left(deadline)
    return b"".join(chunks)


def _jwt_type(token: str) -> str | None:
    """ "refresh" or "access" for a JSON web token of Label Studio, None for a legacy token."""
    if not re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]*", token):
        return None
    body = token.split(".")[1]
    try:
        claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except (binascii.Error, ValueError):
        return None
    if not isinstance(claims, dict):
        return None
    return str(claims.get("token_type", "access"))


def _shown(url: str) -> str:
    """A URL for a message: without user and query, which may hold secrets, and not longer than a line."""
    address, _, _ = url.partition("?")
    scheme, slashes, rest = address.partition("//")
    host, slash, path = rest.partition("/")
    shown = f"{scheme}{slashes}{host.rpartition('@')[2]}{slash}{path}"
    return shown if len(shown) <= 120 else shown[:117] + "..."
