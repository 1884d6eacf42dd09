"""What the regions of one request may cost to read: work, counted before it is done, and a deadline."""

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Protocol

# Of one request. A unit is about a nanosecond; 100 masks of 12 megapixels with ragged outlines take a third.
UNITS = 3_000_000_000
KEPT_BYTES = 64_000_000


class TooMuch(Exception):
    """Nothing more is read for this request. The message is one sentence."""


class OutOfTime(TooMuch):
    """The deadline of the request passed."""


class Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


class Kept:
    """What was read of run lengths lately, for each click brings all regions of its task again.

    By a digest of the run lengths and the size of the image, at most `capacity` bytes. Safe to share among
    threads.
    """

    def __init__(self, capacity: int = KEPT_BYTES) -> None:
        self._capacity = capacity
        self._size = 0
        self._entries: OrderedDict[Hashable, Sized] = OrderedDict()  # the latest used last
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Sized | None:
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
            return self._entries.get(key)

    def put(self, key: Hashable, read: Sized) -> None:
        with self._lock:
            if key in self._entries or read.nbytes > self._capacity:
                return
            self._entries[key] = read
            self._size += _cost(read)
            while self._size > self._capacity:
                self._size -= _cost(self._entries.popitem(last=False)[1])


def _cost(read: Sized) -> int:
    return read.nbytes + 500  # for the entry itself


@dataclass
class Reading:
    """The state of reading one request's regions, which everything that reads some of them is given.

    Whoever reads calls `spend` ahead of the work, where that is long in steps.
    """

    units: float = UNITS  # that are left
    deadline: float = math.inf  # of time.monotonic
    kept: Kept = field(default_factory=Kept)
    unread: list[str] = field(default_factory=list)  # a sentence for each region that cannot be read

    def spend(self, units: float) -> None:
        """Raises TooMuch where less than `units` are left, and OutOfTime after the deadline."""
        if time.monotonic() >= self.deadline:
            raise OutOfTime("The regions of the task could not be read in time.")
        if units > self.units:
            raise TooMuch(
                "The task's regions are too much to read in one request: simplify or delete the largest."
            )
        self.units -= units
