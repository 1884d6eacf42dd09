"""`vlsam prelabel --ray`, on a real cluster of two nodes (two_nodes.py)."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
from PIL import Image as Pillow

from backend.datasets.items import Item
from backend.images.image_cache import image_hash
from backend.labelstudio import labeling_config
from backend.prelabel.annotator import Annotator
from backend.prelabel.cluster import BLOCK, Actor, ClusterError, fetch, workers_that_fit
from backend.prelabel.destinations import choose
from backend.prelabel.sources import Files
from backend.settings import Settings
from model.builtin.scenes import draw_scene
from tests.support.colour_model import HOPELESS, TIGHT, Model, save_image
from tests.support.paths import ROOT
from tests.support.processes import free_port

Run = Callable[..., int]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With photos of a drawn object each, seven blocks of them, and a file that is none."""
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(5)
    for number in range(7 * BLOCK - 1):
        scene = draw_scene(rng, width=160, height=120, count=1, scale=(0.5, 0.7), degrade=False)
        Pillow.fromarray(scene.image).save(tmp_path / "photos" / f"{number:02}.png")
    (tmp_path / "photos" / "text.png").write_text("text")
    return tmp_path


def on_two_nodes(what: str, folder: Path) -> Any:
    told = subprocess.run(
        [sys.executable, "-m", "tests.support.prelabel_two_nodes", what, str(folder)],
        cwd=ROOT,
        capture_output=True,
        timeout=900,
    )
    assert told.returncode == 0, told.stderr.decode()[-3000:]
    return json.loads(told.stdout.splitlines()[-1])


def test_f31_f32_a_worker_killed_in_mid_run_changes_no_byte_and_nobody_else_is_listened_to(
    folder: Path,
) -> None:
    told = on_two_nodes("killed", folder)
    assert len(told["killed"]) == 1
    assert told["listening"] == []
    one, other = ((folder / f"{name}.json").read_bytes() for name in ("ray", "alone"))
    assert one == other
    assert b"There is text where an image should be." in one
    rows = (folder / "ray.json.state" / "rows.jsonl").read_text().splitlines()
    assert sorted(json.loads(row)["key"] for row in rows) == sorted(
        path.name for path in (folder / "photos").iterdir()
    )
    sheets = [(folder / f"{name}.json.state" / "sheet.html").read_text() for name in ("ray", "alone")]
    assert sheets[0].replace("ray.json", "alone.json") == sheets[1]
    left = [
        each
        for each in psutil.process_iter(["cmdline"])
        if str(folder) in " ".join(each.info["cmdline"] or [])
    ]
    assert left == []


@pytest.mark.long
def test_f31_an_image_that_ends_workers_spoils_no_other_and_other_weights_end_the_run(folder: Path) -> None:
    told = on_two_nodes("poison", folder)
    assert told["images"] == {
        "a": "done",
        "b": "done",
        "c": "done",
        "poison": "2 workers died over this image.",
    }
    assert told["weights"].startswith("the weights differ: ")


def test_f31_workers_do_not_annotate_again_what_is_the_same_picture(model: Model, photos: Path) -> None:
    settings = Settings()
    profile = settings.models.select(None)
    version = settings.version(profile)
    destination = choose(photos / "out.json", version, Files(settings.images, settings.label_studio))
    annotator = Annotator(settings, profile, version, labeling_config.OPEN, destination)
    known = image_hash(np.asarray(Pillow.open(photos / "a.png")))
    items = [Item(name, str(photos / name), {}, content=known) for name in ("a.png", "b.png")]
    batch = pa.table({"item": [json.dumps(asdict(item)) for item in items]})
    fetched = pa.concat_tables(fetch(batch, loader=Files(settings.images, settings.label_studio)))
    rows = Actor(annotator, ())(fetched).column("row").to_pylist()
    assert [(row["key"], row["status"]) for row in map(json.loads, rows)] == [
        ("a.png", "same"),
        ("b.png", "done"),
    ]
    assert model.seen == [2]


@pytest.mark.parametrize(
    ("there", "asked", "workers"),
    [
        ({"CPU": 8.0, "GPU": 2.0}, None, (2, 1)),
        ({"CPU": 8.0, "GPU": 2.0}, 1, (1, 1)),
        ({"CPU": 8.0}, None, (1, 0)),
        ({"CPU": 8.0}, 7, (7, 0)),
        ({"CPU": 8.0}, 8, "8 workers want a CPU each, and fetching one; the cluster has 8"),
        ({"CPU": 8.0, "GPU": 2.0}, 3, "3 workers want a GPU each; the cluster has 2"),
    ],
)
def test_workers_fit_the_cluster(there: dict[str, float], asked: int | None, workers: Any) -> None:
    ray = SimpleNamespace(cluster_resources=lambda: there)
    if isinstance(workers, str):
        with pytest.raises(ClusterError, match=workers):
            workers_that_fit(ray, asked)
    else:
        found = workers_that_fit(ray, asked)
        assert (found.count, found.gpus) == workers


def work(tmp_path: Path, *files: Path) -> list[dict[str, Any]]:
    """The rows of a worker for some files."""
    settings = Settings()
    profile = settings.models.select()
    version = settings.version(profile)
    destination = choose(tmp_path / "out.json", version, Files(settings.images, settings.label_studio))
    annotator = Annotator(settings, profile, version, labeling_config.OPEN, destination)
    items = [json.dumps(asdict(Item(file.name, str(file), {}))) for file in files]
    fetched = pa.concat_tables(
        fetch(pa.table({"item": items}), loader=Files(settings.images, settings.label_studio))
    )
    return [json.loads(row) for row in Actor(annotator, sampled=())(fetched).column("row").to_pylist()]


@pytest.mark.usefixtures("model")
def test_f4_a_worker_tries_again_with_less_memory(tmp_path: Path) -> None:
    found = work(tmp_path, *(save_image(tmp_path / f"{n}.png", 1, n) for n in (0, TIGHT, HOPELESS)))
    assert [row.get("reduced", False) for row in found] == [False, True, False]
    assert [row["status"] for row in found] == ["done", "done", "failed"]


def test_f35_an_image_that_the_models_refuse_takes_no_other_along(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By the same loop as without Ray."""
    for name, size in (("strip", (900, 4)), ("photo", (160, 120))):
        Pillow.new("RGB", size).save(tmp_path / f"{name}.png")
    strip, photo = work(tmp_path, tmp_path / "strip.png", tmp_path / "photo.png")
    assert strip["status"] == "failed"
    assert strip["reason"].startswith("the VLM does not take an image of 900 x 4 pixels: ")
    assert photo["status"] == "done"
    assert not [record for record in caplog.records if record.exc_info]


def test_without_the_extra(
    prelabel: Run,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert prelabel(photos, "--to", tmp_path / "out.json", "--ray") == 2
    assert "pip install 'ray[data]" in capsys.readouterr().err


def test_where_no_cluster_is(
    prelabel: Run, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prelabel(photos, "--to", tmp_path / "out.json", "--ray", f"127.0.0.1:{free_port()}") == 2
    assert "no cluster answers there" in capsys.readouterr().err


def test_workers_go_with_ray(
    prelabel: Run, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prelabel(photos, "--to", tmp_path / "out.json", "--workers", "2") == 2
    assert "goes with --ray" in capsys.readouterr().err
