"""Addresses in tasks to bytes, safely: whom we may ask, who gets which token, how long and how much we read.

ImageError          an image cannot be had
  Refused           its address may not be fetched
  Denied            a login is missing, or was refused
  Missing           it is not there
  Busy              its server says so, and still did after some tries
  Unreachable       there is no whole answer
    TimedOut        ... before the deadline
"""

import base64
import binascii
import json
import math
import os
import re
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import requests
import urllib3
from label_studio_sdk._extensions.label_studio_tools.core.utils.io import (
    encode_presign_fileuri,
    is_cloud_storage_uri,
    local_files_resolver,
    resolve_local_storage_file,
)
from requests.adapters import HTTPAdapter
from requests.sessions import SessionRedirectMixin
from urllib3.exceptions import ConnectTimeoutError

from backend.settings import Settings
from model import connections

ACCESS_SECONDS = 240  # Label Studio's access tokens live 300 s
MAX_REDIRECTS = 5
MAX_ADDRESS = 16_000  # characters, but for a data URL: signed addresses of storages have some 2000
PAUSES = (0.25, 1.0)  # seconds before another try, where the server is busy and does not say how long
BUSY = (429, 502, 503, 504)

Address = IPv4Address | IPv6Address
Resolve = Callable[..., Sequence[tuple[Any, ...]]]


class ImageError(Exception):
    """An image cannot be had. The message is one sentence without secrets."""


class Refused(ImageError):
    """The address may not be fetched, or does not name a file."""


class Denied(ImageError):
    """A login is missing, or was refused: HTTP 401 and 403."""


class Missing(ImageError):
    """There is no such file: HTTP 404 and 410."""


class Busy(ImageError):
    """The server has no time: HTTP 429, 502, 503 and 504. `after` is for how many seconds, if it says so."""

    def __init__(self, message: str, after: float) -> None:
        super().__init__(message)
        self.after = after


class Unreachable(ImageError):
    """There is no whole answer."""


class TimedOut(Unreachable):
    """There was no whole answer in time."""


@dataclass(frozen=True)
class Server:
    """A Label Studio and the token it takes; the two belong together."""

    url: str  # without a final slash
    token: str | None = field(default=None, repr=False)
    caller: str = ""  # the IP address of whoever named this server, unless it was the operator
    name: str = ""  # its address as /setup has it, where that is another one


@dataclass(frozen=True)
class Target:
    """An http(s) URL, read once, so that what is checked is what is asked."""

    url: str
    scheme: str
    host: str  # in lower case, IPv6 without brackets
    port: int
    path: str

    @classmethod
    def of(cls, url: str) -> "Target":
        """Raises Refused for what is no plain http(s) URL."""
        try:
            parts = urllib3.util.parse_url(url)
        except ValueError:
            raise Refused(f"{shown(url)} is no address.") from None
        if parts.scheme not in ("http", "https") or not parts.host:
            raise Refused(f"{shown(url)} is not supported: it is no http, https or data address.")
        # Programs disagree about what these mean.
        if parts.auth is not None or "\\" in url or any(ord(char) < 32 or ord(char) == 127 for char in url):
            raise Refused(f"{shown(url)} is refused: it has a user, a backslash or a control character.")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        return cls(parts.url, parts.scheme, parts.host.strip("[]"), port, parts.path or "/")

    def is_at(self, server_url: str) -> bool:
        """Whether scheme, host and port are that server's, which decides whether its token may go there."""
        try:
            other = Target.of(server_url)
        except Refused:
            return False
        return (self.scheme, self.host, self.port) == (other.scheme, other.host, other.port)


@dataclass(frozen=True)
class Place:
    """An address that a Label Studio has; without a scheme or port any counts."""

    scheme: str | None
    host: str
    port: int | None
    path: str  # without a final slash

    @classmethod
    def of(cls, address: str) -> "Place | None":
        """None for what is no address."""
        has_scheme = "://" in address
        try:
            target = Target.of(address if has_scheme else f"http://{address}")
            given = urllib3.util.parse_url(target.url).port
        except (Refused, ValueError):
            return None
        port = target.port if has_scheme else given
        return cls(
            target.scheme if has_scheme else None, target.host.rstrip("."), port, target.path.rstrip("/")
        )

    def has(self, target: Target) -> bool:
        """Whether scheme, host and port of an address are these."""
        return (
            self.scheme in (None, target.scheme)
            and self.host == target.host.rstrip(".")
            and self.port in (None, target.port)
        )


