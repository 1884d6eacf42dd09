"""A person's prompt -> one mask that obeys it."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from model.segmenter import Embedding, Masks, Segmenter
from model.types import Mask, Prompt


def obey(segmenter: Segmenter, embedding: Embedding, prompt: Prompt) -> tuple[Mask, float]:
    """Of the answers to a person's prompt, the one that satisfies most clicks; else the first asked.

    A start mask can outweigh a click, so the same prompt is then also asked without it; and if no
    answer holds every positive click, the nearest one does after its threshold is lowered to them.
    """
    start = prompt.mask is not None or prompt.logits is not None
    free = replace(prompt, mask=None, logits=None)
    # One point may mean a part or the whole, so three levels are asked for; more say enough for one.
    ambiguous = len(prompt.points) == 1 and prompt.box is None and not start
    asked = [(prompt, ambiguous), (prompt, not ambiguous)]
    if start:
        asked += [(free, False), (free, True)]
    candidates = [
        (_satisfied(mask, prompt), -turn, float(quality), answer, level)
        for turn, (each, multimask) in enumerate(asked)
        for answer in segmenter.decode(embedding, [each], multimask=multimask)
        for level, (mask, quality) in enumerate(zip(answer.masks, answer.predicted_iou, strict=True))
    ]
    _, _, quality, answer, level = max(candidates, key=lambda c: c[:3])
    mask: Mask = answer.masks[level]
    for point in prompt.points[prompt.labels == 1]:
        mask = mask | _around(segmenter, embedding, answer, level, point)
    return mask, quality


def _around(
    segmenter: Segmenter, embedding: Embedding, answer: Masks, level: int, point: NDArray[np.float32]
) -> Mask:
    """What a lower threshold adds around a positive point that its answer left out."""
    mask: Mask = answer.masks[level]
    row, column = _pixel(point, embedding.size)
    if mask[row, column]:
        return mask
    return segmenter.component_at(embedding, answer.logits[level], row, column)


def _pixel(point: NDArray[np.float32], size: tuple[int, int]) -> tuple[int, int]:
    """Row and column of the pixel that holds an xy point; points on the far edge hold the last one."""
    height, width = size
    return int(np.clip(point[1], 0, height - 1)), int(np.clip(point[0], 0, width - 1))


def _satisfied(mask: Mask, prompt: Prompt) -> int:
    count = 0
    for point, label in zip(prompt.points, prompt.labels, strict=True):
        row, column = _pixel(point, (mask.shape[0], mask.shape[1]))
        count += bool(mask[row, column]) == bool(label)
    return count
