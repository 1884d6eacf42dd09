"""VL-SAM, top down: ask for the objects, look where the model looked, prompt SAM, refine, merge."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from model.attention.baseline_maps import Classifier
from model.deadline import NEVER, Deadline
from model.decode import ImageLike, read_image
from model.options import Options
from model.profiles import Profile, choose
from model.sam_stage import Instance, InstanceSearch
from model.segmentation.click_refinement import refine_by_clicks
from model.segmentation.embedding import Embedding
from model.segmentation.mask_cleanup import unmet_points
from model.segmentation.non_maximum_suppression import suppress
from model.segmentation.segmenter import Segmenter
from model.types import Box, Detection, Evidence, Image, Level, Prompt
from model.versions import version_of
from model.views import corner_views, crop, to_image
from model.vlm.named_boxes import NamedBox
from model.vlm.quantization import Precision
from model.vlm.questions import RemoteAnswer, ask_remote, questions
from model.vlm.vlm import VLM
from model.vlm_stage import Localizer, TermMap
from model.weights import devices


def prefetch_answers(
    image: Image, options: Options, vocabulary: Sequence[str] = (), deadline: Deadline = NEVER
) -> list[list[RemoteAnswer]] | None:
    """Prefetch the remote VLM's answers for each view of an image, so that the GPU does not wait for it.

    Pass the result to `VLSAM.annotate(remote_answers=...)`. None if the options name no remote VLM. Raises
    RemoteVLMError, also when `deadline` passes.
    """
    endpoint = options.remote_vlm
    if endpoint is None:
        return None
    views = [crop(image, view) for view in _views(image, options)]
    return [ask_remote(endpoint, part, options, vocabulary, deadline) for part in views]


def _views(image: Image, options: Options) -> tuple[Box, ...]:
    views = corner_views(image.shape[1], image.shape[0])  # the whole image first
    return views if options.views == "corners" else views[:1]


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
        reduced: bool = False,
    ) -> None:
        self.vlm, self.segmenter = vlm, segmenter
        self._options = options or Options()
        self._localizer = Localizer(vlm, self._options, classifier)
        self.version = version
        self._reduced = reduced  # see Evidence

    @classmethod
    def load(
        cls,
        profile: str | Profile = "builtin",
        device: str = "auto",
        options: Options | None = None,
        version: str | None = None,
        on_cut: Callable[[], None] = lambda: None,
    ) -> "VLSAM":
        """Load a profile's weights. Raises ModelLoadError.

        `version` is for what else decides the results. `on_cut` is called whenever an answer of the VLM was
        cut, having come to its most tokens before its end.
        """
        profile = choose(profile) if isinstance(profile, str) else profile
        device = devices.choose(device)
        by_concept = options is not None and options.localizer == "concept"
        # First, since it may refuse, and is small beside the VLM.
        segmenter = Segmenter.load(profile.sam, device=device, folder=profile.folder, concepts=by_concept)
        classifier = None
        if options and options.classifier:
            classifier = Classifier.load(options.classifier, device=device, folder=profile.folder)
        return cls(
            VLM.load(
                profile.vlm,
                device=device,
                precision=Precision(profile.dtype, profile.quantization),
                folder=profile.folder,
                pixels=profile.pixels,
                on_cut=on_cut,
            ),
            segmenter,
            version=version or version_of(profile, options),
            options=options,
            classifier=classifier,
        )

    @property
    def device(self) -> torch.device:
        """Where embeddings are made and decoded."""
        return self.segmenter.device

    def encode(self, image: ImageLike) -> Embedding:
        """An image, uint8 (H, W, 3), as the segmenter sees it; good for any number of `refine`."""
        return self.segmenter.encode(read_image(image))

    def annotate(
        self,
        image: ImageLike,
        *,
        embedding: Embedding | None = None,
        vocabulary: Sequence[str] = (),
        remote_answers: Sequence[Sequence[RemoteAnswer]] | None = None,
    ) -> list[Detection]:
        """Every object that the VLM names, with its mask; best first. Image: uint8 (H, W, 3).

        `embedding` is the whole image's. Without it, a view is encoded if the VLM names something in it. The
        VLM is asked for the names of `vocabulary` as `Options.vocabulary` says: with "open" it is not.
        `remote_answers` is the result of `prefetch_answers` for this image.
        """
        image = read_image(image)
        size = (image.shape[0], image.shape[1])
        found: list[Detection] = []
        for number, view in enumerate(_views(image, self._options)):
            answers = remote_answers[number] if remote_answers is not None else None
            part, whole = crop(image, view), embedding if number == 0 else None
            found += [to_image(d, view, size) for d in self._in_view(part, whole, vocabulary, answers)]
        return self._best(found)

    def _in_view(
        self,
        image: Image,
        embedding: Embedding | None,
        vocabulary: Sequence[str],
        answers: Sequence[RemoteAnswer] | None,
    ) -> list[Detection]:
        """Terms and their maps or boxes, and of each the masks, in pixels of the view."""
        options = self._options
        seen = (
            self.maps(image, vocabulary=vocabulary, answers=answers) if options.localizer != "boxes" else []
        )
        boxed: list[NamedBox] = []
        if options.localizer in ("boxes", "both"):
            boxed = self._localizer.boxes(image, [term_map.term for term_map in seen])
        return self._masks(embedding or self.encode(image), seen, boxed) if seen or boxed else []

    def _masks(
        self, embedding: Embedding, seen: Sequence[TermMap], boxed: Sequence[NamedBox]
    ) -> list[Detection]:
        options = self._options
        search = InstanceSearch(self.segmenter, embedding, options)
        find = search.from_phrases if options.localizer == "concept" else search.from_maps
        found = [
            self._detection(term_map.term, term_map.question, instance) for term_map, instance in find(seen)
        ]
        if boxed:
            question = self.vlm.box_question()
            for box, instance in zip(boxed, search.from_boxes(boxed), strict=True):
                found.append(self._detection(box.name, question, instance))
        return found

    def find(
        self,
        image: ImageLike,
        phrase: str,
        *,
        embedding: Embedding | None = None,
        level: Level = "auto",
    ) -> list[Detection]:
        """What a person's phrase names, such as "the red car on the left"; best first.

        One object where the phrase says one, all that are found where it says several ("dogs"); none where
        nothing is found. Only the whole image is looked at, for "left" means its left. `embedding` is the
        image's; without it, the image is encoded if the VLM finds the phrase. `level` as in `refine`. Raises
        PromptError.
        """
        image = read_image(image)
        options = self._options
        seen = self._localizer.locate_phrase(image, phrase)
        if not seen:
            return []
        boxed: list[NamedBox] = []
        if options.localizer in ("boxes", "both"):
            boxed = self._localizer.boxes(image, [term_map.phrase for term_map in seen])
        embedding = embedding or self.encode(image)
        found = self._best(self._masks(embedding, [] if options.localizer == "boxes" else seen, boxed))
        single = {term_map.term for term_map in seen if term_map.single}
        first: dict[str, Detection] = {}
        for detection in found:
            first.setdefault(detection.term, detection)
        found = [d for d in found if d.term not in single or d is first[d.term]]
        if level == "auto":
            return found
        return [d for d in (self._at_level(d, embedding, level) for d in found) if d.mask.any()]

    def _at_level(self, detection: Detection, embedding: Embedding, level: Level) -> Detection:
        """The detection's points, or else its box, answered at another level."""
        prompt = detection.evidence.prompt
        box = None if len(prompt.points) else prompt.box
        answered = self.refine(embedding, Prompt(prompt.points, prompt.labels, box), level)
        seen = detection.evidence
        evidence = replace(answered.evidence, question=seen.question, reduced=seen.reduced)
        return replace(answered, term=detection.term, evidence=evidence)

    def _best(self, found: Sequence[Detection]) -> list[Detection]:
        options = self._options
        kept = [d for d in found if d.score >= options.min_score and d.mask.any()]
        return suppress(kept, same_term=options.same_term_iou, other_term=options.other_term_iou)

    def maps(
        self,
        image: Image,
        *,
        layers: bool = False,
        vocabulary: Sequence[str] = (),
        answers: Sequence[RemoteAnswer] | None = None,
    ) -> list[TermMap]:
        """The terms of every question's answer, each with its attention map."""
        return [
            each
            for question, text in (answers if answers is not None else self._asked(image, vocabulary))
            for each in self._localizer.locate(image, question, text, layers=layers)
        ]

    def answer_text(self, image: Image, *, vocabulary: Sequence[str] = ()) -> str:
        """The words of the VLM that lists for what it sees, an answer per line."""
        asked = self._asked(image, vocabulary)
        return "\n".join(self._answer(image, q) if answer is None else answer for q, answer in asked)

    def _asked(self, image: Image, vocabulary: Sequence[str]) -> list[RemoteAnswer]:
        """The questions about an image, with an answer where another VLM gives it."""
        if self._options.remote_vlm is not None:
            return ask_remote(self._options.remote_vlm, image, self._options, vocabulary)
        asked = questions(lambda question: self._answer(image, question), self._options, vocabulary)
        return [(question, None) for question in asked]

    def _answer(self, image: Image, question: str) -> str:
        return self.vlm.answer(image, question).text

    def similarity(self, terms: Sequence[str], names: Sequence[str]) -> NDArray[np.float32]:
        """How alike names are to the VLM as it reads them, before any context: (terms, names), -1 to 1.

        The cosine of the means of their tokens' input embeddings: knows spelling and common company, no
        meaning in a sentence. 0 for a name without tokens.
        """
        found = self.vlm.embeddings([*terms, *names])
        return np.asarray(found[: len(terms)] @ found[len(terms) :].T)

    def refine(self, embedding: Embedding | ImageLike, prompt: Prompt, level: Level = "auto") -> Detection:
        """One mask for a person's prompt on an encoded image, every click on its side of it.

        `level` takes the whole, a part or a part of that where a prompt may mean each. An empty mask has the
        score 0. Raises PromptError.
        """
        embedding = embedding if isinstance(embedding, Embedding) else self.encode(embedding)
        answer = refine_by_clicks(self.segmenter, embedding, prompt, level)
        scores = {"predicted_iou": answer.predicted_iou}
        detection = self._detection(
            "", "", Instance(answer.mask, replace(answer.prompt, logits=None), scores)
        )
        return replace(detection, logits=answer.logits)

    def in_boxes(self, image: Image, named: Sequence[tuple[str, Box]]) -> list[Detection]:
        """One mask for each named box in pixels, in one pass."""
        boxed = [NamedBox(name, box, 0, 0) for name, box in named]
        found = InstanceSearch(self.segmenter, self.encode(image), self._options).from_boxes(boxed)
        return [self._detection(b.name, "", instance) for b, instance in zip(boxed, found, strict=True)]

    def with_options(self, options: Options) -> "VLSAM":
        """The same models with other settings, to compare; the version stays as it is."""
        return VLSAM(
            self.vlm,
            self.segmenter,
            version=self.version,
            options=options,
            classifier=self._localizer.classifier,
            reduced=self._reduced,
        )

    def smaller(self) -> "VLSAM":
        """The same models, which take less memory at a time and see less; the version stays as it is."""
        return VLSAM(
            self.vlm.smaller(),
            self.segmenter.smaller(),
            version=self.version,
            options=self._options,
            classifier=self._localizer.classifier,
            reduced=True,
        )

    def _detection(self, term: str, question: str, instance: Instance) -> Detection:
        height, width = instance.mask.shape
        view: Box = (0.0, 0.0, float(width), float(height))
        wrong = unmet_points(instance.mask, instance.prompt)
        reduced = self._reduced and bool(question)  # the segmenter sees the same as ever
        evidence = Evidence(question, view, instance.prompt, instance.scores, self.version, wrong, reduced)
        score = float(np.mean(list(instance.scores.values()))) if instance.mask.any() else 0.0
        return Detection(term, instance.mask, score, evidence)
