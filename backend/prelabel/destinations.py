"""Where the results of `vlsam prelabel` go: files. Label Studio's predictions are in project.py."""

import json
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from pycocotools import mask as coco
from tqdm import tqdm

from backend import folders, results, shapes
from backend.labels import LabelConfig
from backend.predictor import annotation, explained, label_of, prediction
from backend.prelabel.copies import Copies, link
from backend.prelabel.naming import file_names, stems
from backend.prelabel.run import FETCHERS, ahead
from backend.prelabel.sources import Item, Loader, SourceError, need
from backend.prelabel.state import DONE, Row, state_of, write
from model.types import Detection, Image

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
    path: Path, version: str, loader: Loader, *, polygons: bool = False, copy: bool = False
) -> Destination:
    """The destination that a path's suffix names. Raises SourceError.

    `polygons` is for COCO, and `copy`, of images, for YOLO. `loader` is the source's.
    """
    name = path.name.lower()
    if polygons and not name.endswith(".coco.json"):
        raise SourceError("--coco-polygons goes with --to NAME.coco.json")
    if copy and not name.endswith(".yolo"):
        raise SourceError("--copy-images goes with --to NAME.yolo")
    if name.endswith(".coco.json"):
        return Coco(path, version, polygons=polygons)
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
        content = results.image_hash(image)
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


