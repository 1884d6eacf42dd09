"""Queries and keys of every layer while a VLM answers, and the attention flow from them to maps.

VL-SAM (NeurIPS 2024, arXiv 2410.05963) section 3.2. With S[i, j, h, l] the attention of token i to
token j in head h of layer l, N tokens:

    W[h, l]  = mean over i of max over j of S                                  (equation 1)
    S'[l]    = mean over h of S * W                                            (equation 2)
    Sbar[l]  = (I + S'[l]) (I + Sbar[l - 1]), Sbar[0] = 0                      (equation 3)

and, against the collapse into the first tokens that the causal mask brings about, every column j
multiplied by 1 - (L0 - 1) / N, where L0 is the number of tokens that see it: (j + 1) / N under a plain
causal mask (j from 0). The switches are those of model/recipes.py.
"""

import bisect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

from model.recipes import Recipe
from model.types import AttentionError

TEXT = "vlsam_text"  # the attention implementation of a VLM's decoder
CAPPED = "vlsam_capped"  # of decoders that cap their scores, which SDPA cannot
VISION = "vlsam_vision"  # of its vision tower
# Scores that exist at one time, as numbers. On a CPU: few enough for a core's cache, enough for a fast
# product. Elsewhere each block is a dozen launches, so few blocks: 256 MiB, or a 32nd of a GPU's memory.
BLOCK_CPU, BLOCK = 1 << 19, 1 << 26


@dataclass
class Layer:
    """What one decoder layer computed attention from, in pieces as the sequence was read."""

    scaling: float
    queries: list[Tensor] = field(default_factory=list)  # (heads, n, d), after rotary embedding
    keys: list[Tensor] = field(default_factory=list)  # (key heads, n, d)
    spans: list[Tensor] = field(default_factory=list)  # (n, 2) int64: row i sees columns [low, high)
    softcap: float | None = None  # c: scores are c tanh(score / c), as in Gemma 2


@dataclass
class Capture:
    """One sequence's queries and keys."""

    layers: dict[int, Layer] = field(default_factory=dict)
    # Of the vision tower's last layer, one pair per part of the image that attends within itself.
    vision: list[tuple[Tensor, Tensor, float]] = field(default_factory=list)  # (views, heads, n, d)
    keeps_vision: bool = False
    _vision_module: nn.Module | None = None
    _mask: Tensor | None = None  # layers share their masks: each is read once
    _mask_spans: Tensor | None = None

    @property
    def tokens(self) -> int:
        return sum(piece.shape[1] for piece in next(iter(self.layers.values())).queries)

    def spans_of(self, mask: Tensor | None, causal: bool, rows: int, columns: int, seen: int) -> Tensor:
        """(rows, 2): the columns that each new row sees, in positions of the sequence.

        `columns` keys end at position `seen`; a sliding window's cache holds only the latest.
        """
        first = seen - columns
        if mask is None:
            high = torch.arange(seen - rows, seen) + 1 if causal else torch.full((rows,), seen)
            return torch.stack([torch.full_like(high, first), high], 1)
        if self._mask is not mask:
            visible = mask[0, 0] if mask.dtype == torch.bool else mask[0, 0] > -1
            count = visible.sum(1)
            low = visible.int().argmax(1)
            last = visible.shape[1] - 1 - visible.flip(1).int().argmax(1)
            if not (count == last - low + 1).all():
                raise AttentionError(
                    "a layer's attention mask leaves gaps, and the attention flow needs tokens that each see "
                    "one unbroken part of the sequence; use the box localizer, or another VLM"
                )
            self._mask, self._mask_spans = mask, torch.stack([low, last + 1], 1).cpu()
        assert self._mask_spans is not None  # noqa: S101
        return self._mask_spans + first


_active: ContextVar[Capture | None] = ContextVar("vlsam_capture", default=None)


def _text_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> Any:
    """SDPA as usual; with a capture open, its queries and keys are kept on the side."""
    _keep(module, query, key, attention_mask, kwargs)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


def _capped_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> Any:
    """The library's eager attention; with a capture open, its queries and keys are kept on the side."""
    _keep(module, query, key, attention_mask, kwargs)
    return eager_attention_forward(module, query, key, value, attention_mask, **kwargs)


def _keep(
    module: nn.Module, query: Tensor, key: Tensor, attention_mask: Tensor | None, kwargs: dict[str, Any]
) -> None:
    capture = _active.get()
    if capture is not None:
        if query.shape[0] != 1:
            raise AttentionError("attention is captured for one sequence at a time")
        rows, columns = query.shape[2], key.shape[2]
        scaling = float(kwargs.get("scaling") or query.shape[-1] ** -0.5)
        empty = Layer(scaling, softcap=kwargs.get("softcap"))
        layer = capture.layers.setdefault(int(module.layer_idx), empty)  # type: ignore[arg-type]
        causal = bool(kwargs.get("is_causal", getattr(module, "is_causal", True)))
        layer.queries.append(query[0].detach())
        # While tokens come one by one, `key` is the whole cache: a view of its end would keep all of it.
        layer.keys.append(key[0].detach() if rows == columns else key[0, :, -rows:].detach().clone())
        seen = sum(piece.shape[1] for piece in layer.keys)
        layer.spans.append(capture.spans_of(attention_mask, causal, rows, columns, seen))


