"""The labeling configs that we recommend: one for masks, one for polygons, one for boxes."""

from collections.abc import Sequence
from typing import Literal, get_args
from xml.sax.saxutils import quoteattr

from backend.colours import colours

Kind = Literal["masks", "polygons", "boxes"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# The tool that draws the regions. Not smart: a smart brush sends nothing in Label Studio 1.23.2.
_OUTPUT = {
    "masks": '<Brush name="mask" toName="image" smart="false"/>',
    "polygons": '<Polygon name="outline" toName="image" smart="false"/>',
    "boxes": '<Rectangle name="box" toName="image" smart="false"/>',
}


def label_config(labels: Sequence[str], kind: Kind = "masks") -> str:
    """The XML of a labeling config that gives regions of a kind one of these labels, ready to paste."""
    lines = "".join(
        f"    <Label value={quoteattr(label)} background={quoteattr(colour)}/>\n"
        for label, colour in zip(labels, colours(len(labels)), strict=True)
    )
    return (
        "<View>\n"
        f'  <Labels name="label" toName="image">\n{lines}  </Labels>\n'
        '  <Image name="image" value="$image" zoom="true"/>\n'
        f"  {_OUTPUT[kind]}\n"
        '  <KeyPoint name="click" toName="image" smart="true" smartOnly="true"/>\n'
        "</View>\n"
    )
