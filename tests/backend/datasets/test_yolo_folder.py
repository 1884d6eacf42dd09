from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from backend.datasets.yolo_folder import Yolo
from backend.prelabel.sources import Files
from backend.settings import ImageSettings, LabelStudioSettings
from model.segmentation.non_maximum_suppression import iou
from tests.support.detections import disc, ring_mask
from tests.support.labeling_configs import CONFIG

Run = Callable[..., int]


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
    assert iou(ring_mask(ring, (60, 80)), disc(12, 20, 8)) > 0.9
    (photos / "a.png").unlink()
    assert prelabel(photos, "--to", out, "--label-config", ui) == 0  # over its own older one
    assert len(list((out / "labels").iterdir())) == 6


def test_yolos_names_are_text_whatever_a_model_says(tmp_path: Path) -> None:
    names = ['"a": {b}', "\U0001f600", "line\nbreak", "\x7f\x85\u2028\ufeff\ufffe", "#c", "no", "Äß"]
    assert Yolo(tmp_path / "out.yolo", Files(ImageSettings(), LabelStudioSettings())).write(list, names) == {}
    assert yaml.safe_load((tmp_path / "out.yolo" / "data.yaml").read_text("utf-8"))["names"] == dict(
        enumerate(names)
    )
