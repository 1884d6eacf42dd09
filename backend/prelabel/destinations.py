"""Write the results of `vlsam prelabel` to files: an import list, COCO, YOLO or parquet."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from backend.answers.placement import Labelling, annotation, explained, prediction
from backend.datasets.coco_file import Coco, polygons, run_lengths
from backend.datasets.items import Loader, SourceError
from backend.datasets.objects import Files, Finished, Objects, write_list
from backend.datasets.parquet_file import Parquet
from backend.datasets.run_state import DONE, Row
from backend.datasets.yolo_folder import Yolo
from model.types import Detection


class ImportList:
    """A JSON list of tasks to import into Label Studio, with the predictions that the server would return."""

    def __init__(self, path: Path, version: str) -> None:
        self._path, self._version = path, version

    def keep(self, detections: Sequence[Detection], labelling: Labelling, content: str) -> Row:
        """Return an image's detections as fields of its row."""
        regions, unmatched = annotation(detections, labelling, content, self._version)
        terms = list(dict.fromkeys(detection.term for detection in detections))
        explanation = explained(regions, terms, unmatched, labelling.config, content, self._version)
        return {"prediction": prediction(regions, self._version, explanation)}

    def write(self, rows: Finished, names: Sequence[str]) -> Files:
        def tasks() -> Iterator[Row]:
            for item, row in rows():
                if row["status"] == DONE:
                    yield {"data": item.data, "predictions": [row["prediction"]]}
                else:
                    yield {"data": item.data, "predictions": [], "meta": {"vlsam_error": row["reason"]}}

        write_list(self._path, tasks())
        return Counter()


Destination = ImportList | Objects


def choose(
    path: Path, version: str, loader: Loader, *, as_polygons: bool = False, copy: bool = False
) -> Destination:
    """Return the destination for the suffix of `path`. `loader` reads the images. Raises SourceError."""
    name = path.name.lower()
    if as_polygons and not name.endswith(".coco.json"):
        raise SourceError("--coco-polygons goes with --to NAME.coco.json")
    if copy and not name.endswith(".yolo"):
        raise SourceError("--copy-images goes with --to NAME.yolo")
    if name.endswith(".coco.json"):
        info = {"description": "Objects found by VL-SAM for Label Studio", "version": version}
        return Coco(path, info, polygons if as_polygons else run_lengths)
    if name.endswith(".json"):
        return ImportList(path, version)
    if name.endswith(".parquet"):
        return Parquet(path, version)
    if name.endswith(".yolo"):
        return Yolo(path, loader, copy=copy)
    raise SourceError(
        f"--to {path}: the name must end in .json (Label Studio), .coco.json, .yolo (a folder) or .parquet, "
        "or be labelstudio://PROJECT"
    )
