import base64
import gzip
import json
import os
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.images import fetch
from backend.images.fetch import (
    Busy,
    Denied,
    Fetcher,
    ImageError,
    Missing,
    Refused,
    Server,
    Target,
    TimedOut,
    Unreachable,
    is_public,
)
from backend.settings import Settings
from tests.backend.conftest import Web, data_url
from tests.support import certificates
from tests.support.certificates import Proxy
from tests.support.settings import settings_with

MakeWeb = Callable[..., Web]
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
    """A name service of its own: `dog="10.0.0.1"` is what dog.example stands for."""

    def resolve(host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
        found = addresses[host.removesuffix(".example")]
        found = [found] if isinstance(found, str) else found
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    return resolve


@pytest.fixture
def fetcher() -> Fetcher:
    """One that may ask the servers of these tests, which are all on this machine."""
    return Fetcher(settings_with(image_timeout=5, allowed_hosts=LOOPBACK))


@pytest.fixture
def strict() -> Fetcher:
    """One that nobody has allowed anything."""
    return Fetcher(settings_with(image_timeout=5))


# Label Studio, and who gets its token


def test_a_data_url(strict: Fetcher) -> None:
    assert strict.fetch(data_url(8, 6))[:4] == b"\x89PNG"


@pytest.mark.parametrize("source", ["data:", "data:image/png,abc", "data:image/png;base64,a b!"])
def test_data_urls_that_hold_no_file(strict: Fetcher, source: str) -> None:
    with pytest.raises(Refused, match="not base64"):
        strict.fetch(source)


def test_base64_may_be_percent_encoded_where_it_needs_it(strict: Fetcher) -> None:
    signs = base64.b64encode(b"\xfb\xff\xfe" * 99).decode().replace("+", "%2B").replace("/", "%2F")
    assert strict.fetch(f"data:image/png;base64,{signs}") == b"\xfb\xff\xfe" * 99
    with pytest.raises(Refused, match="more than base64 needs"):
        strict.fetch("data:image/png;base64," + "%41" * 4000)  # each is an object of its own for a while


@pytest.mark.parametrize("start", ["http://127.0.0.1:1/", "/data/upload/", "s3://a/", "", "//"])
def test_an_endless_address_is_refused_at_once(fetcher: Fetcher, start: str) -> None:
    with pytest.raises(Refused, match="more than 16000 characters"):
        fetcher.fetch(start + "a" * 16_001, Server("http://127.0.0.1:1"))


def test_f16_an_address_of_anybody_is_fetched_without_a_token(web: Web, fetcher: Fetcher) -> None:
    url = web.serve("/dog.png", FILE)
    assert fetcher.fetch(url, Server("http://127.0.0.1:1", "secret")) == FILE
    assert web.seen == [("GET", "/dog.png", None)]


def test_an_upload_is_fetched_with_a_legacy_token(web: Web, fetcher: Fetcher) -> None:
    web.serve(PATH, FILE)
    assert fetcher.fetch(PATH, Server(web.url, "a" * 40)) == FILE
    assert fetcher.fetch(web.url + PATH, Server(web.url, "a" * 40)) == FILE
    assert web.seen == [("GET", PATH, "Token " + "a" * 40)] * 2


def test_a_label_studio_below_a_path(web: Web, fetcher: Fetcher) -> None:
    web.serve("/studio" + PATH, FILE)
    server = Server(web.url + "/studio", "secret")
    assert fetcher.fetch(PATH, server) == fetcher.fetch("/studio" + PATH, server) == FILE
    assert [seen[2] for seen in web.seen] == ["Token secret"] * 2


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


def test_an_access_token_is_exchanged_anew_before_its_300_s_end(
    web: Web, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.serve("/api/token/refresh/", json.dumps({"access": jwt("access")}).encode())
    web.serve(PATH, FILE)
    now, server = time.monotonic(), Server(web.url, jwt("refresh"))
    for later, exchanges in ((0, 1), (200, 1), (290, 2)):
        monkeypatch.setattr("backend.images.fetch.time.monotonic", lambda later=later: now + later)
        fetcher.fetch(PATH, server)
        assert [seen[0] for seen in web.seen].count("POST") == exchanges


def test_an_access_token_that_was_refused_is_exchanged_anew(web: Web, fetcher: Fetcher) -> None:
    web.serve("/api/token/refresh/", json.dumps({"access": jwt("access")}).encode())
    web.serve(PATH, b"", status=401)
    for _ in range(2):
        with pytest.raises(Denied, match="refused the token"):
            fetcher.fetch(PATH, Server(web.url, jwt("refresh")))
    assert [seen[0] for seen in web.seen] == ["POST", "GET", "POST", "GET"]


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


def test_f16_no_token_follows_a_redirect_to_another_host(make_web: MakeWeb, fetcher: Fetcher) -> None:
    studio, bucket = make_web(), make_web()
    studio.redirect(PATH, to=bucket.serve("/signed.png", FILE))
    assert fetcher.fetch(PATH, Server(studio.url, "secret")) == FILE
    assert studio.seen[0][2] == "Token secret"
    assert bucket.seen == [("GET", "/signed.png", None)]


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


def test_f16_a_token_goes_along_a_redirect_to_another_file_of_label_studio(
    web: Web, fetcher: Fetcher
) -> None:
    web.redirect("/data/upload/a.png", to=PATH)
    web.serve(PATH, FILE)
    fetcher.fetch("/data/upload/a.png", Server(web.url, "secret"))
    assert [token for _, _, token in web.seen] == ["Token secret", "Token secret"]


@pytest.mark.parametrize(
    "path", ["/api/projects/1/export", "/data", "/data/%2e%2e/api/users", "/data/../api", "/tasks/1/presign"]
)
def test_f16_a_token_goes_to_files_alone(web: Web, fetcher: Fetcher, path: str) -> None:
    web.redirect("/data/x.png", to=path)
    for source in ("/data/x.png", web.url + path):
        with pytest.raises(Missing):
            fetcher.fetch(source, Server(web.url, "secret"))
    assert {token for _, seen, token in web.seen if seen != "/data/x.png"} == {None}


@pytest.fixture
def tls(make_web: MakeWeb, certificate: Path) -> Web:
    """A server that speaks https, with a certificate for dog.example."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    return make_web(context)


@pytest.mark.parametrize("ours", ["https", "http"])
def test_f16_no_token_goes_to_the_same_host_and_port_with_another_scheme(
    web: Web, tls: Web, certificate: Path, ours: str
) -> None:
    """Both answer for dog.example:8080, as after a change of the network between us and there."""
    port = {"https": tls.port, "http": web.port}
    answering = {"http": web, "https": tls}
    for server in (web, tls):
        server.serve(PATH, FILE)
    settings = settings_with(
        image_timeout=5, allowed_hosts=(("dog.example", None),), requests_ca_bundle=certificate / "cert.pem"
    )
    fetcher = Fetcher(settings, resolve=names(dog="127.0.0.1"))
    for scheme in ("https", "http"):
        # The port of the address is the one that is asked, and the one of Label Studio's address.
        address = f"dog.example:{port[scheme]}"
        assert fetcher.fetch(f"{scheme}://{address}{PATH}", Server(f"{ours}://{address}", "secret")) == FILE
        ((_, _, token),) = answering[scheme].seen
        assert token == ("Token secret" if scheme == ours else None)


def test_f16_the_scheme_and_port_of_a_token_count() -> None:
    studio = "http://studio.example"
    assert Target.of("http://Studio.Example:80/data/x").is_at(studio)
    for url in ("https://studio.example/", "http://studio.example:8080/", "http://studio.example.org/"):
        assert not Target.of(url).is_at(studio)
    assert not Target.of(studio).is_at("garbage")


def test_f16_passwords_of_netrc_stay_here(
    web: Web, fetcher: Fetcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password sesame\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    fetcher.fetch(web.serve("/dog.png", FILE))
    assert web.seen == [("GET", "/dog.png", None)]


def test_f16_a_server_shows_no_token() -> None:
    assert "sesame" not in repr(Server("http://studio", "sesame"))


# Other names of the same Label Studio


LOCAL = "/data/local-files/?d=pets/dog.png"


@pytest.mark.parametrize("at", ["", "/ls"])
@pytest.mark.parametrize("path", [PATH, LOCAL, "/storage-data/uploaded/?filepath=upload/2/x.jpg"])
@pytest.mark.parametrize(
    "before",
    [
        "", "/ls", "http://localhost:8080", "https://label.example.com/ls", "https://Label.Example.com:443/ls",
        "http://label.example.com./ls", "http://studio", "https://studio:8443", "https://xn--dg-fka.example",
        "https://dög.example",
    ],
)  # fmt: skip
def test_files_below_another_name_are_asked_at_label_studio_url(
    web: Web, at: str, path: str, before: str
) -> None:
    """By each of its names it may be below a path or not, whatever LABEL_STUDIO_URL has."""
    web.serve(at + path.partition("?")[0], FILE)
    settings = settings_with(
        label_studio_url=web.url + at,
        label_studio_hosts=(
            "https://label.example.com/ls",
            "http://label.example.com/ls",
            "studio",
            "dög.example",
        ),
    )
    server = Server(web.url + at, "secret", name="http://localhost:8080")
    assert Fetcher(settings).fetch(before + path, server) == FILE
    assert web.seen == [("GET", at + path, "Token secret")]


def test_a_name_without_the_path_that_label_studio_url_has(web: Web) -> None:
    """The proxy before it and Label Studio itself know it below /ls, and the setting says the host alone."""
    web.serve("/ls" + PATH, FILE)
    settings = settings_with(label_studio_url=web.url + "/ls", label_studio_hosts=("label.example.com",))
    fetcher, server = Fetcher(settings), Server(web.url + "/ls", "secret")
    for path in ("/ls" + PATH, PATH):
        assert fetcher.fetch("https://label.example.com" + path, server) == FILE
    assert [path for _, path, _ in web.seen] == ["/ls" + PATH] * 2


def test_local_files_below_another_name_are_read_from_the_root(web: Web, root: Path) -> None:
    settings = settings_with(
        label_studio_url=web.url,
        label_studio_hosts=("https://label.example.com/ls",),
        local_files_document_root=root,
    )
    fetcher, server = Fetcher(settings), Server(web.url, name="http://localhost:8080")
    for before in ("https://label.example.com/ls", "/ls", "http://localhost:8080", web.url):
        assert fetcher.fetch(f"{before}/data/local-files/?d=pets/my%20dog.png", server) == FILE
        with pytest.raises(Refused, match="outside LOCAL_FILES_DOCUMENT_ROOT"):
            fetcher.fetch(f"{before}/data/local-files/?d=../secret.png", server)
    assert web.seen == []


@pytest.mark.parametrize(
    "source",
    [
        "https://label.example.com/ls/api/users",  # no file
        "https://label.example.com/ls/data",
        "https://label.example.com/ls/data/../api/users",
        "https://label.example.com/ls/data/%2e%2e/api/users",
        "https://label.example.com/ls/data/%2E%2e%2fapi/users",
        "https://label.example.com/ls/../data/upload/x.png",
        "https://label.example.com/ls/ls/data/upload/x.png",
        "https://label.example.com/lsx/data/upload/x.png",
        "https://label.example.com/data/upload/x.png",  # not below /ls
        "https://label.example.com//data/upload/x.png",
        "http://label.example.com/ls/data/upload/x.png",  # another scheme
        "http://label.example.com:443/ls/data/upload/x.png",
        "https://label.example.com:8443/ls/data/upload/x.png",  # another port
        "https://label.example.com.evil.example/ls/data/upload/x.png",
        "https://evil-label.example.com/ls/data/upload/x.png",
        "https://label.example.com@evil.example/ls/data/upload/x.png",
        "https://evil.example/?https://label.example.com/ls/data/upload/x.png",
        "https://evil.example/#@label.example.com/ls/data/upload/x.png",
        "https://evil.example\\@label.example.com/ls/data/upload/x.png",
        "//label.example.com/ls/data/upload/x.png",
        "/lsx/data/upload/x.png",
        "/ls/ls/data/upload/x.png",
        "/ls/data/../api/users",
    ],
)
def test_f16_what_is_not_a_file_below_another_name_does_not_get_the_token(
    web: Web, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """It is asked where it says, as any address, or refused."""
    create, asked = socket.create_connection, []

    def connect(address: tuple[str, int], **more: Any) -> socket.socket:
        asked.append(address[0])
        if address[0] == "127.0.0.1":
            return create(address, **more)
        raise ConnectionRefusedError

    def resolve(host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
        found = "127.0.0.1" if host == "127.0.0.1" else "8.8.8.8"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (found, port))]

    monkeypatch.setattr("socket.create_connection", connect)
    settings = settings_with(label_studio_url=web.url, label_studio_hosts=("https://label.example.com/ls",))
    with pytest.raises((Unreachable, Refused)):
        Fetcher(settings, resolve=resolve).fetch(
            source, Server(web.url, "secret", name="http://localhost:8080")
        )
    assert set(asked) <= {"8.8.8.8"}
    assert web.seen == []


def test_f14_a_name_from_setup_counts_for_label_studio_url_alone(make_web: MakeWeb) -> None:
    """Without LABEL_STUDIO_URL nothing that /setup says sends a request for one host to another."""
    named, other = make_web(), make_web()
    named.serve(PATH, FILE)
    other.serve(PATH, FILE)
    fetcher = Fetcher(settings_with(allowed_hosts=LOOPBACK))
    assert fetcher.fetch(other.url + PATH, Server(named.url, "secret", name=other.url)) == FILE
    assert named.seen == []
    assert other.seen == [("GET", PATH, None)]


@pytest.mark.parametrize("name", ["", "garbage", "http://", "http://[", "ftp://x", "http://me@x", "x" * 5000])
def test_names_from_setup_that_are_none(web: Web, name: str) -> None:
    web.serve(PATH, FILE)
    fetcher = Fetcher(settings_with(label_studio_url=web.url))
    assert fetcher.fetch(PATH, Server(web.url, name=name)) == FILE


# Cloud storage


@pytest.mark.parametrize("uri", ["s3://pets/my dog.png", "gs://pets/dög.png", "azure-blob://pets/dog.png"])
def test_a_cloud_uri_is_signed_by_label_studio(make_web: MakeWeb, fetcher: Fetcher, uri: str) -> None:
    studio, bucket = make_web(), make_web()
    studio.redirect("/tasks/7/presign/", to=bucket.serve("/signed.png", FILE) + "?signature=x")
    assert fetcher.fetch(uri, Server(studio.url, "secret"), task=7) == FILE
    (_, path, token), *more = studio.seen
    assert base64.urlsafe_b64decode(path.partition("?fileuri=")[2]).decode() == uri
    assert (token, more) == ("Token secret", [])
    assert bucket.seen == [("GET", "/signed.png?signature=x", None)]


@pytest.mark.parametrize("task", [None, "", "1/../../api", "-1", 1.5, True, {"id": 1}, "١"])
def test_a_cloud_uri_needs_the_id_of_its_task(web: Web, fetcher: Fetcher, task: Any) -> None:
    with pytest.raises(Refused, match="needs the task's id"):
        fetcher.fetch("s3://pets/dog.png", Server(web.url, "secret"), task=task)
    assert web.seen == []


def test_what_label_studio_is_needed_for(strict: Fetcher) -> None:
    for source in ("s3://pets/dog.png", PATH):
        with pytest.raises(Refused, match="set LABEL_STUDIO_URL"):
            strict.fetch(source, task=1)


# F14: which hosts are asked


V4 = [
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
    "192.0.0.0/24", "192.0.2.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
    "224.0.0.0/4", "240.0.0.0/4", "168.63.129.16/32",
]  # fmt: skip
V6 = [
    "::/32", "::ffff:0:0/96", "64:ff9b:1::/48", "2001::/32", "2001:db8::/32", "2002::/16", "fc00::/7",
    "fe80::/10", "fec0::/10", "ff00::/8",
]  # fmt: skip


@given(st.sampled_from(V4).flatmap(lambda network: st.ip_addresses(network=network)))
def test_f14_no_form_of_a_private_ipv4_address_is_public(address: IPv4Address) -> None:
    number = int(address)
    assert not is_public(address)
    assert not is_public(IPv6Address((0xFFFF << 32) | number))  # mapped
    assert not is_public(IPv6Address((0x2002 << 112) | (number << 80)))  # 6to4
    assert not is_public(IPv6Address((0x64FF9B << 96) | number))  # NAT64


@given(st.sampled_from(V6).flatmap(lambda network: st.ip_addresses(network=network)))
def test_f14_private_ipv6_addresses(address: IPv6Address) -> None:
    assert not is_public(address)


@given(st.ip_addresses(v=4))
def test_f14_all_other_ipv4_addresses_are_public(address: IPv4Address) -> None:
    assert is_public(address) != any(address in ip_network(network) for network in V4)


def test_f14_public_addresses() -> None:
    for address in ("8.8.8.8", "2606:4700::1111", "64:ff9b::808:808"):
        assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "localhost", "127.1", "2130706433", "017700000001", "0177.0.0.1", "0x7f.1",
        "0.0.0.0", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]",
    ],
)  # fmt: skip
def test_f14_this_machine_however_it_is_spelled(web: Web, strict: Fetcher, host: str) -> None:
    web.serve("/x.png", FILE)
    with pytest.raises(Refused, match="not on the public Internet"):
        strict.fetch(f"http://{host}:{web.port}/x.png")
    assert web.seen == []


@pytest.mark.parametrize(
    "addresses", ["10.0.0.1", "169.254.169.254", "fd00:ec2::254", ["8.8.8.8", "127.0.0.1"], "fe80::1%1"]
)
def test_f14_names_of_private_addresses(addresses: str | list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.create_connection", lambda *_, **__: pytest.fail("connected"))
    with pytest.raises(
        Refused, match=r"http://dog\.example/x\.png is refused: its host is not on the public"
    ):
        Fetcher(Settings(), resolve=names(dog=addresses)).fetch("http://dog.example/x.png?signature=hidden")


def test_f14_the_address_that_was_checked_is_the_one_that_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that means something else the second time (DNS rebinding) is not looked up a second time."""
    meanings, asked = iter([["8.8.8.8", "2606:4700::1111"], ["127.0.0.1"]]), []

    def connect(address: tuple[str, int], **_: Any) -> socket.socket:
        asked.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr("socket.create_connection", connect)
    fetcher = Fetcher(Settings(), resolve=lambda host, port, **more: names(dog=next(meanings))(host, port))
    with pytest.raises(Unreachable):
        fetcher.fetch("http://dog.example/x.png")
    assert asked == [("8.8.8.8", 80), ("2606:4700::1111", 80)]
    assert next(meanings) == ["127.0.0.1"]


def test_f14_an_allowed_host_keeps_its_name(web: Web) -> None:
    hosts: list[str | None] = []

    def note(handler: BaseHTTPRequestHandler) -> None:
        hosts.append(handler.headers.get("Host"))
        web.answer(handler, FILE)

    web.routes["/x.png"] = note
    settings = settings_with(allowed_hosts=(("dog.example", web.port),))
    fetcher = Fetcher(settings, resolve=names(dog="127.0.0.1", cat="127.0.0.1"))
    assert fetcher.fetch(f"http://Dog.example:{web.port}/x.png") == FILE
    assert hosts == [f"dog.example:{web.port}"]
    for other in (f"http://cat.example:{web.port}/x.png", f"http://dog.example:{web.port + 1}/x.png"):
        with pytest.raises(Refused):
            fetcher.fetch(other)


def test_f14_each_redirect_is_a_new_question(make_web: MakeWeb) -> None:
    studio, inside = make_web(), make_web()
    studio.redirect(PATH, to=inside.serve("/x.png", FILE))
    fetcher = Fetcher(settings_with(label_studio_url=studio.url))
    with pytest.raises(Refused, match="VLSAM_ALLOWED_HOSTS"):
        fetcher.fetch(PATH, Server(studio.url, "secret"))
    assert (len(studio.seen), inside.seen) == (1, [])


@pytest.mark.parametrize("to", ["file:///etc/hostname", "ftp://127.0.0.1/", "gopher://127.0.0.1/", "//["])
def test_f14_redirects_to_what_is_no_web_address(web: Web, fetcher: Fetcher, to: str) -> None:
    with pytest.raises(Refused):
        fetcher.fetch(web.redirect("/file", to=to))


def test_f14_the_body_of_a_redirect_is_not_read(web: Web, fetcher: Fetcher) -> None:
    """It may be endless."""
    over = threading.Event()

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", "/x.png")
        handler.end_headers()
        over.wait(10)

    web.routes["/again"] = endless
    web.serve("/x.png", FILE)
    started = time.monotonic()
    assert fetcher.fetch(web.url + "/again") == FILE
    assert time.monotonic() - started < 9
    over.set()


def test_redirects_end(web: Web, fetcher: Fetcher) -> None:
    with pytest.raises(Refused, match="redirects more than 5 times"):
        fetcher.fetch(web.redirect("/again", to="/again"))


@pytest.mark.parametrize(
    "source",
    [
        "file:///etc/hostname",
        "ftp://127.0.0.1/x.png",
        "gopher://127.0.0.1/x.png",
        "hdfs://pets/dog.png",
        "http:///nowhere",
        "dog.png",
        "http://[::1/x",
        "http://me:sesame@{host}/x.png",
        "http://me@{host}/x.png",
        "http://{host}\\@dog.example/x.png",
        "http:\\\\{host}\\x.png",
        "http://{host}/x.png\r\nHost: dog.example",
        "http://{host}/\ud800",
        "//{host}/data/x.png",
        "/etc/hostname",
        "/data/../api/users",
        "/data/%2e%2e/api/users",
        "/api/current-user/token",
    ],
)
def test_f14_addresses_that_are_not_fetched(web: Web, fetcher: Fetcher, source: str) -> None:
    with pytest.raises(ImageError) as caught:
        fetcher.fetch(source.format(host=f"127.0.0.1:{web.port}"), Server(web.url, "secret"))
    assert web.seen == [] or "\ud800" in source
    assert "\n" not in str(caught.value)
    assert "sesame" not in str(caught.value)


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
    fetcher = Fetcher(settings_with(image_timeout=5), resolve=names(dog="8.8.8.8"))
    assert fetcher.fetch("http://dog.example/x.png") == FILE
    assert proxy.seen == ["GET http://dog.example/x.png"]
    assert proxy.logins == ["Basic " + base64.b64encode(b"me:sesame").decode()]
    # Loopback never is, and no token goes further than without a proxy.
    server = Server("http://studio.example", "secret")
    fetcher = Fetcher(settings_with(label_studio_url=server.url, allowed_hosts=LOOPBACK), resolve=_no_name)
    web.serve(PATH, FILE)
    assert fetcher.fetch(PATH, server) == FILE
    assert Fetcher(settings_with(allowed_hosts=LOOPBACK)).fetch(web.url + "/x.png") == FILE
    assert proxy.seen[1:] == [f"GET http://studio.example{PATH}"]
    assert [token for _, _, token in web.seen] == [None, "Token secret", None]


@pytest.mark.parametrize("address", ["10.0.0.1", "169.254.169.254", "127.0.0.1", ["8.8.8.8", "10.0.0.1"]])
def test_f14_a_proxy_is_not_asked_for_private_hosts(web: Web, proxy: Proxy, address: str | list[str]) -> None:
    fetcher = Fetcher(Settings(), resolve=names(dog=address))
    with pytest.raises(Refused, match="not on the public Internet"):
        fetcher.fetch("http://dog.example/x.png")
    assert (proxy.seen, web.seen) == ([], [])


def test_f14_a_proxy_is_asked_for_names_that_are_unknown_here_where_the_operator_names_them(
    web: Web, proxy: Proxy
) -> None:
    """The proxy alone would say where they lead, which may be a machine of its own network."""
    web.serve("/x.png", FILE)
    with pytest.raises(Refused, match=r"cannot be looked up here\. If the proxy .* VLSAM_ALLOWED_HOSTS"):
        Fetcher(Settings(), resolve=_no_name).fetch("http://dog.example/x.png")
    assert proxy.seen == []
    allowed = settings_with(allowed_hosts=(("dog.example", None),))
    assert Fetcher(allowed, resolve=_no_name).fetch("http://dog.example/x.png") == FILE
    assert proxy.seen == ["GET http://dog.example/x.png"]


def test_f14_each_redirect_behind_a_proxy_is_a_new_question(web: Web, proxy: Proxy) -> None:
    web.redirect("/x.png", to="http://cat.example/secret.png")
    fetcher = Fetcher(Settings(), resolve=names(dog="8.8.8.8", cat="10.0.0.1"))
    with pytest.raises(Refused, match=r"cat\.example/secret\.png is refused"):
        fetcher.fetch("http://dog.example/x.png")
    assert proxy.seen == ["GET http://dog.example/x.png"]


def test_f9_a_proxy_that_is_not_there_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("http_proxy", "http://me:sesame@127.0.0.1:9")
    fetcher = Fetcher(Settings(), resolve=names(dog="8.8.8.8"))
    with pytest.raises(Unreachable, match=r"through the proxy http://127.0.0.1:9: should NO_PROXY") as caught:
        fetcher.fetch("http://dog.example/x.png")
    assert "sesame" not in str(caught.value)
    monkeypatch.setenv("http_proxy", "socks5://me:sesame@127.0.0.1:9")
    with pytest.raises(Unreachable, match="must be addresses of HTTP proxies") as caught:
        fetcher.fetch("http://dog.example/x.png")
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    ("caller", "asked"),
    [("127.0.0.1", 1), ("127.9.9.9", 1), ("::ffff:127.0.0.1", 1), ("", 0), ("10.0.0.9", 0)],
)
def test_f14_whoever_calls_setup_may_send_us_to_themselves(
    make_web: MakeWeb, strict: Fetcher, caller: str, asked: int
) -> None:
    studio, other = make_web(), make_web()
    studio.serve(PATH, FILE)
    server = Server(studio.url, "secret", caller)
    if asked:
        assert strict.fetch(PATH, server) == FILE
    else:
        with pytest.raises(Refused):
            strict.fetch(PATH, server)
    with pytest.raises(Refused):  # another port there is another server
        strict.fetch(other.serve("/x.png", FILE), server)
    assert (len(studio.seen), other.seen) == (asked, [])


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for dog.example and its key."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-days", "2", "-subj", "/CN=dog.example", "-addext", "subjectAltName=DNS:dog.example",
            "-keyout", "key.pem", "-out", "cert.pem",
        ],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    return folder


