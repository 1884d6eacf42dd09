from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.builtin.measure import middle
from model.builtin.scenes import Scene
from model.pipeline import VLSAM, Options, version_of
from model.profiles import PROFILES, choose
from model.types import ModelLoadError, Prompt, PromptError


def test_annotate_gives_named_masks_with_their_evidence(vlsam: VLSAM, scene: Scene) -> None:
    found = vlsam.annotate(scene.image)
    assert found
    for detection in found:
        assert detection.term in vlsam.listing(scene.image)
        assert detection.mask.shape == scene.image.shape[:2]
        assert detection.mask.any()
        assert 0 <= detection.score <= 1
        assert detection.evidence.prompt.labels.tolist() == [1, 0]
        assert detection.evidence.model_version == "test"


def test_annotate_is_deterministic(vlsam: VLSAM, scene: Scene) -> None:
    one, other = vlsam.annotate(scene.image), vlsam.annotate(scene.image)
    assert [d.term for d in one] == [d.term for d in other]
    assert all((a.mask == b.mask).all() for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("shape", [(28, 28), (40, 900), (900, 40)])
def test_an_empty_image_of_any_shape_is_no_error(vlsam: VLSAM, shape: tuple[int, int]) -> None:
    for detection in vlsam.annotate(np.full((*shape, 3), 200, np.uint8)):
        assert detection.mask.shape == shape


def test_a_click_on_an_object_answers_with_that_object(vlsam: VLSAM, scene: Scene) -> None:
    thing = scene.objects[-1]
    x, y = middle(thing.visible)
    detection = vlsam.refine(scene.image, Prompt.of((x, y, 1)))
    assert detection.mask[int(y), int(x)]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.floats(0, 419), st.floats(0, 299)), min_size=1, max_size=4), st.booleans())
def test_every_positive_click_is_inside_the_answer(
    vlsam: VLSAM, scene: Scene, clicks: list[tuple[float, float]], from_mask: bool
) -> None:
    start = scene.objects[0].visible if from_mask else None
    prompt = Prompt.of(*((x, y, 1) for x, y in clicks), mask=start)
    mask = vlsam.refine(scene.image, prompt).mask
    assert all(mask[int(y), int(x)] for x, y in prompt.points)


def test_a_prompt_without_anything_is_refused(vlsam: VLSAM, scene: Scene) -> None:
    with pytest.raises(PromptError, match="at least one point"):
        vlsam.refine(scene.image, Prompt())


def test_the_version_follows_settings_and_files(tmp_path: Path) -> None:
    profile = choose()
    version = version_of(profile)
    assert version == version_of(profile)
    assert version != version_of(profile, Options(threshold=0.7))
    other = replace(profile, sam=str(tmp_path / "other.pth"))
    assert version != version_of(other)
    Path(other.sam).write_bytes(b"0")
    before = version_of(other)
    assert before != version_of(replace(profile, sam=str(tmp_path / "none.pth")))
    Path(other.sam).write_bytes(b"1")  # trained anew: the same name and size
    assert version_of(other) != before


def test_profiles_are_chosen_by_name_and_overridden() -> None:
    assert choose("gpu-8g", vlm="some/other-model").vlm == "some/other-model"
    assert choose("builtin").demo
    assert not choose("builtin", vlm="some/other-model").demo
    with pytest.raises(ModelLoadError, match=", ".join(PROFILES)):
        choose("gpu-3g")


def test_missing_weights_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="does not exist"):
        VLSAM.load(choose(vlm=str(tmp_path / "nowhere")), "cpu")
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(ModelLoadError, match="token grid of 'llava'"):
        VLSAM.load(choose(vlm=str(tmp_path)), "cpu")
