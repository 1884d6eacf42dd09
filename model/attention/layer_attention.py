"""Compute the plain attention of single decoder layers, and of the vision tower's last layer."""

from collections.abc import Sequence

import torch
from torch import Tensor

from model.attention.capture import Capture, block_for
from model.types import AttentionError


def per_layer(capture: Capture, rows: Sequence[int], *, last: bool = False) -> Tensor:
    """Return the attention of tokens `rows` to all N tokens, mean over heads: float32 (layers, rows, N).

    `last` selects the last layer alone. Raises AttentionError as `Capture.check` does.
    """
    count = capture.check(rows)
    attention = []
    for index in sorted(capture.layers)[-1 if last else 0 :]:
        layer = capture.layers[index]
        query, key, spans = layer.tensors()
        query, spans = query[:, list(rows)], spans[list(rows)].to(query.device)
        grouped = query.reshape(key.shape[0], -1, key.shape[2])
        scores = (grouped @ key.transpose(1, 2)).reshape(query.shape[0], len(rows), count)
        layer.cap(scores)
        place = torch.arange(count, device=scores.device)
        hidden = (place < spans[:, :1]) | (place >= spans[:, 1:])
        attention.append(scores.masked_fill_(hidden, -torch.inf).softmax(-1).mean(0))
    return torch.stack([rows_of_layer.to(attention[0].device) for rows_of_layer in attention])


def received(capture: Capture, patches: int) -> list[Tensor]:
    """Return the attention to each patch in the vision tower's last layer, mean over heads.

    This is the class token's attention, if the tower has one: one token per view more than all `patches`.
    Else it is the mean over all tokens. The list has a float32 (views, n) for each captured part. Raises
    AttentionError if nothing was captured.
    """
    if not capture.vision:
        raise AttentionError("the vision tower did not run with the capturing implementation")
    parts = []
    for query, key, scaling in capture.vision:
        has_class_token = query.shape[0] * (query.shape[2] - 1) == patches
        rows = 1 if has_class_token else query.shape[2]
        total = torch.zeros(query.shape[0], key.shape[2], device=query.device)
        block = max(1, block_for(query.device) // (query.shape[1] * key.shape[2]))
        for start in range(0, rows, block):
            piece = query[:, :, start : min(start + block, rows)].float() * scaling
            total += (piece @ key.float().transpose(2, 3)).softmax(-1).mean(1).sum(1)
        parts.append(total[:, 1:] if has_class_token else total / rows)
    return parts
