import os
import ssl
from pathlib import Path

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from model import connections

NAMES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def asked(monkeypatch: pytest.MonkeyPatch, url: str, **variables: str) -> str | None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return connections.proxy_of(url)


@pytest.mark.parametrize(
    ("variables", "of_http", "of_https"),
    [
        ({}, None, None),
        ({"HTTP_PROXY": "http://p:1"}, "http://p:1", None),
        ({"HTTPS_PROXY": "http://p:2"}, None, "http://p:2"),
        ({"HTTP_PROXY": "p:1", "ALL_PROXY": "https://p:3"}, "http://p:1", "https://p:3"),
        ({"HTTP_PROXY": "p:1", "http_proxy": "q:1"}, "http://q:1", None),
        ({"HTTP_PROXY": "p:1", "http_proxy": ""}, None, None),
        ({"all_proxy": "p:3", "NO_PROXY": "*"}, None, None),
    ],
)
def test_which_proxy(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], of_http: str | None, of_https: str | None
) -> None:
    assert asked(monkeypatch, "http://studio.example/x", **variables) == of_http
    assert asked(monkeypatch, "https://studio.example/x") == of_https


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:8080", "https://LOCALHOST", "http://a.localhost/", "http://127.0.0.1:9", "http://[::1]:80/",
        "http://127.9.9.9/", "http://localhost.:80/",
    ],
)  # fmt: skip
def test_loopback_is_never_asked_through_a_proxy(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    assert asked(monkeypatch, url, ALL_PROXY="http://p:1", NO_PROXY="other.example") is None


@pytest.mark.parametrize(
    ("no_proxy", "url", "through"),
    [
        ("studio.example", "http://studio.example/", False),
        ("studio.example", "http://Studio.Example.:80/", False),
        ("studio.example", "https://a.b.studio.example/", False),
        (".studio.example", "http://studio.example/", False),
        ("*.studio.example", "http://a.studio.example/", False),
        ("studio.example", "http://mystudio.example/", True),
        ("studio.example", "http://studio.example.org/", True),
        ("studio.example:8080", "http://studio.example:8080/", False),
        ("studio.example:8080", "http://studio.example/", True),
        ("studio.example:443", "https://studio.example/", False),
        (" a.example , studio.example ,", "http://studio.example/", False),
        (",,", "http://studio.example/", True),
        ("10.0.0.0/8", "http://10.1.2.3:8080/", False),
        ("10.0.0.0/8", "http://11.1.2.3:8080/", True),
        ("10.1.2.3", "http://10.1.2.3/", False),
        ("10.1.2.3:80", "http://10.1.2.3/", False),
        ("10.1.2.3:81", "http://10.1.2.3/", True),
        ("fd00::/8,10.0.0.0/8", "http://[fd00::1]:80/", False),
        ("fd00::1", "http://[fd00::1]/", False),
        ("[fd00::1]:80", "http://[fd00::1]/", False),
        ("fd00::1", "http://[fd00::2]/", True),
        ("10.0.0.0/99, (,[", "http://10.1.2.3/", True),
    ],
)
def test_what_no_proxy_names(monkeypatch: pytest.MonkeyPatch, no_proxy: str, url: str, through: bool) -> None:
    assert (asked(monkeypatch, url, ALL_PROXY="http://p:1", NO_PROXY=no_proxy) is not None) == through


@given(st.text(max_size=40))
def test_no_proxy_may_hold_anything(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("model.connections.getproxies_environment", lambda: {"all": "p:1", "no": text})
        assert connections.proxy_of("http://studio.example/") in (None, "http://p:1")


def test_proxies_that_cannot_be_used_are_named_without_their_passwords(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(connections.ProxyError, match="must be addresses of HTTP proxies") as caught:
        asked(monkeypatch, "http://studio.example/", ALL_PROXY="socks5h://me:sesame@p:1")
    assert "sesame" not in str(caught.value)


def test_what_a_certificate_lacks_is_told() -> None:
    unknown, expired = ssl.SSLCertVerificationError(), ssl.SSLCertVerificationError()
    unknown.verify_code, unknown.verify_message = 20, "unable to get local issuer certificate"
    expired.verify_code, expired.verify_message = 10, "certificate has expired"
    assert "REQUESTS_CA_BUNDLE" in connections.distrust(requests.exceptions.SSLError(unknown))
    assert "renew the certificate" in connections.distrust(expired)
    assert "REQUESTS_CA_BUNDLE" not in connections.distrust(expired)
    assert connections.distrust(ValueError("certificate")) == ""


def test_a_bundle_without_certificates_is_none(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("nothing")
    with pytest.raises(OSError, match="certificate"):
        connections.context(str(tmp_path / "empty.pem"))
    with pytest.raises(FileNotFoundError):
        connections.context(str(tmp_path / "nowhere.pem"))


def test_other_libraries_know_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "localhost, a.example")
    monkeypatch.setenv("NO_PROXY", "")
    connections.advise_other_libraries()
    assert os.environ["NO_PROXY"].split(",") == ["localhost", " a.example", "127.0.0.1", "::1"]
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"]
    assert asked(monkeypatch, "http://a.example/", ALL_PROXY="http://p:1") is None
