from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

from model.builtin.scenes import Scene
from model.types import AttentionError
from model.vlm import presence
from model.vlm import vlm as vlm_module
from model.vlm.presence import Reading, first_words
from model.vlm.vlm import VLM
from tests.support import vlm_families

Load = Callable[..., VLM]
NAMES = ["dog", "cat", "two house the tree", "a"]
IMAGE = np.random.default_rng(0).integers(0, 256, (150, 230, 3), np.uint8)


def spelled(tokenizer: Any) -> list[set[tuple[str, ...]]]:
    """What tells yes from no, in a tokenizer's pieces."""
    return [
        {tuple(tokenizer.convert_ids_to_tokens(list(w))) for w in words} for words in first_words(tokenizer)
    ]


def test_yes_and_no_are_told_by_one_token_where_the_space_belongs_to_the_word() -> None:
    yes, no = spelled(vlm_families.tokenizer(kind=vlm_families.byte_level))
    assert {("Yes",), ("ĠYes",)} < yes
    assert {("No",), ("ĠNo",)} < no
    assert not yes & no


def test_where_the_space_is_a_token_of_its_own_the_next_one_tells_yes_from_no() -> None:
    yes, no = spelled(vlm_families.tokenizer(kind=vlm_families.metaspace))
    assert {("Yes",), ("▁", "Yes")} < yes
    assert {("No",), ("▁", "No")} < no
    assert not yes & no


def test_a_tokenizer_that_begins_every_text_with_a_space_still_knows_the_words_without_one() -> None:
    """As Llama's, which has "▁Yes", and spells " Yes" at the beginning of a text with two spaces."""
    pieces = ["<unk>", "▁", "▁Yes", "▁No", "Yes", "No", *"YesNo▁", "Ye"]
    merges = [("Y", "e"), ("Ye", "s"), ("N", "o"), ("▁", "Yes"), ("▁", "No")]
    inner = Tokenizer(
        models.BPE({p: i for i, p in enumerate(dict.fromkeys(pieces))}, merges, unk_token="<unk>")
    )
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
    assert spelled(tokenizer) == [{("Yes",), ("▁Yes",)}, {("No",), ("▁No",)}]


def test_a_tokenizer_without_the_words_cannot_check_presence() -> None:
    with pytest.raises(AttentionError, match="switch the check off"):
        first_words(
            vlm_families.tokenizer(kind=lambda specials: Tokenizer(models.WordLevel({"<unk>": 0}, "<unk>")))
        )


def test_no_word_is_told_by_what_the_other_begins_with_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "YES", ("dog", "dogcat"))
    monkeypatch.setattr(presence, "NO", ("dogtree", "cat"))
    yes, no = spelled(vlm_families.tokenizer(kind=vlm_families.byte_level))
    assert yes == {("dog", "cat")}
    assert no == {("dog", "tree"), ("cat",)}


def afresh(vlm: VLM, question: str) -> list[float]:
    """The chances of yes and no by passes over the whole prompt, and it with each word, without a cache."""
    found = []
    for words in first_words(vlm.processor.tokenizer):
        total = 0.0
        for word in words:
            inputs = vlm.inputs(IMAGE, question)
            chance = 1.0
            for token in word:
                with torch.inference_mode():
                    logits = vlm.model(**inputs, use_cache=False).logits[0, -1]
                chance *= float(logits.softmax(-1)[token])
                more = inputs["input_ids"].new_tensor([[token]])
                shape = inputs["input_ids"].shape
                inputs = {
                    key: torch.cat([value, value[:, -1:]], 1) if value.shape == shape else value
                    for key, value in inputs.items()
                }
                inputs["input_ids"] = torch.cat([inputs["input_ids"][:, :-1], more], 1)
            total += chance
        found.append(total)
    return found


