import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from model.builtin.scenes import Scene
from model.options import Options
from model.profiles import choose
from model.recipes import RECIPES
from model.types import AttentionError, ImageRefused, ModelLoadError
from model.vlm.terms import parse, without_cut_name
from model.vlm.vlm import VLM
from model.vlm_stage import Localizer
from tests.support import vlm_families

Load = Callable[..., VLM]
QUESTION = "List all objects in the image."
PAPER = RECIPES["paper"]


def test_the_rows_of_a_term_are_the_tokens_that_spell_it(vlm: VLM, scene: Scene) -> None:
    answer = vlm.answer(scene.image, QUESTION)
    tokenizer = vlm.processor.tokenizer
    said = tokenizer(answer.text, add_special_tokens=False)["input_ids"]
    for term in parse(answer.text):
        rows = answer.rows(term.start, term.end)
        spelled = tokenizer.decode([said[row - answer.first] for row in rows])
        assert spelled.strip().lower() == term.text


@pytest.mark.parametrize("said", ["There is the dog on the left", "dog", "zwölf 狗 Hüte"])
def test_an_answer_put_into_the_models_mouth_is_read_as_its_own(vlm: VLM, scene: Scene, said: str) -> None:
    answer = vlm.answer(scene.image, QUESTION, forced_answer=said)
    assert answer.text == said
    rows = answer.rows(0, len(said))
    assert (rows.start, rows.stop) == (answer.first, answer.capture.tokens)


def test_words_that_the_model_says_by_itself_give_the_same_maps_when_forced(vlm: VLM, scene: Scene) -> None:
    own = vlm.answer(scene.image, QUESTION)
    forced = vlm.answer(scene.image, QUESTION, forced_answer=own.text)
    spans = [(term.start, term.end) for term in parse(own.text)]
    assert forced.text == own.text
    one, other = (vlm.attention_maps(answer, spans, PAPER) for answer in (own, forced))
    assert np.allclose(one, other, atol=1e-5)


def test_no_text_makes_a_special_token(vlm: VLM, scene: Scene) -> None:
    answer = vlm.answer(scene.image, QUESTION, forced_answer="a dog <|im_end|><|image_pad|>")
    assert answer.text.split() == ["a", "dog"]


def test_characters_beyond_the_answer_have_no_rows(vlm: VLM, scene: Scene) -> None:
    with pytest.raises(AttentionError, match="no token spells"):
        vlm.answer(scene.image, QUESTION).rows(500, 510)


def test_there_is_one_map_per_span_on_the_token_grid(vlm: VLM, scene: Scene) -> None:
    answer = vlm.answer(scene.image, QUESTION)
    spans = [(term.start, term.end) for term in parse(answer.text)]
    own = vlm.attention_maps(answer, spans, PAPER)
    asking = vlm.attention_maps(answer, spans, replace(PAPER, row="asking"))
    assert own.shape == asking.shape == (len(spans), *answer.grid.shape)
    assert own.dtype == np.float32
    assert (own >= 0).all()
    assert not np.allclose(own, asking)
    assert vlm.attention_maps(answer, [], PAPER).shape == (0, *answer.grid.shape)


def test_every_source_of_maps_gives_one_map_per_span(vlm: VLM, scene: Scene) -> None:
    answer = vlm.answer(scene.image, QUESTION, hidden=True, vision=True)
    spans = [(term.start, term.end) for term in parse(answer.text)]
    found = {}
    for source in ("flow", "last-layer", "decoder-mean", "cosine", "vision"):
        found[source] = vlm.attention_maps(answer, spans, replace(PAPER, source=source))
        assert found[source].shape == (len(spans), *answer.grid.shape)
        assert (found[source] >= 0).all()
    assert len({float(maps.sum()) for maps in found.values()}) == len(found)
    assert vlm.layer_maps(answer, spans).shape == (6, len(spans), *answer.grid.shape)


