"""Weight the heads of a layer in the attention flow.

"max": W = mean over rows i of max over columns j of S[i, j] (VL-SAM equation 1). "vmax": the same over image
columns only, scaled so that the best head has 1 (DecAF, arXiv 2510.19592). "none": 1.
"""

import bisect
from collections.abc import Sequence

import torch
from torch import Tensor


class HeadWeights:
    """Computes the weights of one layer's heads, from attention that is added in blocks of rows."""

    def __init__(self, kind: str, shape: tuple[int, int], image: Sequence[int], device: torch.device) -> None:
        """Set `shape`, (key heads, query heads per key head), and `image`, the positions of image tokens."""
        self._kind, self._columns = kind, sorted(image)
        self._image = torch.tensor(self._columns, device=device)
        self._peaks = torch.zeros(shape, device=device)

    def add(self, group: int, scores: Tensor, sums: Tensor, low: int) -> None:
        """Add a block of rows of the query heads of one key head, whose index is `group`.

        `scores` (heads, rows, columns) holds exp(score - its row's maximum) from column `low` on, and `sums`
        (heads, rows) their sums: a row's largest probability is 1 / sum.
        """
        if self._kind == "max":
            self._peaks[group] += sums.reciprocal().sum(-1)
        elif self._kind == "vmax":
            first, last = (bisect.bisect_left(self._columns, at) for at in (low, low + scores.shape[-1]))
            if last > first:
                image = scores[..., self._image[first:last] - low]
                self._peaks[group] += (image.amax(-1) / sums).sum(-1)

    def of(self, count: int) -> Tensor:
        """Return the weights, float32 (heads,). `count` is the number of rows of the layer."""
        weights = torch.ones_like(self._peaks) if self._kind == "none" else self._peaks / count
        if self._kind == "vmax":
            weights = weights / weights.max().clamp(min=1e-12)
        return weights.flatten()
