"""Measure the probability of "yes" and of "no" as the first word of an answer.

The image, which has most of the tokens, is read once, and each question continues from its cache.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch

from model.types import AttentionError

YES, NO = ("Yes", "yes", " Yes", " yes"), ("No", "no", " No", " no")

Tokens = tuple[int, ...]


def first_words(tokenizer: Any) -> tuple[set[Tokens], set[Tokens]]:
    """Return the shortest token prefixes that tell a yes from a no, after other text.

    Usually one token each. Where both words begin with the same token, such as the mark of a space, the next
    token is included. Raises AttentionError where the tokenizer cannot spell both words.
    """
    yes, no = ([_following(tokenizer, form) for form in forms] for forms in (YES, NO))
    prefixes = _distinct_prefixes(yes, no), _distinct_prefixes(no, yes)
    if not all(prefixes):
        raise AttentionError(
            'the VLM has no words "yes" and "no", so it cannot check presence: switch the check off'
        )
    return prefixes


def _following(tokenizer: Any, text: str) -> Tokens:
    """Return the tokens that spell a text after another one; () if they are unknown or merge with it."""
    # Not at the very beginning, where some tokenizers add a space.
    before, whole = (tokenizer(each, add_special_tokens=False)["input_ids"] for each in ("\n", "\n" + text))
    tokens = tuple(whole[len(before) :])
    return () if whole[: len(before)] != before or tokenizer.unk_token_id in tokens else tokens


def _distinct_prefixes(some: Sequence[Tokens], others: Sequence[Tokens]) -> set[Tokens]:
    """Return each sequence's shortest prefix that no sequence of `others` has, where there is one."""
    lengths = [1 + max(shared(tokens, other) for other in others) for tokens in some]
    return {tokens[:n] for tokens, n in zip(some, lengths, strict=True) if n <= len(tokens)}


def shared(some: Sequence[Any], other: Sequence[Any]) -> int:
    """Return the length of the common prefix of two sequences of one type."""
    most = min(len(some), len(other))
    if some[:most] == other[:most]:
        return most
    return next(i for i in range(most) if some[i] != other[i])


class Reading:
    """A model after a prompt. Immutable: `then` continues in several ways from the same prompt."""

    def __init__(self, model: Any, inputs: Any, cache: Any = None) -> None:
        """Read the processor's tensors of one row, after the tokens in `cache` if given."""
        # The model extends a cache in place. Of a prompt with an image only the last logits are needed.
        output = model(
            **inputs, cache=copy.deepcopy(cache), use_cache=True, logits_to_keep=0 if cache is not None else 1
        )
        self._model, self._cache = model, output.cache
        # (n, vocabulary): of what comes after each token.
        self._chances = output.logits[0].float().softmax(-1)

    def then(self, tokens: Tokens) -> "Reading":
        """Return the reading after more tokens."""
        return Reading(
            self._model, {"input_ids": torch.tensor([tokens], device=self._model.device)}, self._cache
        )

    def chance(self, words: set[Tokens]) -> float:
        """Return the probability that one of `words` comes next; none of them is a prefix of another."""
        total = 0.0
        longer = {word[:-1]: self.then(word[:-1]) for word in words if len(word) > 1}
        for word in words:
            share = float(self._chances[-1, word[0]])
            for at, token in enumerate(word[1:]):
                share *= float(longer[word[:-1]]._chances[at, token])
            total += share
        return total
