from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.images.address_policy import is_public
from backend.images.errors import Refused
from backend.images.fetch import Fetcher
from backend.images.studio_urls import Server
from tests.support.fake_web import Web
from tests.support.fetching import FILE, PATH, fetcher_with, names

MakeWeb = Callable[..., Web]


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
        fetcher_with(resolve=names(dog=addresses)).fetch("http://dog.example/x.png?signature=hidden")


def test_f14_an_allowed_host_keeps_its_name(web: Web) -> None:
    hosts: list[str | None] = []

    def note(handler: BaseHTTPRequestHandler) -> None:
        hosts.append(handler.headers.get("Host"))
        web.answer(handler, FILE)

    web.routes["/x.png"] = note
    settings: dict[str, Any] = {"allowed_hosts": (("dog.example", web.port),)}
    fetcher = fetcher_with(**settings, resolve=names(dog="127.0.0.1", cat="127.0.0.1"))
    assert fetcher.fetch(f"http://Dog.example:{web.port}/x.png") == FILE
    assert hosts == [f"dog.example:{web.port}"]
    for other in (f"http://cat.example:{web.port}/x.png", f"http://dog.example:{web.port + 1}/x.png"):
        with pytest.raises(Refused):
            fetcher.fetch(other)


def test_f14_each_redirect_is_a_new_question(make_web: MakeWeb) -> None:
    studio, inside = make_web(), make_web()
    studio.redirect(PATH, to=inside.serve("/x.png", FILE))
    fetcher = fetcher_with(label_studio_url=studio.url)
    with pytest.raises(Refused, match="VLSAM_ALLOWED_HOSTS"):
        fetcher.fetch(PATH, Server(studio.url, "secret"))
    assert (len(studio.seen), inside.seen) == (1, [])


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
