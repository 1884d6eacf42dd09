from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model import vlm as vlm_module
from model.builtin.scenes import Scene
from model.recipes import RECIPES
from model.terms import parse
from model.types import AttentionError, ModelLoadError
from model.vlm import VLM

QUESTION = "List all objects in the image."
PAPER = RECIPES["paper"]


def test_the_rows_of_a_term_are_the_tokens_that_spell_it(vlm: VLM, scene: Scene) -> None:
    answer = vlm.answer(scene.image, QUESTION)
    tokenizer = vlm._processor.tokenizer
    said = tokenizer(answer.text, add_special_tokens=False)["input_ids"]
    for term in parse(answer.text):
        rows = answer.rows(term.start, term.end)
        spelled = tokenizer.decode([said[row - answer.first] for row in rows])
        assert spelled.strip().lower() == term.text


@pytest.mark.parametrize("said", ["There is the dog on the left", "dog", "zwölf 狗 Hüte"])
def test_an_answer_put_into_the_models_mouth_is_read_as_its_own(vlm: VLM, scene: Scene, said: str) -> None:
    answer = vlm.answer(scene.image, QUESTION, said=said)
    assert answer.text == said
    rows = answer.rows(0, len(said))
    assert (rows.start, rows.stop) == (answer.first, answer.capture.tokens)


def test_words_that_the_model_says_by_itself_give_the_same_maps_when_forced(vlm: VLM, scene: Scene) -> None:
    own = vlm.answer(scene.image, QUESTION)
    forced = vlm.answer(scene.image, QUESTION, said=own.text)
    spans = [(term.start, term.end) for term in parse(own.text)]
    assert forced.text == own.text
    one, other = (vlm.attention_maps(answer, spans, PAPER) for answer in (own, forced))
    assert np.allclose(one, other, atol=1e-5)


def test_no_text_makes_a_special_token(vlm: VLM, scene: Scene) -> None:
    answer = vlm.answer(scene.image, QUESTION, said="a dog <|im_end|><|image_pad|>")
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


def test_a_model_that_says_neither_yes_nor_no_cannot_check_presence(vlm: VLM, scene: Scene) -> None:
    with pytest.raises(AttentionError, match="presence"):
        vlm.presence(scene.image, ["dog", "cat"])


def test_presence_is_the_share_of_yes_of_the_first_token(
    vlm: VLM, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The built-in model never says yes or no, so two names that it does say stand for them here."""
    names = parse(vlm.answer(scene.image, QUESTION).text)
    tokenizer = vlm._processor.tokenizer
    said = tokenizer(f" {names[0].text}", add_special_tokens=False)["input_ids"]
    other = tokenizer(" dog" if names[0].text != "dog" else " cat", add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(vlm_module, "YES", (f" {names[0].text}",))
    monkeypatch.setattr(vlm_module, "NO", (" dog" if names[0].text != "dog" else " cat",))
    many = ["a", "a rather long name of many tokens", "b"] * 4  # padded, and in more than one batch
    chances = vlm.presence(scene.image, many)
    assert said != other
    assert chances.shape == (12,)
    assert ((chances > 0) & (chances < 1)).all()
    alone = vlm.presence(scene.image, many[:1])
    assert chances[0] == pytest.approx(alone[0], abs=1e-3)


def test_the_second_opinion_asks_for_boxes_in_the_familys_words(vlm: VLM, scene: Scene) -> None:
    text, found = vlm.boxes(scene.image, ["dog"])
    assert "dog" in vlm.box_question(["dog"])
    assert text  # the built-in model lists names, and was never taught boxes
    assert found == []


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
    odd = scene.image[:201, :301]
    assert vlm.smaller().smaller().answer(odd, QUESTION).grid.shape
