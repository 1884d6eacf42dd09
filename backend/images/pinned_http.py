"""Send HTTP requests to hosts that the address policy allows, over sockets pinned to checked addresses."""

import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.sessions import SessionRedirectMixin
from urllib3.exceptions import ConnectTimeoutError

from backend.images.address_policy import AddressPolicy
from backend.images.errors import Refused, TimedOut, TooLarge, Unreachable, Untrusted
from backend.images.http_url import HttpUrl, shown
from backend.images.studio_urls import Server
from model import connections
from model.deadline import Deadline

CONNECT_SECONDS = 5.0
BYTE_SECONDS = 10.0  # until the first byte of an answer, and between two

Resolve = Callable[..., Sequence[tuple[Any, ...]]]


@dataclass(frozen=True)
class Request:
    """An HTTP request. `server` is the Label Studio of the task, if there is one."""

    method: str
    url: HttpUrl
    server: Server | None
    deadline: Deadline
    headers: Mapping[str, str] = field(default_factory=dict)
    json: Any = None
    byte_seconds: float = BYTE_SECONDS


@dataclass(frozen=True)
class Response:
    """An HTTP response whose body is not read yet."""

    response: requests.Response
    request: Request
    redirect: str | None  # the address that it redirects to

    @property
    def status(self) -> int:
        return self.response.status_code

    def read(self, max_bytes: int, setting: str = "VLSAM_MAX_IMAGE_BYTES") -> bytes:
        """Read the body. Raises TooLarge for more than `max_bytes`, with `setting` in its message."""
        # read1 returns what has arrived, so the deadline also ends a slow body.
        read: Callable[[int], bytes] = partial(self.response.raw.read1, decode_content=True)
        body = bytearray()
        while chunk := read(1 << 16):
            body += chunk
            if len(body) > max_bytes:
                raise too_large(shown(self.request.url.url), max_bytes, setting)
            self.request.deadline.check()
        self.request.deadline.check()  # a body that was cut off there looks complete
        return bytes(body)

    def retry_after(self) -> float:
        """Return the seconds in the Retry-After header; 0.0 if there is none."""
        try:
            return urllib3.Retry().get_retry_after(self.response.raw) or 0.0
        except (urllib3.exceptions.HTTPError, ValueError, OverflowError):
            return 0.0


class PinnedHttp:
    """Sends requests, each over a connection of its own to an address that the policy has checked.

    A name is resolved once, so DNS rebinding has no effect. A proxy gets the host's name after the check.
    Cookies are not kept, connections are not reused, and ~/.netrc is not read.
    """

    def __init__(
        self, policy: AddressPolicy, *, ca_bundle: Path | None, resolve: Resolve = socket.getaddrinfo
    ) -> None:
        self._policy = policy
        self._verify = str(ca_bundle or "") or True
        self._resolve = resolve

    @contextmanager
    def open(self, request: Request) -> Iterator[Response]:
        """Send a request. Yield its response, to be read inside the context. Raises ImageError."""
        name = shown(request.url.url)
        try:
            proxy = connections.proxy_of(request.url.url)
        except connections.ProxyError as error:
            raise Unreachable(f"{name} cannot be reached: {error}.") from None
        with ExitStack() as stack:
            try:
                adapter = stack.enter_context(closing(_Pinned(partial(self._connect, request, proxy, stack))))
                # Label Studio answers 406 to "image/*".
                headers = {"User-Agent": "vlsam", "Accept": "*/*", **request.headers}
                prepared = requests.Request(request.method, request.url.url, headers, json=request.json)
                seconds_left = request.deadline.check()
                timeout = (min(CONNECT_SECONDS, seconds_left), min(request.byte_seconds, seconds_left))
                proxies = {"all": proxy} if proxy else {}
                response = adapter.send(
                    prepared.prepare(), stream=True, timeout=timeout, verify=self._verify, proxies=proxies
                )
                stack.enter_context(response)
                yield Response(response, request, SessionRedirectMixin().get_redirect_target(response))
            except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
                late = isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError | TimeoutError)
                if late or request.deadline.passed:
                    raise TimedOut(f"{name} did not answer in time.") from None
                if distrust := connections.distrust(error):
                    raise Untrusted(f"{name} {distrust}.") from None
                by = f" through the proxy {shown(proxy)}: should NO_PROXY name its host?" if proxy else "."
                raise Unreachable(f"{name} cannot be reached ({type(error).__name__}){by}") from None

    def _connect(self, request: Request, proxy: str | None, stack: ExitStack) -> socket.socket:
        """Connect to a checked address of the host, or to the proxy. The deadline ends the connection."""
        if proxy is not None:
            self._check_for_proxy(request)
            parts = urlsplit(proxy)
            candidates = [(parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))]
        else:
            addresses = self._addresses(request)
            self._policy.check(request.url, addresses, request.server)
            candidates = [(address, request.url.port) for address in dict.fromkeys(addresses)]
        failure = OSError(f"{request.url.host} has no address")
        for candidate in candidates:
            try:
                timeout = min(CONNECT_SECONDS, request.deadline.check())
                connection = socket.create_connection(candidate, timeout=timeout)
            except OSError as error:
                failure = error
            else:
                stack.enter_context(_cut_at(request.deadline, connection))
                return connection
        raise failure

    def _check_for_proxy(self, request: Request) -> None:
        """Check a host before the proxy connects to it and resolves its name again. Raises Refused."""
        if self._policy.allows_name(request.url):
            return
        try:
            addresses = self._addresses(request)
        except TimeoutError:
            raise
        except (OSError, UnicodeError):
            raise Refused(
                f"{shown(request.url.url)} is refused: its host's name cannot be looked up here. "
                "If the proxy should ask it, name it in VLSAM_ALLOWED_HOSTS."
            ) from None
        self._policy.check(request.url, addresses, request.server)

    def _addresses(self, request: Request) -> list[str]:
        """Resolve the host's name, in a thread since getaddrinfo has no timeout. Raises TimeoutError."""
        infos: Future[Sequence[tuple[Any, ...]]] = Future()

        def resolve() -> None:
            try:
                infos.set_result(self._resolve(request.url.host, request.url.port, type=socket.SOCK_STREAM))
            except Exception as error:
                infos.set_exception(error)

        threading.Thread(target=resolve, name="resolve", daemon=True).start()
        return [info[4][0] for info in infos.result(timeout=request.deadline.check())]


class _Pinned(HTTPAdapter):
    """HTTP adapter that sends over the socket of `connect`. SNI and certificate checks use the URL's host."""

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
def _cut_at(deadline: Deadline, connection: socket.socket) -> Iterator[None]:
    """Shut down a connection at the deadline, since a socket's timeout restarts with each byte."""
    duplicate = connection.dup()  # TLS takes over the socket itself

    def cut() -> None:
        with suppress(OSError):
            duplicate.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(deadline.left(), cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        duplicate.close()


def too_large(what: str, max_bytes: int, setting: str = "VLSAM_MAX_IMAGE_BYTES") -> TooLarge:
    return TooLarge(f"{what} has more than {max_bytes} bytes{setting and f' ({setting})'}.")
