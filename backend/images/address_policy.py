"""Decide which hosts may be fetched from, against server-side request forgery (SSRF).

A host is allowed if

1. scheme, host and port are those of LABEL_STUDIO_URL, or
2. VLSAM_ALLOWED_HOSTS names it, or
3. every address of its name is public, or
4. /setup named it at that port, and each address is public or that of the caller of /setup.

pinned_http.py connects to a checked address, and each redirect is checked anew. Reasons: docs/decisions/0017.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from backend.images.errors import Refused
from backend.images.http_url import HttpUrl, shown
from backend.images.studio_urls import Server

Address = IPv4Address | IPv6Address

_NAT64 = ip_network("64:ff9b::/96")  # an IPv4 address for networks that have none
_NEVER = (
    ip_network("192.0.0.0/24"),  # protocol assignments; Oracle's metadata service
    ip_network("64:ff9b:1::/48"),  # NAT64 within one network
    ip_network("168.63.129.16/32"),  # Azure's own services, from inside its machines
)


@dataclass(frozen=True)
class AddressPolicy:
    """Decides which hosts may be fetched from. The fields come from the operator."""

    label_studio_url: str | None
    allowed_hosts: Collection[tuple[str, int | None]]  # host in lower case, port or None for any

    def allows_name(self, url: HttpUrl) -> bool:
        """Return whether the operator's settings name the host. Its addresses then need no check."""
        ours = self.label_studio_url
        return (ours is not None and url.has_origin_of(ours)) or any(
            host == url.host and port in (None, url.port) for host, port in self.allowed_hosts
        )

    def check(self, url: HttpUrl, addresses: Iterable[str], server: Server | None) -> None:
        """Raise Refused if an address of a host is not allowed. `server` is the Label Studio of the task."""
        if self.allows_name(url):
            return
        caller = server.caller if server is not None and url.has_origin_of(server.url) else ""
        for address in map(ip_address, addresses):
            if not (is_public(address) or same_machine(address, caller)):
                raise Refused(
                    f"{shown(url.url)} is refused: its host is not on the public Internet. If it should be "
                    "asked, name it in LABEL_STUDIO_URL or VLSAM_ALLOWED_HOSTS."
                )


def is_public(address: Address) -> bool:
    """Return whether an address is public, not one of this machine, its network or its cloud provider.

    IPv4 addresses in IPv6 form are not public, since they could bypass the check. Only a NAT64 address is
    public if the IPv4 address in it is.
    """
    if isinstance(address, IPv6Address):
        if address in _NAT64:
            return is_public(IPv4Address(int(address) & 0xFFFFFFFF))
        if address.ipv4_mapped or address.sixtofour or address.teredo or address.is_site_local:
            return False
    never = any(address in network for network in _NEVER if network.version == address.version)
    return address.is_global and not (address.is_multicast or address.is_reserved or never)


def same_machine(address: Address, caller: str) -> bool:
    """Return whether two addresses are the same machine: equal, or both loopback."""
    try:
        other = ip_address(caller)
    except ValueError:
        return False
    if isinstance(other, IPv6Address) and other.ipv4_mapped:
        other = other.ipv4_mapped
    return address == other or (address.is_loopback and other.is_loopback)
