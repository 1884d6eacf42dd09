"""Prefetch items, make rows of failures, and show progress, for batch commands."""

import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from tqdm import tqdm

from backend.answers.failure_reason import why
from backend.datasets.items import Item
from backend.datasets.run_state import FAILED, Row
from backend.telemetry.logs import printable

# Threads that fetch and decode files, and how many images they are ahead.
FETCHERS, AHEAD = 4, 6

T = TypeVar("T")
A = TypeVar("A")


def prefetch(items: Iterable[A], load: Callable[[A], T]) -> Iterator[tuple[A, Future[T]]]:
    """Yield each item, in order, with the future of its `load`. Load up to AHEAD items ahead, in threads."""
    loading: deque[tuple[A, Future[T]]] = deque()
    with ThreadPoolExecutor(FETCHERS, "fetch") as fetchers:
        try:
            for item in items:
                loading.append((item, fetchers.submit(load, item)))
                if len(loading) > AHEAD:
                    yield loading.popleft()
            while loading:
                yield loading.popleft()
        finally:  # after an error of the caller nothing more starts
            fetchers.shutdown(wait=False, cancel_futures=True)


def failed(item: Item, error: Exception) -> Row:
    """Return the row of an item that failed. Its reason is one line."""
    return {"key": item.key, "status": FAILED, "reason": why(error, item.key)}


def progress(name: str, unit: str, *, total: int, done: int) -> Any:
    """Return a tqdm bar on stderr. It is printed at most every 0.5 s in a terminal, else every 30 s."""
    tqdm.set_lock(threading.RLock())  # tqdm's own kind of lock starts a process
    interval = 0.5 if sys.stderr.isatty() else 30.0
    return tqdm(total=total, initial=done, desc=name, unit=unit, file=sys.stderr, mininterval=interval)


def say(text: str) -> None:
    print(f"vlsam: {printable(text)}", file=sys.stderr)
