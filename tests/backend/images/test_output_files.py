import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from backend.images.output_files import Pictures, is_ours, save
from model.types import ImageError

PIXELS = np.zeros((4, 4, 3), np.uint8)


def names(folder: Path, *stems: str, images: tuple[Path, ...] = ()) -> list[str]:
    pictures = Pictures(images)
    return [pictures.name(folder, stem).name for stem in stems]


def test_each_has_a_name_of_its_own_in_the_order_of_the_images(tmp_path: Path) -> None:
    assert names(tmp_path / "out", "x", "y", "x", "x-2", "X") == [
        "x.png", "y.png", "x-2.png", "x-2-2.png", "X-3.png"
    ]  # fmt: skip
    assert names(tmp_path, "\u00e9", "e\u0301") == ["\u00e9.png", "e\u0301-2.png"]  # one name on a Mac


def test_two_ways_to_a_folder_are_one(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    pictures = Pictures([])
    assert pictures.name(tmp_path, "x") == tmp_path / "x.png"
    assert pictures.name(tmp_path / "link", "x") == tmp_path / "link/x-2.png"


def test_only_pictures_of_earlier_runs_are_written_anew(tmp_path: Path) -> None:
    save(PIXELS, tmp_path / "x.png")
    Pillow.fromarray(PIXELS).save(tmp_path / "y.png")
    (tmp_path / "z.png").write_text("precious")
    (tmp_path / "w.png").mkdir()
    assert names(tmp_path, "x", "y", "z", "w") == ["x.png", "y-2.png", "z-2.png", "w-2.png"]
    assert names(tmp_path, "x", images=(tmp_path / "x.png",)) == ["x-2.png"]


def test_links_are_nobodys_to_write(tmp_path: Path) -> None:
    save(PIXELS, tmp_path / "ours.png")
    (tmp_path / "soft.png").symlink_to(tmp_path / "ours.png")
    (tmp_path / "broken.png").symlink_to(tmp_path / "nowhere.png")
    os.link(tmp_path / "ours.png", tmp_path / "hard.png")
    image = (tmp_path / "ours.png",)
    assert names(tmp_path, "soft", "broken", "hard", images=image) == [
        "soft-2.png",
        "broken-2.png",
        "hard-2.png",
    ]


def test_a_file_that_came_since_is_replaced_and_never_written_into(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_text("precious")
    os.link(tmp_path / "photo.jpg", tmp_path / "x.png")
    (tmp_path / "y.png").symlink_to(tmp_path / "photo.jpg")
    for name in ("x.png", "y.png"):
        save(PIXELS, tmp_path / name)
        assert is_ours(tmp_path / name)
    assert (tmp_path / "photo.jpg").read_text() == "precious"


@pytest.mark.parametrize("stem", ["a" * 255, "\u732b" * 85, "caf\udce9", ".x", "a?b#c::d"])
def test_any_stem_is_a_file_name(stem: str, tmp_path: Path) -> None:
    pictures = Pictures([])
    paths = [pictures.name(tmp_path, stem) for _ in range(11)]
    for path in paths:
        save(PIXELS, path)
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_what_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot be a folder for pictures"):
        names(tmp_path / "file", "x")
    with pytest.raises(ImageError, match=r"nowhere/x\.png cannot be written: No such file"):
        save(PIXELS, tmp_path / "nowhere/x.png")


def test_a_pipe_is_no_picture_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")  # nobody will ever write to it
    assert not is_ours(tmp_path / "x.png")
    assert names(tmp_path, "x") == ["x-2.png"]
