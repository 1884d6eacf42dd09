"""Refine a mask by a person's clicks: positive clicks end up inside the mask, negative ones outside."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from model.segmentation.embedding import Embedding
from model.segmentation.mask_cleanup import innermost_pixel, unmet_points, without_specks_and_holes
from model.segmentation.non_maximum_suppression import iou
from model.segmentation.segmenter import Answer, Masks, Segmenter
from model.types import LEVELS, Level, Mask, Prompt, box_of

log = logging.getLogger(f"vlsam.{__name__}")

# A mask violates a click if it has the other label all around it, as far as this share of the mask's size.
# Nearer than that only the edge is a little off, and other answers were worse on average.
_FAR = 0.35
# A change to the start mask without a click is undone if it is larger than this share of the mask. Smaller
# changes are a new edge.
LARGE = 0.25

# A negative click is on the object itself, not on a part to remove, if less than this share would be left.
MIN_LEFT = 0.05
# A click's own mask counts as inside the region if this share of it is.
MOSTLY_INSIDE = 0.8
# A negative click that removed less than this share of its own mask removed a speck only.
SPECK_OF = 0.25
# A click that changes less than this share of the mask corrects its edge, which is then redrawn.
EDGE_CHANGE = 0.1
# The newest clicks that are decoded alone; one is the rule.
MAX_CORRECTIONS = 8


def refine_by_clicks(
    segmenter: Segmenter, embedding: Embedding, prompt: Prompt, level: Level = "auto"
) -> Answer:
    """Return the mask for a person's prompt, with positive clicks inside and negative ones outside.

    The segmenter starts from the prompt's logits, or else from its mask. At the level "auto" its first answer
    is kept unless it violates a click. The other levels take the largest, middle or smallest of three masks.
    A click that is still violated is corrected in a disc around it, as large as a cell of the low-resolution
    logits. Large changes to the start mask without a click are undone, so that a click on one object never
    moves the mask to another. Holes and specks are removed.

    Of contradicting clicks on one pixel, the last counts. The others are logged, and
    `mask_cleanup.unmet_points` returns them. The returned prompt lacks the model's points that clicks
    overrule. The next click may start from the returned logits. Raises PromptError.
    """
    # A mask alone, such as a brush stroke, locates an object and corrects nothing.
    corrects = len(prompt.points) > 0
    if not corrects and prompt.box is None and prompt.mask is not None and prompt.mask.any():
        (row, column), _ = innermost_pixel(prompt.mask)
        point = np.array([[column + 0.5, row + 0.5]], np.float32)
        prompt = replace(prompt, points=point, labels=np.array([1]))
    before = prompt.mask
    if before is None and prompt.logits is not None:
        before = segmenter.mask(embedding, prompt.logits)
    if not corrects or before is None or not before.any():
        before = None
    decoder_prompt, remaining = prompt, before
    corrections: list[_Correction] = []
    if before is not None and remaining is not None:
        # Logits of an earlier answer describe the object. Clicks on it mostly correct the edge.
        if prompt.logits is None:
            corrections = _corrections(segmenter, embedding, prompt, before)
            remaining = _without_negatives(before, prompt, corrections)
            if remaining is not before:
                prompt = _without_model_points(prompt, before & ~remaining)
                prompt = replace(prompt, box=prompt.box and box_of(remaining))
        if prompt.logits is None or not prompt.labels.any():
            decoder_prompt = _anchored(prompt, remaining)
    if level == "auto":
        answer = _best_obeying(segmenter, embedding, decoder_prompt)
    else:
        levels = segmenter.decode(embedding, [decoder_prompt], multimask=True)[0]
        # SAM learns its masks in no fixed order, so their sizes tell them apart.
        by_size = np.argsort(-(levels.logits > 0).sum((1, 2)), kind="stable")
        answer = levels.at(int(by_size[LEVELS.index(level) - 1]))
    answer = segmenter.clean(embedding, answer)
    mask, logits = answer.mask, answer.logits
    cell = math.ceil(max(embedding.size) / logits.shape[-1])
    corrected = mask
    if before is not None and remaining is not None:
        merged = _progressive_merge(mask, before, decoder_prompt, corrections)
        if np.count_nonzero(merged ^ before) >= EDGE_CHANGE * np.count_nonzero(before):
            corrected = merged
        else:
            corrected = _without_jumps(mask, before, prompt, cell)
        corrected = _without_missed_parts(corrected, remaining, corrections)
        if corrected is not mask:
            corrected = without_specks_and_holes(corrected, prompt)
        wrong = np.isin(np.arange(len(prompt.points)), unmet_points(corrected, prompt))
        prompt = prompt.of_points(~(wrong & (np.arange(len(wrong)) < prompt.model_points)))
    final = _with_its_clicks(corrected, prompt, cell)
    if ignored := unmet_points(final, prompt):
        log.warning("Clicks on one pixel contradict; the last counts. Ignored: %s.", ignored)
    if final is not mask:
        shown = segmenter.hint(embedding, final.astype(np.float32))
        logits = np.where((shown > 0) == (logits > 0), logits, shown)
    return Answer(final, answer.predicted_iou, logits, prompt)


@dataclass(frozen=True, eq=False)
class _Correction:
    """A click on the wrong side of the start mask, and the segmenter's answer to that click alone."""

    pixel: tuple[int, int]  # row, column
    adds: bool  # a positive click outside the mask; else a negative one inside
    levels: Masks
    piece: Mask  # (H, W) connected part at the click of the best level, outside or inside the start mask
    inside: bool  # whether `piece` is most of that level


