"""A person's prompt -> one mask that obeys it."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from model.segmentation.embedding import Embedding
from model.segmentation.mask_cleanup import innermost_pixel, unmet_points, without_specks_and_holes
from model.segmentation.non_maximum_suppression import iou
from model.segmentation.segmenter import Masks, Segmenter
from model.types import LEVELS, Level, Mask, Prompt, box_of

log = logging.getLogger(f"vlsam.{__name__}")

# A click is disobeyed where the mask has the other label all around it, as far as this share of the mask's
# size. Nearer than that the answer only drew its edge a little off, and other answers were worse on average.
_FAR = 0.35
# A change to the start mask that no click asks for is undone where it is larger than this share of it.
# Smaller ones are the edge, drawn anew.
LARGE = 0.25

# Of a mask under a negative click at least this share must be left, or the click is on the object itself.
LEFT = 0.05
# What a click's own mask shows lies mostly inside the region where this share of it does.
INSIDE = 0.8
# A negative click that took less than this share of what it points at took a speck.
SPECK_OF = 0.25
# A click that changes less than this share of the mask is about its edge, which is then drawn anew.
PART = 0.1
# Clicks that are looked at alone, the newest: each costs a decode, and one is the rule.
ASKED = 8


@dataclass(frozen=True, eq=False)
class Refinement:
    mask: Mask
    predicted_iou: float  # 0..1, of the segmenter's own answer
    # (h, w) low resolution, for the next click to start from: the segmenter's own where they agree with the
    # mask, which may have been corrected.
    logits: NDArray[np.float32]
    prompt: Prompt  # what it obeys: less the model's own points that clicks overrule


def refine_by_clicks(
    segmenter: Segmenter, embedding: Embedding, prompt: Prompt, level: Level = "auto"
) -> Refinement:
    """The mask for a person's prompt, with every click on its side.

    The segmenter starts from the prompt's logits, else from its mask. Its first answer stands unless it
    disobeys a click; `level` takes its largest, middle or smallest mask instead. Each click gets its way
    within a cell of the low-resolution logits at least. Large changes to the start that no click asks for are
    undone, so that a click on one object never moves the mask to another; holes and specks go.

    Of clicks on one pixel that contradict each other the last counts, which is logged, and
    `model.segmentation.mask_cleanup.unmet_points` tells. Raises PromptError.
    """
    # A mask alone, such as a brush stroke, says where the object is and not what to correct.
    corrects = len(prompt.points) > 0
    if not corrects and prompt.box is None and prompt.mask is not None and prompt.mask.any():
        (row, column), _ = innermost_pixel(prompt.mask)
        prompt = replace(
            prompt, points=np.array([[column + 0.5, row + 0.5]], np.float32), labels=np.array([1])
        )
    before = prompt.mask
    if before is None and prompt.logits is not None:
        before = segmenter.mask(embedding, prompt.logits)
    if not corrects or before is None or not before.any():
        before = None
    asked, rest = prompt, before
    wishes: list[_Wish] = []
    if before is not None and rest is not None:
        # An answer's own logits say what was meant before: later clicks on it are mostly about its edge.
        if prompt.logits is None:
            wishes = _wishes(segmenter, embedding, prompt, before)
            rest = _rest(before, prompt, wishes)
            if rest is not before:
                prompt = _without(prompt, before & ~rest)
                prompt = replace(prompt, box=prompt.box and box_of(rest))
        if prompt.logits is None or not prompt.labels.any():
            asked = _anchored(prompt, rest)
    mask, quality, logits = (
        _most_obedient(segmenter, embedding, asked)
        if level == "auto"
        else _of_level(segmenter.decode(embedding, [asked], multimask=True)[0], level)
    )
    mask, logits = segmenter.clean(embedding, mask, logits, asked)
    cell = math.ceil(max(embedding.size) / logits.shape[-1])
    kept = mask
    if before is not None and rest is not None:
        merged = _merged(mask, before, asked, wishes)
        if np.count_nonzero(merged ^ before) >= PART * np.count_nonzero(before):
            kept = merged
        else:
            kept = _without_jumps(mask, before, prompt, cell)
        kept = _taken(kept, rest, wishes)
        if kept is not mask:
            kept = without_specks_and_holes(kept, prompt)
        wrong = np.isin(np.arange(len(prompt.points)), unmet_points(kept, prompt))
        prompt = prompt.of_points(~(wrong & (np.arange(len(wrong)) < prompt.model_points)))
    final = _with_its_clicks(kept, prompt, cell)
    if ignored := unmet_points(final, prompt):
        log.warning("Of clicks on one pixel the last counts; not met: numbers %s.", ignored)
    if final is not mask:
        shown = segmenter.hint(embedding, final.astype(np.float32))
        logits = np.where((shown > 0) == (logits > 0), logits, shown)
    return Refinement(final, quality, logits, prompt)


@dataclass(frozen=True, eq=False)
class _Wish:
    """A click that asks for a change to a mask, and what the segmenter sees at the click alone."""

    pixel: tuple[int, int]  # row, column
    adds: bool
    levels: Masks
    piece: Mask  # (H, W) what is there: of the best scored level the part that the click asks about
    inside: bool  # whether this is most of that level


def _wishes(segmenter: Segmenter, embedding: Embedding, prompt: Prompt, before: Mask) -> list[_Wish]:
    """The newest clicks that ask for a change, all in one call of the decoder."""
    pixels, labels = prompt.pixels(before.shape), prompt.labels.astype(bool)
    asking = [i for i, pixel in enumerate(pixels) if i >= prompt.model_points and before[pixel] != labels[i]][
        -ASKED:
    ]
    alone = [Prompt(prompt.points[i : i + 1], np.ones(1, np.int64)) for i in asking]
    found = []
    for i, levels in zip(asking, segmenter.decode(embedding, alone, multimask=True), strict=True):
        best = levels.masks[int(levels.predicted_iou.argmax())]
        piece = _piece(best & (before != labels[i]), pixels[i])
        inside = np.count_nonzero(piece) >= INSIDE * np.count_nonzero(best)
        found.append(_Wish(pixels[i], bool(labels[i]), levels, piece, inside))
    return found


def _piece(area: Mask, pixel: tuple[int, int]) -> Mask:
    """The connected part of an area that holds a pixel; nothing where none does."""
    if not area[pixel]:
        return np.zeros_like(area)
    _, pieces = cv2.connectedComponents(area.view(np.uint8), connectivity=8)
    return np.asarray(pieces == pieces[pixel])


def _rest(before: Mask, prompt: Prompt, wishes: Sequence[_Wish]) -> Mask:
    """The mask without what lies under its negative clicks; itself where that is the object itself.

    That is so where next to nothing is left, or where a person's positive click is in it, too.
    """
    held = [
        pixel
        for i, (pixel, label) in enumerate(zip(prompt.pixels(before.shape), prompt.labels, strict=True))
        if label and i >= prompt.model_points
    ]
    rest = before
    for wish in wishes:
        if not wish.adds and wish.piece.any() and not any(wish.piece[pixel] for pixel in held):
            left = rest & ~wish.piece
            if np.count_nonzero(left) >= LEFT * np.count_nonzero(before):
                rest = left
    return rest


def _without(prompt: Prompt, area: Mask) -> Prompt:
    """The prompt less the model's own positive points in an area."""
    pixels = prompt.pixels(area.shape)
    goes = [label and i < prompt.model_points and area[pixels[i]] for i, label in enumerate(prompt.labels)]
    return prompt.of_points(~np.array(goes, bool))


