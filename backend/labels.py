"""A project's labeling config: which controls take our regions, and which label a term means."""

import logging
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeVar
from xml.etree import ElementTree

from model.english import singulars, synonyms

log = logging.getLogger(__name__)

# What a control draws, and its tag without "Labels".
SHAPES = {
    "brush": "Brush",
    "bitmask": "Bitmask",
    "polygon": "Polygon",
    "vector": "Vector",
    "ellipse": "Ellipse",
    "rectangle": "Rectangle",
    "keypoint": "KeyPoint",
}
PROMPT_SHAPES = ("keypoint", "rectangle")  # of smart tools, the only ones that send prompts
SILENT_SHAPES = ("brush", "bitmask")  # of smart tools that Label Studio 1.23.2 has but that send nothing
MAX_CONFIG = 1_000_000  # characters
MAX_DEPTH = 100  # of tags in tags
MAX_LABELS = 1000  # that a task's data may bring, of so many characters each:
MAX_LABEL = 200
STATUS = "vlsam_status"  # the TextArea that failures of clicks are written into; never a prompt
PROMPT = "vlsam_prompt"  # the TextArea where people type what the model shall find

T = TypeVar("T")
Choice = tuple[tuple[str, ...], tuple[str, ...]]  # its path and its names
Same = Callable[[str], set[str]]  # all that a name is written as: names that share one are the same


class ConfigError(ValueError):
    """The labeling config cannot be used. The message is one sentence for the project's manager."""


class TaskError(Exception):
    """A task is not as it should be. The message is the reason, for the log."""


@dataclass(frozen=True)
class Label:
    """One `<Label>`: the value that results carry (its alias, where it has one) and all names it goes by."""

    value: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Control:
    """One control tag of the config that takes regions of an image."""

    name: str
    tag: str  # as Label Studio spells it: BrushLabels, Brush ...
    to_name: str
    labels: tuple[Label, ...]  # empty where regions have none: Brush without a <Labels>
    labels_name: str | None = None  # of the <Labels> tag that its labels are from
    labels_key: str | None = None  # of task["data"], where further labels are
    open: bool = False  # takes any label, and a term is its own

    @property
    def type(self) -> str:
        """The `type` of its results; with labels of its own also their key in `value`."""
        return self.tag.lower()

    @property
    def shape(self) -> str:
        """One of SHAPES."""
        return self.type.removesuffix("labels")

    def knows(self, label: str) -> bool:
        return any(label == known.value for known in self.labels)

    @property
    def takes_labels(self) -> bool:
        return bool(self.labels) or self.labels_key is not None or self.open

    def label_of(self, term: str) -> str | None:
        """The label that a term of the model means: the same text, else but for case, else but for number."""
        if self.open:
            return term
        return _match(term, self._known(), (_exact, _folded, _forms))

    def synonym_of(self, term: str) -> str | None:
        """The label that is another common name of the same thing."""
        return _match(term, self._known(), (_synonyms,))

    def _known(self) -> list[tuple[str, tuple[str, ...]]]:
        return [(label.value, label.names) for label in self.labels]


@dataclass(frozen=True)
class Naming:
    """A `perRegion` TextArea or Taxonomy: a control that says in words what a region is."""

    name: str
    tag: str  # TextArea or Taxonomy
    to_name: str
    choices: tuple[Choice, ...] = ()  # of a Taxonomy

    @property
    def type(self) -> str:
        return self.tag.lower()

    @property
    def key(self) -> str:
        """Where in `value` its words are."""
        return "text" if self.tag == "TextArea" else self.type

    def words(self, term: str) -> list[Any] | None:
        """What `value` holds for a term: None where a Taxonomy has no choice for it."""
        if self.tag == "TextArea":
            return [term]
        path = _match(term, self.choices, (_exact, _folded, _forms, _synonyms))
        return None if path is None else [list(path)]


