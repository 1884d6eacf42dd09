"""Parse a project's labeling config: the controls that regions are written to, and their labels."""

import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import islice
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from backend.labelstudio.status_control import STATUS
from backend.labelstudio.term_matching import NameIndex, exact, fold, singular_forms, synonym_forms

log = logging.getLogger(f"vlsam.{__name__}")

# The shape that a control draws, and its tag without "Labels".
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
# Images, and controls that draw or name regions: an answer may use all of them for each object.
MAX_TAGS = 200
MAX_INSIDE = 200_000  # limit for tags inside these; nested tags count for each ancestor
MAX_LABELS = 1000  # limit for labels from a task's data, each of at most MAX_LABEL characters
MAX_LABEL = 200
PROMPT = "vlsam_prompt"  # the TextArea where people type a phrase to find

Choice = tuple[tuple[str, ...], tuple[str, ...]]  # its path and its names
_Source = tuple[
    str, tuple["Label", ...], str | None
]  # of labels: name, labels, path of more in a task's data
FIELD = re.compile(r"\$([^\s$]{1,200})")  # of a task's data, as configs name it


class ConfigError(ValueError):
    """The labeling config cannot be used. The message is one sentence for the project's manager."""


class TaskError(Exception):
    """A task cannot be used. The message is the reason, for the log."""


@dataclass(frozen=True)
class Label:
    """A `<Label>`: its text in results (the alias, if it has one) and all names that match it."""

    value: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Control:
    """A control tag that draws regions of an image."""

    name: str
    tag: str  # as Label Studio spells it: BrushLabels, Brush ...
    to_name: str
    labels: tuple[Label, ...]  # empty where regions have none: Brush without a <Labels>
    labels_name: str | None = None  # of the <Labels> tag that its labels are from
    labels_key: str | None = None  # of task["data"], where further labels are
    open: bool = False  # takes any label, and a term is its own

    @property
    def type(self) -> str:
        """The `type` of the control's results. Its own labels are in `value` under the same key."""
        return self.tag.lower()

    @property
    def shape(self) -> str:
        """The shape that the control draws: a key of SHAPES."""
        return self.type.removesuffix("labels")

    @property
    def takes_labels(self) -> bool:
        return bool(self.labels) or self.labels_key is not None or self.open

    def label_of(self, term: str) -> str | None:
        """Return the label that equals a term, else ignoring case, else ignoring plurals; else None."""
        return term if self.open else self._spelled.find(term)

    def synonym_of(self, term: str) -> str | None:
        """Return the label that is a synonym of a term; None if there is none."""
        return self._synonymous.find(term)

    def has_label(self, label: str) -> bool:
        return label in self._values

    @cached_property
    def _values(self) -> frozenset[str]:
        return frozenset(label.value for label in self.labels)

    @cached_property
    def _spelled(self) -> NameIndex[str]:
        return NameIndex(((label.value, label.names) for label in self.labels), exact, fold, singular_forms)

    @cached_property
    def _synonymous(self) -> NameIndex[str]:
        return NameIndex(((label.value, label.names) for label in self.labels), synonym_forms)


@dataclass(frozen=True)
class Naming:
    """A `perRegion` TextArea or Taxonomy: a control that names a region in words."""

    name: str
    tag: str  # TextArea or Taxonomy
    to_name: str
    choices: tuple[Choice, ...] = ()  # of a Taxonomy

    @property
    def type(self) -> str:
        return self.tag.lower()

    @property
    def key(self) -> str:
        """The key of the words in the `value` of a result."""
        return "text" if self.tag == "TextArea" else self.type

    def words(self, term: str) -> list[Any] | None:
        """Return the words of a result for a term: [text] or [path of a choice]. None without a match."""
        if self.tag == "TextArea":
            return [term]
        path = self._index.find(term)
        return None if path is None else [list(path)]

    @cached_property
    def _index(self) -> NameIndex[tuple[str, ...]]:
        return NameIndex(self.choices, exact, fold, singular_forms, synonym_forms)


