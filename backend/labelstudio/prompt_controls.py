"""What an annotator types and sets beside the image: a phrase, the level of masks, the least score.

Controls are known by name, as the README says. Label Studio 1.23.2 sends all of them with a text and none
with a click, so for clicks they are read from the draft.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from backend.labelstudio import tasks
from backend.labelstudio.labeling_config import LabelConfig
from model.types import LEVELS, Level
from model.vlm.terms import bare

LEVEL, SCORE = "vlsam_level", "vlsam_score"
MAX_TYPED = 10_000  # characters of a text that are read: more than a phrase may have, so that one is told


@dataclass(frozen=True)
class Wishes:
    """What a person set; nothing of it where nothing was set, or something that does not exist."""

    level: Level = "auto"
    score: float = 0.0  # regions below it are not answered


def typed(context: Mapping[str, Any], config: LabelConfig) -> str | None:
    """The text submitted last in a TextArea that is a prompt (labels.parse); None where there is none."""
    for item in reversed(_items(context)):
        if item.get("type") == "textarea" and tasks.control_of(item) in config.phrases:
            text = tasks.value_of(item).get("text")
            texts = text if isinstance(text, list) else [text]
            if texts and isinstance(texts[-1], str) and texts[-1].strip():
                return texts[-1].strip()[:MAX_TYPED]
    return None


def wishes(context: Mapping[str, Any], task: Mapping[str, Any], config: LabelConfig) -> Wishes:
    """From the context that came with a text, else from the newest draft or the only annotation."""
    items = _items(context)
    if typed(context, config) is None:
        items = [i for i in next(tasks.own(task), []) if isinstance(i, Mapping)]
    found = Wishes()
    for item in items:
        value = tasks.value_of(item)
        match item.get("from_name"), item.get("type"):
            case name, "choices" if name == LEVEL:
                chosen = value.get("choices")
                found = replace(found, level=next((x for x in LEVELS if [x] == chosen), found.level))
            case name, "number" if name == SCORE:
                number: Any = value.get("number")
                if type(number) in (int, float) and 0 <= number <= 1:
                    found = replace(found, score=float(number))
    return found


def label_of(phrase: str, term: str, context: Mapping[str, Any], config: LabelConfig) -> str | None:
    """The label of what a phrase found, the first there is.

    The one that the whole phrase means, the one that `term`, its noun, means, the one that the last word of
    that means ("pickup truck": truck), a label that the context holds, the only label of the project.
    """
    for name in (bare(phrase), term, term.rpartition(" ")[2]):
        for _, label in config.named(name):
            return label
    for item in _items(context):
        for selected in tasks.labels_of(item):
            if any(control.knows(selected) for control in config.predicted):
                return selected
    return config.only_label


def _items(context: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return tasks.entries(context.get("result"))