def test_f14_a_pinned_connection_proves_its_name_by_certificate(make_web: MakeWeb, certificate: Path) -> None:
    context, greeted = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), []
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    context.sni_callback = lambda _, name, __: greeted.append(name)
    web = make_web(context)
    web.serve("/x.png", FILE)
    settings = settings_with(
        image_timeout=5,
        allowed_hosts=(("dog.example", None), ("cat.example", None)),
        requests_ca_bundle=certificate / "cert.pem",
    )
    fetcher = Fetcher(settings, resolve=names(dog="127.0.0.1", cat="127.0.0.1"))
    assert fetcher.fetch(f"https://dog.example:{web.port}/x.png") == FILE
    with pytest.raises(Unreachable, match=r"not trusted here \(Hostname mismatch"):
        fetcher.fetch(f"https://cat.example:{web.port}/x.png")
    assert greeted == ["dog.example", "cat.example"]
    nobody = Fetcher(
        settings_with(allowed_hosts=settings.images.allowed_hosts), resolve=names(dog="127.0.0.1")
    )
    with pytest.raises(Unreachable, match=r"self-signed certificate\): set REQUESTS_CA_BUNDLE"):
        nobody.fetch(f"https://dog.example:{web.port}/x.png")


# F15: files of this machine


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "pets").mkdir(parents=True)
    (root / "pets/my dog.png").write_bytes(FILE)
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "rootless.png").write_bytes(b"secret")
    (root / "out.png").symlink_to(tmp_path / "secret.png")
    (root / "outside").symlink_to(tmp_path)
    (root / "in.png").symlink_to(root / "pets/my dog.png")
    (root / "round.png").symlink_to(root / "round.png")
    os.mkfifo(root / "pipe.png")
    return root