@dataclass(frozen=True)
class LabelConfig:
    """What a labeling config means to this server."""

    image_key: str  # of task["data"]
    image_name: str
    outputs: tuple[Control, ...]  # in the order of the config; never empty
    prompt_boxes: frozenset[str] = frozenset()  # names of rectangle controls that only prompt
    namings: tuple[Naming, ...] = ()
    phrases: frozenset[str] = frozenset()  # names of text controls that only prompt
    prompts: tuple[Control, ...] = ()  # those that only prompt
    idle: tuple[Control, ...] = ()  # outputs that Auto-Detect offers and whose smart tool sends nothing
    status_of: str | None = None  # the object that the <TextArea> named STATUS belongs to

    def source(self, task: Any) -> Any:
        """The value of a task's image field, which images.py loads. Raises TaskError where there is none."""
        data = task.get("data") if isinstance(task, Mapping) else None
        if not isinstance(data, Mapping):
            raise TaskError("the task has no data.")
        if self.image_key not in data:
            raise TaskError(f"the task's data has no field {self.image_key!r}, where the image should be.")
        return data[self.image_key]

    def of(self, data: Any) -> "LabelConfig":
        """The config of one task: with the labels that its data brings, where controls take them from it."""
        if not isinstance(data, Mapping) or all(control.labels_key is None for control in self.outputs):
            return self
        outputs = (
            replace(control, labels=(*control.labels, *_data_labels(data.get(control.labels_key))))
            if control.labels_key is not None
            else control
            for control in self.outputs
        )
        return replace(self, outputs=tuple(outputs))

    def label_control(self, label: str | None) -> Control | None:
        """The first output control that knows the label, or that has regions without labels."""
        return next(
            (c for c in self.outputs if not c.takes_labels or (label is not None and c.knows(label))), None
        )

    def control_of(self, labels: Collection[str]) -> Control | None:
        """The first output control that knows most of the labels, or that has regions without labels."""
        best = max(self.outputs, key=lambda control: sum(map(control.knows, labels)))
        return best if any(map(best.knows, labels)) else self.label_control(None)

    def named(self, term: str) -> list[tuple[Control, str]]:
        """The predicted controls that have a label for a term, and that label.

        By spelling, or where none has it by synonym: a car is no Automobile of one control where another
        has Car.
        """
        for find in (Control.label_of, Control.synonym_of):
            found = [(c, label) for c in self.predicted if (label := find(c, term)) is not None]
            if found:
                return found
        return []

    def has(self, label: str) -> bool:
        """Whether a control that is predicted has the label, or may get it from a task's data."""
        return any(c.labels_key is not None or c.label_of(label) is not None for c in self.predicted)

    @property
    def names(self) -> tuple[str, ...]:
        """All names of all labels that predictions may get, each once."""
        known = (name for c in self.predicted for label in c.labels for name in label.names)
        return tuple(dict.fromkeys(known))

    @property
    def predicted(self) -> tuple[Control, ...]:
        """The outputs that predictions go to: of those that share a <Labels> the first.

        A <Labels> with many tools to draw with would else get each object many times over.
        """
        first = {control.labels_name or control.name: control for control in reversed(self.outputs)}
        return tuple(control for control in self.outputs if control in first.values())

    def output(self, name: str) -> Control | None:
        return next((control for control in self.outputs if control.name == name), None)


# For images without a project: masks, and whatever the model names is a label.
OPEN = LabelConfig("image", "image", (Control("label", "BrushLabels", "image", (), open=True),))


@lru_cache(maxsize=64)
def parse(xml: str) -> LabelConfig:
    """The meaning of a labeling config. Raises ConfigError.

    Outputs are the controls on the first Image that draw one of SHAPES, with labels of their own
    (BrushLabels ...) or those of the <Labels> of that image (Brush ...), from the config or a field of the
    task's data. One with an explicit `smart="true"` or `smartOnly="true"` is a tool to prompt with and takes
    no output, unless no other is there; a keypoint is a tool unless it has `smart="false"`. Where no such
    control has labels, those without (Brush ...) are outputs if a `perRegion` TextArea or Taxonomy can say
    what a region is. (In Label Studio 1.23.2 every control is smart by default, so the attribute only tells
    the intention where it is written out.) A TextArea of the image, not of its regions, is for phrases where
    it is named PROMPT or has smart="true"; STATUS never is.
    """
    root = _read(xml)
    image = next((tag for tag in root.iter() if _kind(tag) == "image" and tag.get("name")), None)
    if image is None:
        raise ConfigError(
            "The labeling config has no <Image> with a name, and this model only labels images."
        )
    value = image.get("value", "")
    if not re.fullmatch(r"\$[^\s$]+", value):
        raise ConfigError(
            f"<Image name={image.get('name')!r}> has value={value!r} instead of a single field "
            "such as value='$image'."
        )
    shared = next((tag for tag in root.iter() if _kind(tag) == "labels" and _is_on(tag, image)), None)
    found = [(tag, control) for tag in root.iter() if (control := _control(tag, image, shared)) is not None]
    namings = tuple(_namings(root, image))
    labelled = [(tag, control) for tag, control in found if control.takes_labels]
    free = [(tag, control) for tag, control in found if not control.takes_labels] if namings else []
    if not labelled and not free:
        raise ConfigError(
            "The labeling config has no <BrushLabels>, <PolygonLabels>, <RectangleLabels> or the like with "
            f"labels for <Image name={image.get('name')!r}>, no <Labels> with a <Brush>, and no <Brush> "
            'with a <TextArea perRegion="true">.'
        )
    # Of prompt tools alone: smart brushes and polygons send no prompts, so they come first.
    order = list(SHAPES)
    tools = sorted((control for _, control in labelled or free), key=lambda c: order.index(c.shape))
    outputs = _plain(labelled) or _plain(free) or tools[:1]
    return LabelConfig(
        image_key=value[1:],
        image_name=image.get("name", ""),
        outputs=tuple(outputs),
        prompt_boxes=frozenset(_prompt_boxes(root)) - {control.name for control in outputs},
        namings=namings,
        phrases=frozenset(_phrases(root, image)) - {STATUS},
        prompts=tuple(
            control for tag, control in found if _is_prompt_tool(tag) and control.shape in PROMPT_SHAPES
        ),
        idle=tuple(
            control
            for tag, control in found
            if control in outputs and control.shape in SILENT_SHAPES and not _is_plain_tool(tag)
        ),
        status_of=next(_status_of(root), None),
    )


