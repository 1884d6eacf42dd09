"""What was captured while a model generated, against what it read: maps are true where both are the same."""

from typing import Any

import torch

from model.attention.capture import Capture
from model.types import AttentionError

# Relative, of queries and keys in the first layer. Quantised layers round one token otherwise than many: 2 %.
TOLERANCE = 0.1


def longer(inputs: Any, tokens: list[int]) -> dict[str, Any]:
    """The processor's tensors of a prompt with more tokens of text at its end."""
    ids = inputs["input_ids"]
    more = dict(inputs)
    for name, value in inputs.items():
        if (
            getattr(value, "shape", None) == ids.shape
        ):  # what kind of token each is: the last one is text, too
            more[name] = torch.cat([value, value[:, -1:].expand(-1, len(tokens))], 1)
    more["input_ids"] = torch.cat([ids, ids.new_tensor([tokens])], 1)
    return more


def shorter(inputs: Any, count: int) -> dict[str, Any]:
    """The processor's tensors of a prompt as far as its first `count` tokens, its image among them."""
    shape = inputs["input_ids"].shape
    return {k: v[:, :count] if getattr(v, "shape", None) == shape else v for k, v in inputs.items()}


def check(capture: Capture, plain: Capture, layers: int, first: int, count: int) -> None:
    """Compare the capture of an answer with that of a plain pass over the same `count` tokens.

    `first` of them are the prompt. Values are compared in the first layer alone, which nothing but token
    and position decides: in later ones rounding adds up, and a prompt may be read both ways. Raises
    AttentionError with what differs.
    """
    if len(capture.layers) < layers:
        raise AttentionError(
            f"transformers gives access to the attention of {len(capture.layers)} of its {layers} layers; "
            "use another VLM"
        )
    for layer in capture.layers.values():
        spans = torch.cat(layer.spans)
        seen = sum(piece.shape[1] for piece in layer.queries)
        own = torch.arange(first, count) + 1
        if seen != count or spans[:, 0].min() < 0 or not torch.equal(spans[first:, 1], own):
            raise AttentionError(
                f"its cache is not plain: {count} tokens were read and {seen} captured; use another VLM"
            )
    one, other = (min(each.layers.items())[1] for each in (capture, plain))
    for ours, theirs in ((one.queries, other.queries), (one.keys, other.keys)):
        mine, wanted = torch.cat(ours, 1).float(), torch.cat(theirs, 1).float()
        # Not a number is no less than anything.
        if not (mine - wanted).norm() <= TOLERANCE * wanted.norm():
            raise AttentionError("word by word it reads otherwise than at once; use another VLM")


def one_way(capture: Capture, first: int, image: int) -> bool:
    """Whether no token of a prompt of `first` tokens sees the text after it; `image` is the image's last one.

    The tokens of an image may see each other.
    """
    allowed = torch.arange(first).clamp(min=image) + 1
    return all(
        bool((torch.cat(layer.spans)[:first, 1] <= allowed).all()) for layer in capture.layers.values()
    )