def _corrections(
    segmenter: Segmenter, embedding: Embedding, prompt: Prompt, before: Mask
) -> list[_Correction]:
    """Decode the newest clicks on the wrong side of the start mask, each alone, in one call."""
    pixels, labels = prompt.pixels(before.shape), prompt.labels.astype(bool)
    wrong = [i for i in range(prompt.model_points, len(pixels)) if before[pixels[i]] != labels[i]]
    correcting = wrong[-MAX_CORRECTIONS:]
    alone = [Prompt(prompt.points[i : i + 1], np.ones(1, np.int64)) for i in correcting]
    found = []
    for i, levels in zip(correcting, segmenter.decode(embedding, alone, multimask=True), strict=True):
        best = levels.best().mask
        piece = _piece(best & (before != labels[i]), pixels[i])
        inside = np.count_nonzero(piece) >= MOSTLY_INSIDE * np.count_nonzero(best)
        found.append(_Correction(pixels[i], bool(labels[i]), levels, piece, inside))
    return found


def _piece(area: Mask, pixel: tuple[int, int]) -> Mask:
    """Return the connected part of an area that contains a pixel; an empty mask if the pixel is outside."""
    if not area[pixel]:
        return np.zeros_like(area)
    _, pieces = cv2.connectedComponents(area.view(np.uint8), connectivity=8)
    return np.asarray(pieces == pieces[pixel])


def _without_negatives(before: Mask, prompt: Prompt, corrections: Sequence[_Correction]) -> Mask:
    """Remove the pieces under negative clicks from the mask. Keep a piece that is the object itself.

    That is a piece with a person's positive click in it, or one that leaves less than MIN_LEFT of the mask.
    """
    clicks = list(zip(prompt.pixels(before.shape), prompt.labels, strict=True))[prompt.model_points :]
    remaining = before
    for piece in (correction.piece for correction in corrections if not correction.adds):
        if piece.any() and not any(label and piece[pixel] for pixel, label in clicks):
            left = remaining & ~piece
            if np.count_nonzero(left) >= MIN_LEFT * np.count_nonzero(before):
                remaining = left
    return remaining


def _without_model_points(prompt: Prompt, area: Mask) -> Prompt:
    """Drop the model's own positive points in an area from the prompt."""
    goes = np.array([area[pixel] for pixel in prompt.pixels(area.shape)], bool) & (prompt.labels == 1)
    goes[prompt.model_points :] = False
    return prompt.of_points(~goes)


def _anchored(prompt: Prompt, remaining: Mask) -> Prompt:
    """Add a positive point on the remaining mask if it has none and all of a person's clicks are of one kind.

    SAM was trained to correct prompts that contain a positive point or a box. With negative points alone it
    finds no object. With a positive point beside the mask it finds another object.
    """
    pixels = prompt.pixels(remaining.shape)
    told = any(remaining[pixel] for pixel, label in zip(pixels, prompt.labels, strict=True) if label)
    if told or len(np.unique(prompt.labels[prompt.model_points :])) > 1:
        return prompt
    (row, column), _ = innermost_pixel(remaining)
    points = np.concatenate([np.array([[column + 0.5, row + 0.5]], np.float32), prompt.points])
    labels = np.concatenate([[1], prompt.labels])
    return replace(prompt, points=points, labels=labels, model_points=prompt.model_points + 1)


