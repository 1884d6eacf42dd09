"""The VLM's half of VL-SAM: questions, the terms of their answers, and where the model looked for each."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from model.attention import maps
from model.attention.baseline_maps import Classifier
from model.attention.maps import Maps
from model.options import ASK, Options, Recipe
from model.types import AttentionError, GroundingError, Image, ModelLoadError, PromptError
from model.vlm.named_boxes import NamedBox
from model.vlm.remote_vlm import RemoteVLM
from model.vlm.terms import Term, bare, named, parse, without_cut_name
from model.vlm.vlm import VLM, VLMAnswer

log = logging.getLogger(f"vlsam.{__name__}")

# VL-SAM section 3.6, word for word.
ASK_FOR_QUESTIONS = (
    "If we want you to list all possible objects in the given image, what questions should we ask? "
    "Please give 10 questions you prefer."
)
MAX_NAMES = 200  # of a vocabulary, each at most so long:
MAX_NAME = 60  # characters
_HINT = " Name only these, where they are there: {}."

MAX_PHRASE = 200  # characters of what a person asks for
BEFORE = "There is the "  # a phrase, as the model is made to answer


@dataclass(frozen=True, eq=False)
class TermMap:
    """A term of an answer, and where the model looked."""

    question: str
    term: str
    attention: NDArray[np.float32]  # (rows, columns) from 0 to 1
    presence: float | None = None  # how sure the VLM was when asked again, if it was
    layers: NDArray[np.float32] | None = None  # (layers, rows, columns), where they were asked for
    phrase: str = ""  # a person's words for the term
    single: bool = False  # the person means one of them


RemoteAnswer = tuple[str, str | None]  # a question, and the answer where it is another VLM's


def ask_remote(
    endpoint: RemoteVLM,
    image: Image,
    options: Options,
    vocabulary: Sequence[str] = (),
    deadline: float | None = None,
) -> list[RemoteAnswer]:
    """The questions about an image, and what an endpoint answers; it needs no VLM at hand.

    Raises RemoteVLMError, also where answers are not there at `deadline` (of time.monotonic).
    """

    def ask(question: str) -> str:
        return endpoint.answer(image, question, deadline)

    return [(question, ask(question)) for question in questions(ask, options, vocabulary)]


def questions(ask: Callable[[str], str], options: Options, vocabulary: Sequence[str] = ()) -> tuple[str, ...]:
    """What to ask about an image, with the names of a vocabulary as the options want it.

    `ask` is how a VLM answers a question about it. Raises AttentionError if it was to propose its questions
    and does not.
    """
    asked = _questions(ask, options)
    listed = _listed(vocabulary)
    if options.vocabulary == "open" or not listed:
        return asked
    hinted = tuple(question + _HINT.format(listed) for question in asked)
    return hinted if options.vocabulary == "project" else asked + hinted


def _listed(vocabulary: Sequence[str]) -> str:
    names = (" ".join(name.split())[:MAX_NAME] for name in vocabulary)
    names = ("".join(c for c in name if c.isprintable()) for name in names)
    return ", ".join([name for name in dict.fromkeys(names) if name][:MAX_NAMES])


def _questions(ask: Callable[[str], str], options: Options) -> tuple[str, ...]:
    if options.questions != ASK:
        return options.questions
    lines = ask(ASK_FOR_QUESTIONS).splitlines()
    asked = tuple(line.lstrip("0123456789.)-* ") for line in lines if line.rstrip().endswith("?"))[:10]
    if not asked:
        raise AttentionError("the VLM was asked for questions and proposed none: give questions yourself")
    return asked


def look(
    vlm: VLM,
    image: Image,
    question: str,
    options: Options,
    classifier: Classifier | None = None,
    *,
    forced_answer: str | None = None,
    layers: bool = False,
) -> list[TermMap]:
    """One answer, its terms, and from the same pass of the model the attention map of each.

    Of an answer that was cut, a last term that the cut may have shortened is left out. `said` is another
    VLM's answer, which this one is made to say.
    """
    answer = _answer(vlm, image, question, options.recipe, forced_answer)
    terms = parse(without_cut_name(answer.text) if answer.cut else answer.text)
    present = _presence(vlm, image, terms, options)
    terms = [term for term in terms if present.get(term.text, 1.0) >= options.presence]
    if not terms:
        return []
    found, terms = _maps(vlm, image, answer, terms, options.recipe, classifier)
    deep = vlm.layer_maps(answer, _spans(terms)).swapaxes(0, 1) if layers and terms else [None] * len(terms)
    return [
        TermMap(question, term.text, attention, present.get(term.text), each)
        for term, attention, each in zip(terms, found, deep, strict=True)
    ]


def seek(
    vlm: VLM, image: Image, phrase: str, options: Options, classifier: Classifier | None = None
) -> list[TermMap]:
    """Where the model looks for what a person's phrase names; none where it says that this is not there.

    The phrase is in the question and, put into the model's mouth, in the answer. The rows of its noun in the
    answer then have seen all of it, also "on the left" that follows. Raises PromptError.
    """
    phrase = bare(phrase)
    if not 0 < len(phrase) <= MAX_PHRASE:
        raise PromptError(f"a phrase has 1 to {MAX_PHRASE} characters")
    question = f"Where is the {phrase}?"
    chance = float(vlm.presence(image, [phrase])[0]) if options.presence else None
    if chance is not None and chance < options.presence:
        return []
    if options.localizer == "boxes":  # the VLM's attention may be of no use
        terms = named(phrase)
        found: Maps = np.zeros((len(terms), 1, 1), np.float32)
        said = phrase
    else:
        answer = _answer(vlm, image, question, options.recipe, forced_answer=BEFORE + phrase)
        said = answer.text
        if not said[len(BEFORE) :].strip():
            raise PromptError("the phrase holds no words")
        terms = [
            Term(term.text, term.start + len(BEFORE), term.end + len(BEFORE))
            for term in named(said[len(BEFORE) :])
        ]
        found, terms = _maps(vlm, image, answer, terms, options.recipe, classifier)
    return [
        TermMap(
            question,
            term.text,
            attention,
            chance,
            phrase=phrase if len(terms) == 1 else term.text,
            single=said[term.start : term.end].lower() == term.text,
        )
        for term, attention in zip(terms, found, strict=True)
    ]


def boxes(vlm: VLM, image: Image, names: Sequence[str], options: Options) -> list[NamedBox]:
    """The VLM's own boxes: of what it listed, as a second opinion, or of all objects.

    Raises GroundingError where only boxes are wanted and the VLM answers without any.
    """
    answered, found = vlm.boxes(image, names)
    if not found and answered.strip() and options.localizer == "boxes":
        raise GroundingError(
            f"the VLM answered without boxes ({answered.strip()[:60]!r}): use the attention localizer"
        )
    # What is written beside a box is read as terms are, so that both opinions speak of the same.
    return [replace(box, name=term.text) for box in found for term in parse(box.name)[:1]]


def _answer(
    vlm: VLM, image: Image, question: str, recipe: Recipe, forced_answer: str | None = None
) -> VLMAnswer:
    """An answer that keeps what the recipe's maps are of."""
    return vlm.answer(
        image,
        question,
        forced_answer=forced_answer,
        hidden=recipe.cosine or recipe.source == "cosine",
        vision=recipe.source == "vision",
    )


