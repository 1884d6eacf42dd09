"""Write COCO instances."""

import json
import posixpath
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from backend.datasets.file_names import file_names
from backend.datasets.items import Loader
from backend.datasets.objects import Files, Finished, Objects, done, mask_of, replaced, stems_of, written
from backend.datasets.run_state import DONE, Row, write
from backend.images import local_files
from backend.labelstudio import outlines
from backend.labelstudio.outlines import Ring
from model import coco


class Coco(Objects):
    """A COCO instances file. `segmentation` makes RLE or polygons. Copied images go to `images_of(path)`."""

    def __init__(
        self,
        path: Path,
        info: Mapping[str, str],
        segmentation: Callable[[Row], Any],
        copies: Loader | None = None,
    ) -> None:
        super().__init__(path, copies)
        self._info, self._segmentation = info, segmentation

    def write(self, rows: Finished, names: Sequence[str]) -> Files:
        if self._copies is None:
            called = file_names(lambda: ((item.name, item.address) for item, _ in done(rows)))
            self._write(rows, names, called)
            return Counter()
        named = stems_of(rows)
        with replaced(images_of(self._path)) as folder:
            files = self._place_images(rows, named, folder)
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
                    if item.address[:5].lower() != "data:":  # a data URL is the image itself
                        image["coco_url"] = local_files.text(item.address)
                    yield {**image, "width": row["width"], "height": row["height"]}

        def annotations() -> Iterator[Any]:
            for place, (_, row) in enumerate(rows(), 1):
                for detection in row.get("detections", ()):
                    mask, box, score = (detection[name] for name in ("mask", "box", "score"))
                    category = number[detection["label"]]
                    annotation = coco.annotation(mask, box, score, image_id=place, category_id=category)
                    yield {**annotation, "segmentation": self._segmentation(detection)}

        def fill(file: BinaryIO) -> None:
            # pycocotools up to 2.0.10 needs `info` to read results.
            file.write(f'{{"info": {json.dumps(dict(self._info))}, "licenses": [], "images": ['.encode())
            written(file, images())
            file.write(b'], "annotations": [')
            written(file, ({"id": place, **each} for place, each in enumerate(annotations(), 1)))
            file.write(b'], "categories": [')
            # pycocotools looks up categories by `supercategory`, and some loaders need one.
            written(file, ({"id": n, "name": name, "supercategory": "object"} for name, n in number.items()))
            file.write(b"]}\n")

        write(self._path, fill)


def run_lengths(kept: Row) -> Row:
    """Return an object's mask as COCO's compressed RLE."""
    return dict(kept["mask"])


def polygons(kept: Row) -> list[list[float]]:
    """Return a polygon [x, y, x, y, ...] in pixels for each part of an object, exact to one pixel."""
    return _flat(outlines.rings_of(mask_of(kept)))


def exact_polygons(kept: Row) -> Any:
    """Return the drawn polygon, else one along the pixels of each part, or RLE for a mask with holes."""
    if "drawn" in kept:
        return _flat([np.array(kept["drawn"])])
    rings = outlines.exact_rings_of(mask_of(kept))
    return kept["mask"] if rings is None else _flat(rings)


def images_of(path: Path) -> Path:
    """Return the folder of copied images beside a COCO file: out.images for out.coco.json."""
    return path.with_name(f"{path.name[: -len('.coco.json')]}.images")


def _flat(rings: Iterable[Ring]) -> list[list[float]]:
    return [ring.round(2).ravel().tolist() for ring in rings]
