"""Where the results of `vlsam prelabel` go: files. Label Studio's predictions are in project.py."""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from pycocotools import mask as coco

from backend import results
from backend.labels import LabelConfig
from backend.predictor import annotation, label_of, prediction
from backend.prelabel.sources import Item, SourceError, need
from backend.prelabel.state import DONE, Row, write
from model.types import Detection, Image

Finished = Callable[[], Iterable[tuple[Item, Row]]]  # all rows in the source's order, as often as asked


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

    def write(self, rows: Finished, names: Sequence[str]) -> None:
        """Write everything, whole or not at all. `names` are the labels, in their order."""
        ...


def choose(path: Path, version: str) -> Destination:
    """The destination that a path's suffix names. Raises SourceError."""
    name = path.name.lower()
    if name.endswith(".coco.json"):
        return Coco(path)
    if name.endswith(".json"):
        return ImportList(path, version)
    if name.endswith(".parquet"):
        need("pyarrow.parquet", "parquet files")  # now, not after days of work
        return Parquet(path, version)
    if name.endswith(".yolo"):
        return Yolo(path)
    raise SourceError(
        f"--to {path}: the name must end in .json (Label Studio), .coco.json, .yolo (a folder) or .parquet, "
        "or be labelstudio://PROJECT"
    )


class ImportList:
    """A list of tasks with predictions, as Label Studio imports it; the predictions are the server's."""

    def __init__(self, path: Path, version: str) -> None:
        self._path, self._version = path, version

    def describe(self, image: Image, found: Found) -> Row:
        regions, _ = annotation(
            found.detections,
            found.config,
            results.image_hash(image),
            self._version,
            names=found.names,
            leftover=found.leftover,
        )
        return {"prediction": prediction(regions, self._version)}

    def write(self, rows: Finished, names: Sequence[str]) -> None:
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
                if label is not None
            ]
        }

    def _more(self, detection: Detection) -> Row:
        return {}


class Coco(_Detections):
    """COCO's instances: masks as compressed RLE, boxes as x, y, width, height."""

    def write(self, rows: Finished, names: Sequence[str]) -> None:
        number = {name: place for place, name in enumerate(names, 1)}

        def images() -> Iterator[Any]:
            for place, (item, row) in enumerate(rows(), 1):
                if row["status"] == DONE:
                    size = {"width": row["width"], "height": row["height"]}
                    yield {"id": place, "file_name": item.key, "coco_url": item.address, **size}

        def annotations() -> Iterator[Any]:
            for place, (_, row) in enumerate(rows(), 1):
                for each in row.get("detections", ()):
                    x0, y0, x1, y1 = each["box"]
                    yield {
                        "image_id": place,
                        "category_id": number[each["label"]],
                        "segmentation": each["mask"],
                        "area": int(coco.area(each["mask"])),
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                        "iscrowd": 0,
                        "score": each["score"],
                    }

        def fill(file: BinaryIO) -> None:
            file.write(b'{"images": [')
            _list(file, images())
            file.write(b'], "annotations": [')
            _list(file, ({"id": place, **each} for place, each in enumerate(annotations(), 1)))
            file.write(b'], "categories": [')
            _list(file, ({"id": place, "name": name} for name, place in number.items()))
            file.write(b"]}\n")

        write(self._path, fill)


def _list(file: BinaryIO, values: Iterable[Any]) -> None:
    for number, value in enumerate(values):
        file.write((b",\n" if number else b"\n") + json.dumps(value).encode())


class Yolo(_Detections):
    """A folder for YOLO's segmentation: data.yaml, labels/*.txt, and images/ with links to local files.

    A line is a class and one ring around all parts of the mask, in shares of the image.
    """

    def _more(self, detection: Detection) -> Row:
        value = results.encode(detection.mask, "polygon")
        return {"ring": value["points"] if value else []}

    def write(self, rows: Finished, names: Sequence[str]) -> None:
        number = {name: place for place, name in enumerate(names)}
        partial = self._path.with_name(f".{self._path.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        for kind in ("images", "labels"):
            (partial / kind).mkdir(parents=True)
        for place, (item, row) in enumerate(rows(), 1):
            if row["status"] != DONE:
                continue
            # Keys may hold anything and repeat but for their suffix; the number makes names of their own.
            source = Path(item.address.partition("?")[0])
            stem = f"{place:08}-{''.join(c if c.isalnum() or c in '-_' else '_' for c in source.stem[-80:])}"
            lines = [
                " ".join([str(number[each["label"]]), *(f"{n / 100:.6g}" for xy in each["ring"] for n in xy)])
                for each in row["detections"]
                if each["ring"]
            ]
            (partial / "labels" / f"{stem}.txt").write_text("".join(f"{line}\n" for line in lines))
            if source.is_file():
                os.symlink(source.resolve(), partial / "images" / (stem + source.suffix.lower()))
        # JSON is YAML, whatever the labels hold.
        lines = [f"  {place}: {json.dumps(name)}" for name, place in number.items()]
        head = ["path: .", "train: images", "val: images", "names:" if lines else "names: {}"]
        (partial / "data.yaml").write_text("\n".join([*head, *lines]) + "\n")
        if self._path.exists():
            shutil.rmtree(self._path)
        partial.replace(self._path)


class Parquet(_Detections):
    """A row per image: key, image, task's data as JSON, size, error, and a list of detections."""

    def __init__(self, path: Path, version: str) -> None:
        super().__init__(path)
        self._version = version

    def write(self, rows: Finished, names: Sequence[str]) -> None:
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
                    about = {"key": item.key, "image": item.address, "data": json.dumps(item.data)}
                    batch.append(
                        {**about, **kept, "error": row.get("reason"), "model_version": self._version}
                    )
                    if len(batch) == 500:
                        writer.write_table(arrow.Table.from_pylist(batch, schema))
                        batch.clear()
                writer.write_table(arrow.Table.from_pylist(batch, schema))

        write(self._path, fill)
