"""Greedy generation with a plain cache, whatever a checkpoint would rather do.

A checkpoint brings settings of its own. Some break the capture of attention (no cache, beams, a static or
quantised cache), some change the words (sampling, penalties, forced or suppressed tokens). None of them count
here, but for the tokens that end an answer and that pad.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from model.types import ModelLoadError


@dataclass(frozen=True, eq=False)
class Generated:
    """What a model said, one token after the other."""

    tokens: list[int]  # the last one was never an input
    cut: bool  # the limit came before the answer's end
    hidden: tuple[Any, ...]  # for each step the hidden states after each layer, if kept


def settings_of(folder: Path, config: Any) -> GenerationConfig:
    """The tokens of a checkpoint that end an answer and that pad, and none of its other settings.

    They are read as plain JSON: transformers refuses files with settings that it does not know, which have
    no say here.
    """
    try:
        own = json.loads((folder / "generation_config.json").read_text("utf-8"))
    except (OSError, ValueError):
        own = {}
    own = own if isinstance(own, dict) else {}
    text = config.get_text_config(decoder=True)

    def said(name: str) -> list[int]:
        given = (own.get(name), getattr(config, name, None), getattr(text, name, None))
        return next((ids for each in given if (ids := _ids(each, text.vocab_size))), [])

    return GenerationConfig(
        eos_token_id=said("eos_token_id"), pad_token_id=next(iter(said("pad_token_id")), None)
    )


def plain(config: Any) -> None:
    """Switch off, in place, what a model's configuration (and its parts') says of caches and outputs."""
    for part in (config, *(getattr(config, name) for name in config.sub_configs)):
        if part is not None:
            part.use_cache, part.return_dict = True, True
            part.output_hidden_states = part.output_attentions = False


class Greedy:
    """Generates with one model, always in the same way."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        """Take over a model's generation settings. Raises ModelLoadError where no token ends an answer."""
        plain(model.config)
        own, size = model.generation_config, model.config.get_text_config(decoder=True).vocab_size
        # Trained further, a checkpoint often names the end of a text alone, its tokenizer that of an answer.
        self.ends = tuple(dict.fromkeys([*_ids(own.eos_token_id, size), *_ids(tokenizer.eos_token_id, size)]))
        if not self.ends:
            raise ModelLoadError(
                "the VLM has no token that ends an answer: set eos_token_id in its generation_config.json"
            )
        pads = [*_ids(own.pad_token_id, size), *_ids(tokenizer.pad_token_id, size), *self.ends]
        self._model, self._pad = model, pads[0]
        model.generation_config = GenerationConfig()  # where `generate` looks for what is not given

    def __call__(
        self, inputs: Any, limit: int, script: Sequence[int] | None = None, *, hidden: bool = False
    ) -> Generated:
        """At most `limit` tokens after a prompt, the processor's tensors of one row.

        With a `script` these are its tokens and one more, and nothing is cut.
        """
        first = inputs["input_ids"].shape[1]
        forced: dict[str, Any] = {}
        if script is not None:
            limit = len(script) + 1
            following = [*script, self.ends[0]]
            forced["prefix_allowed_tokens_fn"] = lambda _, seen: [following[len(seen) - first]]
        generated = self._model.generate(
            **inputs,
            **forced,
            generation_config=GenerationConfig(
                max_new_tokens=limit,
                do_sample=False,
                num_beams=1,
                use_cache=True,
                # A script may hold a token that else would end it.
                eos_token_id=None if forced else list(self.ends),
                pad_token_id=self._pad,
                output_hidden_states=hidden,
                return_dict_in_generate=True,
            ),
        )
        tokens = generated.sequences[0, first:].tolist()
        cut = not forced and tokens[-1] not in self.ends
        return Generated(tokens, cut, generated.hidden_states if hidden else ())


def _ids(given: Any, size: int) -> list[int]:
    """Token ids out of what a file says: a number, a list of them, or nothing of use."""
    several = given if isinstance(given, list) else [given]
    return [each for each in several if type(each) is int and 0 <= each < size]
