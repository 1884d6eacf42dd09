"""Write a folder of masks: the class of each pixel, and each object separately."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image as Pillow
from tqdm import tqdm

from backend.datasets.items import SourceError
from backend.datasets.objects import Files, Finished, Objects, done, mask_of, replaced, stems_of, written
from backend.datasets.run_state import Row, write
from backend.images import local_files
from backend.labelstudio.label_colours import colours

BACKGROUND = "background"  # class 0
MAX_CLASSES = 2**16 - 1


class Masks(Objects):
    """A folder of PNGs, with classes.txt and index.json.

    A pixel of NAME.png is the class of the topmost object, or 0. A class is a line number of classes.txt,
    counted from 0. A file has 8 bits and a palette, or 16 bits for more than 255 classes. objects/NAME/1.png
    is the whole mask of the lowest object: 255 in the object, else 0. Higher objects have higher numbers.
    """

    def write(self, rows: Finished, names: Sequence[str]) -> Files:
        if len(names) > MAX_CLASSES:
            raise SourceError(f"a folder of masks holds {MAX_CLASSES} classes at most, and there are more")
        number = {name: place for place, name in enumerate(names, 1)}
        named = stems_of(rows)
        with replaced(self._path) as folder:
            files = self._place_images(rows, named, folder / "images")
            copied = {path.stem: path.name for path in folder.glob("images/*")}
            lines = [" ".join(name.split()) for name in (BACKGROUND, *names)]
            (folder / "classes.txt").write_text("".join(f"{line}\n" for line in lines), "utf-8", "replace")

            def images() -> Iterator[Any]:
                watched = tqdm(done(rows), "write", len(named), unit="image", file=sys.stderr, disable=None)
                for (item, row), stem in zip(watched, named, strict=True):
                    image = {
                        "mask": f"{stem}.png",
                        "image": local_files.text(item.address),
                        "width": row["width"],
                        "height": row["height"],
                        "objects": list(_objects(folder, stem, row, number)),
                    }
                    yield {**image, "file": f"images/{copied[stem]}"} if stem in copied else image

            def fill(file: BinaryIO) -> None:
                file.write(f'{{"classes": {json.dumps([BACKGROUND, *names])}, "images": ['.encode())
                written(file, images())
                file.write(b"]}\n")

            write(folder / "index.json", fill)
        return files


def _objects(folder: Path, stem: str, row: Row, number: dict[str, int]) -> Iterator[Row]:
    """Write the PNGs of an image. Yield each object's entry for index.json."""
    own = folder / "objects" / stem
    own.mkdir(parents=True)
    classes = np.zeros((row["height"], row["width"]), np.uint8 if len(number) < 256 else np.uint16)
    for place, detection in enumerate(row["detections"], 1):
        mask = mask_of(detection)
        Pillow.fromarray(mask.astype(np.uint8) * 255).save(own / f"{place}.png")
        classes[mask] = number[detection["label"]]
        x0, y0, x1, y1 = detection["box"]
        entry = {
            "mask": f"objects/{stem}/{place}.png",
            "label": detection["label"],
            "class": number[detection["label"]],
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": int(mask.sum()),
        }
        yield entry if detection["score"] is None else {**entry, "score": detection["score"]}
    picture = Pillow.fromarray(classes)
    if classes.dtype == np.uint8:
        picture.putpalette(bytes(3) + b"".join(bytes.fromhex(c.lstrip("#")) for c in colours(len(number))))
    picture.save(folder / f"{stem}.png")
