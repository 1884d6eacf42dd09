"""A person's prompt -> one mask that obeys it."""

import logging
import math
from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from model.masks import inmost, tidied, unmet
from model.segmenter import Embedding, Masks, Segmenter
from model.types import Mask, Prompt

log = logging.getLogger(__name__)

# A click is disobeyed where the mask has the other label all around it, as far as this share of the mask's
# size. Nearer than that the answer only drew its edge a little off, and other answers were worse on average.
_FAR = 0.35
# A change to the start mask that no click asks for is undone where it is larger than this share of it.
# Smaller ones are the edge, drawn anew.
LARGE = 0.25

Level = Literal["auto", "whole", "part", "subpart"]
LEVELS: tuple[Level, ...] = ("auto", "whole", "part", "subpart")


@dataclass(frozen=True, eq=False)
class Answer:
    mask: Mask
    predicted_iou: float  # 0..1, of the segmenter's own answer
    # (h, w) low resolution, for the next click to start from: the segmenter's own where they agree with the
    # mask, which may have been corrected.
    logits: NDArray[np.float32]


def obey(segmenter: Segmenter, embedding: Embedding, prompt: Prompt, level: Level = "auto") -> Answer:
    """The mask for a person's prompt, with every click on its side.

    The segmenter starts from the prompt's logits, else from its mask. Its first answer stands unless it
    disobeys a click; `level` takes its largest, middle or smallest mask instead. Each click gets its way
    within a cell of the low-resolution logits at least. Large changes to the start that no click asks for are
    undone, so that a click on one object never moves the mask to another; holes and specks go.

    Of clicks on one pixel that contradict each other the last counts, which is logged, and
    `model.masks.unmet` tells. Raises PromptError.
    """
    # A mask alone, such as a brush stroke, says where the object is and not what to correct.
    corrects = len(prompt.points) > 0
    if not corrects and prompt.box is None and prompt.mask is not None and prompt.mask.any():
        (row, column), _ = inmost(prompt.mask)
        prompt = replace(
            prompt, points=np.array([[column + 0.5, row + 0.5]], np.float32), labels=np.array([1])
        )
    mask, quality, logits = (
        _most_obedient(segmenter, embedding, prompt)
        if level == "auto"
        else _of_level(segmenter.decode(embedding, [prompt], multimask=True)[0], level)
    )
    mask, logits = segmenter.tidied(embedding, mask, logits, prompt)
    cell = math.ceil(max(embedding.size) / logits.shape[-1])
    before = prompt.mask
    if before is None and prompt.logits is not None:
        before = segmenter.mask(embedding, prompt.logits)
    kept = mask
    if corrects and before is not None and before.any():
        kept = _without_jumps(mask, before, prompt, cell)
        if kept is not mask:
            kept = tidied(kept, prompt)
    final = _with_its_clicks(kept, prompt, cell)
    if ignored := unmet(final, prompt):
        log.warning("Of clicks on one pixel the last counts; not met: numbers %s.", ignored)
    if final is not mask:
        shown = segmenter.hint(embedding, final.astype(np.float32))
        logits = np.where((shown > 0) == (logits > 0), logits, shown)
    return Answer(final, quality, logits)


