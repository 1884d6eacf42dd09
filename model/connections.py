"""Apply one set of rules for certificate authorities and proxies to every HTTP client.

REQUESTS_CA_BUNDLE names the certificate authorities to trust, instead of those of a client's library.
HTTP_PROXY and HTTPS_PROXY name the proxy for addresses of that scheme. ALL_PROXY is the default for both.
NO_PROXY lists exceptions: hosts with their subdomains, addresses, networks such as 10.0.0.0/8, or * for all;
a port may follow a host. Lower-case names take precedence. Loopback never goes through a proxy. requests,
httpx and httpx2 each read these variables differently, hence these rules.
"""

import os
import re
import ssl
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from ipaddress import ip_address, ip_network
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies_environment

import fsspec.config
import requests
from huggingface_hub import constants, get_session, set_client_factory
from requests.adapters import HTTPAdapter

BUNDLE = "REQUESTS_CA_BUNDLE"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
# OpenSSL's codes for a certificate whose signer is not among the trusted ones.
_UNKNOWN_SIGNERS = (2, 18, 19, 20, 21)


class ProxyError(ValueError):
    """A variable names a proxy that cannot be used. The message is one sentence."""


def proxy_of(url: str) -> str | None:
    """Return the address of the proxy for `url`, or None to connect directly. Raises ProxyError."""
    parts = urlsplit(url)
    proxies = getproxies_environment()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    if not proxy or _is_exempt(parts.hostname or "", port, proxies.get("no", "")):
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    if urlsplit(proxy).scheme not in ("http", "https") or not urlsplit(proxy).hostname:
        address = proxy.rpartition("@")[2]  # without a password
        raise ProxyError(
            f"the proxy for {parts.scheme} is {address}: HTTP_PROXY, HTTPS_PROXY and ALL_PROXY must be "
            "addresses of HTTP proxies, as in http://proxy:3128"
        )
    return proxy


def _is_exempt(host: str, port: int, no_proxy: str) -> bool:
    host, address = host.rstrip(".").lower(), None
    with suppress(ValueError):
        address = ip_address(host)
    if host == "localhost" or host.endswith(".localhost") or (address is not None and address.is_loopback):
        return True
    for entry in filter(None, (entry.strip().lower() for entry in no_proxy.split(","))):
        try:
            network = ip_network(entry, strict=False)
            exempt = address is not None and address in network
        except ValueError:
            named = re.fullmatch(r"(?:\*?\.)?\[?(.+?)\]?(?::([0-9]+))?", entry)
            exempt = bool(named and named[2] in (None, str(port)) and f".{host}".endswith(f".{named[1]}"))
        if exempt or entry == "*":
            return True
    return False


def advise_other_libraries() -> None:
    """Apply these rules, as far as possible, to libraries that read the environment themselves.

    Give aiohttp, fsspec's client for http and https, the certificate authorities and the proxy variables.
    Add loopback to this process's NO_PROXY, for aiohttp and boto. boto reads all variables by itself.
    """
    known = getproxies_environment().get("no", "").split(",")
    names = dict.fromkeys(filter(None, [*known, *_LOOPBACK]))
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = ",".join(names)
    for scheme in ("http", "https"):
        fsspec.config.conf.setdefault(scheme, {})["get_client"] = _aiohttp_session


async def _aiohttp_session(**options: Any) -> Any:
    import aiohttp  # optional: fsspec needs it for http only

    bundle = trusted()
    connector = aiohttp.TCPConnector(ssl=context(bundle) if bundle else True)
    return aiohttp.ClientSession(connector=connector, **{"trust_env": True, **options})


def trusted() -> str | None:
    """Return the file or folder that REQUESTS_CA_BUNDLE names; None if it is not set."""
    return os.environ.get(BUNDLE, "").strip() or None


def context(bundle: str) -> ssl.SSLContext:
    """Return a TLS context that trusts only the authorities in a file or folder. Raises OSError."""
    if os.path.isdir(bundle):
        return ssl.create_default_context(capath=bundle)
    return ssl.create_default_context(cafile=bundle)


def distrust(error: BaseException) -> str:
    """Describe a certificate error and its cure, to be put after the server's name; "" for other errors."""
    for cause in _causes(error):
        # aiohttp has an error of this kind that wraps another one.
        if isinstance(cause, ssl.SSLCertVerificationError) and hasattr(cause, "verify_code"):
            cure = "correct the address, or renew the certificate"
            if cause.verify_code in _UNKNOWN_SIGNERS:
                cure = f"set {BUNDLE} to a file with the certificate authority that signed it"
            reason = cause.verify_message.rstrip(".")
            return f"has a certificate that is not trusted here ({reason}): {cure}"
    return ""


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and all errors in its `__cause__`, `__context__`, `reason` and `args`, recursively."""
    pending, seen = [error], set[int]()
    while pending:
        cause = pending.pop()
        if id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        wrapped = (cause.__cause__, cause.__context__, getattr(cause, "reason", None), *cause.args)
        pending += [other for other in wrapped if isinstance(other, BaseException)]


class Session(requests.Session):
    """A session of requests that follows these rules. It does not read passwords from ~/.netrc."""

    def __init__(self) -> None:
        super().__init__()
        self.trust_env = False
        for scheme in ("http://", "https://"):
            self.mount(scheme, _Adapter())


class _Adapter(HTTPAdapter):
    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
        proxy = proxy_of(request.url or "")
        options |= {"verify": trusted() or True, "proxies": {"all": proxy} if proxy else {}}
        return super().send(request, *args, **options)


def request(method: str, url: str, **options: Any) -> requests.Response:
    """Send a request in a new Session. The options are those of `requests.request`."""
    with Session() as session:
        return session.request(method, url, **options)


def client(library: Any, **options: Any) -> Any:
    """Return a Client of `library` (the module httpx or httpx2) that follows these rules."""

    class Transport(library.BaseTransport):  # type: ignore[misc]
        """A transport that chooses proxy and certificate authorities for each request and each redirect."""

        def __init__(self) -> None:
            self._kept: dict[tuple[str | None, str | None], Any] = {}
            self._lock = threading.Lock()

        def handle_request(self, request: Any) -> Any:
            proxy, bundle = key = proxy_of(str(request.url)), trusted()
            with self._lock:
                if key not in self._kept:
                    verify = context(bundle) if bundle else True
                    self._kept[key] = library.HTTPTransport(verify=verify, proxy=proxy, trust_env=False)
            return self._kept[key].handle_request(request)

        def close(self) -> None:
            for transport in self._kept.values():
                transport.close()

    return library.Client(transport=Transport(), trust_env=False, follow_redirects=True, **options)


@cache
def use_for_hub() -> None:
    """Make huggingface_hub follow these rules. Turn off its Xet client, which has rules of its own."""
    constants.HF_HUB_DISABLE_XET = True
    session = get_session()
    library, hooks = sys.modules[type(session).__module__.partition(".")[0]], session.event_hooks
    set_client_factory(lambda: client(library, event_hooks=hooks, timeout=None))