@pytest.mark.parametrize("name", ["pets/my%20dog.png", "/pets/my%20dog.png", "in.png", "pets/../in.png"])
def test_f15_a_local_file_below_the_root(web: Web, root: Path, name: str) -> None:
    fetcher = Fetcher(settings_with(local_files_document_root=root))
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
        Fetcher(settings_with(local_files_document_root=root)).fetch(
            f"/data/local-files/?d={name}", Server(web.url)
        )
    assert web.seen == []


@pytest.mark.parametrize(
    "name",
    ["", "pets", "cat.png", "round.png", "pipe.png", "a%00b", "/etc/hostname", "x" * 5000, "%252e%252e/x"],
)
def test_f15_what_is_no_file_below_the_root(web: Web, root: Path, name: str) -> None:
    with pytest.raises(Missing, match="LOCAL_FILES_DOCUMENT_ROOT has no file"):
        Fetcher(settings_with(local_files_document_root=root)).fetch(
            f"/data/local-files/?d={name}", Server(web.url)
        )
    assert web.seen == []


def test_f15_a_local_file_that_is_too_large(root: Path) -> None:
    with pytest.raises(ImageError, match="more than 5 bytes"):
        Fetcher(settings_with(local_files_document_root=root, max_image_bytes=5)).fetch(
            "/data/local-files/?d=in.png"
        )


