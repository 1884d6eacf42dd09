"""A person's prompt -> one mask that obeys it."""

import math
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from model.segmenter import Embedding, Segmenter
from model.types import Mask, Prompt

# A click is disobeyed where the mask has the other label all around it, as far as this share of the mask's
# size. Nearer than that the answer only drew its edge a little off, and other answers were worse on average.
_FAR = 0.35


def obey(segmenter: Segmenter, embedding: Embedding, prompt: Prompt) -> tuple[Mask, float]:
    """The mask for a person's prompt, with every click on its side, and the predicted IoU.

    The first answer stands unless it disobeys a click. Then the other levels are looked at and, since a start
    mask can outweigh a click, the same prompt without it; the one that obeys most is taken, of equals the
    first. At last each click gets its way within a cell of the low-resolution logits.
    """
    start = prompt.mask is not None or prompt.logits is not None
    # One point may mean a part or the whole, so three levels are asked for; more say enough for one.
    ambiguous = len(prompt.points) == 1 and prompt.box is None and not start
    answer = segmenter.decode(embedding, [prompt], multimask=ambiguous)[0]
    level = int(answer.predicted_iou.argmax())
    mask, quality = answer.masks[level], float(answer.predicted_iou[level])
    far = round(math.sqrt(max(1, np.count_nonzero(mask))) * _FAR)
    if _obeyed(mask, prompt, far) < len(prompt.points):
        free = replace(prompt, mask=None, logits=None)
        others = [(prompt, not ambiguous), *([(free, False), (free, True)] if start else [])]
        candidates = [(mask, quality, 1)]
        for turn, (each, multimask) in enumerate(others):
            other = segmenter.decode(embedding, [each], multimask=multimask)[0]
            candidates += [
                (m, float(q), -turn) for m, q in zip(other.masks, other.predicted_iou, strict=True)
            ]
        mask, quality, _ = max(candidates, key=lambda c: (_obeyed(c[0], prompt, far), c[2], c[1]))
    cell = math.ceil(max(embedding.size) / answer.logits.shape[-1])
    return _with_its_clicks(mask, prompt, cell), quality


def _obeyed(mask: Mask, prompt: Prompt, far: int) -> int:
    """Clicks that have a pixel of their label within `far` pixels, in a square around them."""
    count = 0
    for point, label in zip(prompt.points, prompt.labels, strict=True):
        row, column = _pixel(point, mask.shape)
        near = mask[max(0, row - far) : row + far + 1, max(0, column - far) : column + far + 1]
        count += bool((near == bool(label)).any())
    return count


def _with_its_clicks(mask: Mask, prompt: Prompt, cell: int) -> Mask:
    """The mask with a disc of `cell` pixels put right around every click that it has on the wrong side."""
    mask = mask.copy()
    pixels = [_pixel(point, mask.shape) for point in prompt.points]
    for (row, column), label in zip(pixels, prompt.labels, strict=True):
        if mask[row, column] != bool(label):
            cv2.circle(mask.view(np.uint8), (column, row), cell, int(label), cv2.FILLED)
    for pixel, label in zip(pixels, prompt.labels, strict=True):
        mask[pixel] = bool(label)  # a disc may have covered another click
    return mask


def _pixel(point: NDArray[np.float32], size: tuple[int, ...]) -> tuple[int, int]:
    """Row and column of the pixel that holds an xy point; points on the far edge hold the last one."""
    return int(np.clip(point[1], 0, size[0] - 1)), int(np.clip(point[0], 0, size[1] - 1))
