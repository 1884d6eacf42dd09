"""Turn detections into regions of a labeling config's controls, and explain an empty prediction."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.answers import existing_regions
from backend.labelstudio import region_meta, results
from backend.labelstudio.labeling_config import Control, LabelConfig
from backend.labelstudio.region_reading import ReadingBudget
from backend.labelstudio.results import Result
from backend.labelstudio.status_control import STATUS, status
from backend.labelstudio.tasks import Region
from backend.telemetry.logs import printable
from model.options import Options
from model.types import Detection

Prediction = dict[str, Any]
Similarity = Callable[[Sequence[str], Sequence[str]], NDArray[np.float32]]  # VLSAM.similarity

MAX_TOLD, MAX_TOLD_TERM = 10, 40  # terms that an empty prediction names, and characters of each


@dataclass(frozen=True)
class Place:
    """The control, labels, id and notes of a region: everything but its mask."""

    control: Control
    labels: tuple[str, ...]
    region_id: str
    notes: tuple[str, ...] = ()  # for `meta.text`
    old_meta: Any = None  # of the region that it replaces: a person's notes in it stay


@dataclass(frozen=True)
class Labelling:
    """The rules that turn the terms of an image into labels.

    `leftover` is the policy for objects whose term has no label. "drop" drops them. "keep" makes a region
    without a label in the first control. "other:LABEL" gives this label, in every control that has it.
    """

    config: LabelConfig
    leftover: str = "drop"
    names: Mapping[str, str] = field(default_factory=dict)  # of labels, by term, where `alike` found one

    def named(self, term: str) -> list[tuple[Control, str]]:
        """Return (control, label) of each predicted control that has a label for a term; [] if none has."""
        return self.config.named(term) or self.config.named(self.names.get(term, ""))

    @property
    def unlabelled(self) -> bool:
        """Whether no predicted control has labels. Each object then becomes a region of every control."""
        return not any(control.takes_labels for control in self.config.predicted)

    def left_over(self) -> list[tuple[Control, str | None]]:
        """Return (control, label or None) pairs for an object whose term has no label, by `leftover`."""
        policy, _, other = self.leftover.partition(":")
        if policy == "keep":
            return [(self.config.predicted[0], None)]
        labels = [(control, control.label_of(other)) for control in self.config.predicted]
        return [(control, label) for control, label in labels if policy == "other" and label is not None]

    def unnamed(self, detections: Sequence[Detection], similarity: float) -> list[str]:
        """Return the unique terms without a label in the config; [] if the threshold `similarity` is 0."""
        if not similarity or not self.config.names:
            return []
        return [term for term in dict.fromkeys(d.term for d in detections) if not self.config.named(term)]

    def label_of(self, term: str) -> str | None:
        """Return one label for a term, None to drop its object, or the term if no control has labels."""
        if self.unlabelled:
            return term
        named = self.named(term) or self.left_over()
        return named[0][1] if named else None


def vocabulary(config: LabelConfig, options: Options) -> tuple[str, ...]:
    return config.names if options.vocabulary != "open" else ()


def alike(
    similarity: Similarity, terms: Sequence[str], names: Sequence[str], threshold: float
) -> dict[str, str]:
    """Return {term: most similar name} of the terms whose highest similarity is at least `threshold`."""
    likeness = zip(terms, similarity(terms, names), strict=True)
    return {term: names[row.argmax()] for term, row in likeness if row.max() >= threshold}


def not_empty(detections: Iterable[Detection]) -> list[Detection]:
    """Drop detections with an empty mask."""
    return [detection for detection in detections if detection.mask.any()]


def annotation(
    detections: Sequence[Detection],
    labelling: Labelling,
    image: str,
    model_version: str,
    *,
    made: Iterable[Region] = (),
    budget: ReadingBudget | None = None,
) -> tuple[list[Result], Counter[str]]:
    """Return the results of detections in all predicted controls, and how often each term has no label.

    A region without a label gets its term in `meta.text`. `image` is the hash of the pixels. Objects that
    have a region in `made`, the regions of people, are dropped. If the `budget` to read `made` is spent, the
    rest is kept. The ids of the results do not depend on `made`.
    """
    plans = []
    unmatched: Counter[str] = Counter()
    for detection in detections:
        named, term = labelling.named(detection.term), detection.term
        places: list[tuple[Control, str | None]] = [*named]
        notes: tuple[str, ...] = ()
        if labelling.unlabelled:
            places = [(control, None) for control in labelling.config.predicted]
        elif not named:
            unmatched[term] += 1
            places, notes = labelling.left_over(), (term[: region_meta.MAX_TEXT],)
        plans.append((detection, places, notes, bool(named)))
    fresh = existing_regions.without(
        [(detection, {label for _, label in places}) for detection, places, _, _ in plans],
        made,
        budget or ReadingBudget(),
    )
    regions: list[Result] = []
    numbers: Counter[tuple[str, str]] = Counter()
    for detection, places, notes, has_label in plans:
        for control, label in places:
            key = (control.name, detection.term)
            region = describe_and_name(
                detection,
                Place(
                    control,
                    () if label is None else (label,),
                    results.prediction_id(image, model_version, *key, numbers[key]),
                    notes,
                ),
                labelling.config,
                has_label=has_label,
            )
            numbers[key] += bool(region)
            if detection in fresh:
                regions += region
    return regions, unmatched


def describe_and_name(
    detection: Detection, place: Place, config: LabelConfig, *, has_label: bool, compact: bool = False
) -> list[Result]:
    """Return the results of one region, of a Taxonomy, and of a TextArea if the term has no label."""
    region = describe(detection, place, compact=compact)
    return region + [
        results.naming(region[0], naming, words)
        for naming in config.namings
        if region and (naming.tag == "Taxonomy" or not has_label)
        if (words := naming.words(detection.term))
    ]


def describe(detection: Detection, place: Place, *, compact: bool = False) -> list[Result]:
    """Return the results of one region, with its term and prompt in `meta`; [] if it cannot be drawn."""
    region = results.region(
        detection.mask,
        control=place.control,
        labels=place.labels,
        region_id=place.region_id,
        score=detection.score,
        compact=compact,
    )
    if not region:
        return []
    text = region_meta.notes_with(place.old_meta, place.notes)
    meta = {**({"text": text} if text else {}), **region_meta.write(detection, region[0])}
    return [{**region[0], "meta": meta}, *region[1:]]


def prediction(
    regions: Sequence[Result], model_version: str, told: Sequence[Result] = (), *, reason: str = ""
) -> Prediction:
    """Return a prediction in Label Studio's format: regions, their mean score, and other results, `told`."""
    score = sum(region["score"] for region in regions) / len(regions) if regions else 0.0
    item = {"result": [*regions, *told], "score": results.unit(score), "model_version": model_version}
    return {**item, "reason": reason} if reason else item


def explained(
    regions: Sequence[Result],
    terms: Sequence[str],
    unmatched: Collection[str],
    config: LabelConfig,
    image: str,
    model_version: str,
) -> list[Result]:
    """Return a status result that explains an empty prediction.

    Return [] if there are regions, or no status control.
    """
    if regions or config.status_of is None:
        return []
    reasons = {
        "No label of this project fits.": [term for term in terms if term in unmatched],
        "It is annotated already, or no control of this project can draw it.": [
            term for term in terms if term not in unmatched
        ],
    }
    why = " ".join(f"VL-SAM saw: {_some_of(some)}. {reason}" for reason, some in reasons.items() if some)
    result_id = results.prediction_id(image, model_version, STATUS, "", 0)
    return [status(why or "VL-SAM found no object in this image.", config.status_of, result_id)]


def _some_of(terms: Sequence[str]) -> str:
    more = f" and {len(terms) - MAX_TOLD} more" if len(terms) > MAX_TOLD else ""
    return ", ".join(printable(term[:MAX_TOLD_TERM]) for term in terms[:MAX_TOLD]) + more