@pytest.fixture
def talkative(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights say yes as often as anything else."""
    monkeypatch.setattr(vlm_module, "LEAST_SAID", 0.0)


def watched(vlm: VLM) -> tuple[Any, list[tuple[bool, int]]]:
    """The presence of NAMES, and of each call of the model whether it saw an image, and its rows."""
    seen: list[tuple[bool, int]] = []

    def watch(module: Any, args: Any, kwargs: Any) -> None:
        seen.append(("pixel_values" in kwargs, len(kwargs["input_ids"])))

    hook = vlm.model.register_forward_pre_hook(watch, with_kwargs=True)
    try:
        return vlm.presence(IMAGE, NAMES), seen
    finally:
        hook.remove()


@pytest.mark.usefixtures("talkative")
def test_where_the_image_may_see_the_question_it_is_read_for_each(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm = load("gemma3")
    shared, _ = watched(vlm)
    monkeypatch.setattr(vlm, "one_way", False)
    found, seen = watched(vlm)
    assert seen == [(True, 1)] * len(NAMES)
    assert found == pytest.approx(shared, abs=1e-5)


@pytest.mark.usefixtures("talkative")
@pytest.mark.parametrize("name", vlm_families.BUILDERS)
def test_every_family_reads_an_image_once_and_says_what_it_would_say_afresh(load: Load, name: str) -> None:
    vlm = load(name)
    found, seen = watched(vlm)
    # PaliGemma's image sees the question.
    assert sum(image for image, _ in seen) == (len(NAMES) if name.startswith("paligemma") else 1)
    assert {rows for _, rows in seen} == {1}
    for one, chance in zip(NAMES, found, strict=True):
        yes, no = afresh(vlm, f"Is there a {one} in the image? Answer yes or no.")
        assert chance == pytest.approx(yes / (yes + no), abs=1e-5)
    assert len(set(found.tolist())) == len(NAMES)


@pytest.mark.usefixtures("talkative")
def test_one_name_alone_says_the_same_as_among_others(load: Load) -> None:
    vlm = load("qwen2_5_vl")
    assert vlm.presence(IMAGE, NAMES)[1] == pytest.approx(vlm.presence(IMAGE, NAMES[1:2])[0], abs=1e-6)
    assert vlm.presence(IMAGE, []).shape == (0,)


def test_a_reading_stays_as_it_is_when_others_follow_on_it(load: Load) -> None:
    vlm = load("gemma3")
    dog, cat = (tuple(vlm.processor.tokenizer(word)["input_ids"]) for word in ("dog . the", "cat"))
    with torch.inference_mode():
        start = Reading(vlm.model, vlm.inputs(IMAGE, "what is the"))
        alone = start.then(cat).chance({(5,)})
        start.then(dog)
        assert start.then(cat).chance({(5,)}) == alone


@pytest.mark.usefixtures("talkative")
def test_a_prompt_that_ends_otherwise_than_its_template_is_read_whole_each_time(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm = load("qwen2_5_vl")
    shared = vlm.presence(IMAGE, NAMES)
    whole = VLM.common_prefix
    monkeypatch.setattr(VLM, "common_prefix", lambda *args: (0, whole(*args)[1]))
    assert vlm.presence(IMAGE, NAMES) == pytest.approx(shared, abs=1e-5)


def test_a_model_that_says_neither_yes_nor_no_cannot_check_presence(vlm: VLM, scene: Scene) -> None:
    with pytest.raises(AttentionError, match="presence"):
        vlm.presence(scene.image, ["dog", "cat"])


@pytest.mark.usefixtures("talkative")
def test_presence_is_the_share_of_yes_of_the_first_word(
    vlm: VLM, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The built-in model never says yes or no, so two names that it does say stand for them here."""
    monkeypatch.setattr(presence, "YES", (" dog",))
    monkeypatch.setattr(presence, "NO", (" cat",))
    many = ["a", "a rather long name of many tokens", "b"] * 4
    chances = vlm.presence(scene.image, many)
    assert chances.shape == (12,)
    assert ((chances > 0) & (chances < 1)).all()
    assert chances[:3] == pytest.approx(chances[3:6], abs=1e-6)
    monkeypatch.setattr(presence, "YES", (" cat",))
    monkeypatch.setattr(presence, "NO", (" dog",))
    assert vlm.presence(scene.image, many) == pytest.approx(1 - chances, abs=1e-5)
