"""Compute the attention flow: attention rolled out through all decoder layers (VL-SAM section 3.2).

VL-SAM is arXiv 2410.05963 (NeurIPS 2024). With S[i, j, h, l] the attention of token i to token j in head h of
layer l, and W the heads' weights:

    S'[l]   = mean over h of S * W                                            (equation 2)
    Sbar[l] = (I + S'[l]) (I + Sbar[l - 1]), Sbar[0] = 0                      (equation 3)

Equation 1, W, is in head_weights.py; the columns' factors against the collapse into the first tokens are in
causal_correction.py; the switches are those of model/recipes.py.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from model.attention.capture import Capture, Layer, block_for
from model.attention.causal_correction import column_factors
from model.attention.head_weights import HeadWeights
from model.recipes import Recipe


def flow(capture: Capture, rows: Sequence[int], recipe: Recipe, image: Sequence[int] = ()) -> Tensor:
    """Return rows of the rolled-out attention after the last layer: float32 (len(rows), N).

    The result is exact and needs no N x N matrix. From the last layer down, multiply the requested rows V:
    V <- V + V (S' * d), with the columns' factors d. Sum V over all starting layers.
    Of the recipe start_layer, head_weights, regularise and residual apply. `rows` are positions in the
    sequence. `image` holds the positions of the image tokens, for the head weights "vmax".

    Raises AttentionError as `Capture.check` does.
    """
    count = capture.check(rows)
    first = capture.layers[min(capture.layers)]
    device = first.queries[0].device
    pushed = torch.zeros(len(rows), count, device=device)
    pushed[torch.arange(len(rows)), torch.tensor(rows)] = 1.0
    total = torch.zeros_like(pushed)
    indices = sorted(capture.layers)
    indices = indices[int(recipe.start_layer * len(indices)) :][::-1]  # from the last layer down
    reach = max(rows) + 1  # columns from here on are zero
    for index in indices:
        layer = capture.layers[index]
        there = pushed.to(layer.queries[0].device)  # layers may lie on several devices
        step, spans = _push(layer, there, reach, recipe.head_weights, image)
        step = step.to(device)
        reach = max(reach, int(spans[:reach, 1].max()))
        if recipe.regularise == "before":
            step = step * column_factors(spans).to(device)
        pushed = pushed + (step / len(indices) if recipe.residual == "depth" else step)
        if recipe.residual == "half":
            pushed = pushed / 2
        total = total + pushed
    rolled = total if recipe.residual == "paper" else pushed
    if recipe.regularise == "end":
        rolled = rolled * column_factors(torch.cat(first.spans)).to(device)
    return rolled


def _push(
    layer: Layer, pushed: Tensor, reach: int, head_weights: str, image: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Return V S' of one layer, float32 (rows, N), where V is `pushed`, and the layer's spans (N, 2).

    V must be 0 from column `reach` on. The layer is computed in blocks of query rows, which limits memory.
    The spans are on the CPU, so the loop runs without waiting for the device.
    """
    query, key, spans = layer.tensors()
    heads, count, width = query.shape
    groups, device = key.shape[0], query.device
    query = query.reshape(groups, heads // groups, count, width)
    mixed = torch.zeros(groups, heads // groups, len(pushed), count, device=device)
    weights = HeadWeights(head_weights, (groups, heads // groups), image, device)
    device_spans, place = spans.to(device), torch.arange(count, device=device)
    needed = count if head_weights != "none" else reach
    block = max(1, block_for(device) * groups // (heads * count))
    for start in range(0, needed, block):
        stop = min(start + block, needed)
        (low, left), (right, high) = (
            (int(ends.min()), int(ends.max())) for ends in spans[start:stop].unbind(1)
        )
        for group in range(groups):
            scores = (query[group, :, start:stop].reshape(-1, width) @ key[group, low:high].T).reshape(
                -1, stop - start, high - low
            )
            layer.cap(scores)
            # Set columns that a row does not see to minus infinity. Only the edges can hold such columns.
            if left > low:
                unseen = place[low:left] < device_spans[start:stop, :1]
                scores[..., : left - low].masked_fill_(unseen, -torch.inf)
            if right < high:
                unseen = place[right:high] >= device_spans[start:stop, 1:]
                scores[..., right - low :].masked_fill_(unseen, -torch.inf)
            # Softmax in steps, since the head weights need the sums.
            scores.sub_(scores.amax(-1, keepdim=True)).exp_()
            sums = scores.sum(-1)
            weights.add(group, scores, sums, low)
            mixed[group, :, :, low:high] += (pushed[:, start:stop] / sums[:, None]) @ scores
    return (mixed.flatten(0, 1) * weights.of(count)[:, None, None]).mean(0), spans