# Which addresses a name may stand for

_NAT64 = ip_network("64:ff9b::/96")  # an IPv4 address for networks that have none
_NEVER = (
    ip_network("192.0.0.0/24"),  # of protocols; Oracle's metadata
    ip_network("64:ff9b:1::/48"),  # NAT64 within one network
    ip_network("168.63.129.16/32"),  # Azure's own services, from inside its machines
)


def is_public(address: Address) -> bool:
    """Whether anybody on the Internet may be meant: not this machine, its network or its provider's.

    IPv6 forms of IPv4 addresses are ways round this: mapped and 6to4 are refused, and of NAT64, which
    networks without IPv4 need, the IPv4 address counts.
    """
    if isinstance(address, IPv6Address):
        if address in _NAT64:
            return is_public(IPv4Address(int(address) & 0xFFFFFFFF))
        if address.ipv4_mapped or address.sixtofour or address.teredo or address.is_site_local:
            return False
    never = any(address in network for network in _NEVER if network.version == address.version)
    return address.is_global and not (address.is_multicast or address.is_reserved or never)


def same_machine(address: Address, other: str) -> bool:
    """Whether both are one address, or both loopback."""
    try:
        caller = ip_address(other)
    except ValueError:
        return False
    if isinstance(caller, IPv6Address) and caller.ipv4_mapped:
        caller = caller.ipv4_mapped
    return address == caller or (address.is_loopback and caller.is_loopback)


