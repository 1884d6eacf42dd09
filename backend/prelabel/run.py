"""Images through the models, one after another, while files around them are read and results written."""

import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from tqdm import tqdm

from backend.answers.failure_reason import why
from backend.prelabel.sources import Item
from backend.prelabel.state import DONE, FAILED, SAME, Row, Unchanged
from backend.runtime import malloc
from model.types import Image

# Files are fetched and decoded by so many threads, so many images ahead of the models and behind them: all
# that a run holds in memory, however long it is.
FETCHERS, AHEAD, BEHIND = 4, 6, 4

T = TypeVar("T")
A = TypeVar("A")


def run(
    items: Iterable[Item],
    *,
    load: Callable[[Item], tuple[Image, A]],
    annotate: Callable[[Item, Image, A], T],
    describe: Callable[[Item, Image, T], Row],
    save: Callable[[Item, Row], None],
) -> None:
    """Annotate all items; `save` gets a row of each, in their order, from one thread.

    `load`, in threads of its own, gives an image and whatever else comes from afar, which `annotate` gets,
    too. That runs in the caller's thread, and `describe` makes a row of what it gives in another. Whatever
    goes wrong with an image becomes its row, of status "failed" with a reason; where `load` raises Unchanged,
    its row has the status "same" and nothing else. Raises only what `items` and `save` raise.
    """
    malloc.share()
    with (
        ThreadPoolExecutor(FETCHERS, "fetch") as fetchers,
        ThreadPoolExecutor(1, "encode") as encoder,
    ):
        behind: deque[Future[None]] = deque()
        try:
            for count, (item, fetched) in enumerate(ahead(items, load, fetchers), 1):
                image: Image | None = None
                try:
                    image, asked = fetched.result()
                    found = annotate(item, image, asked)
                except Unchanged:
                    behind.append(encoder.submit(save, item, {"key": item.key, "status": SAME}))
                except Exception as error:
                    row = failed(item, error)
                    behind.append(encoder.submit(save, item, row))
                else:
                    behind.append(encoder.submit(_finish, item, image, found, describe, save))
                del fetched, image  # else they would stay until the next ones are there
                if count % malloc.EVERY == 0:
                    malloc.trim()
                while len(behind) > BEHIND or (behind and behind[0].done()):
                    behind.popleft().result()
            while behind:
                behind.popleft().result()
            malloc.trim()  # a block of a cluster's may have fewer
        finally:
            # After an error nothing more begins; what is being saved is saved.
            fetchers.shutdown(wait=False, cancel_futures=True)
            encoder.shutdown(wait=False, cancel_futures=True)


def progress(name: str, unit: str, *, total: int, done: int) -> Any:
    """A bar on stderr, or a line now and then in the log of a job."""
    tqdm.set_lock(threading.RLock())  # its own kind of lock starts a process
    interval = 0.5 if sys.stderr.isatty() else 30.0
    return tqdm(total=total, initial=done, desc=name, unit=unit, file=sys.stderr, mininterval=interval)


def failed(item: Item, error: Exception) -> Row:
    """The row of an item that failed. Its reason is one line."""
    return {"key": item.key, "status": FAILED, "reason": why(error, item.key)}


def ahead(
    items: Iterable[A], load: Callable[[A], T], fetchers: ThreadPoolExecutor
) -> Iterator[tuple[A, Future[T]]]:
    """The items with what `load` gives for each, in their order; of some it is asked ahead."""
    loading: deque[tuple[A, Future[T]]] = deque()
    for item in items:
        loading.append((item, fetchers.submit(load, item)))
        if len(loading) > AHEAD:
            yield loading.popleft()
    while loading:
        yield loading.popleft()


def _finish(
    item: Item,
    image: Image,
    found: T,
    describe: Callable[[Item, Image, T], Row],
    save: Callable[[Item, Row], None],
) -> None:
    try:
        height, width = image.shape[:2]
        size = {"width": width, "height": height}
        row: Row = {"key": item.key, "status": DONE, **size, **describe(item, image, found)}
    except Exception as error:
        row = failed(item, error)
    save(item, row)
