"""A project's labeling config: which controls take our regions, and which label a term means."""

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from xml.etree import ElementTree

from model.english import singulars

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
MAX_CONFIG = 1_000_000  # characters


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
    labels: tuple[Label, ...]
    labels_name: str | None = None  # of the <Labels> tag that its labels are from

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

    def label_of(self, term: str) -> str | None:
        """The label that a term of the model means: the same text, else but for case, else but for number."""
        for same in (_exact, _folded, _forms):
            wanted = same(term)
            for label in self.labels:
                if any(wanted & same(name) for name in label.names):
                    return label.value
        return None


@dataclass(frozen=True)
class LabelConfig:
    """What a labeling config means to this server."""

    image_key: str  # of task["data"]
    image_name: str
    outputs: tuple[Control, ...]  # in the order of the config; never empty
    prompt_boxes: frozenset[str] = frozenset()  # names of rectangle controls that only prompt

    def source(self, task: Any) -> Any:
        """The value of a task's image field, which images.py loads. Raises TaskError where there is none."""
        data = task.get("data") if isinstance(task, Mapping) else None
        if not isinstance(data, Mapping):
            raise TaskError("the task has no data.")
        if self.image_key not in data:
            raise TaskError(f"the task's data has no field {self.image_key!r}, where the image should be.")
        return data[self.image_key]

    def label_control(self, label: str) -> Control | None:
        """The first output control that knows the label."""
        return next((control for control in self.outputs if control.knows(label)), None)

    @property
    def predicted(self) -> tuple[Control, ...]:
        """The outputs that predictions go to: of those that share a <Labels> the first.

        A <Labels> with many tools to draw with would else get each object many times over.
        """
        first = {control.labels_name or control.name: control for control in reversed(self.outputs)}
        return tuple(control for control in self.outputs if control in first.values())

    def output(self, name: str) -> Control | None:
        return next((control for control in self.outputs if control.name == name), None)


@lru_cache(maxsize=64)
def parse(xml: str) -> LabelConfig:
    """The meaning of a labeling config. Raises ConfigError.

    Outputs are the controls on the first Image that draw one of SHAPES, with labels of their own
    (BrushLabels ...) or those of the <Labels> of that image (Brush ...). One with an explicit `smart="true"`
    or `smartOnly="true"` is a tool to prompt with and takes no output, unless no other is there; a keypoint
    is a tool unless it has `smart="false"`. (In Label Studio 1.23.2 every control is smart by default, so
    the attribute only tells the intention where it is written out.)
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
    if not found:
        raise ConfigError(
            "The labeling config has no <BrushLabels>, <PolygonLabels>, <RectangleLabels> or the like with "
            f"labels for <Image name={image.get('name')!r}>, and no <Labels> with a <Brush>."
        )
    plain = [control for tag, control in found if not _is_prompt_tool(tag)]
    # Of prompt tools alone: smart brushes and polygons send no prompts, so they come first.
    order = list(SHAPES)
    outputs = plain or sorted((control for _, control in found), key=lambda c: order.index(c.shape))[:1]
    return LabelConfig(
        image_key=value[1:],
        image_name=image.get("name", ""),
        outputs=tuple(outputs),
        prompt_boxes=frozenset(_prompt_boxes(root)) - {control.name for control in outputs},
    )


class _NoDoctype(ElementTree.TreeBuilder):
    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        """Called before the entities that a DOCTYPE may declare; a config never needs one."""
        raise ConfigError("The labeling config has a DOCTYPE, which Label Studio configs never need.")


def _read(xml: str) -> ElementTree.Element:
    if len(xml) > MAX_CONFIG:
        raise ConfigError(f"The labeling config is longer than {MAX_CONFIG} characters.")
    if not xml.strip():
        raise ConfigError("The labeling config is empty.")
    try:
        parser = ElementTree.XMLParser(target=_NoDoctype())  # noqa: S314 (without DOCTYPE no entities)
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
    if kind == shape:
        if shared is None:
            return None
        labels = tuple(_labels(child for child in shared.iter() if _kind(child) == "label"))
        return Control(name, SHAPES[shape], to_name, labels, shared.get("name")) if labels else None
    labels = tuple(_labels(child for child in tag.iter() if _kind(child) == "label"))
    if not labels:
        log.warning("<%s name=%r> has no labels of its own and is left out.", tag.tag, name)
        return None
    return Control(name, f"{SHAPES[shape]}Labels", to_name, labels)


def _labels(tags: Iterable[ElementTree.Element]) -> Iterator[Label]:
    for tag in tags:
        value, alias = tag.get("value", "").strip(), tag.get("alias", "").strip()
        # Label Studio writes the alias into results, where there is one.
        result = tag.get("alias") or tag.get("value")
        if not result:
            continue
        predicted = (name.strip() for name in tag.get("predicted_values", "").split(","))
        yield Label(value=result, names=tuple(name for name in (value, alias, *predicted) if name))


def _is_prompt_tool(tag: ElementTree.Element) -> bool:
    if _kind(tag).startswith("keypoint") and tag.get("smart", "").strip().lower() != "false":
        return True
    return any(tag.get(name, "").strip().lower() == "true" for name in ("smart", "smartOnly", "smartonly"))


def _prompt_boxes(root: ElementTree.Element) -> Iterator[str]:
    for tag in root.iter():
        if _kind(tag) in ("rectanglelabels", "rectangle") and _is_prompt_tool(tag):
            yield tag.get("name", "")


def _exact(name: str) -> set[str]:
    return {name.strip()}


def _folded(name: str) -> set[str]:
    return {" ".join(re.split(r"[\s_-]+", name.strip().casefold()))}


def _forms(name: str) -> set[str]:
    """The folded name and what it may be the plural of."""
    (folded,) = _folded(name)
    return {form.strip() for form in (folded, *singulars(folded))}
