"""Authenticate to Label Studio: tell kinds of tokens apart, and exchange personal ones for access tokens."""

import base64
import binascii
import json
import re
import threading
import time
from collections.abc import Callable
from operator import attrgetter
from typing import Any

from cachetools import TTLCache, cachedmethod

from backend.images.errors import Busy, Denied
from backend.images.http_url import HttpUrl, shown
from backend.images.pinned_http import PinnedHttp, Request
from backend.images.studio_urls import Server
from model.deadline import Deadline

ACCESS_SECONDS = 240  # Label Studio's access tokens live 300 s
BUSY = (429, 502, 503, 504)
MAX_ANSWER = 100_000  # bytes


class AccessTokens:
    """Makes Authorization headers. Exchanges a personal token for an access token first. Thread-safe."""

    def __init__(self, http: PinnedHttp, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._http = http
        self._lock = threading.Lock()
        self._kept: TTLCache[tuple[str, str | None], str] = TTLCache(256, ACCESS_SECONDS, timer=clock)

    def authorization(self, server: Server, deadline: Deadline) -> str:
        """Return the value of the Authorization header for a server that has a token. Raises ImageError."""
        token = server.token or ""
        match token_kind(token):
            case None:
                return f"Token {token}"
            case "cut":
                raise Denied("The token for Label Studio lacks its signature, the part after its second dot.")
            case "unfit":
                raise Denied("The token for Label Studio has quotes, spaces or other invalid characters.")
            case "refresh":
                return f"Bearer {self._exchange(server, deadline)}"
        return f"Bearer {token}"

    def drop(self, server: Server) -> bool:
        """Drop the access token that a server refused. Return whether its token can be exchanged again."""
        with self._lock:
            self._kept.pop((server.url, server.token), None)
        return token_kind(server.token or "") == "refresh"

    @cachedmethod(
        attrgetter("_kept"), lambda _, server, deadline: (server.url, server.token), attrgetter("_lock")
    )
    def _exchange(self, server: Server, deadline: Deadline) -> str:
        url, refresh = HttpUrl.parse(f"{server.url}/api/token/refresh/"), {"refresh": server.token}
        with self._http.open(Request("POST", url, server, deadline, json=refresh)) as response:
            name, status = shown(url.url), response.status
            if status in BUSY:
                raise Busy(f"{name} answered HTTP {status}.", response.retry_after())
            if not response.response.ok:
                raise Denied(f"Label Studio refused the personal access token: HTTP {status} at {name}.")
            try:
                access = json.loads(response.read(MAX_ANSWER))["access"]
            except (ValueError, KeyError, TypeError, RecursionError):
                access = None
        if not isinstance(access, str) or token_kind(access) is None:
            raise Denied(f"{name} did not answer with an access token.")
        return access


def token_kind(token: str) -> str | None:
    """Return the kind of a Label Studio token: None for a legacy token, else that of a JSON web token.

    A personal token is "refresh", an access token "access", and one without its signature "cut". Any token
    with quotes, spaces or characters other than ASCII is "unfit".
    """
    if re.search(r"[^!-~]|[\"']", token):
        return "unfit"
    parts = token.split(".")
    if not all(re.fullmatch(r"[\w-]*", part) for part in parts):
        return None
    header_and_claims = [_json_object(part) for part in parts[:2]]
    if len(parts) == 3 and parts[2] and (claims := header_and_claims[1]) is not None:
        return str(claims.get("token_type", "access"))
    is_jwt = token.startswith("eyJ")  # base64 of '{"', with which the header begins
    return "cut" if is_jwt or any(part is not None for part in header_and_claims) else None


def _json_object(part: str) -> dict[str, Any] | None:
    """Decode a part of a JSON web token. Return None if it is not a JSON object."""
    try:
        decoded = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        return None
    return decoded if isinstance(decoded, dict) else None