def test_f15_without_a_root_local_files_are_label_studios(web: Web, fetcher: Fetcher) -> None:
    web.serve("/data/local-files/", FILE)
    assert fetcher.fetch("/data/local-files/?d=/etc/hostname", Server(web.url, "secret")) == FILE
    assert web.seen == [("GET", "/data/local-files/?d=/etc/hostname", "Token secret")]


@pytest.mark.parametrize("path", ["/data/upload/../../etc/x", "/data/upload/..%2f..%2fetc", "/upload/../x"])
def test_f15_uploads_have_no_way_up(web: Web, fetcher: Fetcher, path: str) -> None:
    with pytest.raises(Refused, match="not the path of a file"):
        fetcher.fetch(path, Server(web.url, "secret"))
    assert web.seen == []


# F9: servers that fail


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
    web: Web, fetcher: Fetcher, after: str
) -> None:
    started = time.monotonic()
    with pytest.raises(Busy):
        fetcher.fetch(busy(web, 1, **{"Retry-After": after}), deadline=started + 5)
    assert time.monotonic() - started < 5
    assert len(web.seen) == 1


def test_a_login_without_a_token_names_the_setting(web: Web, fetcher: Fetcher) -> None:
    web.serve(PATH, b"", status=401)
    with pytest.raises(Denied, match="set LABEL_STUDIO_API_KEY"):
        fetcher.fetch(PATH, Server(web.url))
    with pytest.raises(Denied, match="needs a login that this server does not have"):
        fetcher.fetch(web.url + PATH)


