"""Measure the probability of "yes" and of "no" as the first word of an answer.

The model processes the image once. Each question continues from the cache of keys and values.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch

from model.types import AttentionError

YES, NO = ("Yes", "yes", " Yes", " yes"), ("No", "no", " No", " no")

Tokens = tuple[int, ...]


def first_words(tokenizer: Any) -> tuple[set[Tokens], set[Tokens]]:
    """Return the shortest token prefixes that tell "yes" from "no", for "yes" and for "no".

    A prefix is usually one token. It is longer if both words begin with the same token, such as that of a
    space. Raises AttentionError if the tokenizer cannot encode both words.
    """
    yes, no = ([_following(tokenizer, form) for form in forms] for forms in (YES, NO))
    prefixes = _distinct_prefixes(yes, no), _distinct_prefixes(no, yes)
    if not all(prefixes):
        raise AttentionError(
            'the VLM has no words "yes" and "no", so it cannot check presence: switch the check off'
        )
    return prefixes


def _following(tokenizer: Any, text: str) -> Tokens:
    """Return the tokens of `text` after a line end; () if one is unknown or merges with the line end."""
    # Not at the very beginning, where some tokenizers add a space.
    before, whole = (tokenizer(each, add_special_tokens=False)["input_ids"] for each in ("\n", "\n" + text))
    tokens = tuple(whole[len(before) :])
    return () if whole[: len(before)] != before or tokenizer.unk_token_id in tokens else tokens


def _distinct_prefixes(some: Sequence[Tokens], others: Sequence[Tokens]) -> set[Tokens]:
    """Return each sequence's shortest prefix that no sequence of `others` has; none if there is no such."""
    lengths = [1 + max(shared(tokens, other) for other in others) for tokens in some]
    return {tokens[:n] for tokens, n in zip(some, lengths, strict=True) if n <= len(tokens)}


def shared(some: Sequence[Any], other: Sequence[Any]) -> int:
    """Return the length of the common prefix of two sequences of one type."""
    most = min(len(some), len(other))
    if some[:most] == other[:most]:
        return most
    return next(i for i in range(most) if some[i] != other[i])


class Reading:
    """A model's cache and next-token probabilities after a prompt. Immutable."""

    def __init__(self, model: Any, inputs: Any, cache: Any = None) -> None:
        """Run the model on a prompt: the processor's tensors, batch of 1, appended to a copy of `cache`."""
        # The model extends a cache in place. Of a prompt with an image only the last logits are needed.
        output = model(
            **inputs, cache=copy.deepcopy(cache), use_cache=True, logits_to_keep=0 if cache is not None else 1
        )
        self._model, self._cache = model, output.cache
        # (n, vocabulary): of what comes after each token.
        self._chances = output.logits[0].float().softmax(-1)

    def then(self, tokens: Tokens) -> "Reading":
        """Return a new Reading of the prompt with `tokens` appended."""
        return Reading(
            self._model, {"input_ids": torch.tensor([tokens], device=self._model.device)}, self._cache
        )

    def chance(self, words: set[Tokens]) -> float:
        """Return the probability that one of `words` comes next. No word may be a prefix of another."""
        total = 0.0
        longer = {word[:-1]: self.then(word[:-1]) for word in words if len(word) > 1}
        for word in words:
            share = float(self._chances[-1, word[0]])
            for at, token in enumerate(word[1:]):
                share *= float(longer[word[:-1]]._chances[at, token])
            total += share
        return total
