"""The flow, against the paper's equations written out with their matrices."""

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from model import attention
from model.attention import Capture, capturing, flow
from model.builtin.scenes import Scene
from model.types import AttentionError
from model.vlm import VLM

Layers = list[torch.Tensor]  # per layer (heads, N, N) attention after softmax


def literal(layers: Layers, *, head_weights: bool, regularise: bool) -> torch.Tensor:
    """Equations 1 to 3 as they stand in the paper: Sbar of the last layer, (N, N)."""
    count = layers[0].shape[1]
    rolled = torch.zeros(count, count, dtype=torch.float64)
    eye = torch.eye(count, dtype=torch.float64)
    for attended in layers:
        attended = attended.double()
        if head_weights:
            attended = attended * attended.amax(-1).mean(-1)[:, None, None]
        mixed = attended.mean(0)
        if regularise:
            mixed = mixed * (torch.arange(count) + 1) / count
        rolled = (eye + mixed) @ (eye + rolled)
    return rolled


def captured(layers: int, heads: int, key_heads: int, count: int, seed: int) -> tuple[Capture, Layers]:
    """Random queries and keys, and the attention that they give."""
    noise = torch.Generator().manual_seed(seed)
    capture, matrices = Capture(scaling=0.3), []
    for layer in range(layers):
        query = torch.randn(heads, count, 8, generator=noise) * 2
        key = torch.randn(key_heads, count, 8, generator=noise) * 2
        # In pieces, as when a prompt is read at once and an answer token by token.
        capture.queries[layer] = [query[:, : count - 3], query[:, count - 3 :]]
        capture.keys[layer] = key
        scores = query @ key.repeat_interleave(heads // key_heads, 0).transpose(1, 2) * 0.3
        scores = scores.masked_fill(torch.ones(count, count).triu(1).bool(), -torch.inf)
        matrices.append(scores.softmax(-1))
    return capture, matrices


@pytest.mark.parametrize("head_weights", [True, False])
@pytest.mark.parametrize("regularise", [True, False])
@pytest.mark.parametrize("count", [5, 256, 300])
def test_flow_equals_the_papers_matrices(count: int, head_weights: bool, regularise: bool) -> None:
    capture, matrices = captured(layers=5, heads=6, key_heads=2, count=count, seed=count)
    rows = [count - 1, count - 4]
    ours = flow(capture, rows, head_weights=head_weights, regularise=regularise)
    theirs = literal(matrices, head_weights=head_weights, regularise=regularise)[rows]
    assert (ours - theirs).abs().max() < 1e-5 * theirs.max()


def test_flow_of_a_generated_answer_equals_an_eager_forward_pass(vlm: VLM, scene: Scene) -> None:
    """Queries and keys kept while tokens were generated give the maps of output_attentions=True."""
    answer = vlm.answer(scene.image, "List all objects in the image.")
    model, processor = vlm._model, vlm._processor
    ids = processor.tokenizer(answer.text, add_special_tokens=False)["input_ids"]
    content = [{"type": "image"}, {"type": "text", "text": "List all objects in the image."}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(
        text=[prompt + answer.text], images=[PILImage.fromarray(scene.image)], return_tensors="pt"
    )
    assert inputs["input_ids"].shape[1] == answer.first + len(ids)
    model.set_attn_implementation({"text_config": "eager"})
    try:
        with torch.inference_mode():
            layers = [a[0] for a in model(**inputs, output_attentions=True, use_cache=False).attentions]
    finally:
        model.set_attn_implementation({"text_config": attention.IMPLEMENTATION})
    count = next(iter(answer.capture.keys.values())).shape[1]
    theirs = literal([a[:, :count, :count] for a in layers], head_weights=True, regularise=True)
    spans = [(0, len(answer.text))]
    ours = vlm.attention_maps(answer, spans)[0]
    rows = list(answer.rows(*spans[0]))
    expected = theirs[rows].mean(0)[torch.from_numpy(answer.grid.tokens)].reshape(ours.shape)
    assert np.abs(ours - expected.numpy()).max() < 1e-5 * float(expected.max())


def test_without_regularisation_the_flow_collapses_into_the_first_tokens() -> None:
    capture, _ = captured(layers=12, heads=4, key_heads=4, count=200, seed=0)
    plain = flow(capture, [199], regularise=False)[0]
    regular = flow(capture, [199], regularise=True)[0]
    assert int(plain[:199].argmax()) == 0
    assert int(regular[:199].argmax()) > 10


def test_nothing_captured_is_an_error_that_says_so() -> None:
    with capturing() as capture:
        pass
    with pytest.raises(AttentionError, match="no attention was captured"):
        flow(capture, [0])


def test_rows_outside_the_sequence_are_refused() -> None:
    capture, _ = captured(layers=1, heads=1, key_heads=1, count=5, seed=0)
    with pytest.raises(AttentionError, match="outside"):
        flow(capture, [5])


def test_captures_do_not_leak_into_each_other(vlm: VLM, scene: Scene) -> None:
    one = vlm.answer(scene.image, "List all objects in the image.")
    other = vlm.answer(scene.image[:, ::-1].copy(), "Describe the picture.")
    again = vlm.answer(scene.image, "List all objects in the image.")
    assert one.text == again.text
    assert one.capture is not other.capture
    assert torch.equal(one.capture.keys[0], again.capture.keys[0])
