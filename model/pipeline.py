"""VL-SAM, top down: ask for the objects, look where the model looked, prompt SAM, refine, merge."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from model import maps, merge, points
from model.boxes import NamedBox
from model.maps import Maps
from model.profiles import Profile
from model.recipes import RECIPES, Recipe
from model.segmenter import Embedding, Masks, Segmenter
from model.terms import Term, parse
from model.types import (
    AttentionError,
    Box,
    Detection,
    Evidence,
    GroundingError,
    Image,
    Mask,
    ModelLoadError,
    Prompt,
    box_of,
)
from model.views import corner_views, crop, to_image
from model.vision import Classifier
from model.vlm import VLM, Answer

log = logging.getLogger(__name__)

Views = Literal["whole", "corners"]
Localizer = Literal["attention", "boxes", "both"]

ASK = ("ask",)  # instead of questions: let the VLM propose them
# VL-SAM section 3.6, word for word.
ASK_FOR_QUESTIONS = (
    "If we want you to list all possible objects in the given image, what questions should we ask? "
    "Please give 10 questions you prefer."
)


@dataclass(frozen=True)
class Options:
    """The paper's settings; where it gives none (research in docs/decisions), the values we measured."""

    questions: tuple[str, ...] = ("List all objects in the image.",)  # each is asked of each view; or ASK
    views: Views = "whole"  # "corners": four corner views as well
    recipe: Recipe = RECIPES["best"]
    points: str | None = None  # a method of model/points.py instead of the recipe's
    term_points: tuple[tuple[str, str], ...] = ()  # (term, method) where a term needs another one
    localizer: Localizer = "attention"  # boxes: the VLM's own, as text
    classifier: str | None = None  # for the recipe vit-rollout: a hub id or a local folder
    presence: float = 0.0  # terms go whose "yes, it is there" is less likely; 0 does not ask
    threshold: float = 0.4  # of the map's maximum: weaker activations are dropped
    rounds: int = 4  # most instances looked for per term
    residual: float = 0.5  # a further instance needs a peak of this share of the first
    min_score: float = 0.2
    same_term_iou: float = 0.5
    other_term_iou: float = 0.8


@dataclass(frozen=True, eq=False)
class Look:
    """A term of an answer, and where the model looked."""

    question: str
    term: str
    attention: NDArray[np.float32]  # (rows, columns) from 0 to 1
    presence: float | None = None
    layers: NDArray[np.float32] | None = None  # (layers, rows, columns), where they were asked for


_TAIL = 65_536  # bytes: more than any config, and milliseconds to read


def version_of(profile: Profile, options: Options | None = None) -> str:
    """A name for what decides the results, from settings and file identities; loads no weights.

    Trained anew, weights keep their name and size, so the end of each file counts as well.
    """
    digest = hashlib.sha256(repr(sorted(asdict(options or Options()).items())).encode())
    digest.update(f"{profile.dtype} {profile.quantization}".encode())
    for name in (profile.vlm, profile.sam):
        path = Path(name).expanduser()
        digest.update(path.name.encode() if path.exists() else name.encode())
        files = (
            sorted(f for f in path.glob("*") if f.is_file())
            if path.is_dir()
            else [path]
            if path.is_file()
            else []
        )
        for file in files:
            size = file.stat().st_size
            digest.update(f"{file.name}:{size}".encode())
            with file.open("rb") as opened:
                opened.seek(max(0, size - _TAIL))
                digest.update(opened.read(_TAIL))
    return f"vlsam-{profile.name}-{digest.hexdigest()[:10]}"