def _most_obedient(
    segmenter: Segmenter, embedding: Embedding, prompt: Prompt
) -> tuple[Mask, float, NDArray[np.float32]]:
    """The first answer unless it disobeys a click.

    Then the other levels are looked at and, since a start mask can outweigh a click, the same prompt without
    it; the one that obeys most is taken, of equals the first.
    """
    start = prompt.mask is not None or prompt.logits is not None
    # One point may mean a part or the whole, so three levels are asked for; more say enough for one.
    ambiguous = len(prompt.points) == 1 and prompt.box is None and not start
    answer = segmenter.decode(embedding, [prompt], multimask=ambiguous)[0]
    best = int(answer.predicted_iou.argmax())
    mask, quality, logits = answer.masks[best], float(answer.predicted_iou[best]), answer.logits[best]
    far = round(math.sqrt(max(1, np.count_nonzero(mask))) * _FAR)
    obeyed = _obeyed(mask, prompt, far)
    if obeyed == len(prompt.points):
        return mask, quality, logits
    free = replace(prompt, mask=None, logits=None)
    others = [(prompt, not ambiguous), *([(free, False), (free, True)] if start else [])]
    rank = (obeyed, 1, quality)
    for turn, (each, multimask) in enumerate(others):
        other = segmenter.decode(embedding, [each], multimask=multimask)[0]
        for m, q, low in zip(other.masks, other.predicted_iou, other.logits, strict=True):
            its_rank = (_obeyed(m, prompt, far), -turn, float(q))
            if its_rank > rank:
                rank, mask, quality, logits = its_rank, m, float(q), low
    return mask, quality, logits


def _of_level(answer: Masks, level: Level) -> tuple[Mask, float, NDArray[np.float32]]:
    """SAM learns its three masks in no fixed order, so their size tells which is which."""
    by_size = np.argsort(-(answer.logits > 0).sum((1, 2)), kind="stable")
    index = int(by_size[LEVELS.index(level) - 1])
    return answer.masks[index], float(answer.predicted_iou[index]), answer.logits[index]


def _obeyed(mask: Mask, prompt: Prompt, far: int) -> int:
    """Clicks that have a pixel of their label within `far` pixels, in a square around them."""
    count = 0
    for (row, column), label in zip(prompt.pixels(mask.shape), prompt.labels, strict=True):
        near = mask[max(0, row - far) : row + far + 1, max(0, column - far) : column + far + 1]
        count += bool((near == bool(label)).any())
    return count


def _with_its_clicks(mask: Mask, prompt: Prompt, cell: int) -> Mask:
    """The mask with a disc of `cell` pixels put right around every click that it has on the wrong side.

    Itself where it has none.
    """
    if not unmet(mask, prompt):
        return mask
    mask = mask.copy()
    pixels = prompt.pixels(mask.shape)
    for (row, column), label in zip(pixels, prompt.labels, strict=True):
        if mask[row, column] != bool(label):
            cv2.circle(mask.view(np.uint8), (column, row), cell, int(label), cv2.FILLED)
    for pixel, label in zip(pixels, prompt.labels, strict=True):
        mask[pixel] = bool(label)  # a disc may have covered another click
    return mask


def _without_jumps(mask: Mask, before: Mask, prompt: Prompt, cell: int) -> Mask:
    """The mask, itself where it keeps to what was asked, else with the start mask's pixels where it does not.

    What a connected piece adds or takes is asked for by a click of that kind in it, unless one of the other
    kind is in it too. After FocalClick's progressive merge (arXiv 2204.02574), which undoes small ones too.
    """
    pixels, labels = prompt.pixels(mask.shape), prompt.labels.astype(bool)
    asking = np.array([before[pixel] for pixel in pixels]) != labels
    # Its disc joins a click to the piece that it asked for where that misses it by a little.
    new = _with_its_clicks(mask, Prompt(prompt.points[asking], prompt.labels[asking]), cell)
    most, result = LARGE * np.count_nonzero(before), new
    for kind, changed in ((True, new & ~before), (False, before & ~new)):
        if np.count_nonzero(changed) <= most:
            continue
        _, pieces, stats, _ = cv2.connectedComponentsWithStats(changed.view(np.uint8), connectivity=8)
        held = [(pieces[pixel], label == kind) for pixel, label in zip(pixels, labels, strict=True)]
        asked, refused = ({piece for piece, agrees in held if agrees == wanted} for wanted in (True, False))
        large = np.flatnonzero(stats[:, cv2.CC_STAT_AREA] > most)
        undone = [piece for piece in large if piece and (piece not in asked or piece in refused)]
        if undone:
            result = np.where(np.isin(pieces, undone), before, result)
    if not result.any():
        return before
    return mask if result is new else np.asarray(result)
