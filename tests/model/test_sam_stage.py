from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.builtin.scenes import Scene
from model.options import Options
from model.pipeline import VLSAM
from model.recipes import RECIPES, Recipe
from model.sam_stage import Instance, InstanceSearch
from model.segmentation.non_maximum_suppression import iou
from model.segmentation.sam_families.family import BOTTOM_RIGHT, TOP_LEFT, Tokens
from model.segmentation.segmenter import MASK_LOGIT, Segmenter
from model.vlm_stage import TermMap


@pytest.mark.slow
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
    together = InstanceSearch(segmenter, embedding, options).from_maps(looks)
    alone = [
        found for look in looks for found in InstanceSearch(segmenter, embedding, options).from_maps([look])
    ]
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
    InstanceSearch(segmenter, embedding, Options(rounds=1)).from_maps(looks)
    assert len(looks) > 1
    assert calls == [len(looks)] * 3
    calls.clear()
    assert InstanceSearch(segmenter, embedding, Options()).from_maps([]) == []
    assert calls == []


class Squares:
    """A family of 64 x 64 pixels that answers each prompt with a square around its first point.

    The squares of successive calls have the given sides, then the last one's.
    """

    side = low = 64
    stretched, ends_boxes = True, False
    device = torch.device("cpu")

    def __init__(self, sides: Sequence[int]) -> None:
        self._sides = list(sides)
        self.asked: list[Tokens] = []

    def features(self, image: object) -> dict[str, Tensor]:
        return {"image": torch.zeros(1)}

    def decode(
        self, features: Mapping[str, Tensor], prompts: Tokens, *, multimask: bool
    ) -> tuple[Tensor, Tensor]:
        self.asked.append(prompts)
        half = (self._sides.pop(0) if len(self._sides) > 1 else self._sides[0]) / 2
        places = torch.arange(64) + 0.5
        masks = []
        for x, y in prompts.points[:, 0].tolist():
            inside = ((places - y).abs() <= half)[:, None] & ((places - x).abs() <= half)[None]
            masks.append(torch.where(inside, 8.0, -8.0))
        levels = 3 if multimask else 1
        quality = torch.linspace(0.9, 0.7, levels).repeat(len(masks), 1)
        return torch.stack(masks)[:, None].repeat(1, levels, 1, 1), quality


def searched(attention: NDArray[np.float32], family: Squares, options: Options) -> list[Instance]:
    segmenter = Segmenter(family)
    embedding = segmenter.encode(np.zeros((64, 64, 3), np.uint8))
    look = TermMap("What is there?", "dog", attention)
    return [found for _, found in InstanceSearch(segmenter, embedding, options).from_maps([look])]


def peaks(*cells: tuple[int, int, float]) -> NDArray[np.float32]:
    """A map of 16 x 16 with a lone cell of each strength."""
    attention = np.zeros((16, 16), np.float32)
    for row, column, strength in cells:
        attention[row, column] = strength
    return attention


def centre(instance: Instance) -> tuple[float, float]:
    rows, columns = np.nonzero(instance.mask)
    return float(rows.mean() + 0.5), float(columns.mean() + 0.5)


def test_what_earlier_masks_explain_stays_explained() -> None:
    """Three instances in as many rounds, and the first is not found again in the third."""
    attention = peaks((2, 2, 1), (2, 12, 0.9), (12, 7, 0.8))
    found = searched(attention, Squares([8]), Options(recipe=RECIPES["paper"], rounds=6))
    assert [centre(each) for each in found] == [(10, 10), (10, 50), (50, 30)]


@pytest.mark.parametrize(("residual", "count"), [(0.55, 1), (0.45, 2)])
def test_a_further_instance_needs_its_share_of_the_first_peak(residual: float, count: int) -> None:
    attention = peaks((2, 2, 1), (12, 12, 0.5))
    found = searched(attention, Squares([8]), Options(recipe=RECIPES["paper"], residual=residual))
    assert len(found) == count


def test_the_last_pass_of_the_cascade_gets_the_box_of_the_second_answer() -> None:
    family = Squares([8, 16, 12])
    (found,) = searched(peaks((8, 8, 1)), family, Options(recipe=RECIPES["paper"], rounds=1))
    first, second, third = family.asked
    assert TOP_LEFT not in first.labels
    assert TOP_LEFT not in second.labels
    corners = [third.labels[0].tolist().index(corner) for corner in (TOP_LEFT, BOTTOM_RIGHT)]
    assert third.points[0][corners].tolist() == [[26, 26], [42, 42]]
    assert found.prompt.box == (26, 26, 42, 42)
    assert found.mask.sum() == 12 * 12
    assert first.masks is None
    for answer, side in ((second, 8), (third, 16)):  # each starts from the answer before
        assert answer.masks is not None
        assert int((answer.masks > 0).sum()) == side * side


@pytest.mark.parametrize("threshold", [0.25, 0.4])
def test_the_map_becomes_mask_logits_whose_edge_is_the_threshold(threshold: float) -> None:
    """Logit 0 is where SAM's masks end; a map's area ends at the threshold."""
    attention = np.full((6, 6), threshold, np.float32)
    attention[:, :2], attention[:, 4:] = 0, 1
    family = Squares([8])
    searched(attention, family, Options(recipe=Recipe(logits=True), threshold=threshold, rounds=1))
    logits = family.asked[0].masks
    assert logits is not None
    left, middle, right = logits.reshape(64, 64)[32, [5, 32, 58]].tolist()
    assert (left, middle, right) == pytest.approx((-MASK_LOGIT, 0, MASK_LOGIT), abs=1e-3)
