"""SAM's half of VL-SAM: from a term's map, round by round, the masks of its instances."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from model import points
from model.boxes import NamedBox
from model.looks import Look
from model.masks import tidied
from model.recipes import Options
from model.segmenter import Concept, Embedding, Segmenter
from model.types import Box, Mask, Prompt, box_of


@dataclass(frozen=True, eq=False)
class Instance:
    mask: Mask
    prompt: Prompt  # gives this mask; of a concept its box
    # Each 0..1, where there is one: "predicted_iou", "attention", "presence"; "concept" of what a noun phrase
    # found by itself, "exemplar" of what it found with an example.
    scores: dict[str, float]


def instances(segmenter: Segmenter, embedding: Embedding, look: Look, options: Options) -> list[Instance]:
    """Points from the map, their mask, then the map without what the mask explains, and again."""
    recipe, left = options.recipe, look.attention
    method = dict(options.term_points).get(look.term, options.points or recipe.points)
    found: list[Instance] = []
    for _ in range(options.rounds if recipe.refine else 1):
        before = len(found)
        for aim in points.aims(left, method, threshold=options.threshold, components=recipe.components):
            if found and aim.peak < options.residual:
                continue
            prompt = _prompt(segmenter, embedding, aim, left, options)
            mask, prompt, quality = (_cascade if recipe.refine else _once)(segmenter, embedding, prompt)
            if not mask.any():
                continue
            mask = tidied(mask, prompt)
            scores = {"predicted_iou": quality}
            if recipe.consistency:
                scores["attention"] = points.consistency(look.attention, mask)
            if look.presence is not None:
                scores["presence"] = look.presence
            found.append(Instance(mask, prompt, scores))
            left = points.mask_out(left, mask)
        if len(found) == before:
            break
    return found


def in_boxes(segmenter: Segmenter, embedding: Embedding, boxed: Sequence[NamedBox]) -> list[Instance]:
    """One mask for each box, all in one pass."""
    prompts = [Prompt.of(box=named.box) for named in boxed]
    answers = segmenter.decode(embedding, prompts, multimask=False)
    return [
        Instance(answer.masks[0], prompt, {"predicted_iou": float(answer.predicted_iou[0])})
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


def of_concepts(
    segmenter: Segmenter, embedding: Embedding, looks: Sequence[Look], options: Options
) -> list[tuple[Look, Instance]]:
    """Everything that the terms name, by a segmenter that takes noun phrases; each with its term's look."""
    terms: dict[str, Look] = {}
    for look in looks:  # several questions may list the same
        terms.setdefault(look.term, look)
    answers = segmenter.concepts(embedding, list(terms))
    found = list(zip(terms.values(), answers, strict=True))
    instances = [(look, each) for look, answer in found for each in _named(look, answer, "concept")]
    if options.exemplars == "missing":
        missing = [look for look, answer in found if not len(answer.masks)]
        # The box of the map's largest area; a map that shows nothing has none.
        aims = [points.aims(look.attention, "peak", threshold=options.threshold) for look in missing]
        shown = [
            (look, _pixels(embedding, aim.box))
            for look, one in zip(missing, aims, strict=True)
            for aim in one
        ]
        if shown:
            phrases, boxes = [look.term for look, _ in shown], [box for _, box in shown]
            answers = segmenter.concepts(embedding, phrases, boxes)
            for (look, _), answer in zip(shown, answers, strict=True):
                instances += [(look, each) for each in _named(look, answer, "exemplar")]
    return instances


def _named(look: Look, answer: Concept, way: str) -> list[Instance]:
    known = {} if look.presence is None else {"presence": look.presence}
    return [
        Instance(mask, Prompt.of(box=box_of(mask)), {way: float(score), **known})
        for mask, score in zip(answer.masks, answer.scores, strict=True)
    ]


def _prompt(
    segmenter: Segmenter,
    embedding: Embedding,
    aim: points.Aim,
    attention: NDArray[np.float32],
    options: Options,
) -> Prompt:
    """The points in pixels; by the recipe with the area's box, and with the map as mask logits."""
    height, width = embedding.size
    box = _pixels(embedding, aim.box) if options.recipe.box else None
    prompt = Prompt.of(*((x * width, y * height, label) for x, y, label in aim.points), box=box)
    if not options.recipe.logits:
        return prompt
    # The threshold, where an area ends, becomes the logit 0.
    share = (attention / (2 * options.threshold)).clip(0, 1)
    return replace(prompt, logits=segmenter.hint(embedding, share))


def _pixels(embedding: Embedding, shares: Box) -> Box:
    (height, width), (x0, y0, x1, y1) = embedding.size, shares
    return (x0 * width, y0 * height, x1 * width, y1 * height)


def _once(segmenter: Segmenter, embedding: Embedding, prompt: Prompt) -> tuple[Mask, Prompt, float]:
    if len(prompt.points) == 1:  # a part or the whole: the best of three levels
        mask, quality, _ = _best(segmenter, embedding, prompt)
        return mask, replace(prompt, logits=None), quality
    answer = segmenter.decode(embedding, [prompt], multimask=False)[0]
    return answer.masks[0], replace(prompt, logits=None), float(answer.predicted_iou[0])


def _cascade(segmenter: Segmenter, embedding: Embedding, prompt: Prompt) -> tuple[Mask, Prompt, float]:
    """Three passes: the points; with that answer's logits; with the box of the second answer.

    VL-SAM section 3.4 after PerSAM (arXiv 2305.03048): a single mask first, then the best of three
    levels by predicted IoU.
    """
    first = segmenter.decode(embedding, [prompt], multimask=False)[0]
    second = _best(segmenter, embedding, replace(prompt, logits=first.logits[0]))
    if not second[0].any():
        return first.masks[0], replace(prompt, logits=None), float(first.predicted_iou[0])
    boxed = replace(prompt, box=box_of(second[0]), logits=second[2])
    mask, quality, _ = _best(segmenter, embedding, boxed)
    return mask, replace(boxed, logits=None), quality


def _best(
    segmenter: Segmenter, embedding: Embedding, prompt: Prompt
) -> tuple[Mask, float, NDArray[np.float32]]:
    answers = segmenter.decode(embedding, [prompt], multimask=True)[0]
    best = int(answers.predicted_iou.argmax())
    return answers.masks[best], float(answers.predicted_iou[best]), answers.logits[best]
