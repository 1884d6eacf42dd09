import os
import shutil
from collections import Counter
from pathlib import Path

import pytest

from backend.images import local_files
from backend.images.local_files import listed, text
from model.types import ImageError


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with files that are empty: here only names count."""
    root = tmp_path / "p"
    for name in ("b.jpg", "A.PNG", "deep/er/c.heic", "deep/d.avif", "deep/e.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def names(source: object) -> list[str]:
    return listed(str(source)).names


def test_a_folder_with_all_folders_in_it(place: Path) -> None:
    found = listed(f"{place}/")
    assert found.root == f"{place}/"
    assert found.names == ["A.PNG", "b.jpg", "deep/d.avif", "deep/e.jpg", "deep/er/c.heic"]
    assert found.skipped == {}
    assert listed(str(place)) == found


def test_what_is_left_out_is_counted_by_reason(place: Path) -> None:
    for name in (
        "._b.jpg",
        "deep/._e.jpg",
        ".DS_Store",
        "Thumbs.db",
        "notes.txt",
        "more.txt",
        "odd.\x1b[31m",
    ):
        (place / name).touch()
    assert listed(str(place)).skipped == {
        "macOS's shadow of a file (._)": 2,
        "no image by its name": 2,  # .DS_Store and what has no ending to print
        "no image by its name: .db": 1,
        "no image by its name: .txt": 2,
    }


def test_reasons_are_no_more_than_can_be_read(place: Path) -> None:
    for number in range(3 * local_files.REASONS):
        (place / f"x.{number}").touch()
    skipped = listed(str(place)).skipped
    assert sum(skipped.values()) == 3 * local_files.REASONS
    assert len(skipped) <= local_files.REASONS + 1


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jpg", ["b.jpg"]),
        ("**.jpg", ["b.jpg", "deep/e.jpg"]),
        ("**/*.jpg", ["b.jpg", "deep/e.jpg"]),
        ("*/*.*", ["deep/d.avif", "deep/e.jpg"]),
        ("deep/**", ["d.avif", "e.jpg", "er/c.heic"]),
        ("?.jpg", ["b.jpg"]),
        ("deep/[d-e].*", ["d.avif", "e.jpg"]),
        ("deep/[!d].*", ["e.jpg"]),
        ("*.webp", []),
        ("nowhere/*.jpg", []),
        ("b[.jpg", []),
    ],
)
def test_patterns(pattern: str, expected: list[str], place: Path) -> None:
    found = listed(f"{place}/{pattern}")
    assert found.names == expected
    assert found.skipped == {}


def test_a_pattern_that_is_none(place: Path) -> None:
    with pytest.raises(ValueError, match="is not a pattern"):
        listed(f"{place}/[z-a].jpg")


@pytest.mark.parametrize(
    "name", ["what?.jpg", "a#b.jpg", "a::b.jpg", "[1].jpg", "a*b.jpg", "x%20y.jpg", "-n.jpg"]
)
def test_a_name_that_exists_is_no_pattern(name: str, place: Path) -> None:
    (place / name).touch()
    assert listed(f"{place}/{name}").names == [name]
    assert name in names(place)
    (place / "in [x]").mkdir()
    (place / "in [x]" / name).touch()
    assert names(place / "in [x]") == [name]


def test_linked_folders_are_followed_once_and_circles_end(place: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/f.jpg").touch()
    (place / "a-link").symlink_to(place / "deep")  # what lies in deep/ keeps that name
    (place / "deep/up").symlink_to(place)
    (place / "one").symlink_to(tmp_path / "other")
    (place / "two").symlink_to(tmp_path / "other")
    (tmp_path / "other/back").symlink_to(tmp_path / "other")
    found = listed(str(place))
    assert found.names == ["A.PNG", "b.jpg", "deep/d.avif", "deep/e.jpg", "deep/er/c.heic", "one/f.jpg"]
    assert found.skipped == {"folder that is listed already": 4}
    (tmp_path / "start").symlink_to(place)
    assert listed(f"{tmp_path}/start").names == found.names


def test_links_to_files_are_one_image_each(place: Path, tmp_path: Path) -> None:
    (tmp_path / "far.jpg").touch()
    (place / "a.jpg").symlink_to(place / "b.jpg")  # there already
    (place / "x.jpg").symlink_to(tmp_path / "far.jpg")
    (place / "y.jpg").symlink_to(tmp_path / "far.jpg")
    (place / "z.jpg").symlink_to(tmp_path / "nowhere.jpg")  # fails later, with its reason
    (place / "loop.jpg").symlink_to(place / "loop.jpg")
    os.link(place / "b.jpg", place / "hard.jpg")  # a name like any other
    found = listed(f"{place}/*.jpg")
    assert found.names == ["b.jpg", "hard.jpg", "loop.jpg", "x.jpg", "z.jpg"]
    assert found.skipped == {"link to a file that is listed already": 2}
    assert listed(f"{place}/a.jpg").names == ["a.jpg"]  # asked for by name
    assert listed(f"{place}/a*.jpg").names == ["a.jpg"]  # and where its file is not listed


def test_what_runs_left_in_a_folder_is_no_image_of_it(place: Path) -> None:
    for name in (
        "out.json.state/run.json",
        "out.json.state/samples/1.jpg",
        "x.yolo/data.yaml",
        "x.yolo/images/1.jpg",
    ):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).touch()
    (place / "my.state").mkdir()
    (place / "my.state/a.jpg").touch()
    found = listed(str(place))
    assert found.names == ["A.PNG", "b.jpg", "deep/d.avif", "deep/e.jpg", "deep/er/c.heic", "my.state/a.jpg"]
    assert found.skipped == {"results of an earlier run": 2}
    assert names(place / "x.yolo") == ["images/1.jpg"]  # asked for


def test_a_folder_that_cannot_be_read_is_said(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refusing(path: str) -> object:
        if path.endswith("deep/"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    found = listed(str(place))
    assert found.names == ["A.PNG", "b.jpg"]
    assert found.skipped == Counter({"folder that cannot be read (Permission denied): deep/": 1})


def test_names_that_are_no_utf8(place: Path) -> None:
    raw = os.fsencode(place) + b"/caf\xe9\n.jpg"
    open(raw, "wb").close()
    name = os.fsdecode(b"caf\xe9\n.jpg")
    assert name in names(place)
    assert text(name) == "caf\\xe9\n.jpg"
    assert text("é\\xff 猫") == "é\\xff 猫"
    assert text("\ud800").isascii()


def test_only_files_are_read(place: Path) -> None:
    (place / "b.jpg").write_bytes(b"0123456789")
    assert local_files.read(f"{place}/b.jpg", 4) == b"0123"
    os.mkfifo(place / "pipe.jpg")  # nobody will ever write to it
    with pytest.raises(ImageError, match="a pipe, a socket or a device"):
        local_files.read(f"{place}/pipe.jpg", 4)
    with pytest.raises(IsADirectoryError):
        local_files.read(str(place), 4)
    shutil.rmtree(place)
    with pytest.raises(FileNotFoundError):
        local_files.read(f"{place}/b.jpg", 4)