def test_f9_nobody_is_there(fetcher: Fetcher) -> None:
    with pytest.raises(Unreachable, match="cannot be reached"):
        fetcher.fetch("http://127.0.0.1:1/dog.png")
    for host in ("nothing.invalid", "a" * 70 + ".example"):
        with pytest.raises(Unreachable, match="cannot be reached"):
            Fetcher(Settings(), resolve=_no_name).fetch(f"http://{host}/dog.png")


def _no_name(host: str, *_: Any, **__: Any) -> Any:
    host.encode("idna")  # as socket.getaddrinfo does, which raises UnicodeError for long labels
    raise socket.gaierror(-2, "Name or service not known")


def test_f9_the_other_addresses_of_a_host_are_tried(web: Web) -> None:
    web.serve("/x.png", FILE)
    settings = settings_with(allowed_hosts=(("dog.example", None),))
    fetcher = Fetcher(settings, resolve=names(dog=["127.0.0.99", "127.0.0.1"]))
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


def test_more_bytes_than_allowed(web: Web) -> None:
    fetcher = Fetcher(settings_with(max_image_bytes=4000, allowed_hosts=LOOPBACK))
    with pytest.raises(ImageError, match="more than 4000 bytes"):
        fetcher.fetch(web.serve("/large.png", b"\0" * 5000))
    bomb = gzip.compress(b"\0" * 5_000_000)
    with pytest.raises(ImageError, match="more than 4000 bytes"):
        fetcher.fetch(web.serve("/bomb.png", bomb, status=200, **{"Content-Encoding": "gzip"}))
    with pytest.raises(ImageError, match="more than 50 bytes"):
        Fetcher(settings_with(max_image_bytes=50)).fetch(data_url(400, 300))


