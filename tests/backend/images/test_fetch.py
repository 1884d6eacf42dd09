import base64
import gzip
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from backend.images import fetch
from backend.images.errors import Busy, Denied, Missing, Refused
from backend.images.fetch import Fetcher
from backend.images.studio_urls import Server
from model.deadline import Deadline
from model.types import ImageError
from tests.support.fake_web import Web
from tests.support.fetching import FILE, LOOPBACK, PATH, fetcher_with
from tests.support.images import data_url


def test_a_data_url(strict: Fetcher) -> None:
    assert strict.fetch(data_url(8, 6))[:4] == b"\x89PNG"


@pytest.mark.parametrize("source", ["data:", "data:image/png,abc", "data:image/png;base64,a b!"])
def test_data_urls_that_hold_no_file(strict: Fetcher, source: str) -> None:
    with pytest.raises(Refused, match="not base64"):
        strict.fetch(source)


def test_base64_may_be_percent_encoded_where_it_needs_it(strict: Fetcher) -> None:
    signs = base64.b64encode(b"\xfb\xff\xfe" * 99).decode().replace("+", "%2B").replace("/", "%2F")
    assert strict.fetch(f"data:image/png;base64,{signs}") == b"\xfb\xff\xfe" * 99
    with pytest.raises(Refused, match="more percent-encoding than base64 needs"):
        strict.fetch("data:image/png;base64," + "%41" * 4000)  # each is an object of its own for a while


@pytest.mark.parametrize("start", ["http://127.0.0.1:1/", "/data/upload/", "s3://a/", "", "//"])
def test_an_endless_address_is_refused_at_once(fetcher: Fetcher, start: str) -> None:
    with pytest.raises(Refused, match="more than 16000 characters"):
        fetcher.fetch(start + "a" * 16_001, Server("http://127.0.0.1:1"))


def test_f16_an_address_of_anybody_is_fetched_without_a_token(web: Web, fetcher: Fetcher) -> None:
    url = web.serve("/dog.png", FILE)
    assert fetcher.fetch(url, Server("http://127.0.0.1:1", "secret")) == FILE
    assert web.seen == [("GET", "/dog.png", None)]


@pytest.mark.parametrize("to", ["file:///etc/hostname", "ftp://127.0.0.1/", "gopher://127.0.0.1/", "//["])
def test_f14_redirects_to_what_is_no_web_address(web: Web, fetcher: Fetcher, to: str) -> None:
    with pytest.raises(Refused):
        fetcher.fetch(web.redirect("/file", to=to))


def test_redirects_end(web: Web, fetcher: Fetcher) -> None:
    with pytest.raises(Refused, match="redirects more than 5 times"):
        fetcher.fetch(web.redirect("/again", to="/again"))


@pytest.mark.parametrize("name", ["pets/my%20dog.png", "/pets/my%20dog.png", "in.png", "pets/../in.png"])
def test_f15_a_local_file_below_the_root(web: Web, root: Path, name: str) -> None:
    fetcher = fetcher_with(local_files_document_root=root)
    assert fetcher.fetch(f"/data/local-files/?d={name}") == FILE
    assert fetcher.fetch(f"/studio/data/local-files/?d={name}", Server(web.url + "/studio")) == FILE
    assert web.seen == []


@pytest.mark.parametrize(
    "name",
    [
        "../secret.png",
        "../rootless.png",
        "%2e%2e/secret.png",
        "pets/../../secret.png",
        "..",
        "../not-there.png",
        "out.png",
        "outside/secret.png",
    ],
)
def test_f15_no_path_and_no_link_leads_out_of_the_root(web: Web, root: Path, name: str) -> None:
    with pytest.raises(Refused, match="outside LOCAL_FILES_DOCUMENT_ROOT"):
        fetcher_with(local_files_document_root=root).fetch(f"/data/local-files/?d={name}", Server(web.url))
    assert web.seen == []


@pytest.mark.parametrize(
    "name",
    ["", "pets", "cat.png", "round.png", "pipe.png", "a%00b", "/etc/hostname", "x" * 5000, "%252e%252e/x"],
)
def test_f15_what_is_no_file_below_the_root(web: Web, root: Path, name: str) -> None:
    with pytest.raises(Missing, match="LOCAL_FILES_DOCUMENT_ROOT has no file"):
        fetcher_with(local_files_document_root=root).fetch(f"/data/local-files/?d={name}", Server(web.url))
    assert web.seen == []


