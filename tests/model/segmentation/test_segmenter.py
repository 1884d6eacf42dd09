from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from segment_anything import SamPredictor

from model.builtin.scenes import Scene, draw_scene
from model.segmentation.segmenter import Segmenter
from model.types import ImageRefused, ModelLoadError, Prompt, PromptError

HINT = np.random.default_rng(0).normal(0, 5, (128, 128)).astype(np.float32)
PROMPTS = {
    "point": Prompt.of((200, 150, 1)),
    "pair": Prompt.of((200, 150, 1), (10, 20, 0)),
    "box": Prompt.of(box=(100.0, 80.0, 250.0, 220.0)),
    "box and point": Prompt.of((200, 150, 1), box=(100.0, 80.0, 250.0, 220.0)),
    "point and mask": replace(Prompt.of((200, 150, 1)), logits=HINT),
    "box and mask": replace(Prompt.of(box=(100.0, 80.0, 250.0, 220.0)), logits=HINT),
}


@pytest.mark.slow
@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("name", PROMPTS)
def test_decode_equals_the_librarys_predictor(
    segmenter: Segmenter, scene: Scene, name: str, multimask: bool
) -> None:
    prompt = PROMPTS[name]
    family: Any = segmenter.family
    predictor = SamPredictor(family.sam)
    predictor.set_image(scene.image)
    masks, quality, logits = predictor.predict(
        prompt.points if len(prompt.points) else None,
        prompt.labels if len(prompt.points) else None,
        np.array(prompt.box) if prompt.box else None,
        None if prompt.logits is None else prompt.logits[None],
        multimask_output=multimask,
    )
    ours = segmenter.decode(segmenter.encode(scene.image), [prompt], multimask=multimask)[0]
    np.testing.assert_allclose(ours.logits, logits, atol=1e-4)
    np.testing.assert_allclose(ours.predicted_iou, quality.clip(0, 1), atol=1e-5)
    np.testing.assert_array_equal(ours.masks, masks)


def test_masks_of_large_images_equal_torchs_but_for_rounding(segmenter: Segmenter, scene: Scene) -> None:
    embedding = replace(segmenter.encode(scene.image), size=(900, 1201))
    answer = segmenter.decode(embedding, [Prompt.of((600, 450, 1))], multimask=True)[0]
    square = F.interpolate(torch.from_numpy(answer.logits)[None], (256, 256), mode="bilinear")
    height, width = embedding.scaled
    theirs = F.interpolate(square[..., :height, :width], embedding.size, mode="bilinear")[0].numpy()
    assert len(answer.masks) == 3
    for ours, logits in zip(answer.masks, theirs, strict=True):
        assert ours.any()
        assert not ours.all()
        np.testing.assert_array_equal(ours[abs(logits) > 1e-4], logits[abs(logits) > 1e-4] > 0)


def test_prompts_of_all_kinds_go_through_together_and_keep_their_order(
    segmenter: Segmenter, scene: Scene
) -> None:
    embedding = segmenter.encode(scene.image)
    together = segmenter.decode(embedding, list(PROMPTS.values()), multimask=True)
    for answer, prompt in zip(together, PROMPTS.values(), strict=True):
        alone = segmenter.decode(embedding, [prompt], multimask=True)[0]
        np.testing.assert_allclose(answer.logits, alone.logits, atol=1e-4)


@pytest.mark.slow
def test_embeddings_of_two_images_do_not_mix(segmenter: Segmenter) -> None:
    rng = np.random.default_rng(0)
    images = [draw_scene(rng, width=200, height=160, count=2).image for _ in range(2)]
    prompt = Prompt.of((50, 60, 1))
    alone = [segmenter.decode(segmenter.encode(i), [prompt], multimask=False)[0].logits for i in images]
    first, second = (segmenter.encode(i) for i in images)
    later = [segmenter.decode(e, [prompt], multimask=False)[0].logits for e in (first, second)]
    assert not np.array_equal(alone[0], alone[1])
    for one, other in zip(alone, later, strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_embedding_cannot_be_changed_but_moved(segmenter: Segmenter, scene: Scene) -> None:
    embedding = segmenter.encode(scene.image)
    tensors: Any = embedding.tensors
    with pytest.raises(TypeError):
        tensors["image"] = tensors["image"] * 0
    assert embedding.to("cpu") is embedding
    moved = embedding.to("meta")
    assert (moved.device.type, moved.size, moved.scaled) == ("meta", embedding.size, embedding.scaled)
    assert moved.nbytes == embedding.nbytes == 128 * 32 * 32 * 4


def test_a_mask_prompt_changes_the_answer(segmenter: Segmenter, scene: Scene) -> None:
    embedding = segmenter.encode(scene.image)
    start = Prompt.of((200, 150, 1), mask=scene.objects[0].visible)
    with_mask, without = segmenter.decode(embedding, [start, PROMPTS["point"]], multimask=False)
    assert not np.array_equal(with_mask.logits, without.logits)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        (Prompt(), "at least one point"),
        (Prompt.of((np.nan, 1, 1)), "not finite"),
        (Prompt(box=(0, 0, 1e300, 5)), "not finite"),
        (replace(Prompt.of((1, 1, 1)), logits=np.full((128, 128), np.nan, np.float32)), "not finite"),
        (Prompt.of((1, 1, 2)), "1 .inside. or 0"),
        (Prompt(np.ones((1, 2), np.float32), np.array([1, 1])), "do not fit"),
        (Prompt(box=(0, 0, 5, 5), mask=np.ones((3, 3), bool)), "mask is"),
        (Prompt(box=(0, 0, 5, 5), logits=np.ones((3, 3), np.float32)), "logits are"),
    ],
)
def test_prompts_that_make_no_sense_are_refused(
    segmenter: Segmenter, scene: Scene, prompt: Prompt, reason: str
) -> None:
    with pytest.raises(PromptError, match=reason):
        segmenter.decode(segmenter.encode(scene.image), [prompt], multimask=False)


def test_a_missing_checkpoint_says_what_to_name(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="do not exist: name one of sam_vit_b"):
        Segmenter.load(str(tmp_path / "sam_vit_b_01ec64.pth"), device="cpu")


def test_a_corrupt_checkpoint_is_one_sentence(tmp_path: Path) -> None:
    for name in ("sam.pth", "sam.safetensors"):
        (tmp_path / name).write_bytes(b"not weights")
        with pytest.raises(ModelLoadError, match="not a checkpoint of segment-anything") as error:
            Segmenter.load(str(tmp_path / name), device="cpu")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [(1, 5000), (30_000, 3)])
def test_f35_an_image_that_scales_to_nothing_is_refused_in_a_sentence(
    segmenter: Segmenter, size: tuple[int, int]
) -> None:
    with pytest.raises(ImageRefused, match=f"{size[1]} x {size[0]} pixels: scaled to"):
        segmenter.encode(np.zeros((*size, 3), np.uint8))


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1)])
def test_thin_images_have_masks(segmenter: Segmenter, size: tuple[int, int]) -> None:
    embedding = segmenter.encode(np.zeros((*size, 3), np.uint8))
    (answer,) = segmenter.decode(embedding, [Prompt.of((0.5, 0.5, 1))], multimask=False)
    assert answer.masks[0].shape == size
