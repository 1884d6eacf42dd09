"""Read the image file of a task within limits: from Label Studio, the web, a data URL or this machine."""

import base64
import binascii
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urljoin, urlsplit

from backend.images.access_tokens import BUSY, AccessTokens
from backend.images.address_policy import AddressPolicy
from backend.images.errors import Busy, Denied, Missing, Refused
from backend.images.http_url import HttpUrl, shown
from backend.images.pinned_http import PinnedHttp, Request, Resolve, Response, too_large
from backend.images.studio_urls import Server, StudioNames, is_local_file, url_of
from backend.settings import ImageSettings, LabelStudioSettings
from model import image_decoding
from model.deadline import NEVER, Deadline
from model.types import Image, ImageError

MAX_REDIRECTS = 5
MAX_ADDRESS = 16_000  # characters, except of a data URL: signed addresses of storages have some 2000
PAUSES = (0.25, 1.0)  # seconds before another try of a busy server without Retry-After

decode = partial(image_decoding.decode, limit="VLSAM_MAX_IMAGE_PIXELS")


class Fetcher:
    """Reads files from hosts that AddressPolicy allows. Sends tokens only to Label Studio. Thread-safe."""

    def __init__(
        self,
        images: ImageSettings,
        label_studio: LabelStudioSettings,
        *,
        resolve: Resolve = socket.getaddrinfo,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = images, label_studio
        self._timeout = images.image_timeout
        self._max_bytes, self._max_pixels = images.max_image_bytes, images.max_image_pixels
        self._root = images.local_files_document_root
        self._names = StudioNames(label_studio.url, label_studio.hosts)
        policy = AddressPolicy(label_studio.url, images.allowed_hosts)
        self._http = PinnedHttp(policy, ca_bundle=images.requests_ca_bundle, resolve=resolve)
        self._tokens = AccessTokens(self._http, clock=clock)

    def __reduce__(self) -> tuple[type["Fetcher"], tuple[Any, ...]]:
        return Fetcher, self._settings  # locks cannot be pickled

    def load(
        self, source: Any, server: Server | None = None, *, task: Any = None, deadline: Deadline = NEVER
    ) -> Image:
        """Return the image at `source` (see `fetch`), uint8 (H, W, 3) RGB, upright. Raises ImageError."""
        return self.read(source, server, task=task, deadline=deadline)[1]

    def read(
        self, source: Any, server: Server | None = None, *, task: Any = None, deadline: Deadline = NEVER
    ) -> tuple[bytes, Image]:
        """Return the file at `source` (see `fetch`) and its pixels (see `load`). Raises ImageError."""
        if not isinstance(source, str) or not source.strip():
            raise Refused("The task has no image address.")
        data = self.fetch(source.strip(), server, task=task, deadline=deadline)
        return data, decode(data, max_pixels=self._max_pixels)

    def fetch(
        self, source: str, server: Server | None = None, *, task: Any = None, deadline: Deadline = NEVER
    ) -> bytes:
        """Return the bytes of the file at an address in a task's data. Raises ImageError.

        `source` is a path of Label Studio, a URI of a cloud storage, an http(s) URL or a data URL. Label
        Studio needs `task`, the task's id, to sign a storage's URI. A URL below another name of the Label
        Studio at LABEL_STUDIO_URL is fetched from LABEL_STUDIO_URL.
        """
        deadline = deadline.within(self._timeout)
        if source[:5].lower() == "data:":
            return _data_url(source, self._max_bytes)
        if len(source) > MAX_ADDRESS:
            raise Refused(f"{shown(source)} has more than {MAX_ADDRESS} characters.")
        path = self._names.file_path(source, server)
        if path is not None and self._root is not None and is_local_file(path):
            return _local_file(path, self._root, self._max_bytes)
        url = HttpUrl.parse(url_of(source, path, server, task))
        for _ in range(MAX_REDIRECTS + 1):
            body, redirect = self._get(url, server, deadline)
            if redirect is None:
                return body
            try:
                url = HttpUrl.parse(urljoin(url.url, redirect))
            except ValueError:
                raise Refused(f"{shown(url.url)} redirects to an invalid address.") from None
        raise Refused(f"{shown(source)} redirects more than {MAX_REDIRECTS} times.")

    def ask(self, request: Request, *, max_bytes: int | None = None) -> tuple[int, bytes]:
        """Send a request to Label Studio's API. Return the status, and the body or a redirect's address.

        `max_bytes` limits the body. None means the limit for images. Raises ImageError.
        """
        with self._opened(request, request.server) as response:
            if response.redirect is not None:
                return response.status, response.redirect.encode()
            body = response.read(max_bytes, setting="") if max_bytes else response.read(self._max_bytes)
            return response.status, body

    @contextmanager
    def _opened(self, request: Request, studio: Server | None) -> Iterator[Response]:
        """Send a request with the token of `studio`. Send it again if the access token has expired."""
        for last in (False, True):
            if studio is not None and studio.token:
                token = self._tokens.authorization(studio, request.deadline)
                request = replace(request, headers={"Authorization": token})
            with self._http.open(request) as response:
                expired = response.status == 401 and studio is not None and self._tokens.drop(studio)
                if last or not expired:
                    yield response
                    return

    def _get(self, url: HttpUrl, server: Server | None, deadline: Deadline) -> tuple[bytes, str | None]:
        """Return (body, None), or (b"", address of a redirect). Try a busy server up to three times."""
        for pause in PAUSES:
            try:
                return self._get_once(url, server, deadline)
            except Busy as busy:
                wait = busy.retry_after or pause
                if wait >= deadline.left():
                    raise
            time.sleep(wait)
        return self._get_once(url, server, deadline)

    def _get_once(self, url: HttpUrl, server: Server | None, deadline: Deadline) -> tuple[bytes, str | None]:
        studio = server if server is not None and server.has_file_at(url) else None
        with self._opened(Request("GET", url, server, deadline), studio) as response:
            if response.redirect is not None:
                return b"", response.redirect
            name, status = shown(url.url), response.status
            if status in (401, 403):
                raise self._denied(name, status, studio)
            if status in (404, 410):
                raise Missing(f"{name} answered HTTP {status}.")
            if status in BUSY:
                raise Busy(f"{name} answered HTTP {status}.", response.retry_after())
            if not response.response.ok:
                raise ImageError(f"{name} answered HTTP {status}.")
            return response.read(self._max_bytes), None

    def _denied(self, name: str, status: int, studio: Server | None) -> Denied:
        if studio is None:
            return Denied(f"{name} needs a login that this server does not have.")
        if not studio.token:
            return Denied(f"Label Studio asks for a token for {name}: set LABEL_STUDIO_API_KEY.")
        self._tokens.drop(studio)
        return Denied(f"Label Studio refused the token for {name} with HTTP {status}.")


def _local_file(path: str, root: Path, max_bytes: int) -> bytes:
    """Read /data/local-files/?d=NAME below `root`. Raises Refused, Missing and ImageError."""
    # Label Studio decodes once, and takes the last of several.
    names = parse_qs(urlsplit(path).query, keep_blank_values=True).get("d", [""])
    try:
        file_path = (root / names[-1].lstrip("/")).resolve()
        if not file_path.is_relative_to(root.resolve()):
            raise Refused(f"{shown(path)} refers to a file outside LOCAL_FILES_DOCUMENT_ROOT.")
        # A link that was created since is not followed, and a pipe does not block.
        with open(os.open(file_path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                data = file.read(max_bytes + 1)
                if len(data) > max_bytes:
                    raise too_large(shown(path), max_bytes)
                return data
    except (OSError, ValueError, RuntimeError):  # RuntimeError: links in a circle
        pass
    raise Missing(f"LOCAL_FILES_DOCUMENT_ROOT has no file for {shown(path)} that can be read.")


def _data_url(source: str, max_bytes: int) -> bytes:
    head, comma, body = source.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise Refused("The data: address is not base64.")
    if len(body) * 3 // 4 > max_bytes + 3:
        raise too_large("The image file", max_bytes)
    if body.count("%") > 1000 + len(body) // 16:  # of the base64 alphabet one character in 32 needs it
        raise Refused("The data: address has more percent-encoding than base64 needs.")
    try:
        return base64.b64decode(unquote(body), validate=True)
    except (binascii.Error, ValueError):
        raise Refused("The data: address is not base64.") from None
