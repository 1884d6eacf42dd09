"""Write the results of `vlsam prelabel` to files: an import list, COCO, YOLO or parquet."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from backend.answers.placement import Labelling, annotation, explained, prediction
from backend.datasets.coco_file import Coco, polygons, run_lengths
from backend.datasets.items import Loader, SourceError, need
from backend.datasets.objects import Files, Finished, Object, Objects
from backend.datasets.parquet_file import Parquet
from backend.datasets.run_state import DONE, Row, write
from backend.datasets.yolo_folder import Yolo
from backend.images.content_hash import image_hash
from backend.labelstudio import results
from model.types import Detection, Image


@dataclass(frozen=True, eq=False)
class Found:
    """The detections of one image, and the data that their labels depend on."""

    detections: list[Detection]
    labelling: Labelling  # with the labels in the item's data
    reduced: bool = False  # annotated in half its size, after memory ran out

    def labelled(self) -> list[tuple[Detection, str | None]]:
        return [(d, self.labelling.label_of(d.term)) for d in self.detections]


class ImportList:
    """A list of tasks with predictions, to import into Label Studio; the same predictions as the server's."""

    def __init__(self, path: Path, version: str) -> None:
        self._path, self._version = path, version

    def describe(self, image: Image, found: Found) -> Row:
        """Return the part of an image's row that holds its detections."""
        content = image_hash(image)
        regions, unmatched = annotation(found.detections, found.labelling, content, self._version)
        terms = list(dict.fromkeys(detection.term for detection in found.detections))
        explanation = explained(regions, terms, unmatched, found.labelling.config, content, self._version)
        return {"prediction": prediction(regions, self._version, explanation)}

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


class ObjectsFile:
    """A destination that keeps each detection with a label."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def describe(self, image: Image, found: Found) -> Row:
        return self._objects.keep(
            Object(label, detection.mask, detection.term, results.unit(detection.score))
            for detection, label in found.labelled()
            if label is not None and detection.mask.any()
        )

    def write(self, rows: Finished, names: Sequence[str]) -> Files:
        return self._objects.write(rows, names)


Destination = ImportList | ObjectsFile


def choose(
    path: Path, version: str, loader: Loader, *, as_polygons: bool = False, copy: bool = False
) -> Destination:
    """Return the destination for a path's suffix.

    `as_polygons` writes COCO's masks as polygons instead of RLE; `copy` copies images for YOLO. `loader` is
    the source's. Raises SourceError.
    """
    name = path.name.lower()
    if as_polygons and not name.endswith(".coco.json"):
        raise SourceError("--coco-polygons goes with --to NAME.coco.json")
    if copy and not name.endswith(".yolo"):
        raise SourceError("--copy-images goes with --to NAME.yolo")
    if name.endswith(".coco.json"):
        info = {"description": "Objects found by VL-SAM for Label Studio", "version": version}
        return ObjectsFile(Coco(path, info, polygons if as_polygons else run_lengths))
    if name.endswith(".json"):
        return ImportList(path, version)
    if name.endswith(".parquet"):
        need("pyarrow.parquet", "parquet files")  # before the work, not after
        return ObjectsFile(Parquet(path, version))
    if name.endswith(".yolo"):
        return ObjectsFile(Yolo(path, loader, copy=copy))
    raise SourceError(
        f"--to {path}: the name must end in .json (Label Studio), .coco.json, .yolo (a folder) or .parquet, "
        "or be labelstudio://PROJECT"
    )
