"""Configure logs: each line has the id of its request, is printable and has no secrets."""

import logging
import os
import re
import secrets
import stat
import sys
from collections.abc import Iterable
from contextvars import ContextVar
from types import TracebackType
from typing import Any

FORMAT = "%(asctime)s %(levelname)s %(name)s [%(request)s]: %(message)s"
HIDDEN = "[hidden]"

# Another thread that works for a request must run in a copy of its context.
_request: ContextVar[str] = ContextVar("request", default="-")
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_NAMES = (
    r"(?:\w+[-_])*(?:token|secret|signature|credential|password|passwd|pwd|apikey|accesskey(?:id)?)"
    "|sig|auth|awsaccesskeyid|googleaccessid|(?:access_|api_|hf_|secret_|private_)?key"
)
# Parameters beside a signature that tell how long it is valid.
_TIMES = re.compile(r"([?&](?:x-(?:amz|goog)-(?:date|expires)|expires|se|st|ske|skt)=)[^&\s]*", re.IGNORECASE)
# Places of secrets: in headers, URLs, JSON and the repr of Python's objects.
_SECRETS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"authorization\W{1,5}(?:\w+ +)?(?P<secret>[^\s\"',}]{4,})",
        r"\b(?:bearer|token|basic) +(?P<secret>(?=\S*\d)[\w.~+/=-]{16,})",
        rf"[?&\s(;](?:{_NAMES})=[\"']?(?P<secret>[^\s\"'&,)]+)",
        rf"[\"'](?:{_NAMES})[\"']\s*:\s*[\"'](?P<secret>[^\"']+)",
        r"://[^/\s:@]*:(?P<secret>[^/\s@]+)@",
        r"\b(?:https?|ftp)://(?P<secret>[^/\s:@]+)@",
        r"\b(?P<secret>eyJ[\w-]{5,}\.[\w-]+\.[\w-]*)",  # tokens of Label Studio
    )
)


def begin_request(given: str | None) -> str:
    """Set the id of the request that this thread answers, and return it: `given` if valid, else a new one."""
    name = given if given and _ID.fullmatch(given) else secrets.token_hex(8)
    _request.set(name)
    return name


def redacted(text: str, known: Iterable[str] = ()) -> str:
    """Return the text without the `known` secrets, and without likely ones, such as a URL's password."""
    for secret in known:
        text = text.replace(secret, HIDDEN)
    for pattern in _SECRETS:
        text = pattern.sub(lambda found: found[0].replace(found["secret"], HIDDEN), text)
    return text


def unsigned(address: str) -> str:
    """Return a URL without secrets and signature times. It is the same for every signed URL of a file."""
    hidden = redacted(address)
    return hidden if hidden == address else _TIMES.sub(rf"\g<1>{HIDDEN}", hidden)


def printable(text: str) -> str:
    """Return the text as one line, with control characters and line ends escaped."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def remark(message: str) -> None:
    """Print a message of a `vlsam` command to stderr, as one line."""
    print(f"vlsam: {printable(message)}", file=sys.stderr)


class Formatter(logging.Formatter):
    """A formatter of log entries as one line without secrets. Lines of a traceback are indented."""

    def __init__(self, known: Iterable[str] = (), layout: str = FORMAT) -> None:
        super().__init__(layout)
        self._known = tuple(known)

    def format(self, record: logging.LogRecord) -> str:
        record.request = _request.get()
        if record.exc_info:
            record.exc_text = None  # cached by another handler, not redacted
        return super().format(record)

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(redacted(super().formatMessage(record), self._known))

    def formatException(self, ei: Any) -> str:
        return self._indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:
        return self._indented(super().formatStack(stack_info))

    def _indented(self, text: str) -> str:
        return "\n".join(f"  {printable(line)}" for line in redacted(text, self._known).split("\n"))


def of_command() -> None:
    """Configure logs and tracebacks of a command, so that they are printable and have no secrets."""
    formatter = Formatter(layout="%(message)s")
    if logging.lastResort is not None:  # writes to stderr if no handler is configured
        logging.lastResort.setFormatter(formatter)

    def uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        print(formatter.formatException((kind, error, trace)), file=sys.stderr)

    sys.excepthook = uncaught


def place() -> str:
    """Return where this process's log, stderr, can be read: the path of a file, or a phrase."""
    try:
        path = os.readlink(f"/proc/self/fd/{sys.stderr.fileno()}")
        if stat.S_ISREG(os.fstat(sys.stderr.fileno()).st_mode) and os.path.exists(path):
            return path
    except (OSError, ValueError, AttributeError):  # no /proc, or no stderr
        pass
    if os.environ.get("JOURNAL_STREAM"):
        return "journalctl of the unit that runs `vlsam serve`"
    if os.path.exists("/.dockerenv"):
        return "`docker compose logs` or `docker logs` of the container that runs `vlsam serve`"
    return "where `vlsam serve` was started: it goes to stderr"


def configure(level: str, secrets: Iterable[str]) -> None:
    """Configure logging to stderr, in printable lines with request ids and without `secrets`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter(secrets))
    logging.basicConfig(level=level, handlers=[handler])
    # Their log lines hold the URL and more of each request.
    for name in ("urllib3", "httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)
