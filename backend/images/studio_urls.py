"""Recognise Label Studio's addresses: its names, its file routes, and the URLs that get its token."""

import base64
import re
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

import urllib3

from backend.images.errors import Refused
from backend.images.http_url import HttpUrl, shown
from backend.settings import LabelStudioSettings

_CLOUD_STORAGES = ("s3:", "gs:", "azure-blob:")


@dataclass(frozen=True)
class Server:
    """The address of a Label Studio, and the token that may be sent to it."""

    url: str  # without a final slash
    token: str | None = field(default=None, repr=False)
    caller: str = ""  # the IP address that named this server in /setup; "" if the operator named it
    name: str = ""  # its address in /setup, if that is another one

    @classmethod
    def choose(
        cls, settings: LabelStudioSettings, hostname: str, access_token: str, caller: str = ""
    ) -> "Server | None":
        """Return the Label Studio to fetch from: LABEL_STUDIO_URL, else the address from /setup, else None.

        LABEL_STUDIO_API_KEY is not sent to an address from /setup, since anybody may call /setup. A token
        from /setup is sent only to the address that came with it. Files below the address of /setup are
        fetched from LABEL_STUDIO_URL.
        """
        hostname, token = hostname.rstrip("/"), access_token or None
        if settings.url:
            same = HttpUrl.parse(settings.url).has_origin_of(hostname)
            return cls(settings.url, settings.api_key or (token if same else None), name=hostname)
        return cls(hostname, token, caller) if hostname else None

    def has_file_at(self, url: HttpUrl) -> bool:
        """Return whether a URL is that of a file of this server. No other URL gets the server's token."""
        if not url.has_origin_of(self.url):
            return False
        base = urlsplit(self.url).path
        route = url.path.removeprefix(base) if url.path.startswith(f"{base}/") else url.path
        files = re.match(r"/(data|storage-data|(tasks|projects)/[0-9]+/(presign|resolve))/", route)
        return files is not None and ".." not in unquote(route).split("/")


@dataclass(frozen=True)
class StudioName:
    """One address of a Label Studio. A scheme or port of None matches any."""

    scheme: str | None
    host: str
    port: int | None
    path: str  # without a final slash

    @classmethod
    def parse(cls, address: str) -> "StudioName | None":
        """Parse an http(s) address with or without scheme and port. Return None if it is invalid."""
        has_scheme = "://" in address
        try:
            url = HttpUrl.parse(address if has_scheme else f"http://{address}")
            given_port = urllib3.util.parse_url(url.url).port
        except (Refused, ValueError):
            return None
        scheme, port = (url.scheme, url.port) if has_scheme else (None, given_port)
        return cls(scheme, url.host.rstrip("."), port, url.path.rstrip("/"))

    def has_origin_of(self, url: HttpUrl) -> bool:
        """Return whether a URL has this scheme, host and port."""
        same_host = self.host == url.host.rstrip(".")
        return same_host and self.scheme in (None, url.scheme) and self.port in (None, url.port)


class StudioNames:
    """All addresses of the Label Studio at LABEL_STUDIO_URL. `hosts`: those of VLSAM_LABEL_STUDIO_HOSTS."""

    def __init__(self, label_studio_url: str | None, hosts: Sequence[str]) -> None:
        self._label_studio_url = label_studio_url
        self._hosts = tuple(map(StudioName.parse, hosts))

    def file_path(self, source: str, server: Server | None) -> str | None:
        """Return the path and query of a Label Studio file, without prefix; None for any other `source`.

        `source` is a path, or a URL below any address of the server. A path may begin with the path prefix of
        any of these addresses. Raises Refused.
        """
        names = self._of(server)
        if source.startswith("/"):
            url, bases = source, {"", *(name.path for name in names)}
        elif len(names) > 1 and re.match(r"(?i)https?://", source):
            parsed = HttpUrl.parse(source)
            url, bases = parsed.url, {name.path for name in names if name.has_origin_of(parsed)}
            if "" in bases:
                bases.add(names[0].path)
        else:
            return None
        try:
            parts = urlsplit(url)
        except ValueError:
            return None
        if source.startswith("/") and parts.netloc:
            return None
        return _file_route(parts.path, parts.query, bases)

    def _of(self, server: Server | None) -> list[StudioName]:
        """Return the known addresses of a server, or [] for None. Requests are sent to the first."""
        if server is None:
            return []
        names = [StudioName.parse(server.url)]
        # A name from /setup counts for LABEL_STUDIO_URL alone: it must not send requests elsewhere.
        if server.url == self._label_studio_url:
            names += [*names, StudioName.parse(server.name), *self._hosts]
        return [name for name in names if name is not None]


def url_of(source: str, path: str | None, server: Server | None, task: Any) -> str:
    """Return the URL to fetch for the value of a task's image field. Raises Refused.

    `path` is the file's path in Label Studio; None for other addresses. `task` is the task's id. Label Studio
    needs it to sign the URI of a cloud storage (presign).
    """
    is_cloud = source.startswith(_CLOUD_STORAGES)
    if path is None and not source.startswith("/") and not is_cloud:
        return source
    if server is None:
        raise Refused(f"To fetch {shown(source)} set LABEL_STUDIO_URL to Label Studio's address.")
    if path is not None:
        return f"{server.url}{path}"
    if not is_cloud:
        raise Refused(f"{shown(source)} is not the path of a file in Label Studio.")
    if not re.fullmatch(r"[0-9]{1,20}", str(task), re.ASCII):
        raise Refused(f"{shown(source)} is fetched through Label Studio, which needs the task's id.")
    try:
        uri = base64.urlsafe_b64encode(source.encode()).decode()
    except UnicodeEncodeError:
        raise Refused(f"{shown(source)} is not an address.") from None
    return f"{server.url}/tasks/{task}/presign/?fileuri={uri}"


def is_local_file(path: str) -> bool:
    """Return whether a path of Label Studio is that of a file of its local storage."""
    return urlsplit(path).path.rstrip("/") == "/data/local-files"


def _file_route(path: str, query: str, bases: Set[str]) -> str | None:
    """Return a file's route below one of `bases`, such as /data/upload/1/dog.jpg; None for other paths."""
    if ".." in unquote(path).split("/"):
        return None
    for base in sorted(bases, key=len, reverse=True):
        route = path.removeprefix(base)
        if path.startswith(f"{base}/") and route.startswith(("/data/", "/storage-data/")):
            return route + (f"?{query}" if query else "")
    return None
