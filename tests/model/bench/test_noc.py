from functools import partial
from itertools import starmap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from model.bench.noc import CAP, drawn, helped, needed, noc, pairs, read, simulate_clicks
from model.builtin.scenes import Scene
from model.pipeline import VLSAM
from model.segmentation.click_refinement import refine_by_clicks
from model.segmentation.segmenter import Answer, Segmenter
from model.types import Detection, Evidence, Mask, Prompt, box_of

PERSON = Evidence("", (0.0, 0.0, 1.0, 1.0), Prompt(), {}, "")


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
    binary, bit, many, wide = starmap(read, pairs(tmp_path))
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
    (paths,) = pairs(tmp_path)
    assert read(*paths).image.shape == (60, 40, 3)


def test_what_does_not_fit_is_told_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no masks/\*\.png"):
        pairs(tmp_path)
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
            read(*pairs(tmp_path / name)[0])
    (tmp_path / "size" / "images" / "a.jpg").unlink()
    with pytest.raises(ValueError, match="no image of that name"):
        pairs(tmp_path / "size")


def test_a_session_ends_when_the_mask_is_good_or_at_the_cap(segmenter: Segmenter, scene: Scene) -> None:
    refine = partial(refine_by_clicks, segmenter, segmenter.encode(scene.image))
    thing: Mask = max((each.visible for each in scene.objects), key=np.count_nonzero)
    good = simulate_clicks(refine, thing)
    assert len(good) == 5
    assert max(good) >= 0.9
    unlikely = np.random.default_rng(0).random(thing.shape) < 0.5
    assert len(simulate_clicks(refine, unlikely)) == CAP


def test_figures_are_means_over_objects(segmenter: Segmenter) -> None:
    samples = list(drawn(2, seed=3))
    figures = noc(segmenter, samples, 2)
    sessions = [
        simulate_clicks(partial(refine_by_clicks, segmenter, segmenter.encode(s.image)), truth)
        for s in samples
        for truth in s.objects
    ]
    assert (figures["images"], figures["objects"]) == (2, len(sessions))
    assert figures["noc85"] == pytest.approx(
        np.mean([needed(session, 0.85) for session in sessions]), abs=1e-4
    )
    assert figures["noc85"] <= figures["noc90"]
    assert figures["iou3"] == pytest.approx(np.mean([session[2] for session in sessions]), abs=1e-4)


def test_masks_without_an_object_give_no_figures(segmenter: Segmenter, tmp_path: Path) -> None:
    saved(tmp_path, "a", np.zeros((40, 60, 3), np.uint8), np.zeros((40, 60), np.uint8))
    with pytest.raises(ValueError, match="hold no object"):
        noc(segmenter, starmap(read, pairs(tmp_path)), 1)


def test_clicks_on_a_region_join_its_prompt_and_start_from_its_mask(
    segmenter: Segmenter, scene: Scene
) -> None:
    refine = partial(refine_by_clicks, segmenter, segmenter.encode(scene.image))
    thing: Mask = max((each.visible for each in scene.objects), key=np.count_nonzero)
    prompts: list[Prompt] = []

    def noted(prompt: Prompt) -> Answer:
        prompts.append(prompt)
        return refine(prompt)

    x0, _, x1, _ = box_of(thing)
    left = thing.copy()
    left[:, int((x0 + x1) / 2) :] = False
    row, column = np.argwhere(left)[0]
    start = Prompt.of((column + 0.5, row + 0.5, 1), box=box_of(left), mask=left)
    assert max(simulate_clicks(noted, thing, start)) >= 0.9
    first, second = prompts[:2]
    assert first.points[0].tolist() == second.points[0].tolist() == [column + 0.5, row + 0.5]
    x, y = first.points[1]
    assert (thing & ~left)[int(y), int(x)]
    assert first.box is None  # for this click is outside
    assert first.mask is left
    assert second.mask is not None
    assert (second.mask == refine(first).mask).all()
    assert len(second.points) == 3


def test_help_is_the_clicks_that_predictions_leave(builtin: VLSAM, monkeypatch: pytest.MonkeyPatch) -> None:
    (sample,) = drawn(1, seed=6)
    one, other = sample.objects
    sessions = [
        simulate_clicks(partial(builtin.refine, builtin.encode(sample.image)), truth)
        for truth in (one, other)
    ]
    alone = [needed(session, 0.9) for session in sessions]

    def predicted(**masks: Mask) -> dict[str, float]:
        found = [Detection(term, mask, 0.5, PERSON) for term, mask in masks.items()]
        monkeypatch.setattr(builtin, "annotate", lambda image: found)
        return helped(builtin, [sample], 1)

    name = sample.names[0]
    assert predicted() == {
        "images": 1, "objects": 2, "predicted": 0,
        "median_scene_from_prediction": sum(alone), "median_scene_from_nothing": sum(alone),
        "mean_object_from_prediction": sum(alone) / 2, "mean_object_from_nothing": sum(alone) / 2,
    }  # fmt: skip
    assert (
        predicted(elephant=one, **{name: other & ~one})["predicted"] == 0
    )  # another's name, another's place
    good = predicted(**{name: one})
    assert (good["predicted"], good["median_scene_from_prediction"]) == (1, alone[1])  # nothing left to do
    bad = predicted(**{name: one & (np.arange(one.shape[1]) < np.median(np.nonzero(one)[1]))})
    assert bad["median_scene_from_prediction"] > alone[1]
    assert bad["median_scene_from_nothing"] == sum(alone)
