"""What the regions of one request may cost to read: work, counted before it is done, and a deadline."""

import threading
from collections.abc import Hashable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from cachetools import LRUCache

from model.deadline import NEVER, Deadline

# Of one request. A unit is about a nanosecond; 100 masks of 12 megapixels with ragged outlines take a third.
UNITS = 3_000_000_000
CACHED_BYTES = 64_000_000


class TooMuch(Exception):
    """Nothing more is read for this request. The message is one sentence."""


class OutOfTime(TooMuch):
    """The deadline of the request passed."""


class Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


class RegionCache:
    """Regions that were read from run lengths: each click sends all regions of its task again.

    By a digest of the run lengths and the size of the image, at most `capacity` bytes. Thread-safe.
    """

    def __init__(self, capacity: int = CACHED_BYTES) -> None:
        self._regions: LRUCache[Hashable, Sized] = LRUCache(capacity, lambda region: region.nbytes + 500)
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Sized | None:
        with self._lock:
            return self._regions.get(key)

    def put(self, key: Hashable, region: Sized) -> None:
        """Add a region, unless it is larger than the cache."""
        with self._lock, suppress(ValueError):
            self._regions[key] = region


@dataclass
class Reading:
    """The state of reading one request's regions, which everything that reads some of them is given.

    Whoever reads calls `spend` ahead of the work, where that is long in steps.
    """

    units: float = UNITS  # that are left
    deadline: Deadline = NEVER
    cache: RegionCache = field(default_factory=RegionCache)
    unread: list[str] = field(default_factory=list)  # a sentence for each region that cannot be read

    def spend(self, units: float) -> None:
        """Raises TooMuch where less than `units` are left, and OutOfTime after the deadline."""
        if self.deadline.passed:
            raise OutOfTime("The regions of the task could not be read in time.")
        if units > self.units:
            raise TooMuch(
                "The task's regions are too much to read in one request: simplify or delete the largest."
            )
        self.units -= units