class _Builder(ElementTree.TreeBuilder):
    """Builds the tree of a config, and stops at once where it is none that anybody needs."""

    depth = 0

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        """Called before the entities that a DOCTYPE may declare; a config never needs one."""
        raise ConfigError("The labeling config has a DOCTYPE, which Label Studio configs never need.")

    def start(self, tag: Any, attrs: Any) -> Any:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ConfigError(f"The labeling config has more than {MAX_DEPTH} tags in each other.")
        return super().start(tag, attrs)

    def end(self, tag: Any) -> Any:
        self.depth -= 1
        return super().end(tag)


def _read(xml: str) -> ElementTree.Element:
    if len(xml) > MAX_CONFIG:
        raise ConfigError(f"The labeling config is longer than {MAX_CONFIG} characters.")
    if not xml.strip():
        raise ConfigError("The labeling config is empty.")
    try:
        parser = ElementTree.XMLParser(target=_Builder())  # noqa: S314 (without DOCTYPE no entities)
        return ElementTree.fromstring(xml.strip(), parser)  # noqa: S314
    except ConfigError:
        raise
    except (ElementTree.ParseError, ValueError) as error:
        raise ConfigError(f"The labeling config is not well-formed XML: {str(error)[:200]}.") from None


def _kind(tag: ElementTree.Element) -> str:
    return tag.tag.lower()


def _is_on(tag: ElementTree.Element, image: ElementTree.Element) -> bool:
    targets = [target.strip() for target in tag.get("toName", "").split(",")]
    return bool(tag.get("name")) and image.get("name") in targets


def _control(
    tag: ElementTree.Element, image: ElementTree.Element, shared: ElementTree.Element | None
) -> Control | None:
    """The control that a tag is, or None. `shared` is the <Labels> of the image."""
    kind = _kind(tag)
    shape = kind.removesuffix("labels")
    if shape not in SHAPES or not _is_on(tag, image):
        return None
    name, to_name = tag.get("name", ""), image.get("name", "")
    source = shared if kind == shape else tag
    if source is None:
        return Control(name, SHAPES[shape], to_name, ())
    labels, key = _labels_of(source)
    if not labels and not key:
        log.warning("<%s name=%r> has no labels and is left out.", tag.tag, name)
        return None
    if labels and key:
        log.warning(
            "<%s name=%r> has labels beside those of %r: Label Studio refuses predictions with the latter "
            "where its prediction validation is on. Give all of them in the data.",
            source.tag,
            source.get("name"),
            key,
        )
    if source is tag:
        return Control(name, f"{SHAPES[shape]}Labels", to_name, labels, None, key)
    return Control(name, SHAPES[shape], to_name, labels, source.get("name"), key)


def _namings(root: ElementTree.Element, image: ElementTree.Element) -> Iterator[Naming]:
    for tag in root.iter():
        kind, name = _kind(tag), tag.get("name", "")
        if kind not in ("textarea", "taxonomy") or not _is_on(tag, image) or name == STATUS:
            continue
        if not _is_set(tag, "perRegion"):
            continue
        if kind == "textarea":
            yield Naming(name, "TextArea", image.get("name", ""))
        else:
            yield Naming(name, "Taxonomy", image.get("name", ""), tuple(_paths(tag, ())))


