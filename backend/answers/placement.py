"""Place detections in the controls of a labeling config, and say why a prediction is empty."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from backend.answers import existing_regions
from backend.labelstudio import region_meta, results
from backend.labelstudio.labeling_config import STATUS, Control, LabelConfig
from backend.labelstudio.reading_budget import Reading
from backend.labelstudio.tasks import Region
from backend.settings import Settings
from backend.telemetry.logs import printable
from model.pipeline import VLSAM
from model.types import Detection

Prediction = dict[str, Any]

MAX_TOLD, MAX_TOLD_TERM = 10, 40  # terms that an empty prediction names, and characters of each


def vocabulary(config: LabelConfig, settings: Settings) -> tuple[str, ...]:
    """The names that the VLM is told."""
    return config.names if settings.detection.vocabulary != "open" else ()


def unnamed_terms(found: Sequence[Detection], config: LabelConfig, settings: Settings) -> list[str]:
    """The terms for which `alike` is asked: those without a label, where the settings want it."""
    if not settings.answers.similarity or not config.names:
        return []
    return [term for term in dict.fromkeys(d.term for d in found) if not config.named(term)]


def alike(model: VLSAM, terms: Sequence[str], names: Sequence[str], threshold: float) -> dict[str, str]:
    """For each term the name that is most alike, where it is as much as `threshold`."""
    likeness = model.similarity(terms, names)
    return {
        term: names[row.argmax()] for term, row in zip(terms, likeness, strict=True) if row.max() >= threshold
    }


def not_empty(found: Iterable[Detection]) -> list[Detection]:
    """The detections that there is something of: an empty mask is none, whatever its score."""
    return [detection for detection in found if detection.mask.any()]


def prediction(
    regions: Sequence[results.Result],
    model_version: str,
    told: Sequence[results.Result] = (),
    *,
    reason: str = "",
) -> Prediction:
    """Return the item that Label Studio stores, with the mean score of its regions, 0 without any.

    `told` are results that are no regions. `reason` says why there are none.
    """
    score = sum(region["score"] for region in regions) / len(regions) if regions else 0.0
    item = {"result": [*regions, *told], "score": results.unit(score), "model_version": model_version}
    return {**item, "reason": reason} if reason else item


def explained(
    regions: Sequence[results.Result],
    found: Sequence[Detection],
    unmatched: Collection[str],
    config: LabelConfig,
    image: str,
    model_version: str,
) -> list[results.Result]:
    """What the status control says of a prediction without regions; nothing where there are some.

    `unmatched` are the terms of `found` that have no label.
    """
    if regions or config.status_of is None:
        return []
    told = results.status(why_empty(found, unmatched), config.status_of)
    return [{**told, "id": results.prediction_id(image, model_version, STATUS, "", 0)}]


def why_empty(found: Sequence[Detection], unmatched: Collection[str]) -> str:
    """Why a prediction has no regions, for an annotator."""
    if not found:
        return "VL-SAM found no object in this image."
    terms = dict.fromkeys(detection.term for detection in found)
    reasons = (
        ([term for term in terms if term in unmatched], "No label of this project fits."),
        (
            [term for term in terms if term not in unmatched],
            "It is annotated already, or no control of this project can draw it.",
        ),
    )
    return " ".join(f"VL-SAM saw: {some_of(named)}. {reason}" for named, reason in reasons if named)


def some_of(terms: Sequence[str]) -> str:
    """The first of many terms, which models made, for a line that people read."""
    more = f" and {len(terms) - MAX_TOLD} more" if len(terms) > MAX_TOLD else ""
    return ", ".join(printable(term[:MAX_TOLD_TERM]) for term in terms[:MAX_TOLD]) + more


def label_of(term: str, config: LabelConfig, names: Mapping[str, str], leftover: str) -> str | None:
    """What an object is called where it can be called one thing only: its first label in `annotation`.

    The term itself where no control has labels.
    """
    if not any(control.takes_labels for control in config.predicted):
        return term
    named = config.named(term) or config.named(names.get(term, "")) or _left(config, leftover)
    return named[0][1] if named else None


def annotation(
    found: Sequence[Detection],
    config: LabelConfig,
    image: str,
    model_version: str,
    *,
    names: Mapping[str, str] | None = None,
    leftover: str = "drop",
    made: Iterable[Region] = (),
    reading: Reading | None = None,
) -> tuple[list[results.Result], Counter[str]]:
    """The results for detections in every control that takes predictions, and the terms without a label.

    `names` says for terms which name of a label stands for them. `leftover` says what becomes of objects
    whose term has no label: "drop"; "keep", without a label in the first control; "other:LABEL", in
    every control that has this one. A region that is kept says its term in `meta.text`. Where no control has
    labels, every object is a region of each. Objects of which people `made` a region get none, as far as
    `reading` these regions is possible; the ids of the others are the same as without.
    """
    regions: list[results.Result] = []
    numbers: Counter[tuple[str, str]] = Counter()
    unmatched: Counter[str] = Counter()
    plans: list[tuple[Detection, list[tuple[Control, str | None]], tuple[str, ...], bool]] = []
    for detection in found:
        term = detection.term
        named = config.named(term) or config.named((names or {}).get(term, ""))
        placed: list[tuple[Control, str | None]] = [*named]
        notes: tuple[str, ...] = ()
        if not any(control.takes_labels for control in config.predicted):
            placed = [(control, None) for control in config.predicted]
        elif not named:
            unmatched[term] += 1
            placed, notes = _left(config, leftover), (term[: region_meta.MAX_TEXT],)
        plans.append((detection, placed, notes, bool(named)))
    fresh = existing_regions.without(
        [(d, {label for _, label in places}) for d, places, _, _ in plans], made, reading or Reading()
    )
    for detection, placed, notes, has_label in plans:
        term = detection.term
        for control, label in placed:
            key = (control.name, term)
            region = describe(
                detection,
                control=control,
                labels=() if label is None else (label,),
                region_id=results.prediction_id(image, model_version, *key, numbers[key]),
                notes=notes,
            )
            numbers[key] += bool(region)
            if detection not in fresh:
                continue
            regions += region
            regions += [
                results.naming(region[0], naming, words)
                for naming in config.namings
                if region and (naming.tag == "Taxonomy" or not has_label) and (words := naming.words(term))
            ]
    return regions, unmatched


def _left(config: LabelConfig, leftover: str) -> list[tuple[Control, str | None]]:
    policy, _, other = leftover.partition(":")
    if policy == "keep":
        return [(config.predicted[0], None)]
    return [
        (control, label)
        for control in config.predicted
        if policy == "other" and (label := control.label_of(other)) is not None
    ]


def describe(
    detection: Detection,
    *,
    control: Control,
    labels: Sequence[str],
    region_id: str,
    old_meta: Any = None,
    notes: Sequence[str] = (),
    compact: bool = False,
) -> list[results.Result]:
    """The results of one region for a detection, the first with its evidence; none for an empty mask.

    A person's notes (`meta.text`) stay with a region that is replaced, and `notes` of ours join them.
    `compact` as in results.encode.
    """
    region = results.region(
        detection.mask,
        control=control,
        labels=labels,
        region_id=region_id,
        score=detection.score,
        compact=compact,
    )
    if not region:
        return []
    text = region_meta.notes_with(old_meta, notes)
    meta = {**({"text": text} if text else {}), **region_meta.write(detection, region[0])}
    return [{**region[0], "meta": meta}, *region[1:]]
