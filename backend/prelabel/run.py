"""Run the pipeline of `vlsam prelabel`: annotate one image while others are fetched and saved."""

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from backend.datasets.batch_command import failed, prefetch
from backend.datasets.items import Item
from backend.datasets.run_state import DONE, SAME, Row, Unchanged
from backend.runtime import malloc
from model.types import Image

BEHIND = 4  # images whose rows wait to be encoded and saved

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
    """Annotate all items. Call `save` with a row of each, in order, from one thread.

    `load` runs in several threads. It returns an image and the last argument of `annotate`. `describe` makes
    a row of the result in another thread. An error gives a row with the status FAILED, Unchanged one with
    the status SAME.
    """

    def finish(item: Item, image: Image, result: T) -> None:
        try:
            height, width = image.shape[:2]
            size = {"width": width, "height": height}
            row: Row = {"key": item.key, "status": DONE, **size, **describe(item, image, result)}
        except Exception as error:
            row = failed(item, error)
        save(item, row)

    malloc.share()
    with ThreadPoolExecutor(1, "encode") as encoder:
        behind: deque[Future[None]] = deque()
        try:
            for count, (item, fetched) in enumerate(prefetch(items, load), 1):
                image: Image | None = None
                try:
                    image, extra = fetched.result()
                    result = annotate(item, image, extra)
                except Unchanged:
                    behind.append(encoder.submit(save, item, {"key": item.key, "status": SAME}))
                except Exception as error:
                    behind.append(encoder.submit(save, item, failed(item, error)))
                else:
                    behind.append(encoder.submit(finish, item, image, result))
                del fetched, image  # otherwise they stay in memory until the next ones come
                if count % malloc.EVERY == 0:
                    malloc.trim()
                while len(behind) > BEHIND or (behind and behind[0].done()):
                    behind.popleft().result()
            while behind:
                behind.popleft().result()
            malloc.trim()  # a cluster's block has fewer images than EVERY
        finally:
            # After an error nothing more starts; a row that is being saved is saved.
            encoder.shutdown(wait=False, cancel_futures=True)
