"""Parse http(s) URLs once, and show URLs in messages without secrets."""

from dataclasses import dataclass

import urllib3

from backend.images.errors import Refused


@dataclass(frozen=True)
class HttpUrl:
    """An http(s) URL. It is parsed once, so that the connection goes to the host that was checked."""

    url: str
    scheme: str
    host: str  # in lower case, IPv6 without brackets
    port: int
    path: str

    @classmethod
    def parse(cls, url: str) -> "HttpUrl":
        """Parse an http(s) URL. Raises Refused for others, or with a user, backslash or control character."""
        try:
            parts = urllib3.util.parse_url(url)
        except ValueError:
            raise Refused(f"{shown(url)} is not an address.") from None
        if parts.scheme not in ("http", "https") or not parts.host:
            raise Refused(f"{shown(url)} is not supported: it is not an http, https or data address.")
        if parts.auth is not None or "\\" in url or any(ord(char) < 32 or ord(char) == 127 for char in url):
            raise Refused(f"{shown(url)} is refused: it has a user, a backslash or a control character.")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        return cls(parts.url, parts.scheme, parts.host.strip("[]"), port, parts.path or "/")

    def has_origin_of(self, server_url: str) -> bool:
        """Return whether scheme, host and port are those of `server_url`; False if that is invalid."""
        try:
            server = HttpUrl.parse(server_url)
        except Refused:
            return False
        return (self.scheme, self.host, self.port) == (server.scheme, server.host, server.port)


def shown(url: str) -> str:
    """Return a URL for a message: at most 120 characters, without user and query, which may be secret."""
    address, _, _ = url.partition("?")
    scheme, slashes, rest = address.partition("//")
    host, slash, path = rest.partition("/")
    text = f"{scheme}{slashes}{host.rpartition('@')[2]}{slash}{path}"
    text = text.encode("unicode_escape").decode()  # so that no address adds lines to a log
    return text if len(text) <= 120 else text[:117] + "..."
