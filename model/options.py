"""What to ask the VLM, how to locate the answers, and what to keep: `Options`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from model.recipes import RECIPES, Points, Recipe

if TYPE_CHECKING:  # with it come requests and Pillow
    from model.vlm.remote_vlm import RemoteVLM

Views = Literal["whole", "corners"]
LocalizerKind = Literal["attention", "boxes", "both", "concept"]
Exemplars = Literal["missing", "never"]
Vocabulary = Literal["open", "project", "both"]

ASK = ("ask",)  # instead of questions: let the VLM propose them


@dataclass(frozen=True)
class Options:
    """The paper's settings; where it gives none (research in docs/decisions), the values we measured."""

    questions: tuple[str, ...] = ("List all objects in the image.",)  # each is asked of each view; or ASK
    # Of names that `annotate` is given the questions say nothing ("open"), or that only these are wanted
    # ("project"), or each is asked both ways ("both").
    vocabulary: Vocabulary = "open"
    # Another VLM that answers the questions. Its words are then put into the mouth of the one at hand.
    remote_vlm: "RemoteVLM | None" = None
    views: Views = "whole"  # "corners": four corner views as well
    recipe: Recipe = RECIPES["best"]
    points: Points | None = None  # instead of the recipe's
    term_points: tuple[tuple[str, Points], ...] = ()  # (term, method) where a term needs another one
    # "boxes": the VLM's own, as text; "both" is attention and boxes. "concept": the terms go to a segmenter
    # that takes noun phrases.
    localizer: LocalizerKind = "attention"
    # "missing": a term by which "concept" finds nothing is given again, with the map's area as an example.
    exemplars: Exemplars = "missing"
    classifier: str | None = None  # for the recipe vit-rollout: a hub id or a local folder
    presence: float = 0.0  # terms go whose "yes, it is there" is less likely; 0 does not ask
    threshold: float = 0.4  # of the map's maximum: weaker activations are dropped
    rounds: int = 4  # most instances looked for per term
    residual: float = 0.5  # a further instance needs a peak of this share of the first
    min_score: float = 0.2
    same_term_iou: float = 0.5
    other_term_iou: float = 0.8