def _anchored(prompt: Prompt, rest: Mask) -> Prompt:
    """The prompt with a positive point on what stays of the mask, where there are clicks of one kind alone.

    SAM has learned to correct from a positive point or a box on: negative points alone say of no object, and
    a positive one beside the mask says of another.
    """
    pixels = prompt.pixels(rest.shape)
    told = any(rest[pixel] for pixel, label in zip(pixels, prompt.labels, strict=True) if label)
    if told or len(np.unique(prompt.labels[prompt.model_points :])) > 1:
        return prompt
    (row, column), _ = innermost_pixel(rest)
    points = np.concatenate([np.array([[column + 0.5, row + 0.5]], np.float32), prompt.points])
    return replace(
        prompt,
        points=points,
        labels=np.concatenate([[1], prompt.labels]),
        model_points=prompt.model_points + 1,
    )


def _merged(mask: Mask, before: Mask, prompt: Prompt, wishes: Sequence[_Wish]) -> Mask:
    """The start mask with the answer's edge, and with its changes around the clicks that ask for them.

    FocalClick's progressive merge (arXiv 2204.02574). What is added is in the click's own mask, too, of its
    levels the one that agrees best with the answer: a neighbour is seldom in both. A change that holds a
    person's click of the other kind is left out, and one that would leave next to nothing.
    """
    clicked = list(zip(prompt.pixels(before.shape), prompt.labels, strict=True))[prompt.model_points :]
    result = before
    for wish in sorted(wishes, key=lambda wish: not wish.adds):
        if wish.adds:
            both = before | mask
            changed = mask & ~before & max(wish.levels.masks, key=lambda level: iou(level, both))
        else:
            changed = before & ~mask
        piece = _piece(changed, wish.pixel)
        contradicted = any(piece[pixel] and label != wish.adds for pixel, label in clicked)
        left = np.count_nonzero(result & ~piece)
        if wish.adds and not contradicted:
            result = result | piece
        elif not wish.adds and not contradicted and left >= LEFT * np.count_nonzero(before):
            result = result & ~piece
    return result


def _taken(mask: Mask, rest: Mask, wishes: Sequence[_Wish]) -> Mask:
    """The mask without what a negative click points at, where the segmenter took next to nothing of it.

    Not without the larger half: beside its edge a click's own mask may well be the object itself.
    """
    for wish in wishes:
        if wish.adds or not wish.inside or (wish.piece & rest).any():
            continue
        if 2 * np.count_nonzero(wish.piece & mask) > np.count_nonzero(mask):
            continue
        if np.count_nonzero(wish.piece & ~mask) < SPECK_OF * np.count_nonzero(wish.piece):
            mask = mask & ~wish.piece
    return mask


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
    if not unmet_points(mask, prompt):
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
