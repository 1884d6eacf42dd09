import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet
from pycocotools import mask as masks

from tests.support.detections import disc

Run = Callable[..., int]


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