class Fetcher:
    """Reads files within the limits of the settings. Safe to share among threads.

    A host may be asked where every address that its name has is public, where LABEL_STUDIO_URL or
    VLSAM_ALLOWED_HOSTS names it, or where it is the very machine that named it in /setup. The connection goes
    to an address that was checked, or to a proxy of the environment, which looks the name up again. Each
    redirect is a new question.

    A token goes to the scheme, host and port of its own Label Studio and to the paths of files there. A
    personal access token of Label Studio 1.23.2 is a refresh token: it is exchanged for an access token that
    is sent as Bearer, while a legacy token is sent as it is.
    """

    def __init__(self, settings: Settings, *, resolve: Resolve = socket.getaddrinfo) -> None:
        self._settings = settings
        self._resolve = resolve
        self._access: dict[tuple[str, str], tuple[float, str]] = {}  # by address and token
        self._lock = threading.Lock()
        self._places = tuple(filter(None, map(Place.of, settings.label_studio.hosts)))

    def fetch(
        self, source: str, server: Server | None = None, *, task: Any = None, deadline: float = math.inf
    ) -> bytes:
        """The file that `source`, in the data of the task with the id `task`, stands for.

        That is a path of Label Studio, a cloud storage's URI, which Label Studio signs, an http(s) URL or a
        data URL. An http(s) URL of a file below another address of the Label Studio at LABEL_STUDIO_URL,
        which /setup or VLSAM_LABEL_STUDIO_HOSTS names, is asked for there. Raises ImageError, also when
        `deadline` (of time.monotonic) passes.
        """
        deadline = min(deadline, time.monotonic() + self._settings.images.image_timeout)
        if source[:5].lower() == "data:":
            return _data_url(source, self._settings.images.max_image_bytes)
        if len(source) > MAX_ADDRESS:
            raise Refused(f"{shown(source)} has more than {MAX_ADDRESS} characters.")
        path, root = self._path(source, server), self._settings.images.local_files_document_root
        if path is not None and root is not None and urlsplit(path).path.rstrip("/") == "/data/local-files":
            return _local_file(path, root, self._settings.images.max_image_bytes)
        target = Target.of(_url(source, path, server, task))
        for _ in range(MAX_REDIRECTS + 1):
            body, moved = self._get(target, server, deadline)
            if moved is None:
                return body
            try:
                target = Target.of(urljoin(target.url, moved))
            except ValueError:
                raise Refused(f"{shown(target.url)} redirects to what is no address.") from None
        raise Refused(f"{shown(source)} redirects more than {MAX_REDIRECTS} times.")

    def _path(self, source: str, server: Server | None) -> str | None:
        """The path and query that a file of Label Studio has there; None where `source` is no such file.

        `source` is a path, or an address of LABEL_STUDIO_URL's server by any of its names. Label Studio may
        be below a path by one name and not by another, and its files' paths begin with either or none.
        Raises Refused.
        """
        places = self._names(server)
        if source.startswith("/"):
            target, below = None, {"", *(place.path for place in places)}
        elif len(places) > 1 and re.match(r"(?i)https?://", source):
            target = Target.of(source)
            below = {place.path for place in places if place.has(target)}
            if "" in below:
                below.add(places[0].path)
        else:
            return None
        try:
            parts = urlsplit(source if target is None else target.url)
        except ValueError:
            return None
        if target is None and parts.netloc:
            return None
        return _file_path(parts.path, parts.query, below)

    def _names(self, server: Server | None) -> list[Place]:
        """The addresses of a server, first the one where it is asked; others for LABEL_STUDIO_URL alone."""
        if server is None:
            return []
        others: tuple[Place | None, ...] = ()
        if server.url == self._settings.label_studio.url:
            others = (Place.of(server.url), Place.of(server.name), *self._places)
        return [place for place in (Place.of(server.url), *others) if place is not None]

    def ask(
        self, method: str, path: str, server: Server, *, deadline: float, json: Any = None
    ) -> tuple[int, bytes]:
        """Status and body of Label Studio's own answer at a path; of a redirect, the address as body.

        Without a token where the server has none. Raises ImageError.
        """
        target = Target.of(f"{server.url}{path}")
        token = {"Authorization": self._authorization(server, deadline)} if server.token else {}
        # It may think as long as the deadline allows before it says a word.
        opened = self._open(method, target, server, deadline, headers=token, json=json, patience=math.inf)
        with opened as (response, moved):
            if moved is not None:
                return response.status_code, moved.encode()
            body = _read(response, target.url, deadline, self._settings.images.max_image_bytes)
            return response.status_code, body

    def _get(self, target: Target, server: Server | None, deadline: float) -> tuple[bytes, str | None]:
        """The body, or the address it redirects to; after a few tries where the server is busy."""
        for pause in PAUSES:
            try:
                return self._try(target, server, deadline)
            except Busy as busy:
                wait = busy.after or pause
                if time.monotonic() + wait >= deadline:
                    raise
            time.sleep(wait)
        return self._try(target, server, deadline)

    def _try(self, target: Target, server: Server | None, deadline: float) -> tuple[bytes, str | None]:
        headers = {}
        studio = server if server is not None and _is_file_of(server, target) else None
        if studio is not None and studio.token:
            headers["Authorization"] = self._authorization(studio, deadline)
        with self._open("GET", target, server, deadline, headers=headers) as (response, moved):
            if moved is not None:
                return b"", moved
            status, name = response.status_code, shown(target.url)
            if status in (401, 403):
                raise self._denied(name, status, studio)
            if status in (404, 410):
                raise Missing(f"{name} answered HTTP {status}.")
            if status in BUSY:
                raise Busy(f"{name} answered HTTP {status}.", _retry_after(response))
            if not response.ok:
                raise ImageError(f"{name} answered HTTP {status}.")
            return _read(response, target.url, deadline, self._settings.images.max_image_bytes), None

    def _denied(self, name: str, status: int, studio: Server | None) -> Denied:
        if studio is None:
            return Denied(f"{name} needs a login that this server does not have.")
        if not studio.token:
            return Denied(f"Label Studio asks for a token for {name}: set LABEL_STUDIO_API_KEY.")
        with self._lock:
            self._access.pop((studio.url, studio.token), None)
        return Denied(f"Label Studio refused the token for {name} with HTTP {status}.")

    def _authorization(self, server: Server, deadline: float) -> str:
        token = server.token or ""
        kind = token_kind(token)
        if kind is None:
            return f"Token {token}"
        if kind == "cut":
            raise Denied("The token for Label Studio lacks its signature, the part after its second dot.")
        if kind == "unfit":
            raise Denied("The token for Label Studio has quotes, spaces or the like.")
        if kind != "refresh":
            return f"Bearer {token}"
        with self._lock:
            until, access = self._access.get((server.url, token), (0.0, ""))
        if time.monotonic() < until:
            return f"Bearer {access}"
        url = f"{server.url}/api/token/refresh/"
        asked = time.monotonic()
        with self._open("POST", Target.of(url), server, deadline, json={"refresh": token}) as (response, _):
            status = response.status_code
            if status in BUSY:
                raise Busy(f"{shown(url)} answered HTTP {status}.", _retry_after(response))
            if not response.ok:
                raise Denied(
                    f"Label Studio refused the personal access token: HTTP {status} at {shown(url)}."
                )
            try:
                answer = json.loads(_read(response, url, deadline, 100_000))["access"]
            except (ValueError, KeyError, TypeError, RecursionError):
                answer = None
        if not isinstance(answer, str) or token_kind(answer) is None:
            raise Denied(f"{shown(url)} did not answer with an access token.")
        with self._lock:
            if len(self._access) >= 256:
                self._access.clear()
            self._access[server.url, token] = (asked + ACCESS_SECONDS, answer)
        return f"Bearer {answer}"

    @contextmanager
    def _open(
        self,
        method: str,
        target: Target,
        server: Server | None,
        deadline: float,
        *,
        headers: Mapping[str, str] = MappingProxyType({}),
        json: Any = None,
        patience: float = 10.0,
    ) -> Iterator[tuple[requests.Response, str | None]]:
        """An answer whose body is not read yet, and the address that it redirects to.

        There is no session. So there are no cookies, no connection serves another question than the one it
        was allowed for, no password comes from ~/.netrc, and the body of a redirect, which may be endless, is
        not read.
        """
        name = shown(target.url)
        try:
            proxy = connections.proxy_of(target.url)
        except connections.ProxyError as error:
            raise Unreachable(f"{name} cannot be reached: {error}.") from None
        with ExitStack() as stack:
            try:
                connect = partial(self._connect, target, proxy, server, deadline, stack)
                adapter = stack.enter_context(closing(_Pinned(connect)))
                # Label Studio answers 406 to "image/*".
                headers = {"User-Agent": "vlsam", "Accept": "*/*", **headers}
                request = requests.Request(method, target.url, headers, json=json).prepare()
                left = _left(deadline)
                response = adapter.send(
                    request,
                    stream=True,
                    timeout=(min(5.0, left), min(patience, left)),
                    verify=str(self._settings.images.requests_ca_bundle or "") or True,
                    proxies={"all": proxy} if proxy else {},
                )
                stack.enter_context(response)
                yield response, SessionRedirectMixin().get_redirect_target(response)
            except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
                late = isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError | TimeoutError)
                if late or time.monotonic() >= deadline:
                    raise TimedOut(f"{name} did not answer in time.") from None
                if distrust := connections.distrust(error):
                    raise Unreachable(f"{name} {distrust}.") from None
                by = f" through the proxy {shown(proxy)}: should NO_PROXY name its host?" if proxy else "."
                raise Unreachable(f"{name} cannot be reached ({type(error).__name__}){by}") from None

    def _connect(
        self, target: Target, proxy: str | None, server: Server | None, deadline: float, stack: ExitStack
    ) -> socket.socket:
        """A connection to one of the host's addresses, all of which may be asked, or to the proxy.

        It ends at the deadline.
        """
        if proxy is not None:
            self._check(target, server, deadline)
            parts = urlsplit(proxy)
            port = parts.port or (443 if parts.scheme == "https" else 80)
            connection = socket.create_connection(
                (parts.hostname or "", port), timeout=min(5.0, _left(deadline))
            )
            stack.enter_context(_cut_at(deadline, connection))
            return connection
        found = [info[4][0] for info in self._look_up(target, deadline)]
        if not all(self._may_ask(target, server, ip_address(address)) for address in found):
            raise _private(target)
        failure = OSError(f"{target.host} has no address")
        for address in dict.fromkeys(found):
            try:
                connection = socket.create_connection(
                    (address, target.port), timeout=min(5.0, _left(deadline))
                )
            except OSError as error:
                failure = error
            else:
                stack.enter_context(_cut_at(deadline, connection))
                return connection
        raise failure

    def _check(self, target: Target, server: Server | None, deadline: float) -> None:
        """Raises Refused for a host that may not be asked through a proxy, which looks its name up itself."""
        if self._is_named(target):
            return
        try:
            found = [info[4][0] for info in self._look_up(target, deadline)]
        except (OSError, UnicodeError) as error:
            if isinstance(error, TimeoutError):
                raise
            raise Refused(
                f"{shown(target.url)} is refused: its host's name cannot be looked up here. If the proxy "
                "should ask it, name it in VLSAM_ALLOWED_HOSTS."
            ) from None
        if not all(self._may_ask(target, server, ip_address(address)) for address in found):
            raise _private(target)

    def _look_up(self, target: Target, deadline: float) -> Sequence[tuple[Any, ...]]:
        """What socket.getaddrinfo says, which knows no deadline itself."""
        answer: Future[Sequence[tuple[Any, ...]]] = Future()

        def look_up() -> None:
            try:
                answer.set_result(self._resolve(target.host, target.port, type=socket.SOCK_STREAM))
            except Exception as error:
                answer.set_exception(error)

        threading.Thread(target=look_up, name="look up", daemon=True).start()
        return answer.result(timeout=_left(deadline))

    def _is_named(self, target: Target) -> bool:
        """Whether the operator has named its host."""
        ours = self._settings.label_studio.url
        return (ours is not None and target.is_at(ours)) or any(
            host == target.host and port in (None, target.port)
            for host, port in self._settings.images.allowed_hosts
        )

    def _may_ask(self, target: Target, server: Server | None, address: Address) -> bool:
        if self._is_named(target):
            return True
        named = server is not None and target.is_at(server.url) and same_machine(address, server.caller)
        return named or is_public(address)


