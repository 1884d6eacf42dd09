import json
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from pycocotools import mask as coco
from werkzeug.serving import make_server

from backend.answers.resources import Resources
from backend.commands.cli import main
from backend.web.app import create_app
from model.options import Options
from model.pipeline import VLSAM
from model.profiles import choose
from model.types import Detection, Image
from model.versions import version_of
from tests.support.colour_model import Model, save_image
from tests.support.detections import detection, disc
from tests.support.images import data_url
from tests.support.paths import BIN
from tests.support.processes import free_port
from tests.support.stand_in import StandIn

SAMPLE = "model/builtin/samples/scene-04.jpg"


@pytest.mark.slow
def test_annotate_prints_one_item_per_image(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = tmp_path / "notes.jpg"
    text.write_text("no image at all")
    assert main(["annotate", SAMPLE, str(text), "--json", "--overlay", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    good, bad = json.loads(out)
    with Pillow.open(SAMPLE) as image:
        assert (good["width"], good["height"]) == image.size
    for each in good["detections"]:
        mask = coco.decode(each["mask"])
        assert mask.shape == (good["height"], good["width"])
        x0, y0, x1, y1 = each["box"]
        rows, columns = np.nonzero(mask)
        assert (x0, y0, x1, y1) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert each["evidence"]["points"][0][2] == 1
        assert each["evidence"]["reduced"] is False
    assert bad["detections"] == []
    assert bad["error"]
    assert str(text) in err
    assert (tmp_path / "scene-04.png").exists()
    assert "demo weights" in err


@pytest.mark.slow
def test_annotate_without_json_names_what_was_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["annotate", SAMPLE]) == 0
    assert capsys.readouterr().out.startswith(f"{SAMPLE}: ")


@pytest.mark.slow
def test_maps_are_written_as_pictures_a_sheet_per_image(tmp_path: Path) -> None:
    assert main(["annotate", SAMPLE, "--maps", str(tmp_path), "--layers"]) == 0
    sheets = sorted(path.name for path in tmp_path.iterdir())
    assert sheets[0] == "scene-04-1-layers.png"
    assert sheets[-1] == "scene-04.png"
    with Pillow.open(SAMPLE) as image, Pillow.open(tmp_path / "scene-04.png") as sheet:
        assert sheet.width == 3 * image.width
        assert np.asarray(sheet).std() > 10


@pytest.fixture
def red(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to be in, with the images a/x.jpg, b/x.jpg, x.png and x.tif, and a fast model."""
    monkeypatch.chdir(tmp_path)
    for name in ("a/x.jpg", "b/x.jpg", "x.png", "x.tif"):
        save_image(tmp_path / name, 3)
    model = Model()
    model.maps = lambda image, layers: []  # type: ignore[attr-defined]
    monkeypatch.setattr(VLSAM, "load", lambda *args: model)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*") if path.is_file()
    }


def test_images_of_one_stem_have_pictures_of_their_own(red: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["annotate", "a/x.jpg", "b/x.jpg", "x.png", "x.tif", "--overlay", "out"]
    for _ in range(2):
        assert main(arguments) == 0
        assert sorted(path.name for path in (red / "out").iterdir()) == [
            "x-2.png",
            "x-3.png",
            "x-4.png",
            "x.png",
        ]
    err = capsys.readouterr().err
    assert "vlsam: b/x.jpg: its picture is out/x-2.png" in err
    assert "vlsam: 4 images: 4 annotated, 0 failed" in err
    # A failure changes nobody's name.
    (red / "a/x.jpg").write_text("text")
    before = contents(red / "out")
    assert main(arguments) == 1
    assert contents(red / "out") == before


def test_pictures_beside_the_originals_overwrite_none(red: Path) -> None:
    (red / "X.jpg").symlink_to(red / "a/x.jpg")
    before = contents(red)
    for _ in range(2):
        assert main(["annotate", ".", "--overlay", "."]) == 0
        found = contents(red)
        assert {name: found[name] for name in before} == before
        assert sorted(set(found) - set(before)) == ["x-2.png", "x-3.png", "x-4.png", "x-5.png"]


def test_segments_picture_overwrites_no_original(tmp_path: Path) -> None:
    image = tmp_path / "scene.png"
    shutil.copy(SAMPLE, image)
    before = image.read_bytes()
    assert main(["segment", str(image), "--point", "120,80", "--overlay", str(tmp_path)]) == 0
    assert image.read_bytes() == before
    assert (tmp_path / "scene-2.png").exists()


@pytest.mark.slow
def test_overlays_and_maps_may_share_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["annotate", SAMPLE, "--maps", str(tmp_path), "--overlay", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scene-04-2.png", "scene-04.png"]


def test_folders_and_patterns(red: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (red / "a/._x.jpg").touch()
    (red / "a/notes.txt").touch()
    (red / "a/b").symlink_to(red / "b")
    assert main(["annotate", "a", "*.t?f", "x.png", "x.png", "a/x.jpg", "--json"]) == 0
    out, err = capsys.readouterr()
    images = [item["image"] for item in json.loads(out)]
    # What is named twice is wanted twice.
    assert images == ["a/b/x.jpg", "a/x.jpg", "x.tif", "x.png", "x.png", "a/x.jpg"]
    assert "skipped: 1 x macOS's shadow of a file (._)" in err
    assert "skipped: 1 x no image by its name: .txt" in err
    assert main(["annotate", "a/x.jpg", "a", "nowhere*.jpg", "--json"]) == 1
    out, err = capsys.readouterr()
    images = [item["image"] for item in json.loads(out)]
    assert images == ["a/x.jpg", "a/b/x.jpg", "nowhere*.jpg"]
    assert "skipped: 1 x image that is named already" in err
    (red / "empty").mkdir()
    assert main(["annotate", "empty"]) == 2
    assert "there are no images: 1 x folder without images: empty" in capsys.readouterr().err


def test_names_that_are_no_utf8_or_have_other_odd_characters(
    red: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = [os.fsdecode(b"caf\xe9.png"), "what?.png", "a#b::c.png", "esc\x1b[2J.png", "new\nline.png"]
    for name in odd:
        save_image(red / "odd" / name, 1)
    (red / "odd" / os.fsdecode(b"\xff.jpg")).write_text("text")
    arguments = ["annotate", *(f"odd/{name}" for name in odd), "odd", "--overlay", "out"]
    assert main([*arguments, "--json"]) == 1
    out, err = capsys.readouterr()
    items = json.loads(out)
    assert [item["image"] for item in items[:2]] == ["odd/caf\\xe9.png", "odd/what?.png"]
    assert items[5]["image"] == "odd/\\xff.jpg"
    assert "\\ud" not in out
    assert len(list((red / "out").iterdir())) == 5
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    for said in (out, err):
        said.encode()
        assert "\x1b" not in said.replace("\x1b[A", "")  # tqdm's
    assert "vlsam: odd/\\xff.jpg: There is text" in err
    assert "odd/caf\\xe9.png: cat 0.90\n" in out


def test_what_is_no_file_is_said(red: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(red / "pipe.jpg")
    assert main(["annotate", "pipe.jpg", "nowhere.jpg", "--json"]) == 1
    errors = [item["error"] for item in json.loads(capsys.readouterr().out)]
    assert errors == ["It is not a file, but a pipe, a socket or a device.", "No such file or directory"]
    assert main(["annotate", "x.png", "--overlay", "x.tif"]) == 2
    assert "x.tif cannot be a folder" in capsys.readouterr().err


def test_what_the_models_cannot_do_is_said_for_each_image(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VLSAM_LOCALIZER", "boxes")  # which the built-in VLM never learned to write
    assert main(["annotate", SAMPLE, "--json"]) == 1
    out, err = capsys.readouterr()
    (item,) = json.loads(out)
    assert "without boxes" in item["error"]
    assert SAMPLE in err


@pytest.fixture
def strip(tmp_path: Path) -> str:
    """An image of a shape that the VLM's processor refuses."""
    Pillow.new("RGB", (900, 4)).save(tmp_path / "strip.png")
    return str(tmp_path / "strip.png")


def test_f35_an_image_that_a_processor_refuses_takes_no_other_along(
    strip: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["annotate", strip, SAMPLE, "--json"]) == 1
    out, err = capsys.readouterr()
    bad, good = json.loads(out)
    assert set(bad) == {"image", "error", "detections"}
    assert bad["image"] == strip
    assert bad["error"].startswith("the VLM does not take an image of 900 x 4 pixels: absolute aspect ratio")
    assert good["detections"]
    assert f"vlsam: {strip}: {bad['error']}" in err
    assert "Traceback" not in err


def test_f35_nor_does_one_over_which_the_models_stumble(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    usual, seen = VLSAM.annotate, list[int]()

    def annotate(self: VLSAM, image: Image) -> list[Detection]:
        seen.append(1)
        if len(seen) == 1:
            raise RuntimeError("shape mismatch\n  at some kernel")
        return usual(self, image)

    monkeypatch.setattr(VLSAM, "annotate", annotate)
    assert main(["annotate", SAMPLE, SAMPLE.replace("04", "05"), "--json"]) == 1
    bad, good = json.loads(capsys.readouterr().out)
    assert bad["error"] == "RuntimeError: shape mismatch at some kernel"
    assert "error" not in good
    (record,) = caplog.records
    assert record.exc_info


@pytest.mark.parametrize("surprise", [None, RuntimeError("shape mismatch\n  at some kernel")])
def test_f35_segment_says_in_one_line_why_an_image_cannot_be_used(
    surprise: Exception | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Pillow.new("RGB", (5000, 1)).save(tmp_path / "line.png")
    reason = (
        "the segmenter does not take an image of 5000 x 1 pixels: scaled to 256 x 0 pixels nothing is left"
    )
    if surprise:
        monkeypatch.setattr(VLSAM, "encode", Mock(side_effect=surprise))
        reason = "RuntimeError: shape mismatch"
    assert main(["segment", str(tmp_path / "line.png"), "--point", "5,0", "--json"]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.splitlines()[-1].startswith(f"vlsam: {tmp_path / 'line.png'}: {reason}")


@pytest.fixture
def tight(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device has too little memory for images in their full size."""
    usual = VLSAM.annotate

    def annotate(self: VLSAM, image: Image, **options: Any) -> list[Detection]:
        if not self.reduced:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return usual(self, image, **options)

    monkeypatch.setattr(VLSAM, "annotate", annotate)


@pytest.mark.slow
@pytest.mark.usefixtures("tight")
def test_f4_annotate_without_memory_sees_the_image_smaller_and_says_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["annotate", SAMPLE, "--json"]) == 0
    out, err = capsys.readouterr()
    (item,) = json.loads(out)
    assert item["reduced"]
    assert all(each["evidence"]["reduced"] for each in item["detections"])
    usual = version_of(choose(), Options())
    assert {each["evidence"]["model_version"] for each in item["detections"]} == {usual}
    assert "1 of 1 images were reduced to half their size" in err


def test_segment_gives_the_mask_under_the_click(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["segment", SAMPLE, "--point", "120,80", "--point", "5,5,0", "--json"]) == 0
    (item,) = json.loads(capsys.readouterr().out)
    (detection,) = item["detections"]
    assert coco.decode(detection["mask"])[80, 120] == 1
    assert detection["evidence"]["points"] == [[120, 80, 1], [5, 5, 0]]


@pytest.mark.slow
def test_segment_cuts_a_box_at_the_images_edge(capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for box in ("-90,-9,200,2000", "0,0,200,549"):
        assert main(["segment", SAMPLE, f"--box={box}", "--json"]) == 0
        found += json.loads(capsys.readouterr().out)[0]["detections"]
    assert found[0] == found[1]
    assert found[0]["evidence"]["box"] == [0, 0, 200, 549]


@pytest.mark.slow
@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("--point", "-3,5", "a point lies outside the image of 427 x 549 pixels"),
        ("--point", "-.5,5,0", "a point lies outside"),
        ("--point", "-inf,5", "--point '-inf,5' is not 2 or 3 numbers"),
        ("--point", "-a,b", "--point '-a,b' is not 2 or 3 numbers"),
        ("--box", "-9,-9,-3,-3", "the box lies outside the image"),
        ("--box", "-1,-1,50", "--box '-1,-1,50' is not 4 numbers"),
        ("--box", "-1,-1,200,549", None),
    ],
)
def test_negative_coordinates_are_values_however_they_are_given(
    capsys: pytest.CaptureFixture[str], option: str, value: str, reason: str | None, joined: bool
) -> None:
    given = [f"{option}={value}"] if joined else [option, value]
    assert main(["segment", SAMPLE, *given, "--json"]) == (2 if reason else 0)
    out, err = capsys.readouterr()
    if reason:
        assert reason in err
    else:
        assert json.loads(out)[0]["detections"][0]["evidence"]["box"] == [0, 0, 200, 549]


def test_an_empty_mask_is_no_detection(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = detection("", np.zeros((549, 427), bool))
    monkeypatch.setattr(VLSAM, "refine", lambda *_: nothing)
    assert main(["segment", SAMPLE, "--point", "5,5", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)[0]["detections"] == []
    assert "the mask is empty" in err


@pytest.mark.slow
def test_names_of_files_do_not_draw_on_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = tmp_path / "a\x1b[2J\n.jpg"
    hostile.write_bytes(b"no image")
    assert main(["annotate", str(hostile)]) == 1
    assert main(["segment", str(hostile), "--point", "1,1"]) == 2
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err
    assert err.count(r"a\x1b[2J\n.jpg: ") == 2


@pytest.mark.slow
def test_segment_takes_a_level_and_tells_what_contradicts(capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for level in ("whole", "subpart"):
        points = ["--point", "120,80", "--point", "120,80,0", "--point", "121,80"]
        assert main(["segment", SAMPLE, *points, "--level", level, "--json"]) == 0
        (detection,) = json.loads(capsys.readouterr().out)[0]["detections"]
        assert detection["evidence"]["unmet"] == [0]
        found.append(detection["mask"])
    assert found[0] != found[1]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["annotate", SAMPLE, "--layers"], "--layers goes with --maps"),
        (["bench", "annotate", "--scenes", "0"], "--scenes must be 1 or more"),
        (["segment", SAMPLE], "at least one --point or a --box"),
        (["segment", SAMPLE, "--point", "5"], "--point '5' is not 2 or 3 numbers"),
        (["segment", SAMPLE, "--point", "5,nan"], "numbers"),
        (["segment", SAMPLE, "--point", "5,5,7"], "1 .inside. or 0 .outside."),
        (["segment", SAMPLE, "--point", "5000,5"], "outside the image"),
        (["segment", SAMPLE, "--point", "1e39,5"], "numbers"),
        (["segment", SAMPLE, "--box", "9,9,3,3"], "x0 < x1"),
        (["segment", SAMPLE, "--box", "5000,5,6000,9"], "box lies outside the image of 427 x 549"),
        (["segment", SAMPLE, "--box=-1e300,0,1e300,9"], "numbers"),
        (["segment", "nowhere.jpg", "--point", "5,5"], "nowhere.jpg"),
    ],
)
def test_wrong_arguments_are_one_sentence(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    last = err.strip().splitlines()[-1]
    assert last.startswith("vlsam: ")
    assert re.search(reason, last)


def test_an_invalid_setting_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VLSAM_PROFILE", "gpu-3g")
    assert main(["annotate", SAMPLE]) == 2
    assert "gpu-8g" in capsys.readouterr().err


def test_help_teaches_by_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "vlsam segment photo.jpg --point 120,80" in capsys.readouterr().out


@pytest.fixture
def server(
    make_resources: Callable[..., Resources], stand_in: StandIn, predict_body: Callable[..., Any]
) -> Iterator[str]:
    """The address of a server with a password, where project 7 has seen a unicorn."""
    stand_in.found.append(detection("uni\x1bcorn", disc(40, 30, 5)))
    app = create_app(resources=make_resources(basic_auth_user="me", basic_auth_pass="sesame"))
    app.test_client().post("/predict", json=predict_body(data_url(), project="7.1"), auth=("me", "sesame"))
    serving = make_server("127.0.0.1", 0, app)
    thread = threading.Thread(target=serving.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{serving.server_port}/"
    serving.shutdown()
    thread.join()
    serving.server_close()


def test_terms_asks_a_running_server(
    server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["terms", "--url", server]) == 2
    assert "BASIC_AUTH_USER" in capsys.readouterr().err
    monkeypatch.setenv("BASIC_AUTH_USER", "me")
    monkeypatch.setenv("BASIC_AUTH_PASS", "sesame")
    assert main(["terms", "--url", server, "--project", "7"]) == 0
    assert capsys.readouterr().out == "found by the model, but not in your config: uni\\x1bcorn (1 image)\n"
    assert main(["terms", "--url", server, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["terms"] == [{"term": "uni\x1bcorn", "images": 1}]
    assert main(["terms", "--url", server, "--project", "8"]) == 2
    assert "No image of project 8 was annotated" in capsys.readouterr().err
    assert main(["terms", "--url", server + "nowhere"]) == 2
    assert "vlsam: " in capsys.readouterr().err


def test_terms_of_no_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["terms", "--url", f"http://127.0.0.1:{free_port()}"]) == 2
    assert "no server answers at" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["config", "--labels", "Dog,Car"], ["config", "--help"]])
def test_output_that_nobody_reads_ends_a_command_quietly(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)  # as in `vlsam config | true`, where `true` ends first
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}
    with os.fdopen(writing, "wb") as stdout:
        done = subprocess.run(
            [BIN / "vlsam", *arguments], stdout=stdout, stderr=subprocess.PIPE, env=environment, check=False
        )
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")
