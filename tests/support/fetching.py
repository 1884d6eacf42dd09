"""Names, tokens and a file for tests of the fetcher."""

import base64
import json
import socket
import time
from collections.abc import Callable
from typing import Any

from backend.images.fetch import Fetcher
from backend.images.pinned_http import Resolve
from tests.support.settings import settings_with

FILE = b"the bytes of a file"


PATH = "/data/upload/2/59a4d59c-img.jpg"


LOOPBACK = (("127.0.0.1", None),)


def jwt(kind: str) -> str:
    parts = ({"alg": "HS256"}, {"token_type": kind, "exp": 9999999999})
    return (
        ".".join(base64.urlsafe_b64encode(json.dumps(p).encode()).decode().rstrip("=") for p in parts)
        + ".sig"
    )


def names(**addresses: str | list[str]) -> Callable[..., list[tuple[Any, ...]]]:
    """Return a name service: with `dog="10.0.0.1"`, dog.example has this address."""

    def resolve(host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
        found = addresses[host.removesuffix(".example")]
        found = [found] if isinstance(found, str) else found
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    return resolve


def no_name(host: str, *_: Any, **__: Any) -> Any:
    host.encode("idna")  # as socket.getaddrinfo does, which raises UnicodeError for long labels
    raise socket.gaierror(-2, "Name or service not known")


def fetcher_with(
    *, resolve: Resolve = socket.getaddrinfo, clock: Callable[[], float] = time.monotonic, **settings: Any
) -> Fetcher:
    """`fetcher_with(image_timeout=5)`: a fetcher with these settings, the rest as they are by default."""
    given = settings_with(**settings)
    return Fetcher(given.images, given.label_studio, resolve=resolve, clock=clock)
