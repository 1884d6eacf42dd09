"""Define `Options`: questions for the VLM, the localizer, and the filters of detections."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from model.recipes import RECIPES, Points, Recipe

if TYPE_CHECKING:  # imports requests and Pillow
    from model.vlm.remote_vlm import RemoteVLM

Views = Literal["whole", "corners"]
LocalizerKind = Literal["attention", "boxes", "both", "concept"]
Exemplars = Literal["missing", "never"]
Vocabulary = Literal["open", "project", "both"]

ASK = ("ask",)  # in place of questions: the VLM proposes them


@dataclass(frozen=True)
class Options:
    """Options of an annotation. Defaults are those of the VL-SAM paper, or were measured (docs/decisions)."""

    questions: tuple[str, ...] = ("List all objects in the image.",)  #: all are asked about each view; or ASK
    #: The names given to `annotate`: "open" ignores them, "project" asks for these only, "both" asks each
    #: question both ways.
    vocabulary: Vocabulary = "open"
    #: A remote VLM that answers the questions; the local one is teacher-forced to its answers.
    remote_vlm: "RemoteVLM | None" = None
    views: Views = "whole"  #: "corners": four corner views as well
    recipe: Recipe = RECIPES["best"]
    points: Points | None = None  #: instead of the recipe's
    term_points: tuple[tuple[str, Points], ...] = ()  #: (term, method): exceptions
    #: "boxes": boxes that the VLM writes; "both": attention and boxes; "concept": a segmenter that takes noun
    #: phrases gets the terms.
    localizer: LocalizerKind = "attention"
    #: "missing": a term without instances by "concept" is tried again with its map's area as an example.
    exemplars: Exemplars = "missing"
    classifier: str | None = None  #: for the recipe vit-rollout: a hub id or a local folder
    presence: float = 0.0  #: least probability that a term is there, asked of the VLM; 0: do not ask
    threshold: float = 0.4  #: share of the map's maximum; weaker activations are dropped
    rounds: int = 4  #: rounds of instances per term
    residual: float = 0.5  #: least peak of a further instance, as a share of the first
    min_score: float = 0.2  #: of a detection
    same_term_iou: float = 0.5  #: above this IoU the weaker of two detections of a term is dropped
    other_term_iou: float = 0.8  #: the same for two terms