def _maps(
    vlm: VLM,
    image: Image,
    answer: VLMAnswer,
    terms: list[Term],
    recipe: Recipe,
    classifier: Classifier | None,
) -> tuple[Maps, list[Term]]:
    """The maps of terms from 0 to 1, and the terms that have one."""
    if recipe.source == "vit-rollout":
        return _classified(classifier, image, terms)
    return _attention(vlm, image, answer, terms, recipe), terms


def _attention(vlm: VLM, image: Image, answer: VLMAnswer, terms: Sequence[Term], recipe: Recipe) -> Maps:
    """The recipe, switch by switch: (terms, rows, columns) from 0 to 1."""
    spans = _spans(terms)
    found = vlm.attention_maps(answer, spans, recipe)
    if recipe.sinks:
        found = maps.level_sinks(found)
    found = maps.smoothed(found, recipe.smooth)
    if recipe.contrast == "background":
        names = [term.text for term in terms]
        found = maps.against(found, vlm.background_map(image, names, recipe))
    elif recipe.contrast == "terms":
        found = maps.against_each_other(found)
    if recipe.cosine:
        likeness = vlm.attention_maps(answer, spans, replace(recipe, source="cosine"))
        found = maps.product(found, likeness)
    return maps.normalised(found)


def _classified(
    classifier: Classifier | None, image: Image, terms: Sequence[Term]
) -> tuple[Maps, list[Term]]:
    """Maps by a classifier's attention, for the terms that name one of its classes."""
    if classifier is None:
        raise ModelLoadError("the recipe vit-rollout needs an image classifier: name one")
    known = [(term, number) for term in terms if (number := classifier.class_of(term.text)) is not None]
    if len(known) < len(terms):
        log.info("%d of %d terms are no class of the classifier.", len(terms) - len(known), len(terms))
    found = [classifier.rollout(image, number) for _, number in known]
    shape = found[0].shape if found else (1, 1)
    return maps.normalised(np.array(found, np.float32).reshape(-1, *shape)), [term for term, _ in known]


def _presence(vlm: VLM, image: Image, terms: Sequence[Term], options: Options) -> dict[str, float]:
    """How sure the VLM is, asked again, that each term is there; empty where it is not asked."""
    if not options.presence or not terms:
        return {}
    names = [term.text for term in terms]
    return dict(zip(names, vlm.presence(image, names).tolist(), strict=True))


def _spans(terms: Sequence[Term]) -> list[tuple[int, int]]:
    return [(term.start, term.end) for term in terms]
