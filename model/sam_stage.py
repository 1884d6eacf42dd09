"""Run SAM's half of VL-SAM: turn attention maps, boxes or noun phrases into masks of instances."""

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from model.attention import point_prompts
from model.options import Options
from model.segmentation.embedding import Embedding
from model.segmentation.segmenter import Answer, Concept, Segmenter
from model.types import Box, Mask, Prompt, box_of
from model.vlm.named_boxes import NamedBox
from model.vlm_stage import TermMap


@dataclass(frozen=True, eq=False)
class Instance:
    """A mask, and the prompt that produced it."""

    mask: Mask
    prompt: Prompt  # of a noun phrase's instance: the mask's box
    # 0..1: "predicted_iou", "attention", "presence"; of a noun phrase "concept", with an example "exemplar"
    scores: dict[str, float]


_Search = Generator[Prompt, Answer | None, list[Instance]]


@dataclass(frozen=True, eq=False)
class InstanceSearch:
    """Finds instances in one encoded image."""

    segmenter: Segmenter
    embedding: Embedding
    options: Options

    def from_maps(self, term_maps: Sequence[TermMap]) -> list[tuple[TermMap, Instance]]:
        """Return the instances in each term's map. All searches advance together, to share decoder calls."""
        decode = self._cascade if self.options.recipe.refine else self._single_pass
        searches = [self._search(term_map) for term_map in term_maps]
        instances: dict[int, list[Instance]] = {}
        answers: dict[int, Answer | None] = dict.fromkeys(range(len(searches)))
        while True:
            prompts: dict[int, Prompt] = {}
            for index, answer in answers.items():
                try:
                    prompts[index] = searches[index].send(answer)
                except StopIteration as end:
                    instances[index] = end.value
            if not prompts:
                return [(m, instance) for index, m in enumerate(term_maps) for instance in instances[index]]
            answers = dict(zip(prompts, decode(list(prompts.values())), strict=True))

    def from_boxes(self, named_boxes: Sequence[NamedBox]) -> list[Instance]:
        """Return one instance per box, all decoded together."""
        answers = self._best([Prompt.of(box=box) for _, box in named_boxes], multimask=False)
        return [Instance(a.mask, a.prompt, {"predicted_iou": a.predicted_iou}) for a in answers]

    def from_phrases(self, term_maps: Sequence[TermMap]) -> list[tuple[TermMap, Instance]]:
        """Return all instances of the terms, by a segmenter that takes noun phrases.

        If `Options.exemplars` is "missing", try each term without instances again, with the
        largest area of its map as an example.
        """
        by_phrase: dict[str, TermMap] = {}
        for term_map in term_maps:  # several questions may name the same
            by_phrase.setdefault(term_map.phrase or term_map.term, term_map)
        answers = self.segmenter.concepts(self.embedding, list(by_phrase))
        instances = _of_concepts(by_phrase.values(), answers, "concept")
        if self.options.exemplars == "missing":
            examples = [
                (phrase, term_map, self._pixels(chosen.box))
                for (phrase, term_map), answer in zip(by_phrase.items(), answers, strict=True)
                if not len(answer.masks)
                for chosen in point_prompts.choose(
                    term_map.attention, "peak", threshold=self.options.threshold
                )
            ]
            if examples:
                phrases, missing, boxes = zip(*examples, strict=True)
                answers = self.segmenter.concepts(self.embedding, phrases, boxes)
                instances += _of_concepts(missing, answers, "exemplar")
        return instances

    def _search(self, term_map: TermMap) -> _Search:
        """Search a term's map for instances, as a generator.

        Choose points on the map, yield them as a prompt, and receive the answer. Remove the answer's mask
        from the map, and repeat. Return the instances.
        """
        options, recipe, attention = self.options, self.options.recipe, term_map.attention
        method = dict(options.term_points).get(term_map.term, options.points or recipe.points)
        instances: list[Instance] = []
        for _ in range(options.rounds if recipe.refine else 1):
            before = len(instances)
            for chosen in point_prompts.choose(
                attention, method, threshold=options.threshold, components=recipe.components
            ):
                if instances and chosen.peak < options.residual:
                    continue
                answer = yield self._prompt(chosen, attention)
                if answer is None or not answer.mask.any():
                    continue
                mask = self.segmenter.clean(self.embedding, answer).mask
                scores = {"predicted_iou": answer.predicted_iou}
                if recipe.consistency:
                    scores["attention"] = point_prompts.consistency(term_map.attention, mask)
                if term_map.presence is not None:
                    scores["presence"] = term_map.presence
                instances.append(Instance(mask, answer.prompt, scores))
                attention = point_prompts.mask_out(attention, mask)
            if len(instances) == before:
                break
        return instances

    def _prompt(self, chosen: point_prompts.PointPrompt, attention: NDArray[np.float32]) -> Prompt:
        """Convert a point prompt to pixels. By the recipe, add the area's box and the map as logits."""
        height, width = self.embedding.size
        box = self._pixels(chosen.box) if self.options.recipe.box else None
        prompt = Prompt.of(*((x * width, y * height, label) for x, y, label in chosen.points), box=box)
        if not self.options.recipe.logits:
            return prompt
        # The threshold, where an area ends, becomes the logit 0.
        share = (attention / (2 * self.options.threshold)).clip(0, 1)
        return replace(prompt, logits=self.segmenter.hint(self.embedding, share))

    def _pixels(self, shares: Box) -> Box:
        (height, width), (x0, y0, x1, y1) = self.embedding.size, shares
        return (x0 * width, y0 * height, x1 * width, y1 * height)

    def _single_pass(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """Decode each prompt once. A single point is ambiguous, so return the best of its three masks."""
        answers: dict[int, Answer] = {}
        for multimask in (False, True):
            indices = [i for i, prompt in enumerate(prompts) if (len(prompt.points) == 1) == multimask]
            best = self._best([prompts[i] for i in indices], multimask=multimask)
            answers.update(zip(indices, best, strict=True))
        return [answers[i] for i in range(len(prompts))]

    def _cascade(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """Decode each prompt three times: alone, with the first answer's logits, and with the second's box.

        VL-SAM section 3.4 after PerSAM (arXiv 2305.03048): one mask first, then the best of three by
        predicted IoU. Where the second answer is empty, return the first.
        """
        answers = self._best(prompts, multimask=False)
        started = [replace(p, logits=first.logits) for p, first in zip(prompts, answers, strict=True)]
        seconds = self._best(started, multimask=True)
        boxed = {
            i: replace(prompts[i], box=box_of(second.mask), logits=second.logits)
            for i, second in enumerate(seconds)
            if second.mask.any()
        }
        for i, third in zip(boxed, self._best(list(boxed.values()), multimask=True), strict=True):
            answers[i] = third
        return answers

    def _best(self, prompts: Sequence[Prompt], *, multimask: bool) -> list[Answer]:
        """Return each prompt's mask with the highest predicted IoU, and its prompt without logits."""
        masks = self.segmenter.decode(self.embedding, prompts, multimask=multimask)
        return [replace(m.best(), prompt=replace(m.prompt, logits=None)) for m in masks]


def _of_concepts(
    term_maps: Iterable[TermMap], answers: Sequence[Concept], score_name: str
) -> list[tuple[TermMap, Instance]]:
    return [
        (term_map, Instance(mask, Prompt.of(box=box_of(mask)), {score_name: float(score), **presence}))
        for term_map, answer in zip(term_maps, answers, strict=True)
        for presence in [{} if term_map.presence is None else {"presence": term_map.presence}]
        for mask, score in zip(answer.masks, answer.scores, strict=True)
    ]