def _paths(
    tag: ElementTree.Element, above: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    for child in tag:
        if _kind(child) != "choice":
            yield from _paths(child, above)
            continue
        for label in _labels([child]):
            path = (*above, label.value)
            yield path, label.names
            yield from _paths(child, path)


def _labels_of(tag: ElementTree.Element) -> tuple[tuple[Label, ...], str | None]:
    """The labels inside a tag, and the field of a task's data that brings further ones."""
    value = tag.get("value", "").strip()
    key = value[1:] if re.fullmatch(r"\$[^\s$]+", value) else None
    return tuple(_labels(child for child in tag.iter() if _kind(child) == "label")), key


def _data_labels(given: Any) -> tuple[Label, ...]:
    """The labels in a task's data, which is untrusted: a list of texts or of {"value": ..., "alias": ...}."""
    found: list[Label] = []
    for item in (given if isinstance(given, list) else [])[:MAX_LABELS]:
        attributes = item if isinstance(item, Mapping) else {"value": item}
        texts = {
            key: str(value)
            for key in ("value", "alias", "predicted_values")
            if isinstance(value := attributes.get(key), str) and len(value) <= MAX_LABEL
        }
        found += _labels([ElementTree.Element("Label", texts)])
    return tuple(found)


def _match(term: str, known: Iterable[tuple[T, tuple[str, ...]]], rules: Iterable[Same]) -> T | None:
    """The first of `known` that has a name which is the same as the term by the first rule that finds one."""
    known = list(known)
    for same in rules:
        wanted = same(term)
        for value, names in known:
            if any(wanted & same(name) for name in names):
                return value
    return None


def _labels(tags: Iterable[ElementTree.Element]) -> Iterator[Label]:
    for tag in tags:
        value, alias = tag.get("value", "").strip(), tag.get("alias", "").strip()
        # Label Studio writes the alias into results, where there is one.
        result = tag.get("alias") or tag.get("value")
        if not result:
            continue
        predicted = (name.strip() for name in tag.get("predicted_values", "").split(","))
        yield Label(value=result, names=tuple(name for name in (value, alias, *predicted) if name))


def _plain(found: Iterable[tuple[ElementTree.Element, Control]]) -> list[Control]:
    return [control for tag, control in found if not _is_prompt_tool(tag)]


def _is_prompt_tool(tag: ElementTree.Element) -> bool:
    if _kind(tag).startswith("keypoint") and not _is_plain_tool(tag):
        return True
    return _is_set(tag, "smart") or _is_set(tag, "smartOnly")


def _is_plain_tool(tag: ElementTree.Element) -> bool:
    return tag.get("smart", "").strip().lower() == "false"


def _prompt_boxes(root: ElementTree.Element) -> Iterator[str]:
    for tag in root.iter():
        if _kind(tag) in ("rectanglelabels", "rectangle") and _is_prompt_tool(tag):
            yield tag.get("name", "")


def _phrases(root: ElementTree.Element, image: ElementTree.Element) -> Iterator[str]:
    for tag in root.iter():
        if _kind(tag) != "textarea" or not _is_on(tag, image) or _is_set(tag, "perRegion"):
            continue
        if tag.get("name") == PROMPT or _is_set(tag, "smart"):
            yield tag.get("name", "")


def _is_set(tag: ElementTree.Element, name: str) -> bool:
    return any(tag.get(each, "").strip().lower() == "true" for each in (name, name.lower()))


def _status_of(root: ElementTree.Element) -> Iterator[str]:
    for tag in root.iter():
        if _kind(tag) == "textarea" and tag.get("name") == STATUS:
            yield tag.get("toName", "")


def _exact(name: str) -> set[str]:
    return {name.strip()}


def _folded(name: str) -> set[str]:
    return {" ".join(re.split(r"[\s_-]+", name.strip().casefold()))}


@lru_cache(maxsize=8192)
def _forms(name: str) -> set[str]:
    """The folded name and what it may be the plural of."""
    (folded,) = _folded(name)
    return {form.strip() for form in (folded, *singulars(folded))}


@lru_cache(maxsize=8192)
def _synonyms(name: str) -> set[str]:
    return {synonym for form in _forms(name) for synonym in synonyms(form)}
