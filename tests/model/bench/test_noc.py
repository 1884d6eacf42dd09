from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from model.bench.noc import CAP, Folder, drawn, noc, play
from model.builtin.scenes import Scene
from model.segmenter import Segmenter
from model.types import Mask


def saved(folder: Path, name: str, image: object, mask: object, mode: str | None = None) -> None:
    for sub in ("images", "masks"):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    PILImage.fromarray(np.asarray(image)).save(folder / "images" / f"{name}.jpg")
    picture = PILImage.fromarray(np.asarray(mask))
    (picture.convert(mode) if mode else picture).save(folder / "masks" / f"{name}.png")


def test_a_folder_holds_an_object_for_each_value(tmp_path: Path, scene: Scene) -> None:
    masks = [thing.visible for thing in scene.objects]
    numbers = sum((mask * np.uint8(50 * n) for n, mask in enumerate(masks, 1)), np.zeros_like(masks[0], "u1"))
    saved(tmp_path, "many", scene.image, numbers)
    saved(tmp_path, "binary", scene.image, masks[0].astype(np.uint8) * 255)
    saved(tmp_path, "bit", scene.image, masks[0].astype(np.uint8) * 255, "1")
    saved(tmp_path, "wide", scene.image, numbers.astype(np.uint16) * 400)
    PILImage.fromarray(scene.image).save(tmp_path / "images" / "without.png")
    found = list(Folder(tmp_path))
    assert len(Folder(tmp_path)) == 4
    binary, bit, many, wide = found
    for sample in (many, wide):
        assert all((one == other).all() for one, other in zip(sample.objects, masks, strict=True))
    for sample in (binary, bit):
        assert len(sample.objects) == 1
        assert (sample.objects[0] == masks[0]).all()


def test_a_picture_that_lies_on_its_side_is_turned(tmp_path: Path) -> None:
    mask = np.zeros((60, 40), np.uint8)
    saved(tmp_path, "a", np.zeros((40, 60, 3), np.uint8), mask)
    exif = PILImage.Exif()
    exif[0x0112] = 6
    PILImage.new("RGB", (60, 40)).save(tmp_path / "images" / "a.jpg", exif=exif)
    assert next(iter(Folder(tmp_path))).image.shape == (60, 40, 3)


def test_what_does_not_fit_is_told_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no masks/\*\.png"):
        Folder(tmp_path)
    image = np.zeros((40, 60, 3), np.uint8)
    saved(tmp_path / "size", "a", image, np.zeros((40, 50), np.uint8))
    saved(tmp_path / "colours", "a", image, image)
    saved(tmp_path / "broken", "a", image, image)
    (tmp_path / "broken" / "masks" / "a.png").write_bytes(b"no picture")
    for name, reason in (
        ("size", r"a\.png is 50 x 40 pixels, its image 60 x 40"),
        ("colours", "one number for each pixel"),
        ("broken", "cannot be read"),
    ):
        with pytest.raises(ValueError, match=reason):
            list(Folder(tmp_path / name))
    (tmp_path / "size" / "images" / "a.jpg").unlink()
    with pytest.raises(ValueError, match="no image of that name"):
        Folder(tmp_path / "size")


def test_a_game_ends_when_the_mask_is_good_or_at_the_cap(segmenter: Segmenter, scene: Scene) -> None:
    embedding = segmenter.encode(scene.image)
    thing: Mask = max((each.visible for each in scene.objects), key=np.count_nonzero)
    good = play(segmenter, embedding, thing)
    assert len(good) == 5
    assert max(good) >= 0.9
    unlikely = np.random.default_rng(0).random(thing.shape) < 0.5
    assert len(play(segmenter, embedding, unlikely)) == CAP


def test_figures_are_means_over_objects(segmenter: Segmenter) -> None:
    samples = list(drawn(2, seed=3))
    figures = noc(segmenter, samples, 2)
    games = [play(segmenter, segmenter.encode(s.image), truth) for s in samples for truth in s.objects]
    needed = [next((n for n, value in enumerate(game, 1) if value >= 0.85), CAP) for game in games]
    assert (figures.images, figures.objects) == (2, len(games))
    assert figures.noc85 == pytest.approx(np.mean(needed), abs=1e-4)
    assert figures.noc85 <= figures.noc90
    assert figures.iou3 == pytest.approx(np.mean([game[2] for game in games]), abs=1e-4)


def test_masks_without_an_object_give_no_figures(segmenter: Segmenter, tmp_path: Path) -> None:
    saved(tmp_path, "a", np.zeros((40, 60, 3), np.uint8), np.zeros((40, 60), np.uint8))
    with pytest.raises(ValueError, match="hold no object"):
        noc(segmenter, Folder(tmp_path), 1)
