"""Where the results of `vlsam prelabel` go: files. Label Studio's predictions are in project.py."""

import json
import posixpath
import re
import shutil
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from tqdm import tqdm

from backend.answers.placement import annotation, explained, label_of, prediction
from backend.images import local_files
from backend.images.content_hash import image_hash
from backend.labelstudio import geometry, results
from backend.labelstudio.geometry import Ring
from backend.labelstudio.labeling_config import LabelConfig
from backend.prelabel.copies import Copies, link
from backend.prelabel.naming import file_names, stems
from backend.prelabel.run import FETCHERS, ahead
from backend.prelabel.sources import Item, Loader, SourceError, need
from backend.prelabel.state import DONE, Row, state_of, write
from model import coco
from model.types import Detection, Image, Mask, box_of

Finished = Callable[[], Iterable[tuple[Item, Row]]]  # all rows in the source's order, as often as asked
Files = Counter[str]  # what became of how many images' files, where a destination takes them along


@dataclass(frozen=True, eq=False)
class Found:
    """The detections of one image, and what they are called there."""

    detections: list[Detection]
    config: LabelConfig  # with the labels that the item's data brings
    names: Mapping[str, str]  # of labels, by term, where likeness alone tells
    leftover: str  # as VLSAM_LEFTOVER
    reduced: bool = False  # seen in half its size, for want of memory

    def labelled(self) -> list[tuple[Detection, str | None]]:
        return [(d, label_of(d.term, self.config, self.names, self.leftover)) for d in self.detections]


class Destination(Protocol):
    def describe(self, image: Image, found: Found) -> Row:
        """What the row of an image keeps of its detections. Called from the encoding thread."""
        ...

    def write(self, rows: Finished, names: Sequence[str]) -> Files:
        """Write everything, whole or not at all. `names` are the labels, in their order."""
        ...


def choose(
    path: Path, version: str, loader: Loader, *, rings: bool = False, copy: bool = False
) -> Destination:
    """The destination that a path's suffix names. Raises SourceError.

    `rings`, not run lengths, are for COCO, and `copy`, of images, for YOLO. `loader` is the source's.
    """
    name = path.name.lower()
    if rings and not name.endswith(".coco.json"):
        raise SourceError("--coco-polygons goes with --to NAME.coco.json")
    if copy and not name.endswith(".yolo"):
        raise SourceError("--copy-images goes with --to NAME.yolo")
    if name.endswith(".coco.json"):
        info = {"description": "Objects found by VL-SAM for Label Studio", "version": version}
        return Coco(path, info, polygons if rings else run_lengths)
    if name.endswith(".json"):
        return ImportList(path, version)
    if name.endswith(".parquet"):
        need("pyarrow.parquet", "parquet files")  # now, not after days of work
        return Parquet(path, version)
    if name.endswith(".yolo"):
        return Yolo(path, loader, copy=copy)
    raise SourceError(
        f"--to {path}: the name must end in .json (Label Studio), .coco.json, .yolo (a folder) or .parquet, "
        "or be labelstudio://PROJECT"
    )


class ImportList:
    """A list of tasks with predictions, as Label Studio imports it; the predictions are the server's."""

    def __init__(self, path: Path, version: str) -> None:
        self._path, self._version = path, version

    def describe(self, image: Image, found: Found) -> Row:
        content = image_hash(image)
        regions, unmatched = annotation(
            found.detections,
            found.config,
            content,
            self._version,
            names=found.names,
            leftover=found.leftover,
        )
        told = explained(regions, found.detections, unmatched, found.config, content, self._version)
        return {"prediction": prediction(regions, self._version, told)}

    def write(self, rows: Finished, names: Sequence[str]) -> Files:
        def fill(file: BinaryIO) -> None:
            for number, (item, row) in enumerate(rows()):
                done = row["status"] == DONE
                task: dict[str, Any] = {
                    "data": item.data,
                    "predictions": [row["prediction"]] if done else [],
                }
                if not done:
                    task["meta"] = {"vlsam_error": row["reason"]}
                file.write((b",\n" if number else b"[\n") + json.dumps(task).encode())
            file.write(b"\n]\n")

        write(self._path, fill)
        return Counter()


@dataclass(frozen=True, eq=False)
class Object:
    """An object of an image, as the formats that are not Label Studio's have it."""

    label: str
    mask: Mask  # not empty
    term: str
    score: float | None = None  # None where a person made it
    ring: Ring | None = None  # in pixels, where it was drawn as one


