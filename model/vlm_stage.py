"""Run the VLM's half of VL-SAM: ask a question, parse the terms of the answer, and map their attention."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from model.attention import maps
from model.attention.baseline_maps import Classifier
from model.attention.maps import Maps
from model.options import Options
from model.types import GroundingError, Image, ModelLoadError, PromptError
from model.vlm.named_boxes import NamedBox
from model.vlm.terms import Term, bare, named, parse, without_cut_name
from model.vlm.vlm import VLM, VLMAnswer

log = logging.getLogger(f"vlsam.{__name__}")

MAX_PHRASE = 200  # characters of a person's phrase
BEFORE = "There is the "  # precedes a phrase in its forced answer


@dataclass(frozen=True, eq=False)
class TermMap:
    """A term of an answer with its attention map."""

    question: str
    term: str
    attention: NDArray[np.float32]  # (rows, columns) 0..1
    presence: float | None = None  # probability that the term is present; None: not checked
    layers: NDArray[np.float32] | None = None  # (layers, rows, columns), if wanted
    phrase: str = ""  # a person's words for the term
    single: bool = False  # the phrase names one object


@dataclass(frozen=True, eq=False)
class Localizer:
    """Finds the objects that the VLM names in an image, with attention maps or boxes."""

    vlm: VLM
    options: Options
    classifier: Classifier | None = None  # for the recipe vit-rollout

    def locate(
        self, image: Image, question: str, forced_answer: str | None = None, *, layers: bool = False
    ) -> list[TermMap]:
        """Return the terms of the answer to a question, with their maps from the same forward pass.

        Drop a last term that may be cut. `forced_answer` is another VLM's answer, to which this one is
        teacher-forced. `layers` also keeps each layer's map.
        """
        answer = self._answer(image, question, forced_answer)
        terms = parse(without_cut_name(answer.text) if answer.cut else answer.text)
        presence: dict[str, float] = {}
        if self.options.presence and terms:
            names = [term.text for term in terms]
            presence = dict(zip(names, self.vlm.presence(image, names).tolist(), strict=True))
        terms = [term for term in terms if presence.get(term.text, 1.0) >= self.options.presence]
        if not terms:
            return []
        attention, terms = self._maps(image, answer, terms)
        by_layer: Sequence[NDArray[np.float32] | None] = [None] * len(terms)
        if layers and terms:
            by_layer = list(self.vlm.layer_maps(answer, _spans(terms)).swapaxes(0, 1))
        return [
            TermMap(question, term.text, term_map, presence.get(term.text), own_layers)
            for term, term_map, own_layers in zip(terms, attention, by_layer, strict=True)
        ]

    def locate_phrase(self, image: Image, phrase: str) -> list[TermMap]:
        """Return the maps of the nouns of a phrase; none if the VLM answers that they are absent.

        The phrase is in the question and again in a forced answer. So the attention of its noun covers the
        whole phrase, including an "on the left" after the noun. Raises PromptError for a phrase without words
        or of more than MAX_PHRASE characters.
        """
        phrase = bare(phrase)
        if not 0 < len(phrase) <= MAX_PHRASE:
            raise PromptError(f"a phrase has 1 to {MAX_PHRASE} characters")
        question = f"Where is the {phrase}?"
        presence = float(self.vlm.presence(image, [phrase])[0]) if self.options.presence else None
        if presence is not None and presence < self.options.presence:
            return []
        if self.options.localizer == "boxes":  # which needs no maps
            text, terms = phrase, named(phrase)
            attention: Maps = np.zeros((len(terms), 1, 1), np.float32)
        else:
            answer = self._answer(image, question, forced_answer=BEFORE + phrase)
            text, offset = answer.text, len(BEFORE)
            if not text[offset:].strip():
                raise PromptError("the phrase holds no words")
            terms = [Term(term.text, term.start + offset, term.end + offset) for term in named(text[offset:])]
            attention, terms = self._maps(image, answer, terms)
        return [
            TermMap(
                question,
                term.text,
                term_map,
                presence,
                phrase=phrase if len(terms) == 1 else term.text,
                single=text[term.start : term.end].lower() == term.text,
            )
            for term, term_map in zip(terms, attention, strict=True)
        ]

    def boxes(self, image: Image, names: Sequence[str]) -> list[NamedBox]:
        """Return the VLM's boxes for `names`, or for all objects if it is empty. Raises GroundingError."""
        text, boxes = self.vlm.boxes(image, names)
        if not boxes and text.strip() and self.options.localizer == "boxes":
            raise GroundingError(
                f"the VLM answered without boxes ({text.strip()[:60]!r}): use the attention localizer"
            )
        # A box's name is parsed as a term, so that boxes and maps of one object share a term.
        return [(term.text, box) for name, box in boxes for term in parse(name)[:1]]

    def _answer(self, image: Image, question: str, forced_answer: str | None = None) -> VLMAnswer:
        recipe = self.options.recipe
        hidden, vision = recipe.cosine or recipe.source == "cosine", recipe.source == "vision"
        return self.vlm.answer(image, question, forced_answer=forced_answer, hidden=hidden, vision=vision)

    def _maps(self, image: Image, answer: VLMAnswer, terms: list[Term]) -> tuple[Maps, list[Term]]:
        """Return the recipe's maps (terms, rows, columns), 0..1, and the terms that have one."""
        recipe, spans = self.options.recipe, _spans(terms)
        if recipe.source == "vit-rollout":
            return self._classifier_maps(image, terms)
        attention = self.vlm.attention_maps(answer, spans, recipe)
        if recipe.sinks:
            attention = maps.level_sinks(attention)
        attention = maps.smoothed(attention, recipe.smooth)
        if recipe.contrast == "background":
            names = [term.text for term in terms]
            attention = maps.against(attention, self.vlm.background_map(image, names, recipe))
        elif recipe.contrast == "terms":
            attention = maps.against_each_other(attention)
        if recipe.cosine:
            cosine = self.vlm.attention_maps(answer, spans, replace(recipe, source="cosine"))
            attention = maps.product(attention, cosine)
        return maps.normalised(attention), terms

    def _classifier_maps(self, image: Image, terms: Sequence[Term]) -> tuple[Maps, list[Term]]:
        """Return the classifier's maps (terms, rows, columns), and the terms that name one of its classes."""
        if self.classifier is None:
            raise ModelLoadError("the recipe vit-rollout needs an image classifier: name one")
        classes = [(term, i) for term in terms if (i := self.classifier.class_of(term.text)) is not None]
        if missing := len(terms) - len(classes):
            log.info("%d of %d terms are not classes of the classifier.", missing, len(terms))
        rollouts = [self.classifier.rollout(image, class_index) for _, class_index in classes]
        shape = rollouts[0].shape if rollouts else (1, 1)
        attention = maps.normalised(np.array(rollouts, np.float32).reshape(-1, *shape))
        return attention, [term for term, _ in classes]


def _spans(terms: Sequence[Term]) -> list[tuple[int, int]]:
    return [(term.start, term.end) for term in terms]
