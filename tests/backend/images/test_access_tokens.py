import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler

import pytest

from backend.images import fetch
from backend.images.errors import Busy, Denied
from backend.images.fetch import Fetcher
from backend.images.studio_urls import Server
from backend.labelstudio_api.client import StudioClient, StudioError
from tests.support.fake_web import Web
from tests.support.fetching import FILE, LOOPBACK, PATH, fetcher_with, jwt


def test_a_personal_access_token_is_exchanged_once(web: Web, fetcher: Fetcher) -> None:
    refresh, access = jwt("refresh"), jwt("access")
    web.serve("/api/token/refresh/", json.dumps({"access": access}).encode())
    web.serve(PATH, FILE)
    for _ in range(2):
        fetcher.fetch(PATH, Server(web.url, refresh))
    assert web.seen == [
        ("POST", "/api/token/refresh/", None),
        ("GET", PATH, f"Bearer {access}"),
        ("GET", PATH, f"Bearer {access}"),
    ]


def test_an_access_token_is_exchanged_anew_before_its_300_s_end(web: Web) -> None:
    now = [0.0]
    fetcher = fetcher_with(image_timeout=5, allowed_hosts=LOOPBACK, clock=lambda: now[0])
    web.serve("/api/token/refresh/", json.dumps({"access": jwt("access")}).encode())
    web.serve(PATH, FILE)
    for now[0], exchanges in ((0.0, 1), (200.0, 1), (290.0, 2)):
        fetcher.fetch(PATH, Server(web.url, jwt("refresh")))
        assert [seen[0] for seen in web.seen].count("POST") == exchanges


def test_an_access_token_that_was_refused_is_exchanged_anew(web: Web, fetcher: Fetcher) -> None:
    web.serve("/api/token/refresh/", json.dumps({"access": jwt("access")}).encode())
    web.serve(PATH, b"", status=401)
    for _ in range(2):
        with pytest.raises(Denied, match="refused the token"):
            fetcher.fetch(PATH, Server(web.url, jwt("refresh")))
    assert [seen[0] for seen in web.seen] == ["POST", "GET"] * 4  # once more in each fetch


def read_api(fetcher: Fetcher, server: Server) -> bytes:
    return StudioClient(server, fetcher).read(PATH).body


@pytest.mark.parametrize("read", [lambda fetcher, server: fetcher.fetch(PATH, server), read_api])
def test_an_access_token_that_expires_early_ends_no_run(
    web: Web, fetcher: Fetcher, read: Callable[[Fetcher, Server], bytes]
) -> None:
    issued: list[str] = []

    def exchange(handler: BaseHTTPRequestHandler) -> None:
        issued.append(f"{jwt('access')}{len(issued)}")
        web.answer(handler, json.dumps({"access": issued[-1]}).encode())

    def file(handler: BaseHTTPRequestHandler) -> None:
        valid = handler.headers["Authorization"] == f"Bearer {issued[-1]}" and len(issued) < 4
        web.answer(handler, FILE if valid else b"{}", status=200 if valid else 401)

    web.routes |= {"/api/token/refresh/": exchange, PATH: file}
    server = Server(web.url, jwt("refresh"))
    for tokens in (1, 2, 3):
        assert read(fetcher, server) == FILE
        assert len(issued) == tokens
        issued[-1] = "expired"
    with pytest.raises((Denied, StudioError), match=r"refuse[sd] the (personal access )?token"):
        read(fetcher, server)
    assert len(issued) == 4


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (401, b"{}", "refused the personal access token: HTTP 401"),
        (200, b"[]", "did not answer with an access token"),
        (200, b"[" * 90_000, "did not answer with an access token"),
        (200, b'{"access": "short"}', "did not answer with an access token"),
        (302, b"", "did not answer with an access token"),
    ],
)
def test_a_personal_access_token_that_cannot_be_exchanged(
    web: Web, fetcher: Fetcher, status: int, body: bytes, reason: str
) -> None:
    web.serve("/api/token/refresh/", body, status=status)
    with pytest.raises(Denied, match=reason):
        fetcher.fetch(PATH, Server(web.url, jwt("refresh")))


def test_f9_a_busy_label_studio_has_not_refused_the_token(
    web: Web, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "PAUSES", (0.01,))
    web.serve("/api/token/refresh/", b"", status=503)
    with pytest.raises(Busy, match="HTTP 503"):
        fetcher.fetch(PATH, Server(web.url, jwt("refresh")))
    assert len(web.seen) == 2


def test_a_login_without_a_token_names_the_setting(web: Web, fetcher: Fetcher) -> None:
    web.serve(PATH, b"", status=401)
    with pytest.raises(Denied, match="set LABEL_STUDIO_API_KEY"):
        fetcher.fetch(PATH, Server(web.url))
    with pytest.raises(Denied, match="needs a login that this server does not have"):
        fetcher.fetch(web.url + PATH)
