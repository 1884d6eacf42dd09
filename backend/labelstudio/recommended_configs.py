"""Make the recommended labeling configs: one each for masks, polygons and boxes."""

import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args
from xml.sax.saxutils import quoteattr

from backend.labelstudio import labeling_config
from backend.labelstudio.labeling_config import MAX_LABEL, MAX_LABELS
from backend.labelstudio.status_control import STATUS

Kind = Literal["masks", "polygons", "boxes"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# Label Studio's own tools have the other letters, and shift+1, shift+2 and shift+r.
_PLAIN_KEYS = "1234567890acdfgijlnqstxyz"
KEYS = (*_PLAIN_KEYS, *(f"shift+{key}" for key in _PLAIN_KEYS[2:]))
# Labels without a key of their own get one from Label Studio, tools' keys too, unless they have one that no
# keyboard has.
NO_KEY = " "

# Characters that XML does not allow, or that control terminals.
_UNFIT = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")

# The text that the status belongs to is hidden. With another value than the image's, Label Studio
# would export JSON and CSV alone. With maxSubmissions="1" a message takes the empty field's place: one more
# line would move the picture away under the next click.
_BELOW = f"""\
  <View style="display:none"><Text name={{said}} value={{value}}/></View>
  <TextArea name="{STATUS}" toName={{said}} placeholder="VL-SAM says here why there is no answer"
            editable="false" maxSubmissions="1" showSubmitButton="false"/>
  <KeyPoint name={{click}} toName={{image}} smart="true" smartOnly="true"/>
  <Image name={{image}} value={{value}} zoom="true"/>
{{tool}}\
"""
# A control with smart="false" and smartOnly="true" has no tool of its own that a label would choose.
_MASKS = """\
<View>
  <BrushLabels name={drawn} toName={image} smart="false" smartOnly="true">
{labels}  </BrushLabels>
{below}</View>
"""
_POLYGONS = """\
<View>
  <Labels name={label} toName={image}>
{labels}  </Labels>
{below}  <Collapse>
    <Panel value="Rename a region, or draw by hand">
      <PolygonLabels name={drawn} toName={image} smart="false">
{again}      </PolygonLabels>
    </Panel>
  </Collapse>
</View>
"""
_BOXES = """\
<View>
  <Labels name={label} toName={image}>
{labels}  </Labels>
{below}</View>
"""
_TOOLS = {
    "masks": '  <Brush name={paint} toName={image} smart="false"/>\n',
    "polygons": "",
    "boxes": '  <Rectangle name={drawn} toName={image} smart="false"/>\n',
}
_DRAWN = {
    "masks": ("BrushLabels", "mask"),
    "polygons": ("PolygonLabels", "outline"),
    "boxes": ("Rectangle", "box"),
}


@dataclass(frozen=True)
class Names:
    """The names of a project's data field and tags that its tasks and annotations refer to."""

    field: str = "image"  # of the tasks' data, where the image is
    image: str = "image"  # the <Image>
    drawn: str = ""  # the control whose regions a config is for; "" for ours
    label: str = ""  # the <Labels> of boxes; "" for ours


@dataclass(frozen=True)
class LabelTag:
    """The attributes of a <Label>."""

    value: str
    alias: str = ""
    predicted_values: str = ""
    background: str = ""  # its colour; chosen where there is none

    @property
    def name(self) -> str:
        """The label's name in results: its alias, or else its value."""
        return self.alias or self.value


def label_config(tags: Sequence[LabelTag | str], kind: Kind = "masks", names: Names = Names()) -> str:
    """Return the XML of a labeling config for regions of a kind with these labels.

    Label Studio 1.23.2 exports masks only from BrushLabels and polygons only from PolygonLabels (measured).
    Choosing a label also chooses the drawing tool of its list. BrushLabels can be without a tool.
    PolygonLabels always have one. So for polygons, clicks take their label from <Labels>. The PolygonLabels
    serve to rename regions and draw by hand. Boxes are exported from <Labels> and Rectangle.
    """
    from backend.labelstudio.label_colours import colours  # imports OpenCV, which loads slowly

    labels = [LabelTag(tag) if isinstance(tag, str) else tag for tag in tags]
    taken = tuple(tag.background for tag in labels if tag.background)
    chosen = iter(colours(len(labels) - len(taken), taken))
    labels = [tag if tag.background else replace(tag, background=next(chosen)) for tag in labels]
    keys = [*KEYS[: len(labels)], *[NO_KEY] * (len(labels) - len(KEYS))]
    template = {"masks": _MASKS, "polygons": _POLYGONS, "boxes": _BOXES}[kind]
    tools = {name: quoteattr(text) for name, text in _named(kind, names).items()}
    below = _BELOW.replace("{tool}", _TOOLS[kind])
    return template.format(
        labels="".join(_label(tag, key, 4) for tag, key in zip(labels, keys, strict=True)),
        again="".join(_label(tag, NO_KEY, 8) for tag in labels),
        below=below.format(value=quoteattr(f"${names.field}"), **tools),
        **tools,
    )


def _named(kind: Kind, names: Names) -> dict[str, str]:
    """Return the names for all tags. A default name that the project uses gets the prefix "vlsam_"."""
    theirs = {"image": names.image, "drawn": names.drawn or _DRAWN[kind][1]}
    theirs |= {"label": names.label} if names.label else {}
    taken = theirs.values()
    ours = {name: f"vlsam_{name}" if name in taken else name for name in ("label", "click", "paint", "said")}
    return {**ours, **theirs}


def _label(tag: LabelTag, key: str, indent: int) -> str:
    attributes: Mapping[str, str] = {
        "value": tag.value,
        "alias": tag.alias,
        "background": tag.background,
        "predicted_values": tag.predicted_values,
        "hotkey": key,
    }
    written = " ".join(f"{name}={quoteattr(value)}" for name, value in attributes.items() if value)
    return f"{' ' * indent}<Label {written}/>\n"


def names_of(xml: str, kind: Kind) -> Names:
    """Return the names in a labeling config that a recommended one must keep. Raises ConfigError."""
    config = labeling_config.parse(xml)
    same = [control for control in config.outputs if control.tag == _DRAWN[kind][0]]
    drawn, label = (same[0].name, same[0].labels_name or "") if same else ("", "")
    return Names(config.image_key, config.image_name, drawn, label)


def tags_of(xml: str) -> list[LabelTag]:
    """Return the labels of a labeling config for its labelled image, each once. Raises ConfigError."""
    tags: dict[str, LabelTag] = {}
    for tag in labeling_config.label_tags(xml):
        value, alias, predicted, colour = (
            tag.get(name, "").strip() for name in ("value", "alias", "predicted_values", "background")
        )
        label = LabelTag(value, alias, predicted, colour)
        earlier = tags.setdefault(label.name, label)
        # Another list may hold the attributes that one list leaves out.
        tags[label.name] = replace(
            earlier,
            predicted_values=earlier.predicted_values or predicted,
            background=earlier.background or colour,
        )
    return [tag for tag in tags.values() if tag.value]


def checked(tags: Iterable[LabelTag]) -> Iterator[LabelTag]:
    """Yield each tag once, with white space collapsed. Raises ValueError for invalid or too many labels."""
    seen: set[str] = set()
    for tag in tags:
        tag = replace(tag, **{name: " ".join(text.split()) for name, text in vars(tag).items()})
        for text in (tag.value, tag.alias, tag.predicted_values):
            if _UNFIT.search(text):
                raise ValueError(f"the label {text[:80]!r} has characters that no labeling config can hold")
            if len(text) > MAX_LABEL and text is not tag.predicted_values:
                raise ValueError(f"the label {text[:80]!r}... has more than {MAX_LABEL} characters")
        if re.search(r"\$[\w\[\].{}]", tag.value):
            raise ValueError(
                f"the label {tag.value!r} has a $ before a word: Label Studio would show a field of the task"
            )
        if tag.name and tag.name not in seen:
            seen.add(tag.name)
            yield tag
        if len(seen) > MAX_LABELS:
            raise ValueError(f"there are more than {MAX_LABELS} labels")


def split(text: str) -> list[LabelTag]:
    """Parse labels separated by commas. A label in quotes may contain commas. Raises ValueError."""
    try:
        return [
            LabelTag(label) for row in csv.reader([text], skipinitialspace=True, strict=True) for label in row
        ]
    except csv.Error as error:
        raise ValueError(f"--labels {text[:80]!r} is not a list with commas between: {error}") from None
