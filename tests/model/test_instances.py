from dataclasses import replace

import numpy as np
import pytest

from model.builtin.scenes import Scene
from model.instances import instances
from model.merge import iou
from model.pipeline import VLSAM
from model.recipes import RECIPES, Options, Recipe
from model.segmenter import Segmenter


@pytest.mark.parametrize(
    "recipe",
    [RECIPES["best"], replace(RECIPES["paper"], components=3, points="maxima"), RECIPES["naive"]],
    ids=["best", "three areas", "naive"],
)
def test_terms_together_are_found_as_each_by_itself(
    vlsam: VLSAM, segmenter: Segmenter, scene: Scene, recipe: Recipe
) -> None:
    options = Options(recipe=recipe, threshold=0.3, residual=0.2)
    looks = vlsam.maps(scene.image)
    # Maps that show nothing, more and less than one instance: the searches end in different rounds.
    looks += [
        replace(looks[0], attention=np.zeros_like(looks[0].attention)),
        replace(looks[0], attention=np.maximum.reduce([look.attention for look in looks])),
    ]
    embedding = segmenter.encode(scene.image)
    together = instances(segmenter, embedding, looks, options)
    alone = [found for look in looks for found in instances(segmenter, embedding, [look], options)]
    assert len(together) > len(looks) - 2
    for (look, one), (same, other) in zip(together, alone, strict=True):
        assert look is same
        assert iou(one.mask, other.mask) > 0.999
        assert one.scores == pytest.approx(other.scores, abs=1e-4)
        np.testing.assert_allclose(one.prompt.points, other.prompt.points, atol=1e-4)
        assert one.prompt.logits is None


def test_a_round_of_all_terms_is_a_call_for_each_pass_of_the_cascade(
    vlsam: VLSAM, segmenter: Segmenter, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    decode = segmenter.decode
    looks = vlsam.maps(scene.image)

    def counted(embedding: object, prompts: list[object], *, multimask: bool) -> object:
        calls.append(len(prompts))
        return decode(embedding, prompts, multimask=multimask)  # type: ignore[arg-type]

    embedding = segmenter.encode(scene.image)
    monkeypatch.setattr(segmenter, "decode", counted)
    instances(segmenter, embedding, looks, Options(rounds=1))
    assert len(looks) > 1
    assert calls == [len(looks)] * 3
    calls.clear()
    assert instances(segmenter, embedding, [], Options()) == []
    assert calls == []
