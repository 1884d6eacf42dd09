"""Define the errors of fetching an image. Each message is one sentence without secrets."""

from model.types import ImageError


class Refused(ImageError):
    """The address may not be fetched, or does not name a file."""


class Denied(ImageError):
    """A login is missing, or was refused: HTTP 401 and 403."""


class Missing(ImageError):
    """The file does not exist: HTTP 404 and 410."""


class TooLarge(ImageError):
    """The file, or the answer of an API, has too many bytes."""


class Busy(ImageError):
    """The server is overloaded: HTTP 429, 502, 503 or 504. `retry_after`: seconds in Retry-After, or 0."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Unreachable(ImageError):
    """The server gave no complete answer."""


class TimedOut(Unreachable):
    """The server gave no complete answer before the deadline."""


class Untrusted(Unreachable):
    """The server's certificate is not trusted."""