def test_a_source_that_was_not_kept_is_an_error(vlm: VLM, scene: Scene) -> None:
    answer = vlm.answer(scene.image, QUESTION)
    for source in ("cosine", "vision", "vit-rollout"):
        with pytest.raises(AttentionError):
            vlm.attention_maps(answer, [(0, 3)], replace(PAPER, source=source))


def test_a_name_in_several_tokens_is_pooled(vlm: VLM, scene: Scene) -> None:
    answer = vlm.answer(scene.image, QUESTION)
    whole = [(0, len(answer.text))]
    each = np.stack([vlm.attention_maps(answer, [(end - 1, end)], PAPER)[0] for end in answer.ends])
    mean, strongest, last = (
        vlm.attention_maps(answer, whole, replace(PAPER, subtokens=how))[0] for how in ("mean", "max", "last")
    )
    assert np.allclose(mean, each.mean(0))
    assert np.allclose(strongest, each.max(0))
    assert np.allclose(last, each[-1])


def test_the_second_opinion_asks_for_boxes_in_the_familys_words(vlm: VLM, scene: Scene) -> None:
    text, found = vlm.boxes(scene.image, ["dog"])
    assert "dog" in vlm.box_question(["dog"])
    assert text  # the built-in model lists names, and was never taught boxes
    assert found == []


@pytest.mark.slow
@pytest.mark.parametrize("limit", range(1, 9))
def test_f6_an_answer_may_be_cut_anywhere(vlm: VLM, scene: Scene, limit: int) -> None:
    """The built-in model says " pizza, tree." and an end."""
    whole, answer = (vlm.answer(scene.image, QUESTION, max_new_tokens=most) for most in (256, limit))
    assert answer.cut == (limit < len(whole.ends) + 1)
    assert whole.text.startswith(answer.text)
    assert len(answer.ends) == min(limit - 1, len(whole.ends))
    assert all(len(answer.rows(at, at + 1)) == 1 for at in range(len(answer.text)))
    expected = [term for term in parse(whole.text) if re.search(r"[,.]", answer.text[term.end :])]
    found = Localizer(vlm, Options()).locate(scene.image, QUESTION)
    assert found
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vlm, "answer", partial(vlm.answer, max_new_tokens=limit))
        found = Localizer(vlm, Options()).locate(scene.image, QUESTION)
    assert [each.term for each in found] == [term.text for term in expected]


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
@pytest.mark.parametrize("name", vlm_families.BUILDERS)
def test_f6_every_family_may_be_cut_anywhere(load: Load, name: str, limit: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (150, 230, 3), np.uint8)
    answer = load(name).answer(image, "list the objects", max_new_tokens=limit)
    assert answer.cut
    assert len(answer.ends) == limit - 1
    for at in range(len(answer.text)):
        rows = answer.rows(at, at + 1)
        assert answer.first <= rows.start < rows.stop <= answer.capture.tokens
    whole = [(0, len(answer.text))] if answer.text else []
    assert load(name).attention_maps(answer, whole, PAPER).shape == (len(whole), *answer.grid.shape)


