"""`vlsam prelabel` from the command to its files, with a model that is fast."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from backend import labels
from backend.predictor import annotation, prediction
from backend.prelabel import sources
from backend.prelabel.state import State
from backend.results import decode, image_hash
from backend.settings import Settings
from model.types import Detection, Image
from tests.backend.conftest import CONFIG, ROOT
from tests.backend.prelabel.conftest import HOPELESS, TIGHT, Model, save_image
from tests.model.endpoint import listing

Run = Callable[..., int]


def tasks(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))
    return found


def said(task: dict[str, Any]) -> list[str]:
    return [label for region in task["predictions"][0]["result"] for label in region["value"]["brushlabels"]]


def test_a_folder_becomes_a_list_that_label_studio_imports(
    prelabel: Run, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    assert prelabel(photos, "--to", out) == 0
    found = tasks(out)
    names = ["a.png", "b.png", "c.png", "d.png", "deep/g h.png", "e.png", "f.png"]
    assert [task["data"]["image"] for task in found] == [f"{photos}/{name}" for name in names]
    # Without a config a term is its own label.
    assert [said(task) for task in found] == [
        ["cat"],
        ["cat", "dogs"],
        ["cat", "dogs", "<b>mouse</b>"],
        [],
        ["cat", "dogs", "<b>mouse</b>"],
        ["cat"],
        ["cat", "dogs"],
    ]
    (one,) = found[0]["predictions"][0]["result"]
    mask = decode(one, (60, 80))
    assert mask is not None
    assert mask[20, 11]
    folder = tmp_path / "out.json.state"
    assert {path.name for path in folder.iterdir()} == {
        "run.json", "lock", "items.jsonl", "rows.jsonl", "samples", "summary.json", "sheet.html", "labels.xml"
    }  # fmt: skip
    config = labels.parse((folder / "labels.xml").read_text())
    assert [label.value for label in config.outputs[0].labels] == ["cat", "dogs", "<b>mouse</b>"]
    err = capsys.readouterr().err
    assert "7 images: 7 labelled with 12 regions, 1 of them empty; 0 failed" in err
    assert "demo weights" in err


def test_predictions_are_those_of_the_server(prelabel: Run, photos: Path, tmp_path: Path) -> None:
    out, ui = tmp_path / "out.json", tmp_path / "ui.xml"
    ui.write_text(CONFIG)
    assert (
        prelabel(photos, "--to", out, "--label-config", ui, "--image-prefix", "/data/local-files/?d=p/") == 0
    )
    found = tasks(out)
    assert found[4]["data"]["image"] == "/data/local-files/?d=p/deep/g%20h.png"
    settings = Settings()
    version = settings.version(settings.models())
    source = sources.choose(str(photos / "c.png"), settings, image_key="image", prefix=None)
    pixels = source.loader.load(*source.items())
    found_in_it = Model().annotate(pixels)
    regions, unmatched = annotation(found_in_it, labels.parse(CONFIG), image_hash(pixels), version)
    assert found[2]["predictions"] == json.loads(json.dumps([prediction(regions, version)]))
    assert unmatched == {"<b>mouse</b>": 1}
    summary = json.loads((tmp_path / "out.json.state" / "summary.json").read_text())
    assert summary["dropped_terms"] == {"<b>mouse</b>": 2}
    assert summary["labels"] == {"Cat": 6, "Dog": 4}
    assert summary["scores"]["0.9"] == 6


def test_an_endpoint_lists_ahead_of_the_models(
    prelabel: Run, model: Model, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Any] = []

    def annotate(image: Image, vocabulary: Sequence[str], said: Any) -> list[Detection]:
        until = time.monotonic() + 20
        while len(lister.asked) < 4 and time.monotonic() < until:
            time.sleep(0.01)
        heard.append((len(lister.asked), said))
        return []

    monkeypatch.setattr(model, "annotate", annotate)
    with listing() as lister:
        for name, value in lister.environment.items():
            monkeypatch.setenv(name, value)
        assert prelabel(photos, "--to", tmp_path / "out.json") == 0
        assert heard[0][0] >= 4
        assert [said for _, said in heard] == [[[("List all objects in the image.", "dog, bus.")]]] * 7
        assert len(lister.asked) == 7

        lister.status = 401
        assert prelabel(photos, "--to", tmp_path / "refused.json") == 0
        summary = json.loads((tmp_path / "refused.json.state" / "summary.json").read_text())
        assert summary["failed"] == 7
        assert "refuses the key (401)" in str(summary["failures"])
        assert len(heard) == 7


def test_what_fails_is_a_row_with_its_reason_and_is_tried_again(
    prelabel: Run, model: Model, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    (photos / "b.png").write_text("text")
    save_image(photos / "c.png", 3, green=255)
    assert prelabel(photos, "--to", out) == 0
    found = tasks(out)
    assert [task.get("meta") for task in found[:4]] == [
        None,
        {"vlsam_error": "There is text where an image should be."},
        {"vlsam_error": "RuntimeError: made to fail"},
        None,
    ]
    assert found[1]["predictions"] == []
    assert "2 failed" in capsys.readouterr().err
    save_image(photos / "b.png", 2)
    model.seen.clear()
    assert prelabel(photos, "--to", out) == 0
    assert model.seen == [2, 3]  # and nothing of what was done
    assert said(tasks(out)[1]) == ["cat", "dogs"]


def test_f4_without_memory_an_image_is_seen_smaller_and_counted(
    prelabel: Run, model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for red, (name, green) in enumerate({"a": 0, "b": TIGHT, "c": HOPELESS, "d": 0, "e": TIGHT}.items(), 1):
        save_image(tmp_path / "photos" / f"{name}.png", 4 if name == "e" else red, green)
    out = tmp_path / "out.json"
    assert prelabel(tmp_path / "photos", "--to", out) == 0
    assert model.seen == [1, 2, 2, 3, 3, 4, 4, 4]  # those without memory twice
    lines = (tmp_path / "out.json.state" / "rows.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row.get("reduced", False) for row in rows] == [False, True, False, False, True]
    assert [row["status"] for row in rows] == ["done", "done", "failed", "done", "done"]
    assert "too little memory for this image" in rows[2]["reason"]
    summary = json.loads((tmp_path / "out.json.state" / "summary.json").read_text())
    assert (summary["reduced"], summary["failed"]) == (2, 1)
    assert "seen in half their size, for want of memory: 2 images" in capsys.readouterr().err
    versions = {task["predictions"][0]["model_version"] for task in tasks(out) if task["predictions"]}
    assert len(versions) == 1


def test_images_that_came_since_are_added(prelabel: Run, model: Model, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    assert prelabel(photos, "--to", out, "--limit", "2") == 0
    assert len(tasks(out)) == 2
    save_image(photos / "aa.png", 9)
    (photos / "a.png").unlink()
    assert prelabel(photos, "--to", out) == 0
    assert [Path(task["data"]["image"]).name for task in tasks(out)[:2]] == ["aa.png", "b.png"]
    assert sorted(model.seen) == [1, 2, 3, 4, 5, 6, 7, 9]


def test_another_command_does_not_go_on_from_a_state(
    prelabel: Run, model: Model, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    out, ui = tmp_path / "out.json", tmp_path / "ui.xml"
    ui.write_text(CONFIG)
    assert prelabel(photos, "--to", out) == 0
    before = out.read_bytes()
    assert prelabel(photos, "--to", out, "--label-config", ui) == 2
    assert "label config was 'None', is '<View>" in capsys.readouterr().err
    monkeypatch.setenv("VLSAM_ATTENTION", "paper")
    assert prelabel(photos, "--to", out) == 2
    err = capsys.readouterr().err
    assert "model version was 'vlsam-builtin-" in err
    assert "--restart" in err
    assert out.read_bytes() == before
    model.seen.clear()
    assert prelabel(photos, "--to", out, "--label-config", ui, "--restart") == 0
    assert len(model.seen) == 7
    assert tasks(out)[0]["predictions"][0]["result"][0]["value"]["brushlabels"] == ["Cat"]


def test_shards_merge_to_the_same_bytes(
    prelabel: Run, model: Model, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, out = tmp_path / "whole.json", tmp_path / "out.json"
    assert prelabel(photos, "--to", whole) == 0
    model.seen.clear()
    assert prelabel(photos, "--to", out, "--shard", "1/3") == 0
    assert prelabel(photos, "--to", out, "--shard", "2/3") == 0
    assert prelabel(photos, "--to", out, "--merge", "3") == 2
    assert "1 of 3 shards were not run here: out.json.3-of-3.state" in capsys.readouterr().err
    assert not out.exists()
    assert prelabel(photos, "--to", out, "--shard", "3/3") == 0
    assert sorted(model.seen) == [1, 2, 3, 4, 5, 6, 7]
    assert prelabel(photos, "--to", out, "--merge", "3") == 0
    assert out.read_bytes() == whole.read_bytes()
    one, other = ((tmp_path / f"{name}.json.state" / "summary.json") for name in ("whole", "out"))
    assert one.read_bytes() == other.read_bytes()


def test_a_shard_that_was_stopped_is_not_merged(
    prelabel: Run, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    for number in (1, 2):
        assert prelabel(photos, "--to", out, "--shard", f"{number}/2") == 0
    rows = tmp_path / "out.json.2-of-2.state" / "rows.jsonl"
    rows.write_bytes(b"".join(rows.read_bytes().splitlines(keepends=True)[:-1]))
    assert prelabel(photos, "--to", out, "--merge", "2") == 2
    assert "not done yet: out.json.2-of-2.state" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["nowhere/", "--to", "out.json"], "nowhere/: there is no such folder"),
        (["{photos}", "--to", "out.txt"], "the name must end in .json"),
        (["{photos}", "--to", "out.json", "--limit", "0"], "--limit must be 1"),
        (["{photos}", "--to", "taken.json"], "is there already"),
        (["{photos}", "--to", "out.json", "--label-config", "ui.xml"], "ui.xml cannot be read"),
        (["{photos}", "--to", "labelstudio://7"], "needs LABEL_STUDIO_URL"),
        (["labelstudio://seven", "--to", "out.json"], "named by its number"),
        (["list.csv", "--to", "out.json", "--image-prefix", "x"], "--image-prefix goes with a folder"),
        (["{photos}", "--to", "taken.json/out.json"], "Not a directory"),
    ],
)
def test_wrong_arguments_are_one_sentence(
    arguments: list[str], reason: str, prelabel: Run, photos: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for name in ("LABEL_STUDIO_URL", "LABEL_STUDIO_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "taken.json").write_text("precious")
    assert prelabel(*(part.format(photos=photos) for part in arguments)) == 2
    assert reason in capsys.readouterr().err.splitlines()[-1]
    assert (tmp_path / "taken.json").read_text() == "precious"


def test_help_teaches(capsys: pytest.CaptureFixture[str], prelabel: Run) -> None:
    with pytest.raises(SystemExit, match="0"):
        prelabel("--help")
    out = capsys.readouterr().out
    assert "vlsam prelabel labelstudio://7 --to labelstudio://7" in out
    assert "out.coco.json" in out


def test_f31_killed_at_any_moment_it_goes_on_with_nothing_lost_and_nothing_done_twice(tmp_path: Path) -> None:
    """Kill -9 at random points of a run, again and again (killed.py)."""
    told = subprocess.run(
        [sys.executable, "-m", "tests.backend.prelabel.killed", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        timeout=240,
    )
    assert told.returncode == 0, told.stderr.decode()[-3000:]
    kills = json.loads(told.stdout.splitlines()[-1])
    assert kills["after a row"] >= 3


def test_a_second_run_on_the_same_state_is_refused(
    prelabel: Run, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out.json.state"
    with State(folder).open({"of": "another command"}):
        assert prelabel(photos, "--to", tmp_path / "out.json") == 2
    err = capsys.readouterr().err
    assert "another run is at work" in err
    assert "process " in err