def _private(target: Target) -> Refused:
    return Refused(
        f"{shown(target.url)} is refused: its host is not on the public Internet. If it should be asked, "
        "name it in LABEL_STUDIO_URL or VLSAM_ALLOWED_HOSTS."
    )


class _Pinned(HTTPAdapter):
    """Sends over the connections that `connect` makes, whatever a name resolves to at that moment.

    Name and certificate stay those of the URL, since only the socket is ours.
    """

    def __init__(self, connect: Callable[[], socket.socket]) -> None:
        self._connect = connect
        super().__init__()

    def get_connection_with_tls_context(self, *args: Any, **options: Any) -> Any:
        pool: Any = super().get_connection_with_tls_context(*args, **options)
        connect = self._connect

        class Connection(pool.ConnectionCls):  # type: ignore[misc]
            def _new_conn(self) -> socket.socket:
                try:
                    return connect()
                except TimeoutError:
                    raise ConnectTimeoutError(self, "no connection in time") from None

        pool.ConnectionCls = Connection
        return pool


@contextmanager
def _cut_at(deadline: float, connection: socket.socket) -> Iterator[None]:
    """Ends the connection at the deadline: timeouts of sockets begin anew with each byte."""
    line = connection.dup()  # TLS takes the socket itself over

    def cut() -> None:
        with suppress(OSError):
            line.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(deadline - time.monotonic(), cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        line.close()


# Addresses


def _url(source: str, path: str | None, server: Server | None, task: Any) -> str:
    """The URL to ask for a task's value, which Label Studio has at `path` if it is a file of Label Studio."""
    if path is None and not source.startswith("/") and not is_cloud_storage_uri(source):
        return source
    if server is None:
        raise Refused(f"To fetch {shown(source)} set LABEL_STUDIO_URL to Label Studio's address.")
    if path is not None:
        return f"{server.url}{path}"
    if source.startswith("/"):
        raise Refused(f"{shown(source)} is not the path of a file in Label Studio.")
    if not re.fullmatch(r"[0-9]{1,20}", str(task), re.ASCII):
        raise Refused(f"{shown(source)} is fetched through Label Studio, which needs the task's id.")
    try:
        return f"{server.url}/tasks/{task}/presign/?fileuri={encode_presign_fileuri(source)}"
    except UnicodeEncodeError:
        raise Refused(f"{shown(source)} is no address.") from None


def _file_path(path: str, query: str, below: Set[str]) -> str | None:
    """/data/upload/1/dog.jpg or /data/local-files/?d=... for a path that begins with one of `below`."""
    if ".." in unquote(path).split("/"):
        return None
    for base in sorted(below, key=len, reverse=True):
        route = path.removeprefix(base)
        if path.startswith(f"{base}/") and route.startswith(("/data/", "/storage-data/")):
            return route + (f"?{query}" if query else "")
    return None


def _is_file_of(server: Server, target: Target) -> bool:
    """Whether the target is a file that Label Studio gives to those with its token."""
    if not target.is_at(server.url):
        return False
    base = urlsplit(server.url).path
    route = target.path.removeprefix(base) if target.path.startswith(f"{base}/") else target.path
    files = re.match(r"/(data|storage-data|(tasks|projects)/[0-9]+/(presign|resolve))/", route)
    return files is not None and ".." not in unquote(route).split("/")


def _local_file(source: str, root: Path, max_bytes: int) -> bytes:
    def inside(name: str) -> str:
        path = (root / name.lstrip("/")).resolve()
        if not path.is_relative_to(root.resolve()):
            raise Refused(f"{shown(source)} refers to a file outside LOCAL_FILES_DOCUMENT_ROOT.")
        return str(path)

    try:
        with local_files_resolver(inside):
            path = resolve_local_storage_file(source)
        # A link that came since is not followed, and a pipe is not waited for.
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return _capped(file.read(max_bytes + 1), shown(source), max_bytes)
    except (OSError, ValueError, RuntimeError):  # RuntimeError: links in a circle
        pass
    raise Missing(f"LOCAL_FILES_DOCUMENT_ROOT has no file for {shown(source)} that can be read.")


def _data_url(source: str, max_bytes: int) -> bytes:
    head, comma, body = source.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise Refused("The data: address is not base64.")
    if len(body) * 3 // 4 > max_bytes + 3:
        raise _too_large("The image file", max_bytes)
    if body.count("%") > 1000 + len(body) // 16:  # base64 has one sign in 32 that needs it
        raise Refused("The data: address is percent-encoded more than base64 needs.")
    try:
        return base64.b64decode(unquote(body), validate=True)
    except (binascii.Error, ValueError):
        raise Refused("The data: address is not base64.") from None


# Answers


def _read(response: requests.Response, url: str, deadline: float, max_bytes: int) -> bytes:
    # read1 returns what is there, so a server that sends a byte a second meets the deadline, too.
    read: Callable[[int], bytes] = lambda size: response.raw.read1(size, decode_content=True)  # noqa: E731
    chunks, size = [], 0
    while chunk := read(1 << 16):
        chunks.append(chunk)
        size += len(chunk)
        if size > max_bytes:
            raise _too_large(shown(url), max_bytes)
        _left(deadline)
    _left(deadline)  # a connection that was cut there looks like one that ended
    return b"".join(chunks)


def _capped(data: bytes, name: str, max_bytes: int) -> bytes:
    if len(data) > max_bytes:
        raise _too_large(name, max_bytes)
    return data


def _too_large(name: str, max_bytes: int) -> ImageError:
    return ImageError(f"{name} has more than {max_bytes} bytes (VLSAM_MAX_IMAGE_BYTES).")


def _retry_after(response: requests.Response) -> float:
    """Seconds; 0 where the server does not say."""
    try:
        return urllib3.Retry().get_retry_after(response.raw) or 0.0
    except (urllib3.exceptions.HTTPError, ValueError, OverflowError):
        return 0.0


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def token_kind(token: str) -> str | None:
    """ "refresh" or "access" for a JSON web token of Label Studio, None for a legacy token.

    "cut" for a web token without its signature, which is its last part. "unfit" for what has quotes, spaces
    or other characters that stand in no token.
    """
    if re.search(r"[^!-~]|[\"']", token):
        return "unfit"
    parts = token.split(".")
    if not all(re.fullmatch(r"[\w-]*", part) for part in parts):
        return None
    known = [_claims(part) for part in parts[:2]]
    if len(parts) == 3 and parts[2] and known[1] is not None:
        return str(known[1].get("token_type", "access"))
    begins = token.startswith("eyJ")  # as every JSON object does whose first key has a quote before it
    return "cut" if begins or any(claims is not None for claims in known) else None


def _claims(part: str) -> dict[str, Any] | None:
    """The JSON object that a part of a web token is, None for anything else."""
    try:
        found = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def shown(url: str) -> str:
    """A URL for a message: without user and query, which may hold secrets, and not longer than a line."""
    address, _, _ = url.partition("?")
    scheme, slashes, rest = address.partition("//")
    host, slash, path = rest.partition("/")
    text = f"{scheme}{slashes}{host.rpartition('@')[2]}{slash}{path}"
    text = text.encode("unicode_escape").decode()  # so that no address writes lines of its own into a log
    return text if len(text) <= 120 else text[:117] + "..."
