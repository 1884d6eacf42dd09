"""How likely "yes" is against "no" as the first word of an answer.

The tokens of an image are many and those of a question few, so the image is read once for all questions about
it, and each goes on from there.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch

from model.types import AttentionError

YES, NO = ("Yes", "yes", " Yes", " yes"), ("No", "no", " No", " no")

Tokens = tuple[int, ...]


def first_words(tokenizer: Any) -> tuple[set[Tokens], set[Tokens]]:
    """The shortest beginnings that tell a yes from a no, as tokens after other text.

    One token each, as a rule. Where both words begin with the same token, such as the mark of a space, the
    next one tells them apart. Raises AttentionError where the tokenizer cannot spell both words.
    """
    yes, no = ([_following(tokenizer, form) for form in forms] for forms in (YES, NO))
    found = _telling(yes, no), _telling(no, yes)
    if not all(found):
        raise AttentionError(
            'the VLM has no words "yes" and "no", so it cannot check presence: switch the check off'
        )
    return found


def _following(tokenizer: Any, text: str) -> Tokens:
    """The tokens that spell a text after another; () where they cannot be told or are unknown.

    At the very beginning many a tokenizer puts a space before a text, in a token of its own if need be.
    """
    before, whole = (tokenizer(each, add_special_tokens=False)["input_ids"] for each in ("\n", "\n" + text))
    tokens = tuple(whole[len(before) :])
    return () if whole[: len(before)] != before or tokenizer.unk_token_id in tokens else tokens


def _telling(some: Sequence[Tokens], others: Sequence[Tokens]) -> set[Tokens]:
    """The shortest beginning of each sequence that none of the others has, if it has one."""
    lengths = [1 + max(shared(tokens, other) for other in others) for tokens in some]
    return {tokens[:n] for tokens, n in zip(some, lengths, strict=True) if n <= len(tokens)}


def shared(some: Sequence[Any], other: Sequence[Any]) -> int:
    """How many items two sequences of a kind begin with alike."""
    most = min(len(some), len(other))
    if some[:most] == other[:most]:
        return most
    return next(i for i in range(most) if some[i] != other[i])


class Reading:
    """A model that has read a prompt, and may go on reading in several ways: it stays as it is."""

    def __init__(self, model: Any, inputs: Any, cache: Any = None) -> None:
        """Let a model read the processor's tensors of one row, after what `cache` holds if one is given."""
        # The cache grows where it is. Of a prompt with an image only the last logits are wanted.
        said = model(
            **inputs, cache=copy.deepcopy(cache), use_cache=True, logits_to_keep=0 if cache is not None else 1
        )
        self._model, self._cache = model, said.cache
        self._chances = said.logits[0].float().softmax(-1)  # (n, vocabulary): of what comes after each token

    def then(self, tokens: Tokens) -> "Reading":
        """The same with more tokens."""
        return Reading(
            self._model, {"input_ids": torch.tensor([tokens], device=self._model.device)}, self._cache
        )

    def chance(self, words: set[Tokens]) -> float:
        """How likely it is that one of these comes next; none of them begins with another."""
        total = 0.0
        longer = {word[:-1]: self.then(word[:-1]) for word in words if len(word) > 1}
        for word in words:
            share = float(self._chances[-1, word[0]])
            for at, token in enumerate(word[1:]):
                share *= float(longer[word[:-1]]._chances[at, token])
            total += share
        return total
