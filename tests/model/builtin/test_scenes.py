import numpy as np
import pytest

from model.builtin.measure import corrective_click, middle, paste_scene
from model.builtin.scenes import NAMES, SHEET_COLUMNS, draw_scene, sprites


def test_all_forty_sprites_are_on_the_sheet() -> None:
    assert len(NAMES) == len(set(NAMES)) == 40 == SHEET_COLUMNS * 5
    for sprite in sprites().values():
        assert min(sprite.shape[:2]) > 50
        assert (sprite[..., 3] == 255).any()


@pytest.mark.parametrize("seed", range(5))
def test_visible_parts_do_not_overlap_and_belong_to_their_objects(seed: int) -> None:
    scene = draw_scene(np.random.default_rng(seed), width=300, height=200, count=5)
    assert 1 <= len(scene.objects) <= 5
    assert np.sum([thing.visible for thing in scene.objects], 0).max() == 1
    for thing in scene.objects:
        assert not (thing.visible & ~thing.whole).any()
        assert thing.visible.sum() >= 0.35 * thing.whole.sum()


def test_a_seed_gives_one_scene() -> None:
    one, other = (draw_scene(np.random.default_rng(3), width=90, height=80, count=2) for _ in range(2))
    assert (one.image == other.image).all()


def test_measured_scenes_hold_what_they_say() -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        scene = paste_scene(rng)
        assert 280 <= min(scene.image.shape[:2]) <= max(scene.image.shape[:2]) <= 800
        assert 1 <= len(scene.objects) <= 6
        for thing in scene.objects:
            x, y = middle(thing.visible)
            assert thing.visible[int(y), int(x)]


def test_a_corrective_click_goes_to_the_middle_of_the_larger_error() -> None:
    truth = np.zeros((100, 100), bool)
    truth[20:60, 20:60] = True
    mask = np.zeros_like(truth)
    mask[20:60, 20:30] = True
    x, y, label = corrective_click(mask, truth)
    assert label == 1
    assert 40 < x < 50
    assert 30 < y < 50
    assert corrective_click(np.ones_like(truth), truth)[2] == 0
