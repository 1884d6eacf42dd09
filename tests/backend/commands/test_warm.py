import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from backend.commands.cli import main
from backend.runtime.embedding_files import SUFFIX
from model.segmentation.embedding import Embedding
from model.segmentation.segmenter import Segmenter
from model.types import Image
from tests.support.fake_web import Web
from tests.support.images import data_url, png
from tests.support.labeling_configs import CONFIG

WARM = ["warm", "--project", "7"]


@pytest.fixture
def web() -> Iterator[Web]:
    with closing(Web()) as web:
        yield web


@pytest.fixture
def kept(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "kept"
    monkeypatch.setenv("LABEL_STUDIO_URL", web.url)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "sesame")
    monkeypatch.setenv("VLSAM_CACHE_DIR", str(folder))
    return folder


def studio(web: Web, *images: Any, config: str = CONFIG) -> None:
    """Label Studio's answers, as far as the command needs them; tests/e2e has the real one."""
    tasks = [{"id": 10 + number, "data": {"image": image}} for number, image in enumerate(images)]
    project = {"id": 7, "label_config": config, "task_number": len(tasks)}
    web.serve("/api/projects/7/", json.dumps(project).encode())

    def page(handler: Any) -> None:
        first = "page=1&" in f"{handler.path.partition('?')[2]}&"
        web.answer(handler, json.dumps({"tasks": tasks if first else [], "total": len(tasks)}).encode())

    web.routes["/api/tasks/"] = page


def files(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir()]


def test_equal_images_are_encoded_once_and_failures_are_lines(
    web: Web, kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    studio(web, data_url(shade=1), "/data/upload/7/gone.png", data_url(shade=1), "\x1b[2Jclear me", None)
    assert main(WARM) == 1
    out, err = capsys.readouterr()
    assert out == "1 encoded, 1 there already, 3 failed\n"
    assert [line.partition(": ")[2].partition(":")[0] for line in err.splitlines()] == [
        "task 11",
        "task 13",
        "task 14",
    ]
    assert "HTTP 404" in err
    assert "\x1b" not in err
    assert len(files(kept)) == 1
    assert main(WARM) == 1
    assert capsys.readouterr().out == "0 encoded, 2 there already, 3 failed\n"


@pytest.mark.slow
def test_f4_an_image_without_memory_is_tried_once_more(
    web: Web, kept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    studio(web, data_url(shade=1))
    usual, tries = Segmenter.encode, list[int]()

    def encode(self: Segmenter, image: Image) -> Embedding:
        tries.append(self._chunk)
        if len(tries) == 1:
            raise RuntimeError("CUDA error: out of memory")
        return usual(self, image)

    monkeypatch.setattr(Segmenter, "encode", encode)
    assert main(WARM) == 0
    assert len(tries) == 2
    assert len(files(kept)) == 1


def test_f35_an_image_over_which_the_segmenter_stumbles_takes_no_other_along(
    web: Web, kept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    studio(web, data_url(shade=1), data_url(shade=2))
    usual, tries = Segmenter.encode, list[int]()

    def encode(self: Segmenter, image: Image) -> Embedding:
        tries.append(1)
        if len(tries) == 1:
            raise ValueError("odd shape")
        return usual(self, image)

    monkeypatch.setattr(Segmenter, "encode", encode)
    assert main(WARM) == 1
    out, err = capsys.readouterr()
    assert out == "1 encoded, 0 there already, 1 failed\n"
    assert "ValueError: odd shape" in err


def test_a_broken_file_is_made_again(web: Web, kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    studio(web, data_url(shade=1))
    assert main(WARM) == 0
    (name,) = files(kept)
    (kept / name).write_bytes(b"broken")
    assert main(WARM) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 encoded, 0 there already, 0 failed"


def test_it_stops_where_it_would_drive_out_what_it_made(
    web: Web, kept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VLSAM_CACHE_DISK_MB", "1")
    studio(web, *(data_url(shade=shade) for shade in range(9)))
    assert main(WARM) == 2
    made = files(kept)
    assert 0 < len(made) < 9
    said = f"vlsam: VLSAM_CACHE_DISK_MB=1 holds {len(made)} of the project's 9 images: set more"
    assert said in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"VLSAM_CACHE_DIR": ""}, "set VLSAM_CACHE_DIR"),
        ({"LABEL_STUDIO_URL": ""}, "LABEL_STUDIO_URL or --label-studio-url"),
        ({"LABEL_STUDIO_API_KEY": ""}, "set LABEL_STUDIO_API_KEY"),
        ({"LABEL_STUDIO_URL": "studio"}, "LABEL_STUDIO_URL is 'studio'"),
        ({"LABEL_STUDIO_URL": "http://127.0.0.1:9"}, "cannot be reached"),
        ({"VLSAM_CACHE_DIR": "/dev/null/kept"}, "VLSAM_CACHE_DIR cannot be written"),
        ({"VLSAM_SAM": "nowhere.pth"}, "nowhere.pth"),
    ],
)
def test_what_is_missing_is_one_sentence(
    change: dict[str, str],
    reason: str,
    web: Web,
    kept: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in change.items():
        monkeypatch.setenv(name, value)
    studio(web, data_url())
    assert main(WARM) == 2
    (last,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert last.startswith("vlsam: ")
    assert reason in last
    assert "sesame" not in last


def test_a_project_without_images_is_one_sentence(
    web: Web, kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    studio(web, config="<View><Text name='t' value='$text'/></View>")
    assert main(WARM) == 2
    assert "has no <Image>" in capsys.readouterr().err


def test_the_key_goes_to_the_address_that_is_given(
    web: Web, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LABEL_STUDIO_URL")
    studio(web, data_url())
    assert main([*WARM, "--label-studio-url", web.url]) == 0
    assert {token for _, _, token in web.seen} == {"Token sesame"}


@pytest.fixture
def interruptible() -> Iterator[None]:
    """What a shell starts in the background ignores Ctrl+C, and these tests may be started there."""
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, usual)


@pytest.mark.usefixtures("interruptible")
def test_stopped_half_way_it_goes_on_from_there(
    web: Web, kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    studio(web, data_url(shade=1), "/data/upload/7/slow.png")
    go = threading.Event()

    def slow(_: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)  # as Ctrl+C does
        go.wait(20)

    web.routes["/data/upload/7/slow.png"] = slow
    assert main(WARM) == 130
    go.set()
    assert capsys.readouterr().err == "vlsam: stopped; the same command goes on from here\n"
    assert [name.endswith(SUFFIX) for name in files(kept)] == [True]
    web.serve("/data/upload/7/slow.png", png(size=(80, 60)))
    assert main(WARM) == 0
    assert capsys.readouterr().out == "1 encoded, 1 there already, 0 failed\n"