def test_f15_the_name_is_read_as_label_studio_reads_it(root: Path) -> None:
    """Decoded once, the last of several, with plus signs as spaces."""
    fetcher = fetcher_with(local_files_document_root=root)
    for query in ("d=cat.png&d=in.png", "t=1&d=pets/my+dog.png"):
        assert fetcher.fetch(f"/data/local-files/?{query}") == FILE
    with pytest.raises(Missing):
        fetcher.fetch("/data/local-files/?d=in.png&d=")


def test_f15_a_local_file_that_is_too_large(root: Path) -> None:
    with pytest.raises(ImageError, match="more than 5 bytes"):
        fetcher_with(local_files_document_root=root, max_image_bytes=5).fetch("/data/local-files/?d=in.png")


def test_f15_without_a_root_local_files_are_label_studios(web: Web, fetcher: Fetcher) -> None:
    web.serve("/data/local-files/", FILE)
    assert fetcher.fetch("/data/local-files/?d=/etc/hostname", Server(web.url, "secret")) == FILE
    assert web.seen == [("GET", "/data/local-files/?d=/etc/hostname", "Token secret")]


@pytest.mark.parametrize(
    ("status", "kind", "tries"),
    [
        (404, Missing, 1),
        (410, Missing, 1),
        (401, Denied, 1),
        (403, Denied, 1),
        (500, ImageError, 1),
        (429, Busy, 3),
        (502, Busy, 3),
        (503, Busy, 3),
        (504, Busy, 3),
    ],
)
def test_f9_each_status_is_an_error_of_its_kind(
    web: Web,
    fetcher: Fetcher,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    kind: type[Exception],
    tries: int,
) -> None:
    monkeypatch.setattr(fetch, "PAUSES", (0.01, 0.02))
    web.serve(PATH, b"", status=status)
    with pytest.raises(kind, match="Label Studio refused" if kind is Denied else f"HTTP {status}") as caught:
        fetcher.fetch(PATH + "?signature=hidden", Server(web.url, "secret"))
    assert type(caught.value) is kind
    assert "secret" not in str(caught.value)
    assert "hidden" not in str(caught.value)
    assert len(web.seen) == tries


def busy(web: Web, times: int, **headers: str) -> str:
    def route(handler: BaseHTTPRequestHandler) -> None:
        if len(web.seen) <= times:
            web.answer(handler, b"", status=503, **headers)
        else:
            web.answer(handler, FILE)

    web.routes["/x.png"] = route
    return web.url + "/x.png"


@pytest.mark.parametrize(
    ("header", "expected"),
    [({}, [0.25, 1.0]), ({"Retry-After": "2"}, [2.0, 2.0]), ({"Retry-After": "soon"}, [0.25, 1.0])],
)
def test_f9_a_busy_server_is_asked_again_when_it_says(
    web: Web, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch, header: dict[str, str], expected: list[float]
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("backend.images.fetch.time.sleep", pauses.append)
    assert fetcher.fetch(busy(web, 2, **header)) == FILE
    assert pauses == expected


@pytest.mark.parametrize("after", ["3600", "Fri, 31 Dec 2999 23:59:59 GMT", "9" * 400])
def test_f9_a_server_that_is_busy_beyond_the_deadline_is_not_waited_for(
    web: Web, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    monkeypatch.setattr("backend.images.fetch.time.sleep", lambda _: pytest.fail("waited"))
    with pytest.raises(Busy):
        fetcher.fetch(busy(web, 1, **{"Retry-After": after}), deadline=Deadline.after(5))
    assert len(web.seen) == 1


def test_more_bytes_than_allowed(web: Web) -> None:
    fetcher = fetcher_with(max_image_bytes=4000, allowed_hosts=LOOPBACK)
    with pytest.raises(ImageError, match="more than 4000 bytes"):
        fetcher.fetch(web.serve("/large.png", b"\0" * 5000))
    bomb = gzip.compress(b"\0" * 5_000_000)
    with pytest.raises(ImageError, match="more than 4000 bytes"):
        fetcher.fetch(web.serve("/bomb.png", bomb, status=200, **{"Content-Encoding": "gzip"}))
    with pytest.raises(ImageError, match="more than 50 bytes"):
        fetcher_with(max_image_bytes=50).fetch(data_url(400, 300))


@pytest.mark.parametrize("source", [None, 3, "", "  ", ["/data/upload/1.jpg"], {"url": "x"}])
def test_a_field_without_an_address(source: Any) -> None:
    with pytest.raises(Refused, match="no image address"):
        fetcher_with().load(source)


def test_a_file_is_fetched_and_decoded() -> None:
    assert fetcher_with().load(data_url(8, 6)).shape == (6, 8, 3)
    with pytest.raises(ImageError, match="more than 40 pixels"):
        fetcher_with(max_image_pixels=40).load(data_url(8, 6))
