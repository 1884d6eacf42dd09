"""Parse a task of Label Studio: its data, drafts, annotations, predictions and their regions.

All of it is untrusted. Parsing never fails: invalid parts are left out.
"""

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from backend.labelstudio.labeling_config import MAX_LABELS, Control, LabelConfig, Naming

log = logging.getLogger(f"vlsam.{__name__}")

T = TypeVar("T")

MAX_REGIONS = 1000  # of a result list that are looked at
MAX_ENTRIES = 1000  # drafts, annotations or predictions of a task that are looked at, the last ones
MAX_ID = 100  # characters
ENTRIES = ("drafts", "annotations", "predictions")
MAX_WORDS = 100  # of a `perRegion` control for a region, each of at most so many characters:
MAX_TEXT = 10_000


@dataclass(frozen=True, eq=False)
class Region:
    """A region of an output control. `region_reading.read` reads its geometry."""

    id: str  # Label Studio's id
    control: Control
    labels: tuple[str, ...]  # several if a control has choice="multiple"; none if it has none
    result: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Entry:
    """A draft, an annotation or a prediction of a task."""

    id: Any
    changed: str  # the time as Label Studio writes it
    annotation: Any  # of a draft: the id of the annotation that it changes
    cancelled: bool  # the task was skipped
    result: list[Any]

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> "Entry":
        return cls(
            raw.get("id"),
            changed(raw),
            raw.get("annotation"),
            raw.get("was_cancelled") is True,
            result_of(raw),
        )

    @cached_property
    def items(self) -> Sequence[Mapping[str, Any]]:
        return [item for item in self.result if isinstance(item, Mapping)]

    @cached_property
    def topmost(self) -> Sequence[Mapping[str, Any]]:
        """The last MAX_REGIONS items, the newest first."""
        return latest(self.items, MAX_REGIONS, "results")[::-1]

    @cached_property
    def ids(self) -> frozenset[str]:
        """The ids of all items in `topmost`, regions or not."""
        return frozenset(number for item in self.topmost if (number := region_id(item)) is not None)

    @cached_property
    def related(self) -> frozenset[str]:
        """The ids of the regions that relations connect."""
        ends = (
            region_id({"id": item.get(end)})
            for item in self.items
            if item.get("type") == "relation"
            for end in ("from_id", "to_id")
        )
        return frozenset(end for end in ends if end is not None)

    def regions(self, config: LabelConfig) -> Iterator[Region]:
        """Yield the regions that belong to an output control, the topmost first."""
        labels = {region_id(item): labels_of(item) for item in self.topmost if item.get("type") == "labels"}
        outputs = {(control.name, control.type): control for control in config.outputs}
        for item in self.topmost:
            name, kind = control_of(item), item.get("type")
            control = outputs.get((name, kind)) if name is not None and isinstance(kind, str) else None
            number = region_id(item)
            if control is None or number is None:
                continue
            own = labels_of(item) if control.type in value_of(item) else labels.get(number, ())
            yield Region(number, control, own, item)


NO_ENTRY = Entry(None, "", None, cancelled=False, result=[])


