"""Capture the queries and keys of every decoder layer, and of the vision tower's last one, as a VLM runs."""

from collections.abc import Callable, Iterator, Sequence
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

from model.types import AttentionError

# Names of attention implementations: of a VLM's decoder, of one that caps its scores, which SDPA cannot, and
# of the vision tower.
TEXT, CAPPED, VISION = "vlsam_text", "vlsam_capped", "vlsam_vision"
# Scores that exist at one time. On a CPU: few enough for a core's cache, enough for a fast product. On a GPU
# each block is a dozen launches, so blocks are large: 256 MiB, or a 32nd of the GPU's memory.
BLOCK_CPU, BLOCK = 1 << 19, 1 << 26


@dataclass
class Layer:
    """The queries and keys of one decoder layer, in one piece per forward pass."""

    scaling: float
    queries: list[Tensor] = field(default_factory=list)  # (heads, n, d), after rotary embedding
    keys: list[Tensor] = field(default_factory=list)  # (key heads, n, d)
    spans: list[Tensor] = field(default_factory=list)  # (n, 2) int64: row i sees columns [low, high)
    softcap: float | None = None  # c: scores are c tanh(score / c), as in Gemma 2

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (heads, N, d) and scaled keys (key heads, N, d) as float32, and spans (N, 2)."""
        query, key = (
            (pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1)).float()
            for pieces in (self.queries, self.keys)
        )
        return query, key * self.scaling, torch.cat(self.spans)

    def cap(self, scores: Tensor) -> None:
        """Limit attention scores by the layer's softcap, if it has one, in place."""
        if self.softcap:
            scores.div_(self.softcap).tanh_().mul_(self.softcap)


@dataclass
class Capture:
    """The queries and keys of all decoder layers for one sequence, and of the vision tower's last layer."""

    layers: dict[int, Layer] = field(default_factory=dict)
    # Of the vision tower's last layer: query, key and scaling for each part of the image that attends within
    # itself; (views, heads, n, d).
    vision: list[tuple[Tensor, Tensor, float]] = field(default_factory=list)
    keeps_vision: bool = False
    _vision_module: nn.Module | None = None
    _mask: Tensor | None = None  # layers share their masks: each is read once
    _mask_spans: Tensor | None = None

    @property
    def tokens(self) -> int:
        return sum(piece.shape[1] for piece in next(iter(self.layers.values())).queries)

    def check(self, rows: Sequence[int]) -> int:
        """Return the number of tokens N. Raises AttentionError if a layer or `rows` do not fit it."""
        if not self.layers:
            raise AttentionError(
                "no attention was captured: the model did not run with the capturing implementation, so "
                "there are no attention maps"
            )
        count = self.tokens
        if any(sum(p.shape[1] for p in layer.keys) != count for layer in self.layers.values()):
            raise AttentionError("some layers processed other tokens than the rest: the cache was not plain")
        if not rows or min(rows) < 0 or max(rows) >= count:
            raise AttentionError(f"rows {list(rows)} lie outside the {count} captured tokens")
        return count

    def spans_of(self, mask: Tensor | None, causal: bool, rows: int, columns: int, seen: int) -> Tensor:
        """Return the positions [low, high) that each new token attends to: int64 (rows, 2).

        `rows` is the number of new tokens. `columns` is the number of keys, which end before position
        `seen`. Raises AttentionError if a token attends to positions with gaps between.
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


@contextmanager
def capturing(*, vision: bool = False) -> Iterator[Capture]:
    """Capture queries and keys of the forward passes in the `with` block. The batch must be one sequence.

    `vision` also captures the vision tower's last layer. The model must use `implementations`.
    """
    capture = Capture(keeps_vision=vision)
    token = _active.set(capture)
    try:
        yield capture
    finally:
        _active.reset(token)
        capture._vision_module = capture._mask = capture._mask_spans = None


def implementations(config: Any) -> dict[str, str]:
    """Return the capturing attention implementations for a VLM, for `set_attn_implementation`."""
    text = config.get_text_config(decoder=True)
    capped = getattr(text, "attn_logit_softcapping", None)
    return {"text_config": CAPPED if capped else TEXT, "vision_config": VISION}


def block_for(device: torch.device) -> int:
    """Return the most attention scores to hold in memory at a time. Constant per device: results repeat."""
    if device.type == "cpu":
        return BLOCK_CPU
    if device.type == "cuda":
        return min(BLOCK, torch.cuda.get_device_properties(device).total_memory // (32 * 4))
    return BLOCK


def _keep(
    module: nn.Module, query: Tensor, key: Tensor, attention_mask: Tensor | None, kwargs: dict[str, Any]
) -> None:
    """Add a decoder layer's queries and keys to the open capture, if there is one."""
    capture = _active.get()
    if capture is None:
        return
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


def _keep_vision(
    module: nn.Module, query: Tensor, key: Tensor, attention_mask: Tensor | None, kwargs: dict[str, Any]
) -> None:
    """Store a vision layer's queries and keys in the open capture. They replace the layer before."""
    capture = _active.get()
    if capture is not None and capture.keeps_vision:
        if capture._vision_module is not module:
            capture._vision_module, capture.vision = module, []
        scaling = float(kwargs.get("scaling") or query.shape[-1] ** -0.5)
        capture.vision.append((query.detach(), key.detach(), scaling))


def _with_capture(keep: Callable[..., None], forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return an attention implementation that calls `keep` and then transformers' own `forward`."""

    def attention(module: nn.Module, q: Any, k: Any, v: Any, attention_mask: Any, **kwargs: Any) -> Any:
        keep(module, q, k, attention_mask, kwargs)
        return forward(module, q, k, v, attention_mask, **kwargs)

    return attention


for _name, _attention, _mask in (
    (TEXT, _with_capture(_keep, sdpa_attention_forward), sdpa_mask),
    (CAPPED, _with_capture(_keep, eager_attention_forward), eager_mask),
    (VISION, _with_capture(_keep_vision, sdpa_attention_forward), sdpa_mask),
):
    AttentionInterface.register(_name, _attention)
    AttentionMaskInterface.register(_name, _mask)
