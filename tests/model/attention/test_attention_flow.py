"""The flow, against the paper's equations written out with their matrices."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    Qwen3Config,
)

from model.attention import capture as capture_module
from model.attention.attention_flow import flow
from model.attention.capture import Capture, Layer, capturing, implementations
from model.attention.layer_attention import per_layer
from model.builtin.scenes import Scene
from model.recipes import RECIPES, Recipe
from model.types import AttentionError
from model.vlm.vlm import VLM

PAPER = RECIPES["paper"]
Layers = list[torch.Tensor]  # per layer (heads, N, N) attention after softmax


def literal(layers: Layers, recipe: Recipe, image: list[int] | None = None) -> torch.Tensor:
    """Equations 1 to 3 as they stand in the paper, and DecAF's variants of them: (N, N)."""
    count = layers[0].shape[1]
    rolled = torch.zeros(count, count, dtype=torch.float64)
    eye = torch.eye(count, dtype=torch.float64)
    if recipe.residual != "paper":
        rolled = eye
    seen_by = (layers[0][0] > 0).double().sum(0)
    factor = 1 - (seen_by - 1) / count
    used = layers[int(recipe.start_layer * len(layers)) :]
    for attended in used:
        attended = attended.double()
        if recipe.head_weights == "max":
            attended = attended * attended.amax(-1).mean(-1)[:, None, None]
        elif recipe.head_weights == "vmax":
            weights = attended[..., image].amax(-1).mean(-1)
            attended = attended * (weights / weights.max())[:, None, None]
        mixed = attended.mean(0)
        if recipe.regularise == "before":
            mixed = mixed * factor
        if recipe.residual == "half":
            rolled = (eye + mixed) / 2 @ rolled
        elif recipe.residual == "depth":
            rolled = (eye + mixed / len(used)) @ rolled
        else:
            rolled = (eye + mixed) @ (eye + rolled)
    return rolled * factor if recipe.regularise == "end" else rolled


