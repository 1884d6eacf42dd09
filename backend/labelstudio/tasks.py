"""What Label Studio says of a task: drafts, annotations, predictions and their regions, all untrusted."""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from backend.labelstudio.labeling_config import MAX_LABELS, Control, LabelConfig

log = logging.getLogger(f"vlsam.{__name__}")

T = TypeVar("T")

MAX_REGIONS = 1000  # of a result list that are looked at
MAX_ENTRIES = 1000  # drafts, annotations or predictions of a task that are looked at, the last ones
MAX_ID = 100  # characters


@dataclass(frozen=True, eq=False)
class Region:
    """A region of an output control. Its geometry is what results.decode reads in `result`."""

    id: str  # as Label Studio knows it
    control: Control
    labels: tuple[str, ...]  # several where a control has choice="multiple"; none where it has none
    result: Mapping[str, Any]


def regions(items: list[Any], config: LabelConfig) -> Iterator[Region]:
    """The regions of a result list that belong to an output control, the topmost first."""
    found = _newest_items(items)
    labels = {region_id(item): labels_of(item) for item in found if item.get("type") == "labels"}
    outputs = {(control.name, control.type): control for control in config.outputs}
    for item in found:
        name, kind = control_of(item), item.get("type")
        control = outputs.get((name, kind)) if name is not None and isinstance(kind, str) else None
        number = region_id(item)
        if control is None or number is None:
            continue
        own = labels_of(item) if control.type in value_of(item) else labels.get(number, ())
        yield Region(number, control, own, item)


def ids(items: list[Any]) -> set[str]:
    """The ids of everything in a result list."""
    return {number for item in _newest_items(items) if (number := region_id(item)) is not None}


def _newest_items(items: list[Any]) -> Sequence[Mapping[str, Any]]:
    return latest([item for item in items if isinstance(item, Mapping)], MAX_REGIONS, "results")[::-1]


def latest(given: Sequence[T], most: int, what: str) -> Sequence[T]:
    """The last `most` of a list, which are the newest; what is left out is logged."""
    if len(given) > most:
        log.warning("Of %d %s only the last %d are looked at.", len(given), what, most)
    return given[-most:]


def number(task: Any) -> int | str | None:
    """The id of a task; None where it has none, or one that Label Studio would not give."""
    found = task.get("id") if isinstance(task, Mapping) else None
    return found if type(found) is int or (type(found) is str and len(found) <= MAX_ID) else None


def own(task: Mapping[str, Any]) -> Iterator[list[Any]]:
    """The result lists that the person of a request sees or has made, the newest first.

    Drafts are the person's own. An annotation counts where the newest draft names it, else where it is
    the only one, for others may be another annotator's.
    """
    draft = newest(task.get("drafts"))
    if draft is not None:
        yield result_of(draft)
    saved = [entry for entry in entries(task.get("annotations")) if entry.get("was_cancelled") is not True]
    named = draft.get("annotation") if draft is not None else None
    if named is not None:
        saved = [entry for entry in saved if entry.get("id") == named]
    if len(saved) == 1:
        yield result_of(saved[0])


def predicted(task: Mapping[str, Any]) -> Iterator[list[Any]]:
    """The result lists of the predictions, the newest first."""
    found = sorted(entries(task.get("predictions")), key=changed)
    yield from (result_of(entry) for entry in reversed(found))


def newest(drafts: Any) -> Mapping[str, Any] | None:
    return max(entries(drafts)[::-1], key=changed, default=None)


def entries(given: Any) -> list[Mapping[str, Any]]:
    newest = (
        latest(given, MAX_ENTRIES, "drafts, annotations or predictions") if isinstance(given, list) else []
    )
    return [entry for entry in newest if isinstance(entry, Mapping)]


def changed(entry: Mapping[str, Any]) -> str:
    return str(entry.get("updated_at") or entry.get("created_at") or "")


def result_of(entry: Mapping[str, Any] | None) -> list[Any]:
    result = entry.get("result") if entry is not None else None
    return result if isinstance(result, list) else []


def value_of(item: Mapping[str, Any]) -> Mapping[str, Any]:
    value = item.get("value")
    return value if isinstance(value, Mapping) else {}


def control_of(item: Mapping[str, Any]) -> str | None:
    """The name of the control that a result is of."""
    name = item.get("from_name")
    return name if isinstance(name, str) else None


def labels_of(item: Mapping[str, Any]) -> tuple[str, ...]:
    """The labels of a region or a prompt, each once, in their order."""
    value = value_of(item)
    for key in (item.get("type"), "labels"):
        given = value.get(key) if isinstance(key, str) else None
        labels = [label for label in given if isinstance(label, str)] if isinstance(given, list) else []
        if labels:
            return tuple(dict.fromkeys(labels))[:MAX_LABELS]
    return ()


def alike(one: Collection[str], other: Collection[str]) -> bool:
    """Whether two regions, or a prompt and a region, share a label or both have none."""
    return not set(one).isdisjoint(other) or not (one or other)


def id_of(item: Any) -> str | None:
    item_id = item.get("id") if isinstance(item, Mapping) else None
    return item_id if isinstance(item_id, str) and 0 < len(item_id) <= MAX_ID else None


def region_id(item: Any) -> str | None:
    """The id without the suffix '#...' that the editor adds to its own copies."""
    return (id_of(item) or "").partition("#")[0] or None
