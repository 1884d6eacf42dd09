"""Write labelled objects: the parts that COCO, YOLO, masks and parquet share."""

import json
import shutil
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from backend.datasets.batch_command import FETCHERS, prefetch
from backend.datasets.items import Item
from backend.datasets.run_state import DONE, Row
from backend.labelstudio.outlines import Ring
from model import coco
from model.types import Mask, box_of

Finished = Callable[[], Iterable[tuple[Item, Row]]]  # yields all rows in the source's order, each time
Files = Counter[str]  # results of linking or copying images, by text; empty if none are


@dataclass(frozen=True, eq=False)
class Object:
    """An object of an image with its label."""

    label: str
    mask: Mask  # not empty
    term: str
    score: float | None = None  # None for a person's object
    ring: Ring | None = None  # in pixels, if it was drawn as a polygon


class Objects(ABC):
    """A file or folder of labelled objects with their masks, in a format that is not Label Studio's."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def keep(self, objects: Iterable[Object]) -> Row:
        """Return the part of an image's row that holds its objects."""
        return {"detections": [self._kept(object_) for object_ in objects]}

    @abstractmethod
    def write(self, rows: Finished, names: Sequence[str]) -> Files:
        """Write everything, atomically. `names` are the labels, in their order."""

    def _kept(self, object_: Object) -> Row:
        ring, mask = object_.ring, object_.mask
        box = box_of(mask) if ring is None else (*ring.min(axis=0).tolist(), *ring.max(axis=0).tolist())
        kept = {
            "term": object_.term,
            "label": object_.label,
            "score": object_.score,
            "box": list(box),
            "mask": coco.encode(mask),
        }
        return kept if ring is None else {**kept, "drawn": ring.round(4).tolist()}


def done(rows: Finished) -> Iterator[tuple[Item, Row]]:
    """Yield the rows that did not fail."""
    return ((item, row) for item, row in rows() if row["status"] == DONE)


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield a new folder to fill; on success it replaces `path`."""
    path = path.resolve()  # a link to a folder stays a link
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    if path.exists():
        shutil.rmtree(path)
    partial.replace(path)


def beside(
    rows: Finished, named: Sequence[str], folder: Path, put: Callable[[Item, str, Path, str], str]
) -> Files:
    """Call `put` for all images, each under its stem of `named` in `folder`. Count the results."""

    def place(image: tuple[Item, str, str]) -> str:
        item, content, stem = image
        return put(item, content, folder, stem)

    images = ((item, row["content"], stem) for (item, row), stem in zip(done(rows), named, strict=True))
    files: Files = Counter()
    with ThreadPoolExecutor(FETCHERS, "fetch") as fetchers:
        placed = prefetch(images, place, fetchers)
        for _, result in tqdm(placed, "images", len(named), unit="image", file=sys.stderr, disable=None):
            files[result.result()] += 1
    return files


def written(file: BinaryIO, values: Iterable[Any]) -> None:
    """Write values as the lines of a JSON list, without its brackets."""
    for number, value in enumerate(values):
        file.write((b",\n" if number else b"\n") + json.dumps(value).encode())


def mask_of(kept: Row) -> Mask:
    return coco.decode(kept["mask"])