@dataclass(frozen=True, eq=False)
class Task:
    """A task as a request sends it."""

    id: int | str | None  # None if it has none, or an invalid one
    name: str  # the id for the log, as ASCII, so that no task writes lines of its own
    project: str
    data: Mapping[str, Any] | None
    drafts: tuple[Entry, ...] = ()
    annotations: tuple[Entry, ...] = ()
    predictions: tuple[Entry, ...] = ()

    @classmethod
    def parse(cls, raw: Any) -> "Task":
        if not isinstance(raw, Mapping):
            return cls(None, "?", "", None)
        number, project, data = raw.get("id"), raw.get("project"), raw.get("data")
        known = type(number) is int or (type(number) is str and len(number) <= MAX_ID)
        return cls(
            number if known else None,
            ascii(number)[:40] if isinstance(number, str | int | float | None) else "?",
            str(project) if isinstance(project, str | int) else "",
            data if isinstance(data, Mapping) else None,
            *(tuple(map(Entry.parse, entries(raw.get(key)))) for key in ENTRIES),
        )

    @cached_property
    def draft(self) -> Entry | None:
        """The newest draft; None if there is none."""
        return max(self.drafts[::-1], key=lambda entry: entry.changed, default=None)

    @property
    def draft_state(self) -> tuple[str, str] | None:
        """The id and the time of change of the newest draft; None if there is none."""
        return None if self.draft is None else (str(self.draft.id), self.draft.changed)

    @cached_property
    def own(self) -> Sequence[Entry]:
        """The newest draft and the annotation that the requesting person sees, in this order.

        The annotation is the one that the draft changes. If there is no draft or it names none, the only
        annotation of the task counts. Of several, each may be another annotator's.
        """
        saved = [entry for entry in self.annotations if not entry.cancelled]
        if self.draft is None:
            return saved if len(saved) == 1 else []
        if self.draft.annotation is not None:
            saved = [entry for entry in saved if entry.id == self.draft.annotation]
        return [self.draft, *saved] if len(saved) == 1 else [self.draft]

    @cached_property
    def predicted(self) -> Sequence[Entry]:
        """The predictions, the newest first."""
        return sorted(self.predictions, key=lambda entry: entry.changed)[::-1]

    @cached_property
    def lists(self) -> Sequence[Entry]:
        """All entries with regions that a click may correct, the newest first."""
        return [*self.own, *self.predicted]

    @cached_property
    def related(self) -> frozenset[str]:
        """The ids of the regions that relations connect."""
        return frozenset().union(*(entry.related for entry in self.lists))

    def made(self, config: LabelConfig) -> Iterator[Region]:
        """Yield the regions in all drafts and annotations, except those that skip the task."""
        for entry in (*self.drafts, *self.annotations):
            if not entry.cancelled:
                yield from entry.regions(config)

    def words_of(self, region: str, namings: Iterable[Naming]) -> dict[str, list[Any]]:
        """Return the newest saved `perRegion` values of a region by control name; {} if there are none."""
        words: dict[str, list[Any]] = {}
        for entry in self.lists:
            items = [item for item in entry.items if region_id(item) == region][-MAX_WORDS:]
            for naming in namings:
                for item in items:
                    if item.get("from_name") == naming.name and item.get("type") == naming.type:
                        words[naming.name] = _words(value_of(item).get(naming.key))
            if items:
                break
        return words


def _words(given: Any) -> list[Any]:
    """Return the valid words in an untrusted value: texts, or lists of texts that are Taxonomy paths."""
    words: list[Any] = []
    for word in (given if isinstance(given, list) else [given])[:MAX_WORDS]:
        path = word if isinstance(word, list) else [word]
        if path and len(path) <= MAX_WORDS and all(isinstance(t, str) and len(t) <= MAX_TEXT for t in path):
            words.append(word)
    return words


def latest(given: Sequence[T], most: int, what: str) -> Sequence[T]:
    """Return the last `most` items of a list, which are the newest. Log if others were dropped."""
    if len(given) > most:
        log.warning("Of %d %s only the last %d are looked at.", len(given), what, most)
    return given[-most:]


def entries(given: Any) -> list[Mapping[str, Any]]:
    given = given if isinstance(given, list) else []
    newest = latest(given, MAX_ENTRIES, "drafts, annotations or predictions")
    return [entry for entry in newest if isinstance(entry, Mapping)]


def changed(entry: Mapping[str, Any]) -> str:
    time = entry.get("updated_at") or entry.get("created_at")
    return str(time) if isinstance(time, str | int | float) else ""


def result_of(entry: Mapping[str, Any]) -> list[Any]:
    result = entry.get("result")
    return result if isinstance(result, list) else []


def value_of(item: Mapping[str, Any]) -> Mapping[str, Any]:
    value = item.get("value")
    return value if isinstance(value, Mapping) else {}


def control_of(item: Mapping[str, Any]) -> str | None:
    name = item.get("from_name")
    return name if isinstance(name, str) else None


def labels_of(item: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the labels of a region or a prompt, each once, in their order."""
    value = value_of(item)
    for key in (item.get("type"), "labels"):
        given = value.get(key) if isinstance(key, str) else None
        labels = [label for label in given if isinstance(label, str)] if isinstance(given, list) else []
        if labels:
            return tuple(dict.fromkeys(labels))[:MAX_LABELS]
    return ()


def alike(one: Collection[str], other: Collection[str]) -> bool:
    """Return whether two regions, or a prompt and a region, share a label or both have none."""
    return not set(one).isdisjoint(other) or not (one or other)


def id_of(item: Mapping[str, Any]) -> str | None:
    item_id = item.get("id")
    return item_id if isinstance(item_id, str) and 0 < len(item_id) <= MAX_ID else None


def region_id(item: Mapping[str, Any]) -> str | None:
    """Return an item's id without the suffix '#...' that the editor adds to copies. None if invalid."""
    return (id_of(item) or "").partition("#")[0] or None
