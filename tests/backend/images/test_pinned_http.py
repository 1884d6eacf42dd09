import base64
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from backend.images.errors import Refused, TimedOut, Unreachable
from backend.images.fetch import Fetcher
from backend.images.studio_urls import Server
from model.deadline import Deadline
from tests.support import certificates
from tests.support.certificates import Proxy
from tests.support.fake_web import Web
from tests.support.fetching import FILE, LOOPBACK, PATH, fetcher_with, names, no_name

MakeWeb = Callable[..., Web]


def test_f14_the_address_that_was_checked_is_the_one_that_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that means something else the second time (DNS rebinding) is not looked up a second time."""
    meanings, asked = iter([["8.8.8.8", "2606:4700::1111"], ["127.0.0.1"]]), []

    def connect(address: tuple[str, int], **_: Any) -> socket.socket:
        asked.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr("socket.create_connection", connect)
    fetcher = fetcher_with(resolve=lambda host, port, **more: names(dog=next(meanings))(host, port))
    with pytest.raises(Unreachable):
        fetcher.fetch("http://dog.example/x.png")
    assert asked == [("8.8.8.8", 80), ("2606:4700::1111", 80)]
    assert next(meanings) == ["127.0.0.1"]


def test_f16_no_cookie_follows_a_redirect_to_another_port(make_web: MakeWeb, fetcher: Fetcher) -> None:
    studio, other = make_web(), make_web()
    cookies: list[str | None] = []

    def note(handler: BaseHTTPRequestHandler) -> None:
        cookies.append(handler.headers.get("Cookie"))
        other.answer(handler, FILE)

    other.routes["/x.png"] = note
    studio.serve(
        PATH, b"", status=302, **{"Location": other.url + "/x.png", "Set-Cookie": "sessionid=sesame"}
    )
    fetcher.fetch(PATH, Server(studio.url))
    assert cookies == [None]


def test_f16_passwords_of_netrc_stay_here(
    web: Web, fetcher: Fetcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password sesame\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    fetcher.fetch(web.serve("/dog.png", FILE))
    assert web.seen == [("GET", "/dog.png", None)]


def test_f14_the_body_of_a_redirect_is_not_read(web: Web, fetcher: Fetcher) -> None:
    """It may be endless."""
    over, ended = threading.Event(), threading.Event()

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", "/x.png")
        handler.end_headers()
        over.wait(30)
        ended.set()

    web.routes["/again"] = endless
    web.serve("/x.png", FILE)
    assert fetcher.fetch(web.url + "/again") == FILE
    assert not ended.is_set()
    over.set()


@pytest.fixture
def proxy(web: Web, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The proxy of the environment. What it is asked for, `web` answers."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with certificates.proxy() as running:
        running.to = web.port
        monkeypatch.setenv("HTTP_PROXY", running.url.replace("//", "//me:sesame@"))
        yield running


def test_a_proxy_of_the_environment_is_asked_for_what_may_be_asked(web: Web, proxy: Proxy) -> None:
    web.serve("/x.png", FILE)
    fetcher = fetcher_with(image_timeout=5, resolve=names(dog="8.8.8.8"))
    assert fetcher.fetch("http://dog.example/x.png") == FILE
    assert proxy.seen == ["GET http://dog.example/x.png"]
    assert proxy.logins == ["Basic " + base64.b64encode(b"me:sesame").decode()]
    # Loopback never is, and no token goes further than without a proxy.
    server = Server("http://studio.example", "secret")
    fetcher = fetcher_with(label_studio_url=server.url, allowed_hosts=LOOPBACK, resolve=no_name)
    web.serve(PATH, FILE)
    assert fetcher.fetch(PATH, server) == FILE
    assert fetcher_with(allowed_hosts=LOOPBACK).fetch(web.url + "/x.png") == FILE
    assert proxy.seen[1:] == [f"GET http://studio.example{PATH}"]
    assert [token for _, _, token in web.seen] == [None, "Token secret", None]


@pytest.mark.parametrize("address", ["10.0.0.1", "169.254.169.254", "127.0.0.1", ["8.8.8.8", "10.0.0.1"]])
def test_f14_a_proxy_is_not_asked_for_private_hosts(web: Web, proxy: Proxy, address: str | list[str]) -> None:
    fetcher = fetcher_with(resolve=names(dog=address))
    with pytest.raises(Refused, match="not on the public Internet"):
        fetcher.fetch("http://dog.example/x.png")
    assert (proxy.seen, web.seen) == ([], [])


def test_f14_a_proxy_is_asked_for_names_that_are_unknown_here_where_the_operator_names_them(
    web: Web, proxy: Proxy
) -> None:
    """The proxy alone would say where they lead, which may be a machine of its own network."""
    web.serve("/x.png", FILE)
    with pytest.raises(Refused, match=r"cannot be looked up here\. If the proxy .* VLSAM_ALLOWED_HOSTS"):
        fetcher_with(resolve=no_name).fetch("http://dog.example/x.png")
    assert proxy.seen == []
    allowed: dict[str, Any] = {"allowed_hosts": (("dog.example", None),)}
    assert fetcher_with(**allowed, resolve=no_name).fetch("http://dog.example/x.png") == FILE
    assert proxy.seen == ["GET http://dog.example/x.png"]


def test_f14_each_redirect_behind_a_proxy_is_a_new_question(web: Web, proxy: Proxy) -> None:
    web.redirect("/x.png", to="http://cat.example/secret.png")
    fetcher = fetcher_with(resolve=names(dog="8.8.8.8", cat="10.0.0.1"))
    with pytest.raises(Refused, match=r"cat\.example/secret\.png is refused"):
        fetcher.fetch("http://dog.example/x.png")
    assert proxy.seen == ["GET http://dog.example/x.png"]


def test_f9_a_proxy_that_is_not_there_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("http_proxy", "http://me:sesame@127.0.0.1:9")
    fetcher = fetcher_with(resolve=names(dog="8.8.8.8"))
    with pytest.raises(Unreachable, match=r"through the proxy http://127.0.0.1:9: should NO_PROXY") as caught:
        fetcher.fetch("http://dog.example/x.png")
    assert "sesame" not in str(caught.value)
    monkeypatch.setenv("http_proxy", "socks5://me:sesame@127.0.0.1:9")
    with pytest.raises(Unreachable, match="must be addresses of HTTP proxies") as caught:
        fetcher.fetch("http://dog.example/x.png")
    assert "sesame" not in str(caught.value)


def test_f14_a_pinned_connection_proves_its_name_by_certificate(make_web: MakeWeb, certificate: Path) -> None:
    context, greeted = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), []
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    context.sni_callback = lambda _, name, __: greeted.append(name)
    web = make_web(context)
    web.serve("/x.png", FILE)
    settings: dict[str, Any] = {
        "image_timeout": 5,
        "allowed_hosts": (("dog.example", None), ("cat.example", None)),
        "requests_ca_bundle": certificate / "cert.pem",
    }
    fetcher = fetcher_with(**settings, resolve=names(dog="127.0.0.1", cat="127.0.0.1"))
    assert fetcher.fetch(f"https://dog.example:{web.port}/x.png") == FILE
    with pytest.raises(Unreachable, match=r"not trusted here \(Hostname mismatch"):
        fetcher.fetch(f"https://cat.example:{web.port}/x.png")
    assert greeted == ["dog.example", "cat.example"]
    nobody = fetcher_with(allowed_hosts=settings["allowed_hosts"], resolve=names(dog="127.0.0.1"))
    with pytest.raises(Unreachable, match=r"self-signed certificate\): set REQUESTS_CA_BUNDLE"):
        nobody.fetch(f"https://dog.example:{web.port}/x.png")


def test_f9_nobody_is_there(fetcher: Fetcher) -> None:
    with pytest.raises(Unreachable, match="cannot be reached"):
        fetcher.fetch("http://127.0.0.1:1/dog.png")
    for host in ("nothing.invalid", "a" * 70 + ".example"):
        with pytest.raises(Unreachable, match="cannot be reached"):
            fetcher_with(resolve=no_name).fetch(f"http://{host}/dog.png")


def test_f9_the_other_addresses_of_a_host_are_tried(web: Web) -> None:
    web.serve("/x.png", FILE)
    settings: dict[str, Any] = {"allowed_hosts": (("dog.example", None),)}
    fetcher = fetcher_with(**settings, resolve=names(dog=["127.0.0.99", "127.0.0.1"]))
    assert fetcher.fetch(f"http://dog.example:{web.port}/x.png") == FILE


def test_f9_an_answer_that_breaks_off(web: Web, fetcher: Fetcher) -> None:
    def half(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(FILE)

    web.routes["/x.png"] = half
    with pytest.raises(Unreachable, match="cannot be reached"):
        fetcher.fetch(web.url + "/x.png")


@pytest.mark.parametrize("drip", ["nothing", "headers", "body"])
def test_f9_a_server_that_stalls_or_drips(web: Web, drip: str) -> None:
    over, ended = threading.Event(), threading.Event()

    def slow(handler: BaseHTTPRequestHandler) -> None:
        if drip != "nothing":
            handler.wfile.write(b"HTTP/1.0 200 OK\r\n" + b"\r\n" * (drip == "body"))
        for _ in range(600):
            if over.wait(0.05):
                return
            if drip != "nothing":
                with suppress(ConnectionError):  # the client has gone, as it should
                    handler.wfile.write(b"X")
        ended.set()

    web.routes["/slow.png"] = slow
    with pytest.raises(TimedOut, match="in time"):
        fetcher_with(image_timeout=0.3, allowed_hosts=LOOPBACK).fetch(web.url + "/slow.png")
    with pytest.raises(TimedOut, match="in time"):
        fetcher_with(allowed_hosts=LOOPBACK).fetch(web.url + "/slow.png", deadline=Deadline.after(0.3))
    assert not ended.is_set()
    over.set()


def test_f9_a_name_service_that_stalls(web: Web) -> None:
    over, ended = threading.Event(), threading.Event()

    def slow(*_: Any, **__: Any) -> list[tuple[Any, ...]]:
        over.wait(30)
        ended.set()
        return []

    with pytest.raises(TimedOut):
        fetcher_with(image_timeout=0.2, resolve=slow).fetch("http://dog.example/x.png")
    assert not ended.is_set()
    over.set()
