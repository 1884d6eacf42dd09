"""Write a folder to train YOLO with."""

import json
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from backend.datasets.image_copies import link
from backend.datasets.items import Loader
from backend.datasets.objects import Files, Finished, Object, Objects, done, replaced, stems_of
from backend.datasets.run_state import Row
from backend.labelstudio import outlines


class Yolo(Objects):
    """A data set for YOLO segmentation: data.yaml, labels/*.txt, and images/ with links or copies.

    Each image has a label file with a line per object. A line has the class and one polygon around all parts,
    in fractions of the image's width and height.
    """

    def __init__(self, path: Path, loader: Loader, *, copy: bool = False) -> None:
        super().__init__(path, loader if copy else None)
        self._loader = loader

    def _kept(self, object_: Object) -> Row:
        height, width = object_.mask.shape
        ring = object_.ring if object_.ring is not None else outlines.ring_of(object_.mask)
        percent = (100 * ring / (width, height)).clip(0, 100).round(6)
        return {**super()._kept(object_), "ring": percent.tolist()}

    def write(self, rows: Finished, names: Sequence[str]) -> Files:
        number = {name: place for place, name in enumerate(names)}
        named = stems_of(rows)
        with replaced(self._path) as folder:
            (folder / "labels").mkdir()
            for (_, row), stem in zip(done(rows), named, strict=True):
                text = ""
                for each in row["detections"]:
                    numbers = (f"{n / 100:.6g}" for xy in each["ring"] for n in xy)
                    text += f"{number[each['label']]} {' '.join(numbers)}\n"
                (folder / "labels" / f"{stem}.txt").write_text(text)
            files = self._place_images(rows, named, folder / "images", partial(link, self._loader))
            # Without `path` trainers look beside data.yaml, wherever they are started. JSON is YAML.
            lines = [f"  {place}: {_yaml(name)}" for name, place in number.items()]
            head = ["train: images", "val: images", "names:" if lines else "names: {}"]
            (folder / "data.yaml").write_text("\n".join([*head, *lines]) + "\n", "utf-8")
        return files


def _yaml(text: str) -> str:
    """Return text as a JSON string that is valid YAML. Escape only characters that YAML forbids."""
    odd = r"[^\x20-\x7e\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
    return re.sub(odd, lambda match: f"\\u{ord(match[0]):04x}", json.dumps(text, ensure_ascii=False))
