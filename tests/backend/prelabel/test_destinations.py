import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backend.prelabel.destinations import ImportList
from tests.support.colour_model import Model
from tests.support.detections import detection, disc

Run = Callable[..., int]


def read_json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def test_an_empty_mask_is_no_object(
    prelabel: Run, model: Model, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [detection("none", np.zeros((60, 80), bool)), detection("cat", disc(20, 30, 10))]
    monkeypatch.setattr(model, "annotate", lambda *args, **options: found)
    out = tmp_path / "out.coco.json"
    assert prelabel(photos / "a.png", "--to", out, "--coco-polygons") == 0
    (only,) = read_json(out)["annotations"]
    assert only["bbox"] == [10, 20, 20, 20]


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


def test_a_list_without_tasks_is_json_too(tmp_path: Path) -> None:
    ImportList(tmp_path / "out.json", "v").write(list, [])
    assert read_json(tmp_path / "out.json") == []
