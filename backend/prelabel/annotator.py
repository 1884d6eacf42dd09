"""Annotate one image of `vlsam prelabel` and make its row, in this process or on another machine."""

import base64
from collections.abc import Callable, Container
from dataclasses import dataclass

from backend.answers.placement import Labelling, alike, not_empty, vocabulary
from backend.datasets.items import Item
from backend.datasets.objects import Object
from backend.datasets.run_state import REDUCED, Row, Unchanged
from backend.images.image_cache import image_hash
from backend.labelstudio import results
from backend.labelstudio.labeling_config import LabelConfig
from backend.prelabel import contact_sheet
from backend.prelabel.destinations import Destination, ImportList
from backend.settings import Settings
from model.pipeline import VLSAM, prefetch_answers
from model.profiles import Profile
from model.types import Detection, Image, ModelLoadError
from model.vlm.questions import RemoteAnswer
from model.weights.out_of_memory import with_less_memory

RemoteAnswers = list[list[RemoteAnswer]] | None
PICTURE = "picture"  # key of a row until it is saved; the state keeps it as a file


@dataclass(frozen=True, eq=False)
class Found:
    """The detections of one image, and the rules that give them labels."""

    detections: list[Detection]
    labelling: Labelling  # with the labels in the item's data
    reduced: bool = False  # annotated in half its size, after memory ran out


@dataclass(frozen=True)
class Annotator:
    """The settings to annotate images and to make their rows. It holds no weights, so it can be pickled."""

    settings: Settings
    profile: Profile
    version: str  # that the models must have, on every machine
    config: LabelConfig
    destination: Destination

    def load(self) -> VLSAM:
        """Load the models. Raises ModelLoadError, also if this machine has other weights."""
        here = self.settings.version(self.profile)
        if here != self.version:
            raise ModelLoadError(f"the weights differ: {here} here, {self.version} where the run began")
        options = self.settings.detection.options
        return VLSAM.load(self.profile, self.settings.models.device, options, self.version)

    def fetch(self, load: Callable[[Item], Image], item: Item) -> tuple[Image, RemoteAnswers]:
        """Load an image, and prefetch the remote VLM's answers. Raises Unchanged for annotated pixels."""
        image = load(item)
        if item.content and item.content == image_hash(image):
            raise Unchanged
        options = self.settings.detection.options
        words = vocabulary(self.config.of(item.data), options)
        return image, prefetch_answers(image, options, words)

    def annotate(self, model: VLSAM, item: Item, image: Image, remote: RemoteAnswers) -> Found:
        """Return the detections that the server would return for a task with this data."""
        config, answers = self.config.of(item.data), self.settings.answers
        words = vocabulary(config, self.settings.detection.options)
        detections, reduced = with_less_memory(
            model, lambda model: model.annotate(image, vocabulary=words, remote_answers=remote)
        )
        detections = not_empty(detections)
        labelling = Labelling(config, answers.leftover)
        if unnamed := labelling.unnamed(detections, answers.similarity):
            names, _ = with_less_memory(
                model, lambda model: alike(model.similarity, unnamed, config.names, answers.similarity)
            )
            labelling = Labelling(config, answers.leftover, names)
        return Found(detections, labelling, reduced)

    def describe(self, item: Item, image: Image, found: Found, *, sampled: Container[str] = ()) -> Row:
        """Return an image's row. If its key is in `sampled`, include a small JPEG in base64."""
        labelled = [(d, found.labelling.label_of(d.term), results.unit(d.score)) for d in found.detections]
        content = image_hash(image)
        if isinstance(self.destination, ImportList):
            kept = self.destination.keep(found.detections, found.labelling, content)
        else:
            kept = self.destination.keep(
                Object(label, detection.mask, detection.term, score)
                for detection, label, score in labelled
                if label is not None and detection.mask.any()
            )
        shown = [[detection.term, label, round(score, 4)] for detection, label, score in labelled]
        row = {"content": content, "found": shown, **kept}
        if found.reduced:
            row[REDUCED] = True
        if item.key in sampled:
            row[PICTURE] = base64.b64encode(contact_sheet.thumbnail(image, found.detections)).decode()
        return row