class Objects(ABC):
    """What the formats that are not Label Studio's keep: each object that has a label, with its mask."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def describe(self, image: Image, found: Found) -> Row:
        return self.keep(
            Object(label, detection.mask, detection.term, results.unit(detection.score))
            for detection, label in found.labelled()
            if label is not None and detection.mask.any()
        )

    def keep(self, objects: Iterable[Object]) -> Row:
        """What the row of an image keeps of its objects."""
        return {"detections": [self._kept(each) for each in objects]}

    @abstractmethod
    def write(self, rows: Finished, names: Sequence[str]) -> Files:
        """As Destination."""

    def _kept(self, found: Object) -> Row:
        ring = found.ring
        box = box_of(found.mask) if ring is None else (*ring.min(axis=0).tolist(), *ring.max(axis=0).tolist())
        kept = {
            "term": found.term,
            "label": found.label,
            "score": found.score,
            "box": list(box),
            "mask": coco.encode(found.mask),
        }
        return kept if ring is None else {**kept, "drawn": ring.round(4).tolist()}


class Coco(Objects):
    """COCO's instances: masks as run lengths or as polygons, boxes as x, y, width, height.

    `segmentation` makes the one or the other of what a row keeps of an object. With `copies`
    the images are copied into the folder `images_of` DEST, and each `file_name` is that of its copy.
    """

    def __init__(
        self,
        path: Path,
        info: Mapping[str, str],
        segmentation: Callable[[Row], Any],
        copies: Loader | None = None,
    ) -> None:
        super().__init__(path)
        self._info, self._segmentation, self._copies = info, segmentation, copies

    def write(self, rows: Finished, names: Sequence[str]) -> Files:
        if self._copies is None:
            called = file_names(lambda: ((item.name, item.address) for item, _ in done(rows)))
            self._write(rows, names, called)
            return Counter()
        named = list(stems(lambda: (item.name for item, _ in done(rows))))
        copies = Copies(self._copies, state_of(self._path) / "images")
        with replaced(images_of(self._path)) as folder:
            files = beside(rows, named, folder, copies.put)
            copied = {path.stem: path.name for path in folder.iterdir()}
        called = (
            copied.get(stem, stem + posixpath.splitext(item.name)[1])
            for (item, _), stem in zip(done(rows), named, strict=True)
        )
        self._write(rows, names, called)
        return files

    def _write(self, rows: Finished, names: Sequence[str], called: Iterator[str]) -> None:
        number = {name: place for place, name in enumerate(names, 1)}

        def images() -> Iterator[Any]:
            for place, (item, row) in enumerate(rows(), 1):
                if row["status"] == DONE:
                    image = {"id": place, "file_name": next(called)}
                    if item.address[:5].lower() != "data:":  # which is the image itself
                        image["coco_url"] = local_files.text(item.address)
                    yield {**image, "width": row["width"], "height": row["height"]}

        def annotations() -> Iterator[Any]:
            for place, (_, row) in enumerate(rows(), 1):
                for each in row.get("detections", ()):
                    annotation = coco.annotation(
                        each["mask"],
                        each["box"],
                        each["score"],
                        image_id=place,
                        category_id=number[each["label"]],
                    )
                    yield {**annotation, "segmentation": self._segmentation(each)}

        def fill(file: BinaryIO) -> None:
            # pycocotools up to 2.0.10 wants `info` where it reads results.
            file.write(f'{{"info": {json.dumps(dict(self._info))}, "licenses": [], "images": ['.encode())
            written(file, images())
            file.write(b'], "annotations": [')
            written(file, ({"id": place, **each} for place, each in enumerate(annotations(), 1)))
            file.write(b'], "categories": [')
            # pycocotools looks up categories by a `supercategory`, and some loaders want one.
            written(
                file,
                ({"id": n, "name": name, "supercategory": "object"} for name, n in number.items()),
            )
            file.write(b"]}\n")

        write(self._path, fill)


def run_lengths(kept: Row) -> Row:
    """The mask of an object as COCO's compressed run lengths."""
    mask: Row = kept["mask"]
    return mask


def polygons(kept: Row) -> list[list[float]]:
    """A ring for each part of an object, within a pixel of its outline, as x, y, x, y, ... in pixels."""
    return _flat(geometry.rings_of(mask_of(kept)))


def exact_polygons(kept: Row) -> Any:
    """The ring that was drawn, or one along the pixels of each part; run lengths of masks full of holes."""
    if "drawn" in kept:
        return _flat([np.array(kept["drawn"])])
    rings = geometry.exact_rings_of(mask_of(kept))
    return kept["mask"] if rings is None else _flat(rings)


def mask_of(kept: Row) -> Mask:
    return coco.decode(kept["mask"])


def _flat(rings: Iterable[Ring]) -> list[list[float]]:
    return [ring.round(2).ravel().tolist() for ring in rings]


def done(rows: Finished) -> Iterator[tuple[Item, Row]]:
    return ((item, row) for item, row in rows() if row["status"] == DONE)


def watched(rows: Iterable[tuple[Item, Row]], total: int | None = None) -> Iterable[tuple[Item, Row]]:
    """The rows, with a bar for whoever waits until all are written."""
    return tqdm(rows, "write", total, unit="image", file=sys.stderr, disable=None)