@pytest.mark.slow
def test_every_cut_is_told_to_whoever_counts_them(scene: Scene) -> None:
    told: list[None] = []
    vlm = VLM.load(choose().vlm, device="cpu", on_cut=lambda: told.append(None))
    vlm.answer(scene.image, QUESTION)
    vlm.answer(scene.image, QUESTION, forced_answer="a dog and")
    vlm.background_map(scene.image, ["dog"], PAPER)
    assert not told
    vlm.answer(scene.image, QUESTION, max_new_tokens=2)
    assert len(told) == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("model.vlm.vlm.MAX_BOX_TOKENS", 2)
        vlm.smaller().boxes(scene.image)
    assert len(told) == 2


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava", "gemma3"])
@pytest.mark.parametrize("said", ["a dog . 狗 , two hüte", "狗狗", "the tree\n- cat\n", "🐶 dog", "a Yes"])
def test_characters_of_several_tokens_have_all_of_their_rows(load: Load, name: str, said: str) -> None:
    """llava's tokenizer is of SentencePiece's kind, with bytes for what it lacks; qwen2_5_vl has bytes."""
    vlm = load(name)
    image = np.full((150, 230, 3), 120, np.uint8)
    answer = vlm.answer(image, "list the objects", forced_answer=said)
    if name != "gemma3":  # which knows words alone
        assert answer.text == said
    tokenizer = vlm.processor.tokenizer
    tokens = tokenizer(said, add_special_tokens=False)["input_ids"]
    covered: set[int] = set()
    for at, sign in enumerate(answer.text):
        rows = answer.rows(at, at + 1)
        covered |= set(rows)
        spelled = tokenizer.decode(tokens[rows.start - answer.first : rows.stop - answer.first])
        assert "\ufffd" not in spelled
        assert sign.strip() in spelled
    assert covered >= {row for row in range(answer.first + 1, answer.capture.tokens) if name != "gemma3"}
    assert list(answer.starts) == sorted(answer.starts)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava"])
def test_an_answer_that_is_cut_within_a_character_is_read_up_to_it(load: Load, name: str) -> None:
    vlm = load(name)
    tokens = vlm.processor.tokenizer("a dog , 狗", add_special_tokens=False)["input_ids"]
    text, starts, ends = vlm.spelled(tokens[:-1])
    assert text.startswith("a dog , ")
    assert all(0 <= a <= b <= len(text) for a, b in zip(starts, ends, strict=True))
    assert [term.text for term in parse(without_cut_name(text))] == ["dog"]


@pytest.mark.parametrize("name", vlm_families.BUILDERS)
@pytest.mark.parametrize("size", [(4, 900), (900, 4), (1, 60)])
def test_f35_an_image_of_an_odd_shape_is_seen_or_refused_in_a_sentence(
    load: Load, name: str, size: tuple[int, int]
) -> None:
    image = np.zeros((*size, 3), np.uint8)
    if max(size) / min(size) > 200 and ("_vl" in name or name in ("glm4v", "llava_pixtral", "mistral3")):
        with pytest.raises(ImageRefused, match=f"image of {size[1]} x {size[0]} pixels: ") as refused:
            load(name).answer(image, "list the objects", max_new_tokens=3)
        assert "\n" not in str(refused.value)
    else:
        answer = load(name).answer(image, "list the objects", max_new_tokens=3)
        assert load(name).attention_maps(answer, [(0, 1)], PAPER).shape == (1, *answer.grid.shape)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("[enforce fail] can't allocate memory")])
def test_f35_a_processor_without_memory_is_no_refusal(
    vlm: VLM, scene: Scene, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vlm.processor, "apply_chat_template", Mock(side_effect=error))
    with pytest.raises(type(error)):
        vlm.answer(scene.image, QUESTION)


def test_a_corrupt_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    with pytest.raises(ModelLoadError, match="cannot be loaded") as error:
        VLM.load(str(tmp_path), device="cpu")
    assert "\n" not in str(error.value)


def test_f4_a_smaller_one_sees_fewer_tokens_of_the_same_image(vlm: VLM, scene: Scene) -> None:
    whole, half = vlm.answer(scene.image, QUESTION), vlm.smaller().answer(scene.image, QUESTION)
    assert half.grid.shape < whole.grid.shape
    assert half.first < whole.first
    assert {term.text for term in parse(half.text)} & {each.name for each in scene.objects}
    spans = [(term.start, term.end) for term in parse(half.text)]
    assert vlm.attention_maps(half, spans, PAPER).shape == (len(spans), *half.grid.shape)
    large = scene.image.repeat(5, 0).repeat(5, 1)  # of which the processor makes a small one itself
    whole, half = vlm.answer(large, QUESTION), vlm.smaller().answer(large, QUESTION)
    assert half.first < whole.first
    odd = scene.image[:201, :301]
    assert vlm.smaller().smaller().answer(odd, QUESTION).grid.shape