def _vision_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> Any:
    """SDPA as usual; with a capture open, the latest layer's queries and keys are kept on the side."""
    capture = _active.get()
    if capture is not None and capture.keeps_vision:
        if capture._vision_module is not module:
            capture._vision_module, capture.vision = module, []
        scaling = float(kwargs.get("scaling") or query.shape[-1] ** -0.5)
        capture.vision.append((query.detach(), key.detach(), scaling))
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


for _name, _function, _mask in (
    (TEXT, _text_attention, sdpa_mask),
    (CAPPED, _capped_attention, eager_mask),
    (VISION, _vision_attention, sdpa_mask),
):
    AttentionInterface.register(_name, _function)
    AttentionMaskInterface.register(_name, _mask)


def implementations(config: Any) -> dict[str, str]:
    """What a VLM of this transformers configuration must be switched to by `set_attn_implementation`."""
    text = config.get_text_config(decoder=True)
    capped = getattr(text, "attn_logit_softcapping", None)
    return {"text_config": CAPPED if capped else TEXT, "vision_config": VISION}


@contextmanager
def capturing(*, vision: bool = False) -> Iterator[Capture]:
    """Keep the queries and keys of the forward passes inside, for a batch of one sequence.

    `vision` also keeps those of the vision tower's last layer. The model must have been switched to
    `implementations`.
    """
    capture = Capture(keeps_vision=vision)
    token = _active.set(capture)
    try:
        yield capture
    finally:
        _active.reset(token)
        capture._vision_module = capture._mask = capture._mask_spans = None


def flow(capture: Capture, rows: Sequence[int], recipe: Recipe, image: Sequence[int] = ()) -> Tensor:
    """Rows of the rolled-out attention after the last layer (equations 1 to 3): float32 (len(rows), N).

    Exact, yet no N x N matrix is held: the wanted rows are pushed down from the last layer as
    V <- V + V (S' * d), and the sum over all starting layers is collected on the way. A layer is read
    in blocks of query rows; V @ P and the head weights come from the same block.

    `image` are the columns of image tokens, which "vmax" head weights look at. Raises AttentionError if
    nothing was captured or a row lies outside the sequence.
    """
    count = _check(capture, rows)
    first = capture.layers[min(capture.layers)]
    device = first.queries[0].device
    pushed = torch.zeros(len(rows), count, device=device)
    pushed[torch.arange(len(rows)), torch.tensor(rows)] = 1.0
    total = torch.zeros_like(pushed)
    indices, reach = _from_the_top(capture, recipe.start_layer), max(rows) + 1
    for index in indices:
        layer = capture.layers[index]
        spans = torch.cat(layer.spans)
        # Layers may lie on several devices.
        there = pushed.to(layer.queries[0].device)
        mixed, weights = _push(layer, spans, there, reach, recipe.head_weights, image)
        reach = max(reach, int(spans[:reach, 1].max()))
        step = (mixed * weights[:, None, None]).mean(0).to(device)
        if recipe.regularise == "before":
            step = step * _column_factor(spans).to(device)
        pushed = pushed + (step / len(indices) if recipe.residual == "depth" else step)
        if recipe.residual == "half":
            pushed = pushed / 2
        total = total + pushed
    rolled = total if recipe.residual == "paper" else pushed
    if recipe.regularise == "end":
        rolled = rolled * _column_factor(torch.cat(first.spans)).to(device)
    return rolled


def per_layer(capture: Capture, rows: Sequence[int], *, last: bool = False) -> Tensor:
    """Attention of the rows in every layer, or the last, mean over heads: float32 (layers, rows, N)."""
    count = _check(capture, rows)
    found = []
    for index in sorted(capture.layers)[-1 if last else 0 :]:
        layer = capture.layers[index]
        query = _joined(layer.queries)[:, list(rows)]
        key = _joined(layer.keys) * layer.scaling
        scores = (query.reshape(key.shape[0], -1, key.shape[2]) @ key.transpose(1, 2)).reshape(
            query.shape[0], len(rows), count
        )
        _cap(scores, layer.softcap)
        spans = torch.cat(layer.spans)[list(rows)].to(scores.device)
        place = torch.arange(count, device=scores.device)
        hidden = (place < spans[:, :1]) | (place >= spans[:, 1:])
        found.append(scores.masked_fill_(hidden, -torch.inf).softmax(-1).mean(0))
    return torch.stack([each.to(found[0].device) for each in found])