def images_of(path: Path) -> Path:
    """The folder of copied images beside a COCO file: out.images of out.coco.json."""
    return path.with_name(f"{path.name[: -len('.coco.json')]}.images")


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `path` once it is full."""
    path = path.resolve()  # a link to a folder stays
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
    """Have `put` place all images in `folder`, each under its stem of `named`; what came of how many."""

    def place(wanted: tuple[Item, str, str]) -> str:
        item, content, stem = wanted
        return put(item, content, folder, stem)

    wanted = ((item, row["content"], stem) for (item, row), stem in zip(done(rows), named, strict=True))
    files: Files = Counter()
    with ThreadPoolExecutor(FETCHERS, "fetch") as fetchers:
        placed = ahead(wanted, place, fetchers)
        for _, came in tqdm(placed, "images", len(named), unit="image", file=sys.stderr, disable=None):
            files[came.result()] += 1
    return files


def written(file: BinaryIO, values: Iterable[Any]) -> None:
    for number, value in enumerate(values):
        file.write((b",\n" if number else b"\n") + json.dumps(value).encode())


class Yolo(Objects):
    """A folder for YOLO's segmentation: data.yaml, labels/*.txt and images/, which `copy` fills with copies.

    A label file has its image's name and is there without objects, too. A line of it is a class and one ring
    around all parts of the mask, in shares of the image.
    """

    def __init__(self, path: Path, loader: Loader, *, copy: bool = False) -> None:
        super().__init__(path)
        self._loader, self._copy = loader, copy

    def _kept(self, found: Object) -> Row:
        height, width = found.mask.shape
        ring = found.ring if found.ring is not None else geometry.ring_of(found.mask)
        return {**super()._kept(found), "ring": (100 * ring / (width, height)).clip(0, 100).round(6).tolist()}

    def write(self, rows: Finished, names: Sequence[str]) -> Files:
        number = {name: place for place, name in enumerate(names)}
        named = list(stems(lambda: (item.name for item, _ in done(rows))))
        copies = Copies(self._loader, state_of(self._path) / "images") if self._copy else None

        def linked(item: Item, content: str, folder: Path, stem: str) -> str:
            return link(item, self._loader, folder, stem)

        with replaced(self._path) as folder:
            for kind in ("images", "labels"):
                (folder / kind).mkdir()
            for (_, row), stem in zip(done(rows), named, strict=True):
                lines = [
                    " ".join(
                        [str(number[each["label"]]), *(f"{n / 100:.6g}" for xy in each["ring"] for n in xy)]
                    )
                    for each in row["detections"]
                ]
                (folder / "labels" / f"{stem}.txt").write_text("".join(f"{line}\n" for line in lines))
            files = beside(rows, named, folder / "images", copies.put if copies else linked)
            # No `path`: trainers then look beside data.yaml, from wherever they are started. JSON is YAML.
            lines = [f"  {place}: {_yaml(name)}" for name, place in number.items()]
            head = ["train: images", "val: images", "names:" if lines else "names: {}"]
            (folder / "data.yaml").write_text("\n".join([*head, *lines]) + "\n", "utf-8")
        return files


def _yaml(text: str) -> str:
    """JSON in which characters that YAML does not know are escaped; JSON's own escapes break emoji there."""
    return re.sub(
        r"[^\x20-\x7e\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]",
        lambda found: f"\\u{ord(found[0]):04x}",
        json.dumps(text, ensure_ascii=False),
    )


def _encodable(value: Any) -> Any:
    """The value with texts that UTF-8 has: JSON may hold half a surrogate pair."""
    match value:
        case str():
            return local_files.text(value)
        case list():
            return [_encodable(each) for each in value]
        case dict():
            return {name: _encodable(each) for name, each in value.items()}
    return value


class Parquet(Objects):
    """A row per image: key, image, task's data as JSON, size, error, and a list of detections."""

    def __init__(self, path: Path, version: str | None) -> None:
        super().__init__(path)
        self._version = version

    def write(self, rows: Finished, names: Sequence[str]) -> Files:
        arrow, parquet = need("pyarrow", "parquet files"), need("pyarrow.parquet", "parquet files")
        text, real, whole = arrow.string(), arrow.float64(), arrow.int32()
        mask = arrow.struct([("size", arrow.list_(whole)), ("counts", text)])
        detection = arrow.struct(
            [("term", text), ("label", text), ("score", real), ("box", arrow.list_(real)), ("mask", mask)]
        )
        columns = {
            "key": text,
            "image": text,
            "data": text,
            "width": whole,
            "height": whole,
            "error": text,
            "model_version": text,
            "detections": arrow.list_(detection),
        }
        schema = arrow.schema(list(columns.items()))

        def fill(file: BinaryIO) -> None:
            batch: list[Row] = []
            with parquet.ParquetWriter(file, schema) as writer:
                for item, row in rows():
                    about = {"key": item.key, "image": item.address, "data": json.dumps(item.data)}
                    kept = {name: row.get(name) for name in ("width", "height", "detections")}
                    version = row.get("model_version", self._version)
                    told = {**about, **kept, "error": row.get("reason"), "model_version": version}
                    batch.append(_encodable(told))
                    if len(batch) == 500:
                        writer.write_table(arrow.Table.from_pylist(batch, schema))
                        batch.clear()
                writer.write_table(arrow.Table.from_pylist(batch, schema))

        write(self._path, fill)
        return Counter()
