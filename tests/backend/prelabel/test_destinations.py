import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from pyarrow import parquet
from pycocotools import mask as masks
from pycocotools.coco import COCO

from backend import shapes
from model.merge import iou
from tests.backend.conftest import CONFIG, disc

Run = Callable[..., int]


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
    assert pictures[0]["file_name"] == "a.png"
    (cat,) = read.loadAnns(read.getAnnIds(imgIds=[1]))
    assert np.array_equal(read.annToMask(cat), disc(11, 20, 8))
    assert (cat["area"], cat["bbox"]) == (disc(11, 20, 8).sum(), [3, 12, 16, 16])


def test_yolo(prelabel: Run, photos: Path, tmp_path: Path) -> None:
    out, ui = tmp_path / "out.yolo", tmp_path / "ui.xml"
    ui.write_text(CONFIG)
    assert prelabel(photos, "--to", out, "--label-config", ui) == 0
    # The classes are the project's, in its order, whether they were found or not.
    assert (out / "data.yaml").read_text().splitlines()[-3:] == ["names:", '  0: "Cat"', '  1: "Dog"']
    names = sorted(path.stem for path in (out / "labels").iterdir())
    assert names == sorted(path.stem for path in (out / "images").iterdir())
    assert names[4] == "00000005-g_h"
    with Pillow.open(out / "images" / "00000005-g_h.png") as image:
        assert image.size == (80, 60)
    assert (out / "labels" / "00000004-d.txt").read_text() == ""
    lines = [line.split() for line in (out / "labels" / "00000002-b.txt").read_text().splitlines()]
    assert [line[0] for line in lines] == ["0", "1"]
    ring = np.array(lines[0][1:], float).reshape(-1, 2) * (80, 60)
    assert iou(shapes.fill(ring, (60, 80)), disc(12, 20, 8)) > 0.9
    (photos / "a.png").unlink()
    assert prelabel(photos, "--to", out, "--label-config", ui) == 0  # over its own older one
    assert len(list((out / "labels").iterdir())) == 6


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
    assert "pip install 'vlsam[prelabel]'" in capsys.readouterr().err
    assert not (tmp_path / "out.parquet.state").exists()
