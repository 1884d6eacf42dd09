"""Read the controls beside the image: a typed phrase, the level of masks, the minimum score.

Controls are identified by name. Label Studio 1.23.2 sends all of them with a text, but none with a click. For
a click they are read from the draft.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backend.labelstudio import tasks
from backend.labelstudio.labeling_config import LabelConfig
from model.types import LEVELS, Level
from model.vlm.terms import bare

LEVEL, SCORE = "vlsam_level", "vlsam_score"
MAX_TYPED = 10_000  # characters that are read: more than a phrase may have, so that a long one is refused


@dataclass(frozen=True)
class Wishes:
    """The level and the minimum score that a person set. Invalid values are ignored."""

    level: Level = "auto"
    score: float = 0.0  # detections below it are dropped


def typed(items: Sequence[Mapping[str, Any]], config: LabelConfig) -> str | None:
    """Return the phrase that was submitted last in a TextArea for prompts; None if there is none."""
    for item in reversed(items):
        if item.get("type") == "textarea" and tasks.control_of(item) in config.phrases:
            text = tasks.value_of(item).get("text")
            texts = text if isinstance(text, list) else [text]
            if texts and isinstance(texts[-1], str) and texts[-1].strip():
                return texts[-1].strip()[:MAX_TYPED]
    return None


def wishes_of(items: Sequence[Mapping[str, Any]]) -> Wishes:
    level, score = Wishes.level, Wishes.score
    for item in items:
        name, kind, value = item.get("from_name"), item.get("type"), tasks.value_of(item)
        if name == LEVEL and kind == "choices":
            level = next((each for each in LEVELS if [each] == value.get("choices")), level)
        number: Any = value.get("number")
        if name == SCORE and kind == "number" and type(number) in (int, float) and 0 <= number <= 1:
            score = float(number)
    return Wishes(level, score)


def label_of(phrase: str, term: str, selected: Sequence[str], config: LabelConfig) -> str | None:
    """Return the label for the objects of a phrase; None if no label matches.

    Use the first that exists: the label of the whole phrase, of its noun `term`, of the noun's last word
    ("pickup truck": truck), a label that is `selected` in the editor, the only label of the project.
    """
    for name in (bare(phrase), term, term.rpartition(" ")[2]):
        for _, label in config.named(name):
            return label
    usable = (label for label in selected if any(control.has_label(label) for control in config.predicted))
    return next(usable, config.only_label)
