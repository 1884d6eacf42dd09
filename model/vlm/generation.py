"""Generate greedily with a plain cache, independent of a checkpoint's own settings.

Some settings break the capture of attention (no cache, beams, a static or quantised cache), others change the
words (sampling, penalties, forced or suppressed tokens). Only the tokens that end an answer and that pad are
taken from a checkpoint.
"""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from model.types import ModelLoadError

log = logging.getLogger(f"vlsam.{__name__}")


@dataclass(frozen=True, eq=False)
class Generated:
    """The tokens that a model generated after a prompt."""

    tokens: list[int]  # the last one was no input of the model
    cut: bool  # the limit came before the answer's end
    hidden: tuple[Any, ...]  # per step the hidden states after each layer, if kept


def settings_of(folder: Path, config: Any) -> GenerationConfig:
    """Return generation settings with only the end-of-text and padding tokens of a checkpoint."""
    try:  # plain JSON: transformers refuses files with unknown settings, which do not matter here
        own = json.loads((folder / "generation_config.json").read_text("utf-8"))
    except (OSError, ValueError):
        own = {}
    own = own if isinstance(own, dict) else {}
    text = config.get_text_config(decoder=True)

    def token_ids(name: str) -> list[int]:
        candidates = (own.get(name), getattr(config, name, None), getattr(text, name, None))
        return next((ids for value in candidates if (ids := _ids(value, text.vocab_size))), [])

    return GenerationConfig(
        eos_token_id=token_ids("eos_token_id"), pad_token_id=next(iter(token_ids("pad_token_id")), None)
    )


def plain(config: Any) -> None:
    """Reset the settings of caches and outputs in a model's config and its sub-configs, in place."""
    for part in (config, *(getattr(config, name) for name in config.sub_configs)):
        if part is not None:
            part.use_cache, part.return_dict = True, True
            part.output_hidden_states = part.output_attentions = False


class Greedy:
    """Generates text with one model by greedy decoding."""

    def __init__(self, model: Any, tokenizer: Any, on_cut: Callable[[], None] = lambda: None) -> None:
        """Reset the model's generation settings. Raises ModelLoadError if it has no end-of-text token.

        `on_cut` is called whenever an answer is cut at its limit.
        """
        plain(model.config)
        own, size = model.generation_config, model.config.get_text_config(decoder=True).vocab_size
        # A fine-tuned checkpoint often names only the end of a text, and its tokenizer that of an answer.
        self.ends = tuple(dict.fromkeys([*_ids(own.eos_token_id, size), *_ids(tokenizer.eos_token_id, size)]))
        if not self.ends:
            raise ModelLoadError(
                "the VLM has no token that ends an answer: set eos_token_id in its generation_config.json"
            )
        pads = [*_ids(own.pad_token_id, size), *_ids(tokenizer.pad_token_id, size), *self.ends]
        self._model, self._pad, self._on_cut = model, pads[0], on_cut
        model.generation_config = GenerationConfig()  # `generate` fills missing settings from it

    def __call__(
        self, inputs: Any, limit: int, script: Sequence[int] | None = None, *, hidden: bool = False
    ) -> Generated:
        """Generate at most `limit` tokens after a prompt: the processor's tensors, batch of 1.

        With `script` (teacher forcing) return its tokens and an end-of-text token, whatever the limit.
        With `hidden` keep the hidden states.
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
                # A script may hold a token that would end it.
                eos_token_id=None if forced else list(self.ends),
                pad_token_id=self._pad,
                output_hidden_states=hidden,
                return_dict_in_generate=True,
            ),
        )
        tokens = generated.sequences[0, first:].tolist()
        cut = not forced and tokens[-1] not in self.ends
        if cut:
            log.info("An answer was cut at %d tokens: its last term may be missing.", limit)
            self._on_cut()
        return Generated(tokens, cut, generated.hidden_states if hidden else ())


def _ids(given: Any, size: int) -> list[int]:
    """Return the valid token ids in a setting: an id, a list of ids, or an invalid value of any type."""
    values = given if isinstance(given, list) else [given]
    return [value for value in values if type(value) is int and 0 <= value < size]