def captured(layers: int, heads: int, key_heads: int, count: int, seed: int) -> tuple[Capture, Layers]:
    """Random queries and keys, and the attention that they give."""
    noise = torch.Generator().manual_seed(seed)
    capture, matrices = Capture(), []
    places = torch.arange(count)
    spans = torch.stack([torch.zeros_like(places), places + 1], 1)
    for index in range(layers):
        query = torch.randn(heads, count, 8, generator=noise) * 2
        key = torch.randn(key_heads, count, 8, generator=noise) * 2
        # In pieces, as when a prompt is read at once and an answer token by token.
        cut = count - 3
        capture.layers[index] = Layer(
            0.3, [query[:, :cut], query[:, cut:]], [key[:, :cut], key[:, cut:]], [spans[:cut], spans[cut:]]
        )
        scores = query @ key.repeat_interleave(heads // key_heads, 0).transpose(1, 2) * 0.3
        scores = scores.masked_fill(torch.ones(count, count).triu(1).bool(), -torch.inf)
        matrices.append(scores.softmax(-1))
    return capture, matrices


VARIANTS = {
    "paper": PAPER,
    "without head weights": replace(PAPER, head_weights="none"),
    "without regularisation": replace(PAPER, regularise="none"),
    "regularised at the end": replace(PAPER, regularise="end"),
    "V-Max": replace(PAPER, head_weights="vmax"),
    "from the middle": replace(PAPER, start_layer=0.5),
    "half residual": replace(PAPER, residual="half"),
    "a share of the depth": replace(PAPER, residual="depth", regularise="none"),
    "a share of half the depth": replace(PAPER, residual="depth", start_layer=0.5),
    "DecAF": replace(PAPER, head_weights="vmax", start_layer=0.5, residual="half", regularise="none"),
}


@pytest.mark.parametrize("recipe", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("count", [5, 256, 300])
def test_flow_equals_the_papers_matrices(count: int, recipe: Recipe) -> None:
    capture, matrices = captured(layers=5, heads=6, key_heads=2, count=count, seed=count)
    rows, image = [count - 1, count - 4], list(range(1, count // 2))
    ours = flow(capture, rows, recipe, image)
    theirs = literal(matrices, recipe, image)[rows]
    assert (ours - theirs).abs().max() < 1e-5 * theirs.max()


@pytest.mark.parametrize("block", [1, 1000, 10**9])
def test_the_size_of_a_block_changes_nothing(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    capture, matrices = captured(layers=3, heads=4, key_heads=2, count=40, seed=1)
    monkeypatch.setattr(capture_module, "BLOCK_CPU", block)
    theirs = literal(matrices, PAPER)[[39]]
    assert (flow(capture, [39], PAPER) - theirs).abs().max() < 1e-5 * theirs.max()


class Counted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The operations that run, by name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names[func.__name__.split(".")[0]] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("head_weights", ["max", "vmax", "none"])
def test_blocks_neither_copy_to_the_device_nor_wait_for_it(
    head_weights: Literal["max", "vmax", "none"], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the device "meta", which has shapes but no numbers: whatever reads one raises."""
    capture, _ = captured(layers=2, heads=4, key_heads=2, count=100, seed=0)
    for layer in capture.layers.values():
        layer.queries, layer.keys = ([p.to("meta") for p in pieces] for pieces in (layer.queries, layer.keys))
        for piece in layer.spans:  # a sliding window
            piece[:, 0] = (piece[:, 1] - 30).clamp(min=0)
    recipe, image, found = replace(PAPER, head_weights=head_weights), list(range(1, 50)), []
    for block in (1 << 20, 2000):
        monkeypatch.setattr(capture_module, "BLOCK", block)
        with Counted() as counted:
            assert flow(capture, [99], recipe, image).device.type == "meta"
        found.append(counted.names)
    few, many = found
    assert many["exp_"] >= 10 * few["exp_"]
    assert many["_to_copy"] == few["_to_copy"]


@pytest.mark.parametrize(("memory", "block"), [(4, 1 << 25), (8, 1 << 26), (80, 1 << 26)])
def test_a_gpus_blocks_are_a_hundred_times_a_cpus_and_fit_its_memory(
    memory: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def properties(_: torch.device) -> SimpleNamespace:
        return SimpleNamespace(total_memory=memory << 30)

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    assert capture_module.block_for(torch.device("cuda")) == block
    assert capture_module.block_for(torch.device("mps")) == capture_module.BLOCK
    assert capture_module.block_for(torch.device("cpu")) == capture_module.BLOCK_CPU < block // 50


def test_half_residuals_are_the_plain_product_but_for_a_factor() -> None:
    """So they correct nothing: docs/decisions/0008."""
    capture, matrices = captured(layers=5, heads=4, key_heads=4, count=60, seed=0)
    product = torch.eye(60, dtype=torch.float64)
    for attended in matrices:
        weights = attended.amax(-1).mean(-1)[:, None, None]
        product = (torch.eye(60, dtype=torch.float64) + (attended * weights).double().mean(0)) @ product
    half = flow(capture, [59], replace(PAPER, residual="half", regularise="none"))[0]
    assert torch.allclose(half.double() * 2**5, product[59], rtol=1e-4)


_SIZES: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
}  # fmt: skip
ARCHITECTURES = {
    "llama": LlamaConfig(**_SIZES),
    "qwen3, which normalises queries and keys": Qwen3Config(**_SIZES),
    "mistral, a sliding window": MistralConfig(**_SIZES, sliding_window=6),
    "gemma 2, every other layer slides, and scores are capped": Gemma2Config(
        # Weights so large that the scores are, too: far above the cap.
        **_SIZES,
        sliding_window=6,
        attn_logit_softcapping=2.0,
        query_pre_attn_scalar=1,
        initializer_range=0.2,
    ),
}


@pytest.mark.parametrize("config", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_flow_of_a_generation_equals_an_eager_forward_pass(config: Any) -> None:
    """Queries, keys and what each row sees, kept while tokens came one by one, for several architectures."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    prompt = torch.arange(1, 15)[None]
    model.set_attn_implementation(implementations(config)["text_config"])
    with torch.inference_mode(), capturing() as capture:
        said = model.generate(prompt, max_new_tokens=6, do_sample=False, eos_token_id=None)
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        layers = [a[0] for a in model(said[:, :-1], output_attentions=True, use_cache=False).attentions]
    rows = [14, 18]
    ours = flow(capture, rows, replace(PAPER, regularise="none"))
    theirs = literal(layers, replace(PAPER, regularise="none"))[rows]
    assert (ours - theirs).abs().max() < 1e-5 * theirs.max()
    for index, each in enumerate(per_layer(capture, rows)):
        assert (each - layers[index].mean(0)[rows]).abs().max() < 1e-5
    for layer in capture.layers.values():
        if layer.softcap:
            query, key = torch.cat(layer.queries, 1), torch.cat(layer.keys, 1).repeat_interleave(2, 0)
            assert (query @ key.transpose(1, 2) * layer.scaling).abs().max() > 2 * layer.softcap


@pytest.mark.parametrize("name", ["paper", "naive", "decoder-mean"])
def test_maps_of_a_generated_answer_equal_an_eager_forward_pass(vlm: VLM, scene: Scene, name: str) -> None:
    """Queries and keys kept while a VLM answered give the maps of output_attentions=True."""
    recipe = RECIPES[name]
    answer = vlm.answer(scene.image, "List all objects in the image.")
    model = vlm.model
    inputs = vlm.inputs(scene.image, "List all objects in the image.")
    ids = vlm.processor.tokenizer(answer.text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    count = answer.capture.tokens
    assert inputs["input_ids"].shape[1] + ids.shape[1] == count
    inputs["input_ids"] = torch.cat([inputs["input_ids"], ids], 1)
    for key in ("attention_mask", "mm_token_type_ids"):
        fill = torch.full_like(ids, int(key == "attention_mask"))
        inputs[key] = torch.cat([inputs[key], fill], 1)
    model.set_attn_implementation("eager")
    try:
        with torch.inference_mode():
            layers = [a[0] for a in model(**inputs, output_attentions=True, use_cache=False).attentions]
    finally:
        model.set_attn_implementation(implementations(model.config))
    if name == "paper":
        theirs = literal(layers, recipe)
    else:
        kept = layers[-1:] if name == "naive" else layers
        theirs = torch.stack([layer.mean(0) for layer in kept]).mean(0)
    spans = [(0, len(answer.text))]
    ours = vlm.attention_maps(answer, spans, recipe)[0]
    expected = theirs[list(answer.rows(*spans[0]))].mean(0)[torch.from_numpy(answer.grid.tokens)]
    assert np.abs(ours - expected.reshape(ours.shape).numpy()).max() < 1e-5 * float(expected.max())


def test_without_regularisation_the_flow_collapses_into_the_first_tokens() -> None:
    capture, _ = captured(layers=12, heads=4, key_heads=4, count=200, seed=0)
    plain = flow(capture, [199], replace(PAPER, regularise="none"))[0]
    regular = flow(capture, [199], PAPER)[0]
    assert int(plain[:199].argmax()) == 0
    assert int(regular[:199].argmax()) > 10


def test_f24_nothing_captured_is_an_error_that_says_so() -> None:
    with capturing() as capture:
        pass
    with pytest.raises(AttentionError, match="no attention was captured"):
        flow(capture, [0], PAPER)


def test_f24_rows_outside_the_sequence_are_refused() -> None:
    capture, _ = captured(layers=1, heads=1, key_heads=1, count=5, seed=0)
    with pytest.raises(AttentionError, match="outside"):
        flow(capture, [5], PAPER)


def test_a_mask_with_gaps_is_refused() -> None:
    mask = torch.tensor([[[[True, False, True]]]])
    with pytest.raises(AttentionError, match="leaves gaps"):
        Capture().spans_of(mask, True, 1, 3, 3)


def test_captures_do_not_leak_into_each_other(vlm: VLM, scene: Scene) -> None:
    one = vlm.answer(scene.image, "List all objects in the image.")
    other = vlm.answer(scene.image[:, ::-1].copy(), "Describe the picture.")
    again = vlm.answer(scene.image, "List all objects in the image.")
    assert one.text == again.text
    assert one.capture is not other.capture
    assert torch.equal(one.capture.layers[0].keys[0], again.capture.layers[0].keys[0])
