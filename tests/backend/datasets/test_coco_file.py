import base64
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow
from pycocotools.coco import COCO

from backend.labelstudio.region_reading import decode
from model.segmentation.non_maximum_suppression import iou
from tests.support.colour_model import Model
from tests.support.detections import detection, disc

Run = Callable[..., int]


def read_json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def test_coco(prelabel: Run, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.coco.json"
    (photos / "d.png").write_text("text")
    assert prelabel(photos, "--to", out) == 0
    read = COCO(str(out))
    assert [category["name"] for category in read.loadCats(read.getCatIds())] == [
        "<b>mouse</b>",
        "cat",
        "dogs",
    ]
    pictures = read.loadImgs(read.getImgIds())
    assert len(pictures) == 6  # without the one that failed
    for picture in pictures:
        with Pillow.open(photos / picture["file_name"]) as image:
            assert image.size == (picture["width"], picture["height"])
    assert [read.getAnnIds(imgIds=[picture["id"]]) for picture in pictures] == [
        [1], [2, 3], [4, 5, 6], [7, 8, 9], [10], [11, 12]
    ]  # fmt: skip
    (cat,) = read.loadAnns(read.getAnnIds(imgIds=[1]))
    assert np.array_equal(read.annToMask(cat), disc(11, 20, 8))
    assert (cat["area"], cat["bbox"], cat["iscrowd"]) == (disc(11, 20, 8).sum(), [3, 12, 16, 16], 0)
    # What loadRes of pycocotools 2.0.10 and older reads, and others look for.
    assert read.dataset["info"]["version"].startswith("vlsam-builtin")
    assert read.dataset["licenses"] == []


def test_an_image_without_objects_is_in_coco(prelabel: Run, photos: Path, tmp_path: Path) -> None:
    assert prelabel(photos / "d.png", "--to", tmp_path / "out.coco.json") == 0
    read = read_json(tmp_path / "out.coco.json")
    assert [image["file_name"] for image in read["images"]] == ["d.png"]
    assert read["annotations"] == []


def test_cocos_file_names_are_those_of_the_images_not_of_the_rows(
    prelabel: Run, photos: Path, tmp_path: Path
) -> None:
    data = "data:image/png;base64," + base64.b64encode((photos / "a.png").read_bytes()).decode()
    rows = [("x1", "photos/a.png"), ("x2", photos / "b.png"), ("x3", "photos/deep/g h.png"), ("x4", data)]
    (tmp_path / "list.csv").write_text("id,image\n" + "".join(f'{i},"{path}"\n' for i, path in rows))
    assert prelabel(tmp_path / "list.csv", "--to", tmp_path / "out.coco.json") == 0
    images = read_json(tmp_path / "out.coco.json")["images"]
    names = [image["file_name"] for image in images]
    assert names == ["photos/a.png", str(photos / "b.png"), "photos/deep/g h.png", "x4"]
    assert all((tmp_path / name).is_file() for name in names[:3])
    assert [image.get("coco_url") for image in images] == [
        str(tmp_path / "photos/a.png"), str(photos / "b.png"), str(tmp_path / "photos/deep/g h.png"), None
    ]  # fmt: skip


def test_polygons_for_programs_without_run_lengths(
    prelabel: Run, model: Model, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = disc(20, 30, 15) & ~disc(20, 30, 6) | disc(60, 30, 10)
    monkeypatch.setattr(model, "annotate", lambda *args, **options: [detection("ring", mask)])
    out = tmp_path / "out.coco.json"
    assert prelabel(photos, "--to", out) == 0
    coded = read_json(out)
    # The same run, from its state: nothing is annotated again.
    monkeypatch.setattr(model, "annotate", None)
    assert prelabel(photos, "--to", out, "--coco-polygons") == 0
    drawn = read_json(out)
    assert [len(each["segmentation"]) for each in drawn["annotations"]] == [2] * 7
    read = COCO(str(out))
    assert iou(read.annToMask(read.loadAnns([1])[0]).astype(bool), mask) > 0.9
    for one in (coded, drawn):
        for each in one["annotations"]:
            del each["segmentation"]
    assert coded == drawn


@pytest.mark.slow
def test_label_studios_own_converter_imports_coco(prelabel: Run, photos: Path, tmp_path: Path) -> None:
    coco, out = tmp_path / "out.coco.json", tmp_path / "tasks.json"
    assert prelabel(photos, "--to", coco, "--coco-polygons") == 0
    converter = [sys.executable, "-m", "label_studio_sdk.converter.main", "import", "coco"]
    root = "/data/local-files/?d=photos"
    subprocess.run(
        [*converter, "-i", coco, "-o", out, "--out-type", "predictions", "--image-root-url", root],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    tasks = read_json(out)
    assert [task["data"]["image"] for task in tasks][4] == f"{root}/deep/g%20h.png"
    results = [task["predictions"][0]["result"] for task in tasks]
    assert [len(result) for result in results] == [2, 4, 6, 0, 6, 2, 4]  # a box and a polygon for each
    polygon = decode(results[0][1], (60, 80))
    assert polygon is not None
    assert iou(polygon, disc(11, 20, 8)) > 0.9