class _Detections:
    """What the formats that are not Label Studio's keep: each detection that has a label, with its mask."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def describe(self, image: Image, found: Found) -> Row:
        return {
            "detections": [
                {
                    "term": detection.term,
                    "label": label,
                    "score": results.unit(detection.score),
                    "box": list(detection.box),
                    "mask": results.coco_rle(detection.mask),
                    **self._more(detection),
                }
                for detection, label in found.labelled()
                if label is not None and detection.mask.any()
            ]
        }

    def _more(self, detection: Detection) -> Row:
        return {}


class Coco(_Detections):
    """COCO's instances: masks as compressed RLE or as polygons, boxes as x, y, width, height.

    `iscrowd` is 0 with RLE, too: what is 1 is a group of objects to COCO's evaluation, which then does not
    count it, and to loaders, which leave it out.
    """

    def __init__(self, path: Path, version: str, *, polygons: bool = False) -> None:
        super().__init__(path)
        self._version, self._polygons = version, polygons

    def write(self, rows: Finished, names: Sequence[str]) -> Files:
        number = {name: place for place, name in enumerate(names, 1)}
        called = file_names(lambda: ((item.name, item.address) for item, _ in _done(rows)))

        def images() -> Iterator[Any]:
            for place, (item, row) in enumerate(rows(), 1):
                if row["status"] == DONE:
                    image = {"id": place, "file_name": next(called)}
                    if item.address[:5].lower() != "data:":  # which is the image itself
                        image["coco_url"] = folders.text(item.address)
                    yield {**image, "width": row["width"], "height": row["height"]}

        def annotations() -> Iterator[Any]:
            for place, (_, row) in enumerate(rows(), 1):
                for each in row.get("detections", ()):
                    x0, y0, x1, y1 = each["box"]
                    yield {
                        "image_id": place,
                        "category_id": number[each["label"]],
                        "segmentation": _polygons(each["mask"]) if self._polygons else each["mask"],
                        "area": int(coco.area(each["mask"])),
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                        "iscrowd": 0,
                        "score": each["score"],
                    }

        def fill(file: BinaryIO) -> None:
            # pycocotools up to 2.0.10 wants `info` where it reads results.
            info = {"description": "Objects found by VL-SAM for Label Studio", "version": self._version}
            file.write(f'{{"info": {json.dumps(info)}, "licenses": [], "images": ['.encode())
            _list(file, images())
            file.write(b'], "annotations": [')
            _list(file, ({"id": place, **each} for place, each in enumerate(annotations(), 1)))
            file.write(b'], "categories": [')
            _list(file, ({"id": place, "name": name} for name, place in number.items()))
            file.write(b"]}\n")

        write(self._path, fill)
        return Counter()


def _done(rows: Finished) -> Iterator[tuple[Item, Row]]:
    return ((item, row) for item, row in rows() if row["status"] == DONE)


def _polygons(mask: Row) -> list[list[float]]:
    """A ring for each part, as x, y, x, y, ... in pixels."""
    return [ring.round(2).ravel().tolist() for ring in shapes.rings_of(coco.decode(mask).astype(bool))]


def _list(file: BinaryIO, values: Iterable[Any]) -> None:
    for number, value in enumerate(values):
        file.write((b",\n" if number else b"\n") + json.dumps(value).encode())


class Yolo(_Detections):
    """A folder for YOLO's segmentation: data.yaml, labels/*.txt and images/, which `copy` fills with copies.

    A label file has its image's name and is there without objects, too. A line of it is a class and one ring
    around all parts of the mask, in shares of the image.
    """

    def __init__(self, path: Path, loader: Loader, *, copy: bool = False) -> None:
        super().__init__(path)
        self._loader, self._copy = loader, copy

    def _more(self, detection: Detection) -> Row:
        value = results.encode(detection.mask, "polygon")
        return {"ring": value["points"] if value else []}

    def write(self, rows: Finished, names: Sequence[str]) -> Files:
        number = {name: place for place, name in enumerate(names)}
        partial = self._path.with_name(f".{self._path.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        for kind in ("images", "labels"):
            (partial / kind).mkdir(parents=True)
        called = list(stems(lambda: (item.name for item, _ in _done(rows))))

        def labelled() -> Iterator[tuple[Item, str, str]]:
            for (item, row), stem in zip(_done(rows), called, strict=True):
                lines = [
                    " ".join(
                        [str(number[each["label"]]), *(f"{n / 100:.6g}" for xy in each["ring"] for n in xy)]
                    )
                    for each in row["detections"]
                    if each["ring"]
                ]
                (partial / "labels" / f"{stem}.txt").write_text("".join(f"{line}\n" for line in lines))
                yield item, row["content"], stem

        copies = Copies(self._loader, state_of(self._path) / "images") if self._copy else None

        def place(labelled: tuple[Item, str, str]) -> str:
            item, content, stem = labelled
            if copies:
                return copies.put(item, content, partial / "images", stem)
            return link(item, self._loader, partial / "images", stem)

        files: Files = Counter()
        with ThreadPoolExecutor(FETCHERS, "fetch") as fetchers:
            placed = ahead(labelled(), place, fetchers)
            for _, came in tqdm(
                placed, "images", len(called), unit="image", file=sys.stderr, disable=not copies
            ):
                files[came.result()] += 1
        # No `path`: trainers then look beside data.yaml, from wherever they are started. JSON is YAML.
        lines = [f"  {place}: {_yaml(name)}" for name, place in number.items()]
        head = ["train: images", "val: images", "names:" if lines else "names: {}"]
        (partial / "data.yaml").write_text("\n".join([*head, *lines]) + "\n", "utf-8")
        if self._path.exists():
            shutil.rmtree(self._path)
        partial.replace(self._path)
        return files


def _yaml(text: str) -> str:
    """JSON in which characters that YAML does not know are escaped; JSON's own escapes break emoji there."""
    return re.sub(
        r"[^\x20-\x7e\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]",
        lambda found: f"\\u{ord(found[0]):04x}",
        json.dumps(text, ensure_ascii=False),
    )


class Parquet(_Detections):
    """A row per image: key, image, task's data as JSON, size, error, and a list of detections."""

    def __init__(self, path: Path, version: str) -> None:
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
                    kept = {name: row.get(name) for name in ("width", "height", "detections")}
                    about = {
                        "key": item.key,
                        "image": folders.text(item.address),
                        "data": json.dumps(item.data),
                    }
                    batch.append(
                        {**about, **kept, "error": row.get("reason"), "model_version": self._version}
                    )
                    if len(batch) == 500:
                        writer.write_table(arrow.Table.from_pylist(batch, schema))
                        batch.clear()
                writer.write_table(arrow.Table.from_pylist(batch, schema))

        write(self._path, fill)
        return Counter()