def received(capture: Capture, patches: int) -> list[Tensor]:
    """Attention that patches get in the vision tower's last layer, mean over heads: float32 (views, n) each.

    The row of a class token says it, where views have one token more than their share of `patches`; else
    the mean over all rows does. Raises AttentionError if no tower was captured.
    """
    if not capture.vision:
        raise AttentionError("the vision tower did not run with the capturing implementation")
    parts = []
    for query, key, scaling in capture.vision:
        classed = query.shape[0] * (query.shape[2] - 1) == patches
        rows = 1 if classed else query.shape[2]
        total = torch.zeros(query.shape[0], key.shape[2], device=query.device)
        block = max(1, block_for(query.device) // (query.shape[1] * key.shape[2]))
        for start in range(0, rows, block):
            piece = query[:, :, start : min(start + block, rows)].float() * scaling
            total += (piece @ key.float().transpose(2, 3)).softmax(-1).mean(1).sum(1)
        parts.append(total[:, 1:] if classed else total / rows)
    return parts


def _check(capture: Capture, rows: Sequence[int]) -> int:
    if not capture.layers:
        raise AttentionError(
            "no attention was captured: the model did not run with the capturing implementation, so "
            "it cannot say where it looked"
        )
    count = capture.tokens
    if any(sum(p.shape[1] for p in layer.keys) != count for layer in capture.layers.values()):
        raise AttentionError("some layers saw other tokens than the rest: the cache was not plain")
    if not rows or min(rows) < 0 or max(rows) >= count:
        raise AttentionError(f"rows {list(rows)} lie outside the {count} captured tokens")
    return count


def _joined(pieces: Sequence[Tensor]) -> Tensor:
    """Pieces of a sequence as one, in float32; a single one is not copied."""
    return (pieces[0] if len(pieces) == 1 else torch.cat(list(pieces), 1)).float()


def _from_the_top(capture: Capture, start_layer: float) -> list[int]:
    indices = sorted(capture.layers)
    return indices[int(start_layer * len(indices)) :][::-1]


def _column_factor(spans: Tensor) -> Tensor:
    """1 - (L0 - 1) / N for every column, from the rows' spans."""
    count = len(spans)
    edges = torch.zeros(count + 1)
    edges.index_add_(0, spans[:, 0], torch.ones(count))
    edges.index_add_(0, spans[:, 1], -torch.ones(count))
    return 1 - (edges.cumsum(0)[:count] - 1) / count


def block_for(device: torch.device) -> int:
    """How many scores may exist at one time on a device. The same each time, so that results are, too."""
    if device.type == "cpu":
        return BLOCK_CPU
    if device.type == "cuda":
        return min(BLOCK, torch.cuda.get_device_properties(device).total_memory // (32 * 4))
    return BLOCK


def _push(
    layer: Layer, spans: Tensor, pushed: Tensor, reach: int, head_weights: str, image: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """V @ P of every head, (heads, rows, N), and the heads' weights, in one pass over blocks of rows.

    V is zero from column `reach` on. The loop decides by `spans`, which stay on the CPU, so it neither waits
    for the device nor copies anything to it.
    """
    query, key = _joined(layer.queries), _joined(layer.keys) * layer.scaling
    heads, count, width = query.shape
    groups, device = key.shape[0], query.device
    query = query.reshape(groups, heads // groups, count, width)
    mixed = torch.zeros(groups, heads // groups, len(pushed), count, device=device)
    peaks = torch.zeros(groups, heads // groups, device=device)
    looked = sorted(image)
    columns = torch.tensor(looked, device=device)
    seen, place = spans.to(device), torch.arange(count, device=device)
    needed = count if head_weights != "none" else reach
    block = max(1, block_for(device) * groups // (heads * count))
    for start in range(0, needed, block):
        stop = min(start + block, needed)
        (low, left), (right, high) = (
            (int(ends.min()), int(ends.max())) for ends in spans[start:stop].unbind(1)
        )
        first, last = bisect.bisect_left(looked, low), bisect.bisect_left(looked, high)
        for group in range(groups):
            scores = (query[group, :, start:stop].reshape(-1, width) @ key[group, low:high].T).reshape(
                -1, stop - start, high - low
            )
            _cap(scores, layer.softcap)
            # Minus infinity where a row does not see; only the edges need a look.
            if left > low:
                scores[..., : left - low].masked_fill_(place[low:left] < seen[start:stop, :1], -torch.inf)
            if right < high:
                scores[..., right - low :].masked_fill_(place[right:high] >= seen[start:stop, 1:], -torch.inf)
            # Softmax by hand: the largest probability of a row is one over its sum of exponentials.
            scores.sub_(scores.amax(-1, keepdim=True)).exp_()
            sums = scores.sum(-1)
            if head_weights == "max":
                peaks[group] += sums.reciprocal().sum(-1)
            elif head_weights == "vmax" and last > first:
                peaks[group] += (scores[..., columns[first:last] - low].amax(-1) / sums).sum(-1)
            mixed[group, :, :, low:high] += (pushed[:, start:stop] / sums[:, None]) @ scores
    weights = torch.ones_like(peaks) if head_weights == "none" else peaks / count
    if head_weights == "vmax":
        weights = weights / weights.max().clamp(min=1e-12)
    return mixed.flatten(0, 1), weights.flatten()


def _cap(scores: Tensor, softcap: float | None) -> None:
    if softcap:
        scores.div_(softcap).tanh_().mul_(softcap)
