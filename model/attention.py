"""Queries and keys of every layer while a VLM answers, and the attention flow from them to maps.

VL-SAM (NeurIPS 2024, arXiv 2410.05963) section 3.2. With S[i, j, h, l] the attention of token i to
token j in head h of layer l, N tokens:

    W[h, l]  = mean over i of max over j of S                                  (equation 1)
    S'[l]    = mean over h of S * W                                            (equation 2)
    Sbar[l]  = (I + S'[l]) (I + Sbar[l - 1]), Sbar[0] = 0                      (equation 3)

and, against the collapse into the first tokens that the causal mask brings about, every column j
multiplied by 1 - (L0 - 1) / N, where L0 = N - j (0-based) is its length under the mask: (j + 1) / N,
applied to S' before each product.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from model.types import AttentionError

IMPLEMENTATION = "vlsam_capture"
BLOCK = 256  # query rows whose attention exists at one time


@dataclass
class Capture:
    """Queries and keys per decoder layer, after rotary embedding, of one sequence."""

    queries: dict[int, list[Tensor]] = field(default_factory=dict)  # pieces (heads, n, d), in order
    keys: dict[int, Tensor] = field(default_factory=dict)  # (key heads, N, d)
    scaling: float = 1.0


_active: ContextVar[Capture | None] = ContextVar("vlsam_capture", default=None)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> Any:
    """SDPA as usual; with a capture open, its queries and keys are kept on the side."""
    capture = _active.get()
    if capture is not None:
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        capture.queries.setdefault(layer, []).append(query[0].detach())
        # While tokens are generated one by one, the key cache holds all earlier ones too.
        capture.keys[layer] = key[0].detach()
        capture.scaling = float(kwargs.get("scaling") or query.shape[-1] ** -0.5)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


AttentionInterface.register(IMPLEMENTATION, _attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


@contextmanager
def capturing() -> Iterator[Capture]:
    """Keep the queries and keys of the forward passes inside, for a batch of one sequence.

    The model must have been switched to IMPLEMENTATION for its text part.
    """
    capture = Capture()
    token = _active.set(capture)
    try:
        yield capture
    finally:
        _active.reset(token)


def flow(
    capture: Capture, rows: Sequence[int], *, head_weights: bool = True, regularise: bool = True
) -> Tensor:
    """Rows of Sbar after the last layer (equations 1 to 3): float32 (len(rows), N).

    Exact, yet no N x N matrix is held: the wanted rows are pushed down from the last layer as
    V <- V + V (S' * d), and the sum over all starting layers is collected on the way. A layer is read
    in blocks of query rows; V @ P and the head weights come from the same block.

    Raises AttentionError if nothing was captured or a row lies outside the sequence.
    """
    if not capture.keys:
        raise AttentionError(
            "no attention was captured: the model did not run with the capturing implementation, so "
            "it cannot say where it looked"
        )
    count = next(iter(capture.keys.values())).shape[1]
    seen = sum(piece.shape[1] for piece in next(iter(capture.queries.values())))
    if seen != count:
        raise AttentionError(f"{seen} queries were captured for {count} keys: the cache was not plain")
    if not rows or min(rows) < 0 or max(rows) >= count:
        raise AttentionError(f"rows {list(rows)} lie outside the {count} captured tokens")
    device = next(iter(capture.keys.values())).device
    factor = (torch.arange(count, device=device, dtype=torch.float32) + 1) / count
    # Row i sees tokens up to i only, so nothing beyond the last wanted row matters for V; the head
    # weights are a mean over all rows all the same.
    pushed = torch.zeros(len(rows), count, device=device)
    pushed[torch.arange(len(rows)), torch.tensor(rows)] = 1.0
    total = torch.zeros_like(pushed)
    for layer in sorted(capture.keys, reverse=True):
        query = torch.cat(capture.queries[layer], 1).float()
        key = capture.keys[layer].float()
        key = key.repeat_interleave(query.shape[0] // key.shape[0], 0)
        mixed = torch.zeros(query.shape[0], len(rows), count, device=device)
        peaks = torch.zeros(query.shape[0], device=device)
        for start in range(0, count, BLOCK):
            stop = min(start + BLOCK, count)
            scores = query[:, start:stop] @ key[:, :stop].transpose(1, 2) * capture.scaling
            places = torch.arange(start, stop, device=device)[:, None]
            later = torch.arange(stop, device=device) > places
            block = scores.masked_fill(later, -torch.inf).softmax(-1)
            peaks += block.amax(-1).sum(-1)
            mixed[:, :, :stop] += pushed[:, start:stop] @ block
        if head_weights:
            mixed = mixed * (peaks / count)[:, None, None]
        step = mixed.mean(0)
        pushed = pushed + (step * factor if regularise else step)
        total = total + pushed
    return total
