"""Define the deadline of a request: how long a client may wait."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Deadline:
    """The time `at` which a request must be done, in seconds of `clock`. The default never passes.

    >>> now = 100.0
    >>> deadline = Deadline.after(8, clock=lambda: now)
    >>> deadline.left(), deadline.passed
    (8.0, False)
    >>> now = 110.0
    >>> deadline.left(), deadline.passed
    (0.0, True)
    """

    at: float = float("inf")
    clock: Callable[[], float] = time.monotonic

    @classmethod
    def after(cls, seconds: float, clock: Callable[[], float] = time.monotonic) -> "Deadline":
        """Return the deadline `seconds` from now."""
        return cls(clock() + seconds, clock)

    def within(self, seconds: float) -> "Deadline":
        """Return this deadline, or the one `seconds` from now if that comes first."""
        return Deadline(min(self.at, self.clock() + seconds), self.clock)

    @property
    def passed(self) -> bool:
        return self.clock() >= self.at

    def left(self) -> float:
        """Return the seconds left: 0 after the deadline, at most `threading.TIMEOUT_MAX`."""
        return min(max(0.0, self.at - self.clock()), threading.TIMEOUT_MAX)

    def check(self) -> float:
        """Return the seconds left. Raises TimeoutError after the deadline."""
        left = self.left()
        if not left:
            raise TimeoutError
        return left


NEVER = Deadline()
