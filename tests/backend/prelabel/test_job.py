"""`vlsam prelabel` from the command to its files, with a model that is fast."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from backend.answers.placement import Labelling, annotation, prediction
from backend.datasets.run_state import State
from backend.images.image_cache import image_hash
from backend.labelstudio import labeling_config
from backend.labelstudio.region_reading import decode
from backend.prelabel import sources
from backend.settings import Settings
from model.types import Detection, Image
from tests.support.colour_model import HOPELESS, TIGHT, Model, save_image
from tests.support.fake_web import Web
from tests.support.labeling_configs import CONFIG
from tests.support.paths import ROOT
from tests.support.vlm_endpoint import listing
from tests.support.waiting import wait_for

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
    config = labeling_config.parse((folder / "labels.xml").read_text())
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
    version = settings.version(settings.models.select())
    source = sources.choose(str(photos / "c.png"), settings, image_key="image", prefix=None)
    pixels = source.loader.read(*source.items())[1]
    found_in_it = Model().annotate(pixels)
    regions, unmatched = annotation(
        found_in_it, Labelling(labeling_config.parse(CONFIG)), image_hash(pixels), version
    )
    assert found[2]["predictions"] == json.loads(json.dumps([prediction(regions, version)]))
    assert unmatched == {"<b>mouse</b>": 1}
    summary = json.loads((tmp_path / "out.json.state" / "summary.json").read_text())
    assert summary["dropped_terms"] == {"<b>mouse</b>": 2}
    assert summary["labels"] == {"Cat": 6, "Dog": 4}
    assert summary["scores"]["0.9"] == 6


def test_empty_predictions_say_why_as_the_servers_do(prelabel: Run, photos: Path, tmp_path: Path) -> None:
    out, ui = tmp_path / "out.json", tmp_path / "ui.xml"
    status = '<TextArea name="vlsam_status" toName="image"/></View>'
    ui.write_text(CONFIG.replace("Cat", "Unicorn").replace("Dog", "Griffin").replace("</View>", status))
    assert prelabel(photos, "--to", out, "--label-config", ui) == 0
    told = [task["predictions"][0]["result"][0]["value"]["text"] for task in tasks(out)]
    assert told[1] == ["VL-SAM saw: cat, dogs. No label of this project fits."]
    assert told[3] == ["VL-SAM found no object in this image."]


def test_an_endpoint_lists_ahead_of_the_models(
    prelabel: Run, model: Model, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Any] = []

    def annotate(image: Image, vocabulary: Sequence[str], remote_answers: Any) -> list[Detection]:
        wait_for(lambda: len(lister.asked) >= 4)
        heard.append((len(lister.asked), remote_answers))
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
        assert prelabel(photos, "--to", tmp_path / "refused.json") == 1
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


@pytest.mark.slow
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
    assert "reduced to half their size to save memory: 2 images" in capsys.readouterr().err
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


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["json", "coco.json", "yolo", "parquet"])
def test_f31_a_file_that_was_replaced_under_its_name_is_annotated_again(
    ending: str, prelabel: Run, model: Model, photos: Path, tmp_path: Path
) -> None:
    out, fresh = tmp_path / f"out.{ending}", tmp_path / f"fresh.{ending}"
    assert prelabel(photos, "--to", out) == 0
    os.replace(photos / "c.png", photos / "a.png")  # older than the run, of the same size
    save_image(photos / "c.png", 3)  # another file, and the same picture
    os.utime(photos / "d.png")
    model.seen.clear()
    assert prelabel(photos, "--to", out) == 0
    assert model.seen == [3]
    assert prelabel(photos, "--to", out) == 0
    assert model.seen == [3]
    assert prelabel(photos, "--to", fresh) == 0
    for path in sorted(out.rglob("*.*")) or [out]:  # what there would be without a first run
        other = fresh / path.relative_to(out)
        if path.suffix == ".parquet":
            assert parquet.read_table(path).equals(parquet.read_table(other))
        elif path.name != "data.yaml":  # which holds the folder's own name
            assert path.read_bytes() == other.read_bytes()


def test_a_file_that_was_replaced_by_none_fails_with_its_reason(
    prelabel: Run, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.json"
    assert prelabel(photos, "--to", out) == 0
    (photos / "b.png").write_text("text")
    assert prelabel(photos, "--to", out) == 0
    assert tasks(out)[1]["predictions"] == []


def test_rows_of_a_parquet_file_are_annotated_again_where_their_picture_is_another(
    prelabel: Run, model: Model, photos: Path, tmp_path: Path
) -> None:
    out, source = tmp_path / "out.json", tmp_path / "hf.parquet"

    def write(names: str) -> None:
        data = [{"bytes": (photos / f"{name}.png").read_bytes(), "path": None} for name in names]
        parquet.write_table(pyarrow.table({"image": data}), source)

    write("abc")
    assert prelabel(source, "--to", out) == 0
    write("afc")
    model.seen.clear()
    assert prelabel(source, "--to", out) == 0
    assert model.seen == [6]
    assert [len(said(task)) for task in tasks(out)] == [1, 2, 3]


@pytest.mark.slow
def test_names_that_are_no_utf8_go_on_and_into_every_destination(
    prelabel: Run, model: Model, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = os.fsencode(photos) + b"/\xff\xfe.png"
    os.rename(photos / "a.png", raw)
    os.rename(photos / "b.png", os.fsencode(photos) + b"/broken\xe9.png")
    Path(os.fsdecode(os.fsencode(photos) + b"/broken\xe9.png")).write_text("text")
    for ending in ("json", "coco.json", "yolo", "parquet"):
        out = tmp_path / f"out.{ending}"
        assert prelabel(photos, "--to", out, "--limit", "6") == 0
        assert prelabel(photos, "--to", out) == 0
        assert sorted(model.seen) == [1, 3, 4, 5, 6, 7]
        model.seen.clear()
        for path in [*tmp_path.rglob("*.json"), *tmp_path.rglob("*.html"), *tmp_path.rglob("*.yaml")]:
            assert "\\ud" not in path.read_text("utf-8")
    found = [task["data"]["image"] for task in tasks(tmp_path / "out.json")]
    assert f"{photos}/\\xff\\xfe.png" in found
    assert "broken\\xe9.png" in (tmp_path / "out.json.state/sheet.html").read_text("utf-8")
    capsys.readouterr().err.encode()


def test_results_may_lie_in_the_folder_of_the_images(
    prelabel: Run, model: Model, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos)
    for ending in ("json", "yolo"):
        for _ in range(2):
            assert prelabel(".", "--to", f"out.{ending}") == 0
            assert sorted(model.seen) == [1, 2, 3, 4, 5, 6, 7]
        model.seen.clear()


def test_what_is_skipped_is_in_the_summary(
    prelabel: Run, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "._a.png").touch()
    (photos / "again").symlink_to(photos / "deep")
    out = tmp_path / "out.json"
    skipped = {
        "macOS's shadow of a file (._)": 1,
        "no image by its name: .txt": 1,
        "folder that is listed already": 1,
    }
    for number in (1, 2):
        assert prelabel(photos, "--to", out, "--shard", f"{number}/2") == 0
    assert prelabel(photos, "--to", out, "--merge", "2") == 0
    assert json.loads((tmp_path / "out.json.state/summary.json").read_text())["skipped"] == skipped
    err = capsys.readouterr().err
    for reason in skipped:
        assert f"skipped: 1 x {reason}" in err
    assert len(tasks(out)) == 7


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broken", "allowed", "status"),
    [
        (0, None, 0), (6, None, 0), (7, None, 1),
        (0, "0", 0), (1, "0", 1), (2, "2", 0), (3, "2", 1), (7, "9", 1),
        (1, "15%", 0), (2, "15%", 1), (7, "100%", 1), (1, "14.2%", 1),
    ],
)  # fmt: skip
def test_the_exit_status_tells_of_failures(
    broken: int, allowed: str | None, status: int, prelabel: Run, photos: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for path in sorted(photos.rglob("*.png"))[:broken]:
        path.write_text("text")
    arguments = [photos, "--to", tmp_path / "out.json", *(["--max-failures", allowed] if allowed else [])]
    assert prelabel(*arguments) == status
    last = capsys.readouterr().err.splitlines()[-1]
    assert ("every image failed" in last) == (broken == 7)
    assert ("more than --max-failures" in last) == (status == 1 and broken < 7)
    assert len(tasks(tmp_path / "out.json")) == 7  # the run goes on to its end
    assert prelabel(*arguments) == status  # which is that of all images, not of those tried now


def test_the_exit_status_of_a_merge(prelabel: Run, photos: Path, tmp_path: Path) -> None:
    (photos / "a.png").write_text("text")
    out = tmp_path / "out.json"
    for number in (1, 2):
        prelabel(photos, "--to", out, "--shard", f"{number}/2")
    assert prelabel(photos, "--to", out, "--merge", "2") == 0
    assert prelabel(photos, "--to", out, "--merge", "2", "--max-failures", "0") == 1


@pytest.mark.parametrize("text", ["-1", "x", "5%%", "%", "1e3", "nan", ""])
def test_max_failures_is_a_number_or_a_share(
    text: str, prelabel: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        prelabel("photos", "--to", "out.json", f"--max-failures={text}")
    assert capsys.readouterr().err.endswith(f"{text!r} is not like 20 or 5%\n")


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


@pytest.mark.slow
def test_f29_no_secret_of_source_or_images_is_in_the_state(
    prelabel: Run,
    web: Web,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("VLSAM_ALLOWED_HOSTS", "127.0.0.1")
    web.serve("/a.png", save_image(tmp_path / "a.png", 1).read_bytes())
    web.serve("/bad.png", b"text")

    def listed(secret: str) -> Path:
        query = f"X-Amz-Date={secret[:4]}&X-Amz-Signature={secret}"
        rows = [f"{web.url}/{name}?{query}" for name in ("a.png", "bad.png")]
        (tmp_path / "list.csv").write_text("\n".join(["image", *rows]))
        return tmp_path / "list.csv"

    out, secrets = tmp_path / "out.json", ("d0c5a1f0e7b34c1b", "f0c5a1f0e7b34c1b")
    assert prelabel(listed(secrets[0]), "--to", out) == 0
    assert prelabel(listed(secrets[1]), "--to", out) == 0  # signed again: what is done stays done
    assert "1 of 2 images are done already" in capsys.readouterr().err
    state = tmp_path / "out.json.state"
    assert stat.S_IMODE((state / "items.jsonl").stat().st_mode) == 0o600
    for file in state.iterdir():
        if file.is_file() and file.name != "items.jsonl":  # which has what is to be fetched
            assert not any(secret in file.read_text() for secret in secrets), file.name

    prefix = "https://joe:hunter22@cdn/?token=hunter33&d="
    assert prelabel(tmp_path / "a.png", "--to", tmp_path / "b.json", "--image-prefix", prefix) == 0
    told = (tmp_path / "b.json.state" / "run.json").read_text()
    assert "cdn" in told
    assert "hunter" not in told
    assert prelabel("https://joe:hunter22@127.0.0.1:9/list.csv", "--to", tmp_path / "c.json") == 2
    assert "hunter" not in capsys.readouterr().err
    assert "hunter" not in (tmp_path / "c.json.state" / "run.json").read_text()


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
        (["{photos}", "--to", "taken.yolo"], "is there already"),
        (["{photos}", "--to", "out.json", "--label-config", "ui.xml"], "ui.xml cannot be read"),
        (["labelstudio://7", "--to", "labelstudio://7"], "needs LABEL_STUDIO_URL"),
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
    (tmp_path / "taken.yolo").mkdir()
    assert prelabel(*(part.format(photos=photos) for part in arguments)) == 2
    assert reason in capsys.readouterr().err.splitlines()[-1]
    assert (tmp_path / "taken.json").read_text() == "precious"


@pytest.mark.parametrize(
    ("source", "to", "reason"),
    [
        ("mine.yolo/images", "mine.yolo", "contains SOURCE"),
        ("mine.yolo/images/*.png", "mine.yolo", "contains SOURCE"),
        ("file://{here}/mine.yolo", "mine.yolo", "contains SOURCE"),
        ("linked", "mine.yolo", "contains SOURCE"),
        ("list.parquet", "list.parquet", "contains SOURCE"),
        ("other.png", "mine.yolo", "a folder that no run has written"),
        ("other.png", "folder.json", "a folder that no run has written"),
        ("other.png", "file.yolo", "a file that no run has written"),
    ],
)
def test_no_restart_takes_away_images_lists_or_folders_of_somebody(
    source: str, to: str, reason: str, prelabel: Run, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    image = save_image(tmp_path / "mine.yolo/images/a.png", 1).read_bytes()
    save_image(tmp_path / "other.png", 2)
    save_image(tmp_path / "folder.json/a.png", 1)
    (tmp_path / "linked").symlink_to("mine.yolo/images")
    (tmp_path / "file.yolo").write_text("precious")
    parquet.write_table(pyarrow.table({"image": [image]}), tmp_path / "list.parquet")
    assert prelabel(source.format(here=tmp_path), "--to", to, "--restart") == 2
    assert reason in capsys.readouterr().err.splitlines()[-1]
    assert (tmp_path / "mine.yolo/images/a.png").read_bytes() == image
    assert parquet.read_schema(tmp_path / "list.parquet").names == ["image"]


def test_help_teaches(capsys: pytest.CaptureFixture[str], prelabel: Run) -> None:
    with pytest.raises(SystemExit, match="0"):
        prelabel("--help")
    out = capsys.readouterr().out
    assert "vlsam prelabel labelstudio://7 --to labelstudio://7" in out
    assert "out.coco.json" in out
    assert "--max-failures" in out
    assert "exit status:" in out


@pytest.mark.slow
def test_f31_killed_at_any_moment_it_goes_on_with_nothing_lost_and_nothing_done_twice(tmp_path: Path) -> None:
    """Kill -9 at random points of a run, again and again (killed.py)."""
    told = subprocess.run(
        [sys.executable, "-m", "tests.support.prelabel_killed", str(tmp_path)],
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
    assert "another run is working" in err
    assert "process " in err