def _progressive_merge(mask: Mask, before: Mask, prompt: Prompt, corrections: Sequence[_Correction]) -> Mask:
    """Change the start mask to the answer `mask` only in connected pieces that contain a correction.

    This is FocalClick's progressive merge (arXiv 2204.02574). An added piece must also lie in the mask of its
    click alone, at the level closest to the answer, because a neighbouring object is seldom in both. Skip a
    piece with a person's click of the other kind, or whose removal would leave less than MIN_LEFT.
    """
    clicked = list(zip(prompt.pixels(before.shape), prompt.labels, strict=True))[prompt.model_points :]
    result = before
    for correction in sorted(corrections, key=lambda correction: not correction.adds):
        if correction.adds:
            both = before | mask
            changed = mask & ~before & max(correction.levels.masks, key=lambda level: iou(level, both))
        else:
            changed = before & ~mask
        piece = _piece(changed, correction.pixel)
        contradicted = any(piece[pixel] and label != correction.adds for pixel, label in clicked)
        left = np.count_nonzero(result & ~piece)
        if correction.adds and not contradicted:
            result = result | piece
        elif not correction.adds and not contradicted and left >= MIN_LEFT * np.count_nonzero(before):
            result = result & ~piece
    return result


def _without_missed_parts(mask: Mask, remaining: Mask, corrections: Sequence[_Correction]) -> Mask:
    """Remove the piece under a negative click if the segmenter removed less than SPECK_OF of it.

    Keep a piece of more than half of the mask: near the edge, a click's own mask may be the object.
    """
    for correction in corrections:
        if correction.adds or not correction.inside or (correction.piece & remaining).any():
            continue
        if 2 * np.count_nonzero(correction.piece & mask) > np.count_nonzero(mask):
            continue
        if np.count_nonzero(correction.piece & ~mask) < SPECK_OF * np.count_nonzero(correction.piece):
            mask = mask & ~correction.piece
    return mask


def _best_obeying(segmenter: Segmenter, embedding: Embedding, prompt: Prompt) -> Answer:
    """Return the first answer if it satisfies every click, else the candidate that satisfies most clicks.

    Candidates are the other levels and the answers without the start mask, which can outweigh a click.
    Return the first of equal candidates.
    """
    start = prompt.mask is not None or prompt.logits is not None
    # One point may mean a part or the whole, so decode three levels; more points mean one.
    ambiguous = len(prompt.points) == 1 and prompt.box is None and not start
    best = segmenter.decode(embedding, [prompt], multimask=ambiguous)[0].best()
    far = round(math.sqrt(max(1, np.count_nonzero(best.mask))) * _FAR)
    rank = (_count_obeyed(best.mask, prompt, far), 1, best.predicted_iou)
    if rank[0] == len(prompt.points):
        return best
    free = replace(prompt, mask=None, logits=None)
    others = [(prompt, not ambiguous), *([(free, False), (free, True)] if start else [])]
    for turn, (each, multimask) in enumerate(others):
        masks = segmenter.decode(embedding, [each], multimask=multimask)[0]
        for other in map(masks.at, range(len(masks.masks))):
            its_rank = (_count_obeyed(other.mask, prompt, far), -turn, other.predicted_iou)
            if its_rank > rank:
                rank, best = its_rank, other
    return replace(best, prompt=prompt)


def _count_obeyed(mask: Mask, prompt: Prompt, far: int) -> int:
    """Count the clicks that have a mask pixel of their own label at most `far` rows and columns away."""
    count = 0
    for (row, column), label in zip(prompt.pixels(mask.shape), prompt.labels, strict=True):
        near = mask[max(0, row - far) : row + far + 1, max(0, column - far) : column + far + 1]
        count += bool((near == bool(label)).any())
    return count


def _with_its_clicks(mask: Mask, prompt: Prompt, cell: int) -> Mask:
    """Correct the mask within `cell` pixels of each violated click. Return `mask` itself if there is none."""
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
    """Undo large connected changes to the start mask that no click supports.

    Keep a change that contains a click of its own kind (positive for added, negative for removed) and none
    of the other kind. FocalClick's progressive merge (arXiv 2204.02574) also undoes small changes.
    Return `mask` itself if nothing is undone.
    """
    pixels, labels = prompt.pixels(mask.shape), prompt.labels.astype(bool)
    asking = np.array([before[pixel] for pixel in pixels]) != labels
    # A click's disc joins it to a piece that misses it by a little.
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
