"""Write labelled objects: the parts that COCO, YOLO, masks and parquet share."""

import json
import shutil
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from backend.datasets.batch_command import prefetch
from backend.datasets.file_names import stems
from backend.datasets.image_copies import Copies
from backend.datasets.items import Item, Loader
from backend.datasets.run_state import DONE, Row, state_of, write
from backend.labelstudio.outlines import Ring
from model import coco
from model.types import Mask, box_of

Finished = Callable[[], Iterable[tuple[Item, Row]]]  # yields all rows in the source's order, each time
Files = Counter[str]  # results of linking or copying images, by text; empty if none are
Put = Callable[[Item, str, Path, str], str]  # links or copies an image: see Copies.put


@dataclass(frozen=True, eq=False)
class Object:
    """An object in an image, with its mask and label."""

    label: str
    mask: Mask  # not empty
    term: str
    score: float | None = None  # None for a person's object
    ring: Ring | None = None  # in pixels, if it was drawn as a polygon


class Objects(ABC):
    """A file or folder of labelled objects with their masks. `copies` reads the images to copy, if any."""

    def __init__(self, path: Path, copies: Loader | None = None) -> None:
        self._path, self._copies = path, copies

    def keep(self, objects: Iterable[Object]) -> Row:
        """Return an image's objects as fields of its row."""
        return {"detections": [self._kept(object_) for object_ in objects]}

    @abstractmethod
    def write(self, rows: Finished, names: Sequence[str]) -> Files:
        """Write the rows atomically. `names`: all labels in order. Return counts of images by copy result."""

    def _place_images(
        self, rows: Finished, named: Sequence[str], folder: Path, put: Put | None = None
    ) -> Files:
        """Copy or `put` each image into `folder` under its stem in `named`. Return counts of the results."""
        if self._copies is not None:
            put = Copies(self._copies, state_of(self._path) / "images").put
        files: Files = Counter()
        if put is None:
            return files
        folder.mkdir(exist_ok=True)
        images = (
            (item, row["content"], folder, stem) for (item, row), stem in zip(done(rows), named, strict=True)
        )
        placed = prefetch(images, lambda image: put(*image))
        for _, result in tqdm(placed, "images", len(named), unit="image", file=sys.stderr, disable=None):
            files[result.result()] += 1
        return files

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
    """Yield the items and rows that have the status DONE."""
    return ((item, row) for item, row in rows() if row["status"] == DONE)


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield a new, empty folder. It replaces `path` when the context ends without an error."""
    path = path.resolve()  # a link to a folder stays a link
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    if path.exists():
        shutil.rmtree(path)
    partial.replace(path)


def stems_of(rows: Finished) -> list[str]:
    """Return a unique file stem for each row that has the status DONE."""
    return list(stems(lambda: (item.name for item, _ in done(rows))))


def write_list(path: Path, values: Iterable[Any]) -> None:
    """Write values to a file as a JSON list, one value a line, atomically."""

    def fill(file: BinaryIO) -> None:
        file.write(b"[")
        written(file, values)
        file.write(b"\n]\n")

    write(path, fill)


def written(file: BinaryIO, values: Iterable[Any]) -> None:
    """Write values as the lines of a JSON list, without its brackets."""
    for number, value in enumerate(values):
        file.write((b",\n" if number else b"\n") + json.dumps(value).encode())


def mask_of(kept: Row) -> Mask:
    return coco.decode(kept["mask"])
