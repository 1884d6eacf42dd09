"""SAM's half of VL-SAM: from a term's map, round by round, the masks of its instances."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from model.attention import point_prompts
from model.options import Options
from model.segmentation.embedding import Embedding
from model.segmentation.segmenter import Concept, Segmenter
from model.types import Box, Mask, Prompt, box_of
from model.vlm.named_boxes import NamedBox
from model.vlm_stage import TermMap


@dataclass(frozen=True, eq=False)
class Instance:
    mask: Mask
    prompt: Prompt  # gives this mask; of a concept its box
    # Each 0..1, where there is one: "predicted_iou", "attention", "presence"; "concept" of what a noun phrase
    # found by itself, "exemplar" of what it found with an example.
    scores: dict[str, float]


@dataclass(frozen=True, eq=False)
class _Answer:
    mask: Mask
    prompt: Prompt  # gives this mask
    predicted_iou: float
    logits: NDArray[np.float32]  # (h, w)


def instances(
    segmenter: Segmenter, embedding: Embedding, looks: Sequence[TermMap], options: Options
) -> list[tuple[TermMap, Instance]]:
    """What the terms' maps show, each with its term's look, term by term.

    All searches advance together, so that the segmenter decodes a prompt of each in one call.
    """
    answer = _cascade if options.recipe.refine else _once
    searches = [_search(segmenter, embedding, look, options) for look in looks]
    found: dict[int, list[Instance]] = {}
    answers: dict[int, _Answer | None] = dict.fromkeys(range(len(looks)))
    while True:
        asked: dict[int, Prompt] = {}
        for index, last in answers.items():
            try:
                asked[index] = searches[index].send(last)
            except StopIteration as end:
                found[index] = end.value
        if not asked:
            return [(look, each) for index, look in enumerate(looks) for each in found[index]]
        answers = dict(zip(asked, answer(segmenter, embedding, list(asked.values())), strict=True))


def _search(
    segmenter: Segmenter, embedding: Embedding, look: TermMap, options: Options
) -> Generator[Prompt, "_Answer | None", list[Instance]]:
    """Points from the map, their mask, then the map without what the mask explains, and again.

    Yields prompts, takes their answers, and returns what was found.
    """
    recipe, left = options.recipe, look.attention
    method = dict(options.term_points).get(look.term, options.points or recipe.points)
    found: list[Instance] = []
    for _ in range(options.rounds if recipe.refine else 1):
        before = len(found)
        for aim in point_prompts.aims(
            left, method, threshold=options.threshold, components=recipe.components
        ):
            if found and aim.peak < options.residual:
                continue
            answer = yield _prompt(segmenter, embedding, aim, left, options)
            if answer is None or not answer.mask.any():
                continue
            mask, _ = segmenter.clean(embedding, answer.mask, answer.logits, answer.prompt)
            scores = {"predicted_iou": answer.predicted_iou}
            if recipe.consistency:
                scores["attention"] = point_prompts.consistency(look.attention, mask)
            if look.presence is not None:
                scores["presence"] = look.presence
            found.append(Instance(mask, answer.prompt, scores))
            left = point_prompts.mask_out(left, mask)
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
    segmenter: Segmenter, embedding: Embedding, looks: Sequence[TermMap], options: Options
) -> list[tuple[TermMap, Instance]]:
    """Everything that the terms name, by a segmenter that takes noun phrases; each with its term's look."""
    terms: dict[str, TermMap] = {}
    for look in looks:  # several questions may list the same
        terms.setdefault(look.phrase or look.term, look)
    answers = segmenter.concepts(embedding, list(terms))
    found = list(zip(terms.values(), answers, strict=True))
    instances = [(look, each) for look, answer in found for each in _named(look, answer, "concept")]
    if options.exemplars == "missing":
        missing = [look for look, answer in found if not len(answer.masks)]
        # The box of the map's largest area; a map that shows nothing has none.
        aims = [point_prompts.aims(look.attention, "peak", threshold=options.threshold) for look in missing]
        shown = [
            (look, _pixels(embedding, aim.box))
            for look, one in zip(missing, aims, strict=True)
            for aim in one
        ]
        if shown:
            phrases, boxes = [look.phrase or look.term for look, _ in shown], [box for _, box in shown]
            answers = segmenter.concepts(embedding, phrases, boxes)
            for (look, _), answer in zip(shown, answers, strict=True):
                instances += [(look, each) for each in _named(look, answer, "exemplar")]
    return instances


def _named(look: TermMap, answer: Concept, way: str) -> list[Instance]:
    known = {} if look.presence is None else {"presence": look.presence}
    return [
        Instance(mask, Prompt.of(box=box_of(mask)), {way: float(score), **known})
        for mask, score in zip(answer.masks, answer.scores, strict=True)
    ]


def _prompt(
    segmenter: Segmenter,
    embedding: Embedding,
    aim: point_prompts.Aim,
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


def _once(segmenter: Segmenter, embedding: Embedding, prompts: Sequence[Prompt]) -> list[_Answer]:
    """One pass: of a single point, which may mean a part or the whole, the best of three levels."""
    answers: dict[int, _Answer] = {}
    for multimask in (False, True):
        some = [i for i, prompt in enumerate(prompts) if (len(prompt.points) == 1) == multimask]
        best = _best(segmenter, embedding, [prompts[i] for i in some], multimask=multimask)
        answers.update(zip(some, best, strict=True))
    return [answers[i] for i in range(len(prompts))]


def _cascade(segmenter: Segmenter, embedding: Embedding, prompts: Sequence[Prompt]) -> list[_Answer]:
    """Three passes: the points; with that answer's logits; with the box of the second answer.

    VL-SAM section 3.4 after PerSAM (arXiv 2305.03048): a single mask first, then the best of three
    levels by predicted IoU. Where the second answer is empty the first stands.
    """
    answers = _best(segmenter, embedding, prompts, multimask=False)
    started = [replace(p, logits=first.logits) for p, first in zip(prompts, answers, strict=True)]
    seconds = _best(segmenter, embedding, started, multimask=True)
    boxed = {
        i: replace(prompts[i], box=box_of(second.mask), logits=second.logits)
        for i, second in enumerate(seconds)
        if second.mask.any()
    }
    thirds = _best(segmenter, embedding, list(boxed.values()), multimask=True)
    for i, third in zip(boxed, thirds, strict=True):
        answers[i] = third
    return answers


def _best(
    segmenter: Segmenter, embedding: Embedding, prompts: Sequence[Prompt], *, multimask: bool
) -> list[_Answer]:
    """Of each prompt's masks the one with the highest predicted IoU; one call of the decoder."""
    found = []
    decoded = segmenter.decode(embedding, prompts, multimask=multimask)
    for prompt, answer in zip(prompts, decoded, strict=True):
        best = int(answer.predicted_iou.argmax())
        quality = float(answer.predicted_iou[best])
        found.append(_Answer(answer.masks[best], replace(prompt, logits=None), quality, answer.logits[best]))
    return found
