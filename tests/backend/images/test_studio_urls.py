import base64
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backend.images.errors import Missing, Refused, Unreachable
from backend.images.fetch import Fetcher
from backend.images.studio_urls import Server
from tests.support.fake_web import Web
from tests.support.fetching import FILE, LOOPBACK, PATH, fetcher_with, names

MakeWeb = Callable[..., Web]


LOCAL = "/data/local-files/?d=pets/dog.png"


@pytest.fixture
def tls(make_web: MakeWeb, certificate: Path) -> Web:
    """A server that speaks https, with a certificate for dog.example."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    return make_web(context)


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


def test_f16_no_token_follows_a_redirect_to_another_host(make_web: MakeWeb, fetcher: Fetcher) -> None:
    studio, bucket = make_web(), make_web()
    studio.redirect(PATH, to=bucket.serve("/signed.png", FILE))
    assert fetcher.fetch(PATH, Server(studio.url, "secret")) == FILE
    assert studio.seen[0][2] == "Token secret"
    assert bucket.seen == [("GET", "/signed.png", None)]


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


@pytest.mark.parametrize("ours", ["https", "http"])
def test_f16_no_token_goes_to_the_same_host_and_port_with_another_scheme(
    web: Web, tls: Web, certificate: Path, ours: str
) -> None:
    """Both answer for dog.example:8080, as after a change of the network between us and there."""
    port = {"https": tls.port, "http": web.port}
    answering = {"http": web, "https": tls}
    for server in (web, tls):
        server.serve(PATH, FILE)
    settings: dict[str, Any] = {
        "image_timeout": 5,
        "allowed_hosts": (("dog.example", None),),
        "requests_ca_bundle": certificate / "cert.pem",
    }
    fetcher = fetcher_with(**settings, resolve=names(dog="127.0.0.1"))
    for scheme in ("https", "http"):
        # The port of the address is the one that is asked, and the one of Label Studio's address.
        address = f"dog.example:{port[scheme]}"
        assert fetcher.fetch(f"{scheme}://{address}{PATH}", Server(f"{ours}://{address}", "secret")) == FILE
        ((_, _, token),) = answering[scheme].seen
        assert token == ("Token secret" if scheme == ours else None)


def test_f16_a_server_shows_no_token() -> None:
    assert "sesame" not in repr(Server("http://studio", "sesame"))


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
    settings: dict[str, Any] = {
        "label_studio_url": web.url + at,
        "label_studio_hosts": (
            "https://label.example.com/ls",
            "http://label.example.com/ls",
            "studio",
            "dög.example",
        ),
    }
    server = Server(web.url + at, "secret", name="http://localhost:8080")
    assert fetcher_with(**settings).fetch(before + path, server) == FILE
    assert web.seen == [("GET", at + path, "Token secret")]


def test_a_name_without_the_path_that_label_studio_url_has(web: Web) -> None:
    """The proxy before it and Label Studio itself know it below /ls, and the setting says the host alone."""
    web.serve("/ls" + PATH, FILE)
    settings: dict[str, Any] = {
        "label_studio_url": web.url + "/ls",
        "label_studio_hosts": ("label.example.com",),
    }
    fetcher, server = fetcher_with(**settings), Server(web.url + "/ls", "secret")
    for path in ("/ls" + PATH, PATH):
        assert fetcher.fetch("https://label.example.com" + path, server) == FILE
    assert [path for _, path, _ in web.seen] == ["/ls" + PATH] * 2


def test_local_files_below_another_name_are_read_from_the_root(web: Web, root: Path) -> None:
    settings: dict[str, Any] = {
        "label_studio_url": web.url,
        "label_studio_hosts": ("https://label.example.com/ls",),
        "local_files_document_root": root,
    }
    fetcher, server = (
        fetcher_with(**settings),
        Server(web.url, name="http://localhost:8080"),
    )
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
    settings: dict[str, Any] = {
        "label_studio_url": web.url,
        "label_studio_hosts": ("https://label.example.com/ls",),
    }
    with pytest.raises((Unreachable, Refused)):
        fetcher_with(**settings, resolve=resolve).fetch(
            source, Server(web.url, "secret", name="http://localhost:8080")
        )
    assert set(asked) <= {"8.8.8.8"}
    assert web.seen == []


def test_f14_a_name_from_setup_counts_for_label_studio_url_alone(make_web: MakeWeb) -> None:
    """Without LABEL_STUDIO_URL nothing that /setup says sends a request for one host to another."""
    named, other = make_web(), make_web()
    named.serve(PATH, FILE)
    other.serve(PATH, FILE)
    fetcher = fetcher_with(allowed_hosts=LOOPBACK)
    assert fetcher.fetch(other.url + PATH, Server(named.url, "secret", name=other.url)) == FILE
    assert named.seen == []
    assert other.seen == [("GET", PATH, None)]


@pytest.mark.parametrize("name", ["", "garbage", "http://", "http://[", "ftp://x", "http://me@x", "x" * 5000])
def test_names_from_setup_that_are_none(web: Web, name: str) -> None:
    web.serve(PATH, FILE)
    fetcher = fetcher_with(label_studio_url=web.url)
    assert fetcher.fetch(PATH, Server(web.url, name=name)) == FILE


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


@pytest.mark.parametrize("path", ["/data/upload/../../etc/x", "/data/upload/..%2f..%2fetc", "/upload/../x"])
def test_f15_uploads_have_no_way_up(web: Web, fetcher: Fetcher, path: str) -> None:
    with pytest.raises(Refused, match="not the path of a file"):
        fetcher.fetch(path, Server(web.url, "secret"))
    assert web.seen == []
