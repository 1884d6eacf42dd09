"""Correct the attention flow for the causal mask, under which it collapses into the first tokens."""

import torch
from torch import Tensor


def column_factors(spans: Tensor) -> Tensor:
    """Return each column's factor 1 - (L0 - 1) / N, where L0 of the N tokens attend to it: float32 (N,).

    With a plain causal mask the factor of column j is (j + 1) / N. See VL-SAM section 3.2.
    `spans` (N, 2) holds the columns [low, high) that each row attends to.
    """
    count = len(spans)
    edges = torch.zeros(count + 1)
    edges.index_add_(0, spans[:, 0], torch.ones(count))
    edges.index_add_(0, spans[:, 1], -torch.ones(count))
    return 1 - (edges.cumsum(0)[:count] - 1) / count
