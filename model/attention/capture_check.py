"""Check that a capture made token by token equals that of one plain forward pass."""

from typing import Any

import torch

from model.attention.capture import Capture
from model.types import AttentionError

# Relative difference of queries and keys in the first layer. Quantised layers reach 2 % by rounding.
TOLERANCE = 0.1


def longer(inputs: Any, tokens: list[int]) -> dict[str, Any]:
    """Return the processor's tensors of a prompt with `tokens` appended."""
    ids = inputs["input_ids"]
    more = dict(inputs)
    for name, value in inputs.items():
        if getattr(value, "shape", None) == ids.shape:  # the kind of each token, of which the last is text
            more[name] = torch.cat([value, value[:, -1:].expand(-1, len(tokens))], 1)
    more["input_ids"] = torch.cat([ids, ids.new_tensor([tokens])], 1)
    return more


def shorter(inputs: Any, count: int) -> dict[str, Any]:
    """Return the processor's tensors of a prompt's first `count` tokens, which include its image."""
    shape = inputs["input_ids"].shape
    return {k: v[:, :count] if getattr(v, "shape", None) == shape else v for k, v in inputs.items()}


def check(capture: Capture, plain: Capture, layers: int, first: int, count: int) -> None:
    """Raise AttentionError if the capture of an answer differs from that of one `plain` forward pass.

    Both have the same `count` tokens; the first `first` are the prompt. The model has `layers` layers. Values
    are compared in the first layer alone, since rounding errors add up in later ones.
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
        # NaN fails every comparison, so it is refused.
        if not (mine - wanted).norm() <= TOLERANCE * wanted.norm():
            raise AttentionError("token by token it computes other values than in one pass; use another VLM")


def one_way(capture: Capture, first: int, image: int) -> bool:
    """Return whether no token of a prompt attends to text after itself.

    The prompt has `first` tokens. Attention up to position `image`, the last image token, is allowed.
    """
    allowed = torch.arange(first).clamp(min=image) + 1
    spans = (torch.cat(layer.spans) for layer in capture.layers.values())
    return all(bool((each[:first, 1] <= allowed).all()) for each in spans)
