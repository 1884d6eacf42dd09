"""Wait for states, never for times."""

import time
from collections.abc import Callable

from model.deadline import Deadline


def wait_for(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Wait until a condition holds. Fail after `seconds`, which only bound a test that would hang."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.002)


def soon(seconds: float = 5) -> Deadline:
    return Deadline.after(seconds)