@pytest.mark.parametrize("drip", ["nothing", "headers", "body"])
def test_f9_a_server_that_stalls_or_drips(web: Web, drip: str) -> None:
    over = threading.Event()

    def slow(handler: BaseHTTPRequestHandler) -> None:
        if drip != "nothing":
            handler.wfile.write(b"HTTP/1.0 200 OK\r\n" + b"\r\n" * (drip == "body"))
        for _ in range(60):
            if drip != "nothing":
                handler.wfile.write(b"X")
            if over.wait(0.05):
                return

    web.routes["/slow.png"] = slow
    started = time.monotonic()
    with pytest.raises(TimedOut, match="in time"):
        Fetcher(settings_with(image_timeout=0.3, allowed_hosts=LOOPBACK)).fetch(web.url + "/slow.png")
    with pytest.raises(TimedOut, match="in time"):
        Fetcher(settings_with(allowed_hosts=LOOPBACK)).fetch(web.url + "/slow.png", deadline=started + 0.6)
    assert time.monotonic() - started < 2
    over.set()


def test_f9_a_name_service_that_stalls(web: Web) -> None:
    over = threading.Event()

    def slow(*_: Any, **__: Any) -> list[tuple[Any, ...]]:
        over.wait(10)
        return []

    started = time.monotonic()
    with pytest.raises(TimedOut):
        Fetcher(settings_with(image_timeout=0.2), resolve=slow).fetch("http://dog.example/x.png")
    assert time.monotonic() - started < 9
    over.set()
