import base64
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image as Pillow
from pyarrow import parquet
from pycocotools import mask as masks
from pycocotools.coco import COCO

from backend.labelstudio import geometry
from backend.labelstudio.results import decode
from backend.prelabel.destinations import Yolo
from backend.prelabel.sources import Files
from backend.settings import Settings
from model.segmentation.non_maximum_suppression import iou
from tests.support.colour_model import Model
from tests.support.detections import detection, disc
from tests.support.labeling_configs import CONFIG

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


def test_an_empty_mask_is_no_object(
    prelabel: Run, model: Model, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [detection("none", np.zeros((60, 80), bool)), detection("cat", disc(20, 30, 10))]
    monkeypatch.setattr(model, "annotate", lambda *args, **options: found)
    out = tmp_path / "out.coco.json"
    assert prelabel(photos / "a.png", "--to", out, "--coco-polygons") == 0
    (only,) = read_json(out)["annotations"]
    assert only["bbox"] == [10, 20, 20, 20]


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


@pytest.mark.parametrize(
    ("to", "option"),
    [("out.json", "--coco-polygons"), ("out.yolo", "--coco-polygons"), ("out.coco.json", "--copy-images")],
)
def test_options_of_another_format_are_refused(
    to: str, option: str, prelabel: Run, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prelabel(photos, "--to", tmp_path / to, option) == 2
    assert f"{option} goes with --to NAME." in capsys.readouterr().err
    assert not (tmp_path / f"{to}.state").exists()


def test_yolo(prelabel: Run, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, ui = tmp_path / "out.yolo", tmp_path / "ui.xml"
    ui.write_text(CONFIG)
    assert prelabel(photos, "--to", out, "--label-config", ui) == 0
    # The classes are the project's, in its order, whether they were found or not. Without `path` a trainer
    # looks beside the file, wherever it is started.
    assert yaml.safe_load((out / "data.yaml").read_text()) == {
        "train": "images",
        "val": "images",
        "names": {0: "Cat", 1: "Dog"},
    }
    names = sorted(path.stem for path in (out / "labels").iterdir())
    assert names == ["a", "b", "c", "d", "e", "f", "g h"]
    assert names == sorted(path.stem for path in (out / "images").iterdir())
    assert (out / "images" / "g h.png").resolve() == (photos / "deep" / "g h.png").resolve()
    assert "images linked: 7" in capsys.readouterr().err
    assert (out / "labels" / "d.txt").read_text() == ""
    lines = [line.split() for line in (out / "labels" / "b.txt").read_text().splitlines()]
    assert [line[0] for line in lines] == ["0", "1"]
    ring = np.array(lines[0][1:], float).reshape(-1, 2) * (80, 60)
    assert iou(geometry.fill(ring, (60, 80)), disc(12, 20, 8)) > 0.9
    (photos / "a.png").unlink()
    assert prelabel(photos, "--to", out, "--label-config", ui) == 0  # over its own older one
    assert len(list((out / "labels").iterdir())) == 6


def test_yolos_names_are_text_whatever_a_model_says(tmp_path: Path) -> None:
    names = ['"a": {b}', "\U0001f600", "line\nbreak", "\x7f\x85\u2028\ufeff\ufffe", "#c", "no", "Äß"]
    assert Yolo(tmp_path / "out.yolo", Files(Settings())).write(list, names) == {}
    assert yaml.safe_load((tmp_path / "out.yolo" / "data.yaml").read_text("utf-8"))["names"] == dict(
        enumerate(names)
    )


def test_parquet(prelabel: Run, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    (photos / "b.png").write_text("text")
    assert prelabel(photos, "--to", out) == 0
    rows = parquet.read_table(out).to_pylist()
    assert [row["key"] for row in rows][:2] == ["a.png", "b.png"]
    (cat,) = rows[0]["detections"]
    assert (cat["term"], cat["label"], cat["score"]) == ("cat", "cat", 0.9)
    assert np.array_equal(masks.decode(cat["mask"]), disc(11, 20, 8))
    assert rows[0]["error"] is None
    assert json.loads(rows[0]["data"]) == {"image": str(photos / "a.png")}
    assert rows[1]["error"] == "There is text where an image should be."
    assert rows[1]["detections"] is None
    assert rows[3]["detections"] == []


def test_without_the_extra_parquet_is_refused_before_the_work(
    prelabel: Run,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    assert prelabel(photos, "--to", tmp_path / "out.parquet") == 2
    assert "pip install pyarrow" in capsys.readouterr().err
    assert not (tmp_path / "out.parquet.state").exists()
