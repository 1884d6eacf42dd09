"""Run VL-SAM: the public class `VLSAM`.

Ask the VLM for the objects, read its attention for each name, prompt SAM there, refine, suppress duplicates.
"""

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from model.attention.baseline_maps import Classifier
from model.deadline import NEVER, Deadline
from model.image_decoding import ImageLike, read_image
from model.options import Options
from model.profiles import Profile, choose
from model.sam_stage import Instance, InstanceSearch
from model.segmentation.click_refinement import refine_by_clicks
from model.segmentation.embedding import Embedding
from model.segmentation.mask_cleanup import unmet_points
from model.segmentation.non_maximum_suppression import suppress
from model.segmentation.segmenter import Segmenter
from model.types import LEVELS, Box, Detection, Evidence, Image, ImageError, Level, Prompt, PromptError
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

    Return the argument `remote_answers` of `VLSAM.annotate`; None if the options name no remote VLM. Raises
    RemoteVLMError if no usable answer comes before the deadline.
    """
    endpoint = options.remote_vlm
    if endpoint is None:
        return None
    views = [crop(image, view) for view in _views(image, options)]
    return [ask_remote(endpoint, part, options, vocabulary, deadline) for part in views]


def _views(image: Image, options: Options) -> tuple[Box, ...]:
    views = corner_views(image.shape[1], image.shape[0])  # the whole image first
    return views if options.views == "corners" else views[:1]


def _read(source: ImageLike, embedding: Embedding | None) -> Image:
    """Read an image. Raises ImageError, also if the embedding is of an image of another size."""
    image = read_image(source)
    height, width = image.shape[:2]
    if embedding is not None and embedding.size != (height, width):
        made = "{1} x {0}".format(*embedding.size)
        raise ImageError(f"The embedding is of an image of {made} pixels, this one has {width} x {height}.")
    return image


@dataclass(eq=False, repr=False)
class VLSAM:
    """A VLM and a segmenter, which together find, name and mask the objects of images.

    Methods keep no state between calls. An `image` is a path, a Pillow image, or uint8 (H, W, 3), RGB. The
    EXIF orientation of files and Pillow images is applied. Results are in pixels of the upright image.

    Example:
        >>> from vlsam import VLSAM, Prompt
        >>> vlsam = VLSAM.load()
        >>> for detection in vlsam.annotate("street.jpg"):
        ...     print(detection.term, f"{detection.score:.2f}", detection.box, detection.mask.shape)
        cup 0.7... (50.0, 347.0, 199.0, 494.0) (549, 427)
        guitar 0... (82.0, 140.0, 220.0, 306.0) (549, 427)
        >>> embedding = vlsam.encode("street.jpg")
        >>> vlsam.refine(embedding, Prompt.of((120, 80, 1))).mask.shape
        (549, 427)
    """

    vlm: VLM
    segmenter: Segmenter
    _: KW_ONLY
    version: str
    options: Options = Options()  # noqa: RUF009
    classifier: Classifier | None = None
    reduced: bool = False  # see Evidence.reduced

    @classmethod
    def load(
        cls,
        profile: str | Profile = "builtin",
        device: str = "auto",
        options: Options | None = None,
        version: str | None = None,
        on_cut: Callable[[], None] = lambda: None,
    ) -> "VLSAM":
        """Load the weights of a profile. Download those that are missing.

        Args:
            profile: a name of `PROFILES`, or a `Profile`. The default is the small weights of this package,
                which recognise only 40 drawn objects.
            device: "auto", "cpu", "cuda", "cuda:1", "mps", or a device map of transformers.
            options: how the models are used.
            version: the model version noted in detections; by default made from profile and options.
            on_cut: called when an answer of the VLM is cut at its maximum length.

        Raises:
            ModelLoadError: there is no such profile, or weights are missing, corrupt or unusable.

        Example:
            >>> from dataclasses import replace
            >>> from vlsam import PROFILES
            >>> VLSAM.load(replace(PROFILES["builtin"], name="mine"), device="cpu").version
            'vlsam-mine-...'
        """
        profile = profile if isinstance(profile, Profile) else choose(profile)
        device = devices.choose(device)
        by_concept = options is not None and options.localizer == "concept"
        # The segmenter first: it is small beside the VLM, and loading may fail.
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
            options=options or Options(),
            classifier=classifier,
        )

    @property
    def device(self) -> torch.device:
        """The segmenter's device."""
        return self.segmenter.device

    @property
    def _localizer(self) -> Localizer:
        return Localizer(self.vlm, self.options, self.classifier)

    def encode(self, image: ImageLike) -> Embedding:
        """Encode an image for any number of calls of `refine`, `annotate` and `find`.

        Raises:
            ImageError: the image cannot be read.
            ImageRefused: the segmenter does not take an image of this shape.
        """
        return self.segmenter.encode(read_image(image))

    def annotate(
        self,
        image: ImageLike,
        *,
        embedding: Embedding | None = None,
        vocabulary: Sequence[str] = (),
        remote_answers: Sequence[Sequence[RemoteAnswer]] | None = None,
    ) -> list[Detection]:
        """Find, name and mask every object that the VLM names.

        Args:
            image: a path, a Pillow image, or uint8 (H, W, 3), RGB.
            embedding: of the whole image, if there is one already.
            vocabulary: names to ask the VLM for, unless `Options.vocabulary` is "open".
            remote_answers: the result of `prefetch_answers` for this image.

        Returns:
            The detections, best score first.

        Raises:
            ImageError: the image cannot be read, or the embedding is of an image of another size.
            ImageRefused: a model does not take an image of this shape.
            RemoteVLMError: the remote VLM of the options gave no usable answer.

        Example:
            >>> detections = VLSAM.load().annotate("street.jpg")
            >>> detections[0]
            Detection('cup', score=0.7..., box=(50.0, 347.0, 199.0, 494.0), mask=549x427)
        """
        image = _read(image, embedding)
        size = (image.shape[0], image.shape[1])
        detections: list[Detection] = []
        for number, view in enumerate(_views(image, self.options)):
            part, term_maps = crop(image, view), list[TermMap]()
            if self.options.localizer != "boxes":
                answers = remote_answers[number] if remote_answers is not None else None
                term_maps = self.maps(part, vocabulary=vocabulary, answers=answers)
            boxes = self._boxes(part, [term_map.term for term_map in term_maps])
            if term_maps or boxes:  # else the view need not be encoded
                known = embedding if embedding and number == 0 else self.encode(part)
                in_view = self._masks(known, term_maps, boxes)
                detections += [to_image(detection, view, size) for detection in in_view]
        return self._best(detections)

    def _boxes(self, image: Image, names: list[str]) -> list[NamedBox]:
        """Return the boxes that the VLM writes for `names`; [] if the localizer uses no boxes."""
        return self._localizer.boxes(image, names) if self.options.localizer in ("boxes", "both") else []

    def _masks(
        self, embedding: Embedding, term_maps: Sequence[TermMap], boxes: Sequence[NamedBox]
    ) -> list[Detection]:
        """Return the instances of each term map and the mask of each box."""
        search = InstanceSearch(self.segmenter, embedding, self.options)
        instances = search.from_phrases if self.options.localizer == "concept" else search.from_maps
        detections = [
            self._detection(term_map.term, term_map.question, instance)
            for term_map, instance in instances(term_maps)
        ]
        if boxes:
            question = self.vlm.box_question()
            for (name, _), instance in zip(boxes, search.from_boxes(boxes), strict=True):
                detections.append(self._detection(name, question, instance))
        return detections

    def find(
        self,
        image: ImageLike,
        phrase: str,
        *,
        embedding: Embedding | None = None,
        level: Level = "auto",
    ) -> list[Detection]:
        """Find and mask the objects that a phrase names, such as "the red car on the left".

        Look at the whole image only, because "left" means its left.

        Args:
            image: a path, a Pillow image, or uint8 (H, W, 3), RGB.
            phrase: a person's words.
            embedding: of the image, if there is one already.
            level: as in `refine`.

        Returns:
            One detection for a phrase in the singular, all for one in the plural ("dogs"), none if nothing
            is found; best score first.

        Raises:
            ImageError: the image cannot be read, or the embedding is of an image of another size.
            PromptError: the phrase is empty or names nothing.

        Example:
            >>> [detection.term for detection in VLSAM.load().find("street.jpg", "the guitar")]
            ['guitar']
        """
        image = _read(image, embedding)
        term_maps = self._localizer.locate_phrase(image, phrase)
        if not term_maps:
            return []
        boxes = self._boxes(image, [term_map.phrase for term_map in term_maps])
        embedding = embedding or self.encode(image)
        wanted = [] if self.options.localizer == "boxes" else term_maps
        detections = self._best(self._masks(embedding, wanted, boxes))
        singular = {term_map.term for term_map in term_maps if term_map.single}
        first = {detection.term: detection for detection in reversed(detections)}
        detections = [d for d in detections if d.term not in singular or d is first[d.term]]
        if level == "auto":
            return detections
        return [d for d in (self._at_level(d, embedding, level) for d in detections) if d.mask.any()]

    def _at_level(self, detection: Detection, embedding: Embedding, level: Level) -> Detection:
        """Mask a detection's object at another level, from the points of its prompt or else the box."""
        before = detection.evidence
        box = None if len(before.prompt.points) else before.prompt.box
        refined = self.refine(embedding, Prompt(before.prompt.points, before.prompt.labels, box), level)
        evidence = replace(refined.evidence, question=before.question, reduced=before.reduced)
        return replace(refined, term=detection.term, evidence=evidence)

    def _best(self, detections: Sequence[Detection]) -> list[Detection]:
        """Drop weak and empty detections and duplicates; sort the others by score."""
        options = self.options
        kept = [d for d in detections if d.score >= options.min_score and d.mask.any()]
        return suppress(kept, same_term=options.same_term_iou, other_term=options.other_term_iou)

    def maps(
        self,
        image: Image,
        *,
        layers: bool = False,
        vocabulary: Sequence[str] = (),
        answers: Sequence[RemoteAnswer] | None = None,
    ) -> list[TermMap]:
        """Return the terms of the VLM's answers, each with its attention map.

        Args:
            image: uint8 (H, W, 3), RGB.
            layers: also keep the map of every layer.
            vocabulary: as in `annotate`.
            answers: questions with a remote VLM's answers; by default the questions of the options.
        """
        return [
            term_map
            for question, text in (answers if answers is not None else self._questions(image, vocabulary))
            for term_map in self._localizer.locate(image, question, text, layers=layers)
        ]

    def answer_text(self, image: Image, *, vocabulary: Sequence[str] = ()) -> str:
        """Return the VLM's answers about an image, one per line and question."""
        pairs = self._questions(image, vocabulary)
        return "\n".join(self.vlm.answer(image, q).text if text is None else text for q, text in pairs)

    def _questions(self, image: Image, vocabulary: Sequence[str]) -> list[RemoteAnswer]:
        """Return the questions about an image, each with the remote VLM's answer or None."""
        if self.options.remote_vlm is not None:
            return ask_remote(self.options.remote_vlm, image, self.options, vocabulary)
        own = questions(lambda question: self.vlm.answer(image, question).text, self.options, vocabulary)
        return [(question, None) for question in own]

    def similarity(self, terms: Sequence[str], names: Sequence[str]) -> NDArray[np.float32]:
        """Compare terms with names by the VLM's input embeddings.

        Returns:
            float32 (terms, names), the cosine of mean token embeddings, -1 to 1. It reflects spelling and
            co-occurrence, not the meaning in a sentence. 0 for a name without tokens.
        """
        vectors = self.vlm.embeddings([*terms, *names])
        return np.asarray(vectors[: len(terms)] @ vectors[len(terms) :].T)

    def refine(self, embedding: Embedding | ImageLike, prompt: Prompt, level: Level = "auto") -> Detection:
        """Mask one object by a person's clicks, box or mask.

        Args:
            embedding: the result of `encode`; an image is encoded first.
            prompt: in pixels of the image. Every click ends up on its side of the mask.
            level: "whole", "part" or "subpart" of the object; "auto" takes the highest predicted IoU.

        Returns:
            A detection without a term. An empty mask has the score 0.

        Raises:
            PromptError: the prompt is empty or malformed, or there is no such level.

        Example:
            >>> vlsam = VLSAM.load()
            >>> embedding = vlsam.encode("street.jpg")
            >>> cup = vlsam.refine(embedding, Prompt.of((120, 420, 1)))
            >>> less = vlsam.refine(embedding, Prompt.of((120, 420, 1), (60, 480, 0), box=cup.box))
            >>> bool(less.mask[420, 120]), bool(less.mask[480, 60])
            (True, False)
        """
        if level not in LEVELS:
            raise PromptError(f"there is no level {level!r}: choose one of {', '.join(LEVELS)}")
        embedding = embedding if isinstance(embedding, Embedding) else self.encode(embedding)
        refined = refine_by_clicks(self.segmenter, embedding, prompt, level)
        scores = {"predicted_iou": refined.predicted_iou}
        instance = Instance(refined.mask, replace(refined.prompt, logits=None), scores)
        return replace(self._detection("", "", instance), logits=refined.logits)

    def in_boxes(self, image: Image, named: Sequence[NamedBox]) -> list[Detection]:
        """Mask the object in each box of `named` (name, box in pixels), in one pass of the segmenter."""
        instances = InstanceSearch(self.segmenter, self.encode(image), self.options).from_boxes(named)
        return [self._detection(name, "", i) for (name, _), i in zip(named, instances, strict=True)]

    def with_options(self, options: Options) -> "VLSAM":
        """Return the same models with other options, for comparisons. The version does not change."""
        return replace(self, options=options)

    def smaller(self) -> "VLSAM":
        """Return the same models with smaller batches and a smaller image for the VLM, to save memory."""
        return replace(self, vlm=self.vlm.smaller(), segmenter=self.segmenter.smaller(), reduced=True)

    def _detection(self, term: str, question: str, instance: Instance) -> Detection:
        """Make a detection of an instance. Its score is the mean of the instance's scores."""
        height, width = instance.mask.shape
        view: Box = (0.0, 0.0, float(width), float(height))
        unmet = unmet_points(instance.mask, instance.prompt)
        reduced = self.reduced and bool(question)  # the segmenter sees the image at full size
        evidence = Evidence(question, view, instance.prompt, instance.scores, self.version, unmet, reduced)
        score = float(np.mean(list(instance.scores.values()))) if instance.mask.any() else 0.0
        return Detection(term, instance.mask, score, evidence)