@dataclass(frozen=True)
class LabelConfig:
    """The parts of a labeling config that the server needs."""

    image_key: str  # the path of the image in task["data"], for `field_of`
    image_name: str
    outputs: tuple[Control, ...]  # in the order of the config; never empty
    prompt_boxes: frozenset[str] = frozenset()  # names of rectangle controls that only prompt
    namings: tuple[Naming, ...] = ()
    phrases: frozenset[str] = frozenset()  # names of text controls that only take prompts
    prompts: tuple[Control, ...] = ()  # those that only prompt
    idle: tuple[Control, ...] = ()  # outputs that Auto-Detect offers and whose smart tool sends nothing
    status_of: str | None = None  # the object that the <TextArea> named STATUS belongs to

    def source(self, data: Any) -> Any:
        """Return the value of the image field in a task's data. Raises TaskError if there is none."""
        if not isinstance(data, Mapping):
            raise TaskError("the task has no data.")
        try:
            value = field_of(data, self.image_key)
        except LookupError:
            raise TaskError(
                f"the task's data has no field {self.image_key!r}, where the image should be."
            ) from None
        if isinstance(value, list):
            raise TaskError(
                f"the field {self.image_key!r} holds a list, and this model labels one image of a task, "
                f"such as value='${self.image_key}[0]'."
            )
        return value

    def of(self, data: Mapping[str, Any] | None) -> "LabelConfig":
        """Return the config for one task: this config and the labels that are listed in the task's data."""
        if data is None or all(control.labels_key is None for control in self.outputs):
            return self
        labels: dict[tuple[int, str], tuple[Label, ...]] = {}  # of controls that share them, once
        outputs = list(self.outputs)
        for place, control in enumerate(outputs):
            if (key := control.labels_key) is not None:
                shared = (id(control.labels), key)
                if shared not in labels:
                    labels[shared] = (*control.labels, *_data_labels(data, key))
                outputs[place] = replace(control, labels=labels[shared])
        return replace(self, outputs=tuple(outputs))

    def label_control(self, label: str | None) -> Control | None:
        """Return the first control of `predicted` that has the label or takes no labels; None without one."""
        fit = (c for c in self.predicted if not c.takes_labels or (label is not None and c.has_label(label)))
        return next(fit, None)

    def control_for(self, labels: Collection[str]) -> Control | None:
        """Return the control of `predicted` with most of these labels, else one without labels, else None."""
        best = max(self.predicted, key=lambda control: sum(map(control.has_label, labels)))
        return best if any(map(best.has_label, labels)) else self.label_control(None)

    @property
    def only_label(self) -> str | None:
        """The label of all predictions; None if there are several labels or none."""
        labels = {label.value for control in self.predicted for label in control.labels}
        return labels.pop() if len(labels) == 1 else None

    def named(self, term: str) -> list[tuple[Control, str]]:
        """Return each predicted control with its label that matches a term: by spelling, else by synonym."""
        for find in (Control.label_of, Control.synonym_of):
            matches = [(c, label) for c in self.predicted if (label := find(c, term)) is not None]
            if matches:
                return matches
        return []

    def has(self, label: str) -> bool:
        """Return whether a predicted control has the label, or may get it from a task's data."""
        return any(c.labels_key is not None or c.label_of(label) is not None for c in self.predicted)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The unique names of all labels that predictions may get."""
        names = (name for c in self.predicted for label in c.labels for name in label.names)
        return tuple(dict.fromkeys(names))

    @cached_property
    def predicted(self) -> tuple[Control, ...]:
        """The outputs for predictions. Of outputs that share a <Labels>, only the first is one."""
        first: dict[str, Control] = {}
        for control in self.outputs:
            first.setdefault(control.labels_name or control.name, control)
        return tuple(first.values())

    def output(self, name: str) -> Control | None:
        return next((control for control in self.outputs if control.name == name), None)

    def turn(self, control: Control) -> tuple[bool, int]:
        """Return a sort key of outputs for a click: in config order, but rectangles after all others."""
        return control.shape == "rectangle", self._places[control.name]

    @cached_property
    def _places(self) -> dict[str, int]:
        return {control.name: place for place, control in enumerate(self.outputs)}


# For images without a project: masks, and whatever the model names is a label.
OPEN = LabelConfig("image", "image", (Control("mask", "BrushLabels", "image", (), open=True),))


@lru_cache(maxsize=64)
def parse(xml: str) -> LabelConfig:
    """Parse a labeling config. Raises ConfigError if the server cannot use it.

    The image is the one that the controls point to. Other images are only shown.

    Outputs are the controls on the image that draw one of SHAPES. They have labels of their own (BrushLabels
    ...) or those of the image's <Labels> (Brush ...). Labels are in the config or in a field of the task's
    data. Controls without labels are outputs only if no control has labels and a `perRegion` TextArea or
    Taxonomy can name a region.

    A control with an explicit `smart="true"` or `smartOnly="true"` is a prompt tool. A keypoint is a prompt
    tool unless it has `smart="false"`. A prompt tool is an output only if there is no other control. In Label
    Studio 1.23.2 every control is smart by default, so only an explicit attribute shows an intention.

    A TextArea without `perRegion` takes phrases if it is named PROMPT or has smart="true". The TextArea named
    STATUS never does.
    """
    root = _read(xml)
    images: dict[str, Element] = {}
    for tag in root.iter():
        if _kind(tag) == "image" and (name := tag.get("name")):
            images.setdefault(name, tag)
    if not images:
        raise ConfigError(
            "The labeling config has no <Image> with a name, and this model only labels images."
        )
    kinds = {"image", *SHAPES, *(f"{shape}labels" for shape in SHAPES)}
    counted = [tag for tag in root.iter() if _kind(tag) in kinds or _names_regions(tag)]
    if len(counted) > MAX_TAGS:
        raise ConfigError(
            f"The labeling config has more than {MAX_TAGS} images and controls that draw or name regions."
        )
    if sum(1 for tag in counted for _ in tag.iter()) > MAX_INSIDE:
        raise ConfigError("The labeling config has too many labels in controls inside of controls.")
    usable = [*islice((about for about in _by_image(root, images) if about.usable), 2)]
    if not usable:
        first = next(iter(images.values()))
        _only_one(root, [_About(first, (), (), ())])
        raise ConfigError(
            "The labeling config has no <BrushLabels>, <PolygonLabels>, <RectangleLabels> or the like with "
            f"labels for {_shown(first)}, no <Labels> with a <Brush>, and no <Brush> "
            'with a <TextArea perRegion="true">.'
        )
    _only_one(root, usable)
    (meant,) = usable
    field = FIELD.fullmatch(meant.image.get("value", "").strip())
    if field is None:
        raise ConfigError(
            f"{_shown(meant.image)} has value={meant.image.get('value', '')[:80]!r} instead of a single "
            "field such as value='$image'."
        )
    names = {control.name for control in meant.outputs}
    boxes = [tag for tag in root.iter() if _kind(tag) in ("rectanglelabels", "rectangle")]
    texts = [tag for tag in meant.on if _kind(tag) == "textarea" and not _is_set(tag, "perRegion")]
    return LabelConfig(
        image_key=field[1],
        image_name=meant.image.get("name", ""),
        outputs=tuple(meant.outputs),
        prompt_boxes=frozenset(tag.get("name", "") for tag in boxes if _is_prompt_tool(tag)) - names,
        namings=meant.namings,
        phrases=frozenset(
            tag.get("name", "") for tag in texts if tag.get("name") == PROMPT or _is_set(tag, "smart")
        )
        - {STATUS},
        prompts=tuple(c for tag, c in meant.found if _is_prompt_tool(tag) and c.shape in PROMPT_SHAPES),
        idle=tuple(
            c
            for tag, c in meant.found
            if c.name in names and c.shape in SILENT_SHAPES and not _is_plain_tool(tag)
        ),
        status_of=next(_status_of(root), None),
    )


def label_tags(xml: str) -> Iterator[Element]:
    """Yield the <Label> tags of all label lists of the labelled image. Raises ConfigError."""
    image = parse(xml).image_name
    for tag in _read(xml).iter():
        if _kind(tag).endswith("labels") and image in _targets(tag):
            yield from (child for child in tag.iter() if _kind(child) == "label")


def is_empty(xml: str) -> bool:
    """Return whether a labeling config is empty or has only <View> tags, as in a new project."""
    try:
        return not xml.strip() or all(tag.tag == "View" for tag in _read(xml).iter())
    except ConfigError:
        return False


def data_keys(xml: str) -> set[str]:
    """Return the distinct `value`s of the tags that controls point to. Raises ConfigError.

    Label Studio offers few export formats for a config with several values.
    """
    root = _read(xml)
    shown = {tag.get("name", ""): tag.get("value", "") for tag in root.iter()}
    targets = {target for tag in root.iter() for target in _targets(tag) if target}
    return {shown[target] for target in targets & shown.keys() if shown[target]}


def field_of(data: Mapping[str, Any], path: str) -> Any:
    """Return the value in a task's data at a path such as "photo.url" or "imgs[0]". Raises LookupError.

    A field whose name is the whole path has precedence, as in Label Studio 1.23.2.
    """
    if path in data:
        return data[path]
    value: Any = data
    for part in _parts(path):
        if isinstance(value, list) and re.fullmatch(r"0|[1-9][0-9]{0,8}", part):
            value = value[int(part)]
        elif isinstance(value, Mapping):
            value = value[part]
        else:
            raise LookupError(path)
    return value


def data_with(path: str, value: Any) -> dict[str, Any]:
    """Return new task data in which `field_of` finds `value` at `path`. Raises ValueError for an index > 0.

    Label Studio 1.23.2 imports "photo.url" as nested data only.
    """
    for part in reversed(_parts(path)):
        if part.isdecimal() and part != "0":
            raise ValueError(f"the image is {path}, which is one of several: give tasks that have them all")
        value = [value] if part == "0" else {part: value}
    data: dict[str, Any] = value
    return data


def _parts(path: str) -> list[str]:
    return re.findall(r"[^.\[\]]+", path) or [path]


@dataclass(frozen=True)
class _About:
    """An <Image> tag and the tags that point to it."""

    image: Element
    on: Sequence[Element]
    found: Sequence[tuple[Element, Control]]  # all controls that draw
    namings: tuple[Naming, ...]

    @property
    def usable(self) -> list[tuple[Element, Control]]:
        """The tags and controls whose regions can have a label or the words of a naming."""
        return [(tag, control) for tag, control in self.found if control.takes_labels or self.namings]

    @property
    def outputs(self) -> list[Control]:
        """The usable controls that do not prompt: those with labels, else all; else one prompt tool."""
        plain = [control for tag, control in self.usable if not _is_prompt_tool(tag)]
        if plain:
            return [control for control in plain if control.takes_labels] or plain
        # Smart brushes and polygons send no prompts, so they come first.
        tools = [control for _, control in self.usable]
        return [min(tools, key=lambda c: (not c.takes_labels, list(SHAPES).index(c.shape)))]


def _by_image(root: Element, images: Mapping[str, Element]) -> Iterator[_About]:
    """Yield each image with the named tags that point to it."""
    on: dict[str, list[Element]] = {name: [] for name in images}
    for tag in root.iter():
        if tag.get("name"):
            for target in _targets(tag) & on.keys():
                on[target].append(tag)
    for name, tags in on.items():
        lists = (tag for tag in tags if _kind(tag) == "labels")
        shared = next(map(_labels_in, lists), None)  # once: many tools may share thousands
        found = [(tag, control) for tag in tags if (control := _control(tag, name, shared)) is not None]
        yield _About(images[name], tags, found, tuple(_namings(tags, name)) if found else ())


def _targets(tag: Element) -> set[str]:
    return {target.strip() for target in tag.get("toName", "").split(",")}


def _only_one(root: Element, usable: Sequence[_About]) -> None:
    """Raise ConfigError if more than one image of a task may be labelled."""
    repeated: dict[Element, Element] = {}
    for repeater in root.iter():
        if _kind(repeater) == "repeater" and repeater not in repeated:
            repeated |= dict.fromkeys(repeater.iter(), repeater)
    one = "This model labels one image of a task"
    for about in usable:
        for tag in (about.image, *(tag for tag, _ in about.found)):
            if tag in repeated:
                raise ConfigError(
                    f"<Repeater on={repeated[tag].get('on', '')[:80]!r}> repeats {_shown(tag)}. {one}: give "
                    "it and its controls outside of a <Repeater>."
                )
        pages = about.image.get("valueList") or about.image.get("valuelist")
        if pages:
            raise ConfigError(
                f"{_shown(about.image)} has valueList={pages[:80]!r}. {one}: give it a single field such as "
                "value='$image'."
            )
    if len(usable) > 1:
        first, second = (_shown(about.image) for about in usable[:2])
        raise ConfigError(
            f"There are controls with labels for several images, as {first} and {second}. {one}: give labels "
            "to the controls of one <Image> alone."
        )


def _shown(tag: Element) -> str:
    return f"<{tag.tag} name={tag.get('name', '')[:80]!r}>"


class _Builder(ElementTree.TreeBuilder):
    """XML tree builder that raises ConfigError at a DOCTYPE or too deep nesting."""

    depth = 0

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        """Raise ConfigError for a DOCTYPE, before its entities are read."""
        raise ConfigError("The labeling config has a DOCTYPE, which Label Studio configs never need.")

    def start(self, tag: Any, attrs: Any) -> Any:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ConfigError(f"The labeling config has more than {MAX_DEPTH} tags in each other.")
        return super().start(tag, attrs)

    def end(self, tag: Any) -> Any:
        self.depth -= 1
        return super().end(tag)


def _read(xml: str) -> Element:
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


def _kind(tag: Element) -> str:
    return tag.tag.lower()


def _labels_in(tag: Element) -> _Source:
    field = FIELD.fullmatch(tag.get("value", "").strip())
    labels = tuple(labels_of(child for child in tag.iter() if _kind(child) == "label"))
    if labels and field:
        log.warning(
            "%s has labels beside those of %r: Label Studio refuses predictions with the latter "
            "where its prediction validation is on. Give all of them in the data.",
            _shown(tag),
            field[1],
        )
    return tag.get("name", ""), labels, field[1] if field else None


def _control(tag: Element, to_name: str, shared: _Source | None) -> Control | None:
    """Parse a control tag. None for other tags and empty label lists. `shared` is the parsed <Labels>."""
    kind = _kind(tag)
    shape = kind.removesuffix("labels")
    if shape not in SHAPES:
        return None
    own = kind != shape
    source = _labels_in(tag) if own else shared
    control = Control(tag.get("name", ""), f"{SHAPES[shape]}Labels" if own else SHAPES[shape], to_name, ())
    if source is None:
        return control
    name, labels, key = source
    if not labels and not key:
        log.warning("%s has no labels and is left out.", _shown(tag))
        return None
    return replace(control, labels=labels, labels_name=None if own else name, labels_key=key)


def _namings(tags: Iterable[Element], to_name: str) -> Iterator[Naming]:
    for tag in tags:
        name = tag.get("name", "")
        if _names_regions(tag) and name != STATUS:
            is_text = _kind(tag) == "textarea"
            choices = () if is_text else tuple(_paths(tag, ()))
            yield Naming(name, "TextArea" if is_text else "Taxonomy", to_name, choices)


def _paths(tag: Element, above: tuple[str, ...]) -> Iterator[Choice]:
    for child in tag:
        if _kind(child) != "choice":
            yield from _paths(child, above)
            continue
        for label in labels_of([child]):
            path = (*above, label.value)
            yield path, label.names
            yield from _paths(child, path)


def _data_labels(data: Mapping[str, Any], path: str) -> tuple[Label, ...]:
    """Return the labels at `path` in untrusted task data: texts or {"value": ..., "alias": ...}."""
    try:
        values = field_of(data, path)
    except LookupError:
        return ()
    labels: list[Label] = []
    for item in (values if isinstance(values, list) else [])[:MAX_LABELS]:
        attributes = item if isinstance(item, Mapping) else {"value": item}
        texts = {
            key: str(value)
            for key in ("value", "alias", "predicted_values")
            if isinstance(value := attributes.get(key), str) and len(value) <= MAX_LABEL
        }
        labels += labels_of([Element("Label", texts)])
    return tuple(labels)


def labels_of(tags: Iterable[Element]) -> Iterator[Label]:
    for tag in tags:
        value, alias = tag.get("value", "").strip(), tag.get("alias", "").strip()
        # Label Studio writes the alias into results, where there is one.
        result = tag.get("alias") or tag.get("value")
        if not result:
            continue
        predicted = (name.strip() for name in tag.get("predicted_values", "").split(","))
        yield Label(value=result, names=tuple(name for name in (value, alias, *predicted) if name))


def _is_prompt_tool(tag: Element) -> bool:
    if _is_plain_tool(tag):  # with smartOnly="true" it has no tool at all
        return False
    return _kind(tag).startswith("keypoint") or _is_set(tag, "smart") or _is_set(tag, "smartOnly")


def _is_plain_tool(tag: Element) -> bool:
    return tag.get("smart", "").strip().lower() == "false"


def _names_regions(tag: Element) -> bool:
    return _kind(tag) in ("textarea", "taxonomy") and _is_set(tag, "perRegion")


def _is_set(tag: Element, name: str) -> bool:
    return any(tag.get(each, "").strip().lower() == "true" for each in (name, name.lower()))


def _status_of(root: Element) -> Iterator[str]:
    for tag in root.iter():
        if _kind(tag) != "textarea" or tag.get("name") != STATUS:
            continue
        if _is_set(tag, "perRegion"):
            log.warning("%s is about regions, and is left out: a failed click has none.", _shown(tag))
        else:
            yield tag.get("toName", "")
