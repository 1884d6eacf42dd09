import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.recipes import RECIPES
from model.types import ModelLoadError
from model.vlm.generation import settings_of
from model.vlm.vlm import VLM, VLMAnswer
from tests.support import vlm_families

Load = Callable[..., VLM]
IMAGE = np.random.default_rng(0).integers(0, 256, (150, 230, 3), np.uint8)
FAMILY = "gemma3"  # has sliding windows, which some caches treat apart
SETTINGS: dict[str, dict[str, Any]] = {
    "no cache": {"use_cache": False},
    "beams": {"num_beams": 3, "num_return_sequences": 3, "length_penalty": 2.0, "early_stopping": True},
    "groups of beams": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    "static cache": {"cache_implementation": "static", "max_cache_len": 4096},
    "sliding cache": {"cache_implementation": "sliding_window"},
    "hybrid cache": {"cache_implementation": "hybrid"},
    "quantised cache": {
        "cache_implementation": "quantized",
        "cache_config": {"backend": "quanto", "nbits": 4},
    },
    "offloaded cache": {"cache_implementation": "offloaded"},
    "paged cache": {"cache_implementation": "paged"},
    "unknown cache": {"cache_implementation": "of another version"},
    "sampling": {"do_sample": True, "temperature": 5.0, "top_k": 500, "top_p": 0.9, "min_p": 0.1},
    "penalties": {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "encoder_repetition_penalty": 2.0},
    "contrast": {"penalty_alpha": 0.6, "top_k": 4},
    "layers in contrast": {"dola_layers": "high"},
    "guidance": {"guidance_scale": 3.0},
    "forced tokens": {"forced_bos_token_id": 5, "forced_eos_token_id": 1},
    "suppressed tokens": {"suppress_tokens": list(range(5, 16)), "begin_suppress_tokens": [7]},
    "bad words": {"bad_words_ids": [[token] for token in range(5, 16)], "sequence_bias": [[[8], 50.0]]},
    "looking ahead": {"prompt_lookup_num_tokens": 3, "assistant_early_exit": 1, "num_assistant_tokens": 4},
    "length": {
        "max_length": 3,
        "min_new_tokens": 3,
        "min_length": 5,
        "max_time": 1e-9,
        "stop_strings": ["a", "t"],
    },
    "chunks": {"prefill_chunk_size": 8},
    "watermark": {"watermarking_config": {"greenlist_ratio": 0.5, "bias": 50.0}},
    "outputs": {"output_attentions": True, "output_hidden_states": True, "output_scores": True},
    "compilation": {"compile_config": {"backend": "inductor"}},
    "unknown": {"from_another_version": 1},
    "no tokens": {"eos_token_id": None, "pad_token_id": None, "bos_token_id": None},
    "impossible tokens": {"eos_token_id": [-1, 10**6, "</s>", None], "pad_token_id": [10**6]},
}


def said(vlm: VLM) -> tuple[Any, ...]:
    answer: VLMAnswer = vlm.answer(IMAGE, "list the objects", max_new_tokens=6)
    maps = vlm.attention_maps(answer, [(0, len(answer.text))], RECIPES["paper"])
    return answer.text, answer.ends, answer.capture.tokens, maps.tolist()


def change(file: Path, given: dict[str, Any]) -> None:
    """Merge into a file of JSON, parts into parts."""
    kept = json.loads(file.read_text())
    for name, value in given.items():
        kept[name] = {**kept[name], **value} if isinstance(kept.get(name), dict) else value
    file.write_text(json.dumps(kept))


@pytest.fixture(scope="module")
def plain(load: Load) -> tuple[Any, ...]:
    return said(load(FAMILY))


@pytest.mark.parametrize("settings", SETTINGS)
def test_f24_no_setting_of_a_checkpoint_changes_what_is_said_or_captured(
    settings: str, plain: tuple[Any, ...], tmp_path: Path
) -> None:
    folder = vlm_families.saved(FAMILY, tmp_path)
    change(tmp_path / "generation_config.json", SETTINGS[settings])
    assert said(VLM.load(folder, device="cpu")) == plain


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [
        {"use_cache": False, "text_config": {"use_cache": False}},
        {"output_attentions": True, "output_hidden_states": True, "return_dict": False},
        {"text_config": {"output_attentions": True, "return_dict": False}},
        {"num_beams": 3, "do_sample": True, "repetition_penalty": 5.0},
        {"text_config": {"num_beams": 3, "no_repeat_ngram_size": 1}},
        {"_attn_implementation": "flash_attention_2", "attn_implementation": "flash_attention_2"},
    ],
)
def test_nor_does_the_configuration_of_the_model(
    given: dict[str, Any], plain: tuple[Any, ...], tmp_path: Path
) -> None:
    folder = vlm_families.saved(FAMILY, tmp_path)
    change(tmp_path / "config.json", given)
    (tmp_path / "generation_config.json").unlink()
    assert said(VLM.load(folder, device="cpu")) == plain


def test_a_file_of_settings_that_is_broken_has_no_say(plain: tuple[Any, ...], tmp_path: Path) -> None:
    folder = vlm_families.saved(FAMILY, tmp_path)
    (tmp_path / "generation_config.json").write_text("{")
    assert said(VLM.load(folder, device="cpu")) == plain


def test_the_ends_of_an_answer_are_the_checkpoints_and_the_tokenizers(load: Load, tmp_path: Path) -> None:
    folder = vlm_families.saved(FAMILY, tmp_path)
    change(tmp_path / "generation_config.json", {"eos_token_id": [7, 10**6]})
    vlm = VLM.load(folder, device="cpu")
    assert vlm.generate.ends == (7, vlm.processor.tokenizer.eos_token_id)
    assert settings_of(tmp_path, vlm.model.config).eos_token_id == [7]


def test_a_model_without_any_end_of_an_answer_is_refused(tmp_path: Path) -> None:
    folder = vlm_families.saved(FAMILY, tmp_path)
    change(tmp_path / "generation_config.json", {"eos_token_id": None})
    change(tmp_path / "config.json", {"eos_token_id": None, "text_config": {"eos_token_id": None}})
    change(tmp_path / "tokenizer_config.json", {"eos_token": None})
    with pytest.raises(ModelLoadError, match="no token that ends an answer"):
        VLM.load(folder, device="cpu")


def test_an_answer_ends_at_its_end_and_is_cut_at_the_limit(load: Load, tmp_path: Path) -> None:
    spoken = load(FAMILY).answer(IMAGE, "list the objects", max_new_tokens=6)
    assert spoken.cut
    # The third token that it says is to be an end.
    ids = load(FAMILY).processor.tokenizer(spoken.text)["input_ids"]
    folder = vlm_families.saved(FAMILY, tmp_path)
    change(tmp_path / "generation_config.json", {"eos_token_id": ids[2]})
    ended = VLM.load(folder, device="cpu").answer(IMAGE, "list the objects", max_new_tokens=6)
    assert not ended.cut
    assert len(ended.ends) == ids.index(ids[2])
    # Words that are put into its mouth go beyond an end.
    forced = VLM.load(folder, device="cpu").answer(IMAGE, "list the objects", forced_answer=spoken.text)
    assert forced.text == spoken.text
    assert not forced.cut