class VLSAM:
    """Both models together. Its methods keep no state between calls."""

    def __init__(
        self,
        vlm: VLM,
        segmenter: Segmenter,
        *,
        version: str,
        options: Options | None = None,
        classifier: Classifier | None = None,
    ) -> None:
        self._vlm, self._segmenter, self._classifier = vlm, segmenter, classifier
        self._options = options or Options()
        self.version = version

    @classmethod
    def load(cls, profile: Profile, device: str = "auto", options: Options | None = None) -> "VLSAM":
        """Load a profile's weights. Raises ModelLoadError."""
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(
            VLM.load(
                profile.vlm,
                device=device,
                dtype=profile.dtype,
                quantization=profile.quantization,
                folder=profile.folder,
            ),
            Segmenter.load(profile.sam, device=device, folder=profile.folder),
            version=version_of(profile, options),
            options=options,
            classifier=Classifier.load(options.classifier, device=device)
            if options and options.classifier
            else None,
        )

    def annotate(self, image: Image) -> list[Detection]:
        """Every object that the VLM names, with its mask; best first. Image: uint8 (H, W, 3)."""
        options = self._options
        size = (image.shape[0], image.shape[1])
        found: list[Detection] = []
        for view in corner_views(size[1], size[0])[: None if options.views == "corners" else 1]:
            found += [to_image(d, view, size) for d in self._look(crop(image, view))]
        kept = [d for d in found if d.score >= options.min_score and d.mask.any()]
        return merge.suppress(kept, same_term=options.same_term_iou, other_term=options.other_term_iou)

    def _look(self, image: Image) -> list[Detection]:
        """One view: ask, look where the model looked, and prompt SAM. Detections in pixels of the view."""
        options = self._options
        seen = self.maps(image) if options.localizer != "boxes" else []
        boxed = self._boxes(image, seen) if options.localizer != "attention" else []
        if not seen and not boxed:
            return []
        embedding = self._segmenter.encode(image)
        found: list[Detection] = []
        for look in seen:
            found += self._instances(embedding, look)
        if boxed:
            found += self._in_boxes(embedding, boxed, self._vlm.box_question())
        return found

    def in_boxes(self, image: Image, boxes: Sequence[tuple[str, Box]]) -> list[Detection]:
        """One mask for each named box in pixels, in one pass."""
        named = [NamedBox(name, box, 0, 0) for name, box in boxes]
        return self._in_boxes(self._segmenter.encode(image), named, "")

    def with_options(self, options: Options) -> "VLSAM":
        """The same models with other settings, to compare; the version stays as it is."""
        return VLSAM(
            self._vlm, self._segmenter, version=self.version, options=options, classifier=self._classifier
        )

    def maps(self, image: Image, *, layers: bool = False) -> list[Look]:
        """The terms of every question's answer, each with its attention map."""
        return [look for question in self._questions(image) for look in self._listen(image, question, layers)]

    def _questions(self, image: Image) -> tuple[str, ...]:
        options = self._options
        if options.questions != ASK:
            return options.questions
        lines = self._vlm.answer(image, ASK_FOR_QUESTIONS).text.splitlines()
        asked = tuple(line.lstrip("0123456789.)-* ") for line in lines if line.rstrip().endswith("?"))[:10]
        if not asked:
            raise AttentionError("the VLM was asked for questions and proposed none: give questions yourself")
        return asked

    def _listen(self, image: Image, question: str, layers: bool) -> list[Look]:
        """One answer, its terms, and from the same pass the attention map of each."""
        recipe = self._options.recipe
        answer = self._vlm.answer(
            image,
            question,
            hidden=recipe.cosine or recipe.source == "cosine",
            vision=recipe.source == "vision",
        )
        terms = parse(answer.text)
        present = self._present(image, terms)
        terms = [term for term in terms if present.get(term.text, 1.0) >= self._options.presence]
        if not terms:
            return []
        if recipe.source == "vit-rollout":
            maps, terms = self._classified(image, terms)
        else:
            maps = self._attend(image, answer, terms)
        spans = [(term.start, term.end) for term in terms]
        deep = self._vlm.layer_maps(answer, spans).swapaxes(0, 1) if layers and terms else [None] * len(terms)
        return [
            Look(question, term.text, attention, present.get(term.text), each)
            for term, attention, each in zip(terms, maps, deep, strict=True)
        ]

    def _attend(self, image: Image, answer: Answer, terms: Sequence[Term]) -> Maps:
        """The recipe, switch by switch: (terms, rows, columns) from 0 to 1."""
        recipe, spans = self._options.recipe, [(term.start, term.end) for term in terms]
        found = self._vlm.attention_maps(answer, spans, recipe)
        if recipe.sinks:
            found = maps.level_sinks(found)
        found = maps.smoothed(found, recipe.smooth)
        if recipe.contrast == "background":
            names = [term.text for term in terms]
            found = maps.against(found, self._vlm.background_map(image, names, recipe))
        elif recipe.contrast == "terms":
            found = maps.against_each_other(found)
        if recipe.cosine:
            likeness = self._vlm.attention_maps(answer, spans, replace(recipe, source="cosine"))
            found = maps.product(found, likeness)
        return maps.normalised(found)

    def _classified(self, image: Image, terms: Sequence[Term]) -> tuple[Maps, list[Term]]:
        """Maps by a classifier's attention, for the terms that name one of its classes."""
        if self._classifier is None:
            raise ModelLoadError("the recipe vit-rollout needs an image classifier: name one")
        known = [
            (term, number) for term in terms if (number := self._classifier.class_of(term.text)) is not None
        ]
        if len(known) < len(terms):
            log.info("%d of %d terms are no class of the classifier.", len(terms) - len(known), len(terms))
        found = [self._classifier.rollout(image, number) for _, number in known]
        shape = found[0].shape if found else (1, 1)
        return maps.normalised(np.array(found, np.float32).reshape(-1, *shape)), [term for term, _ in known]

    def _present(self, image: Image, terms: Sequence[Term]) -> dict[str, float]:
        """How sure the VLM is, asked again, that each term is there; empty where it is not asked."""
        if not self._options.presence or not terms:
            return {}
        names = [term.text for term in terms]
        return dict(zip(names, self._vlm.presence(image, names).tolist(), strict=True))

    def _boxes(self, image: Image, seen: Sequence[Look]) -> list[NamedBox]:
        """The VLM's own boxes: of all objects, or as a second opinion of what it listed."""
        answered, found = self._vlm.boxes(image, [look.term for look in seen])
        if not found and answered.strip() and self._options.localizer == "boxes":
            raise GroundingError(
                f"the VLM answered without boxes ({answered.strip()[:60]!r}): use the attention localizer"
            )
        return found

    def listing(self, image: Image) -> str:
        """The VLM's own words for what it sees, an answer per line."""
        return "\n".join(self._vlm.answer(image, question).text for question in self._questions(image))

    def refine(self, image: Image, prompt: Prompt) -> Detection:
        """One mask for a person's prompt, every positive point inside it. Raises PromptError."""
        embedding = self._segmenter.encode(image)
        mask, quality = self._obey(embedding, prompt)
        return self._detection("", "", mask, prompt, {"predicted_iou": quality})

    def _instances(self, embedding: Embedding, look: Look) -> list[Detection]:
        """Round by round: points from the map, their mask, and the map without what the mask explains."""
        options, recipe, left = self._options, self._options.recipe, look.attention
        method = dict(options.term_points).get(look.term, options.points or recipe.points)
        found: list[Detection] = []
        for _ in range(options.rounds if recipe.refine else 1):
            aims = points.aims(left, method, threshold=options.threshold, components=recipe.components)
            before = len(found)
            for aim in aims:
                if found and aim.peak < options.residual:
                    continue
                mask, prompt, quality = self._ask(embedding, self._prompt(embedding, aim, left))
                if not mask.any():
                    continue
                scores = {"predicted_iou": quality}
                if recipe.consistency:
                    scores["attention"] = points.consistency(look.attention, mask)
                if look.presence is not None:
                    scores["presence"] = look.presence
                found.append(self._detection(look.term, look.question, mask, prompt, scores))
                left = points.mask_out(left, mask)
            if len(found) == before:
                break
        return found

    def _prompt(self, embedding: Embedding, aim: points.Aim, attention: NDArray[np.float32]) -> Prompt:
        recipe, (height, width) = self._options.recipe, embedding.size
        clicks = [(x * width, y * height, label) for x, y, label in aim.points]
        x0, y0, x1, y1 = aim.box
        box = (x0 * width, y0 * height, x1 * width, y1 * height) if recipe.box else None
        prompt = Prompt.of(*clicks, box=box)
        if not recipe.logits:
            return prompt
        # The threshold, where an area ends, becomes the logit 0.
        share = (attention / (2 * self._options.threshold)).clip(0, 1)
        return replace(prompt, logits=self._segmenter.hint(embedding, share))

    def _ask(self, embedding: Embedding, prompt: Prompt) -> tuple[Mask, Prompt, float]:
        if self._options.recipe.refine:
            return self._cascade(embedding, prompt)
        if len(prompt.points) == 1:  # a part or the whole: the best of three levels
            mask, quality, _ = self._best(embedding, prompt)
            return mask, replace(prompt, logits=None), quality
        answer = self._segmenter.decode(embedding, [prompt], multimask=False)[0]
        return answer.masks[0], replace(prompt, logits=None), float(answer.predicted_iou[0])

    def _in_boxes(self, embedding: Embedding, boxed: Sequence[NamedBox], question: str) -> list[Detection]:
        prompts = [Prompt.of(box=named.box) for named in boxed]
        answers = self._segmenter.decode(embedding, prompts, multimask=False)
        found = []
        for named, prompt, answer in zip(boxed, prompts, answers, strict=True):
            scores = {"predicted_iou": float(answer.predicted_iou[0])}
            found.append(self._detection(named.name, question, answer.masks[0], prompt, scores))
        return found

    def _cascade(self, embedding: Embedding, prompt: Prompt) -> tuple[Mask, Prompt, float]:
        """Three passes: the points; with that answer's logits; with the box of the second answer.

        VL-SAM section 3.4 after PerSAM (arXiv 2305.03048): a single mask first, then the best of three
        levels by predicted IoU.
        """
        first = self._segmenter.decode(embedding, [prompt], multimask=False)[0]
        second = self._best(embedding, replace(prompt, logits=first.logits[0]))
        if not second[0].any():
            return first.masks[0], prompt, float(first.predicted_iou[0])
        boxed = replace(prompt, box=box_of(second[0]), logits=second[2])
        mask, quality, _ = self._best(embedding, boxed)
        return mask, replace(boxed, logits=None), quality

    def _best(self, embedding: Embedding, prompt: Prompt) -> tuple[Mask, float, NDArray[np.float32]]:
        answers = self._segmenter.decode(embedding, [prompt], multimask=True)[0]
        best = int(answers.predicted_iou.argmax())
        return answers.masks[best], float(answers.predicted_iou[best]), answers.logits[best]

    def _obey(self, embedding: Embedding, prompt: Prompt) -> tuple[Mask, float]:
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
            for answer in self._segmenter.decode(embedding, [each], multimask=multimask)
            for level, (mask, quality) in enumerate(zip(answer.masks, answer.predicted_iou, strict=True))
        ]
        _, _, quality, answer, level = max(candidates, key=lambda c: c[:3])
        mask: Mask = answer.masks[level]
        for point in prompt.points[prompt.labels == 1]:
            mask = mask | self._around(embedding, answer, level, point)
        return mask, quality

    def _around(self, embedding: Embedding, answer: Masks, level: int, point: NDArray[np.float32]) -> Mask:
        """What a lower threshold adds around a positive point that its answer left out."""
        mask: Mask = answer.masks[level]
        row, column = _pixel(point, embedding.size)
        if mask[row, column]:
            return mask
        return self._segmenter.component_at(embedding, answer.logits[level], row, column)

    def _detection(
        self, term: str, question: str, mask: Mask, prompt: Prompt, scores: dict[str, float]
    ) -> Detection:
        height, width = mask.shape
        view: Box = (0.0, 0.0, float(width), float(height))
        evidence = Evidence(question, view, replace(prompt, logits=None), scores, self.version)
        return Detection(term, mask, float(np.mean(list(scores.values()))), evidence)


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
