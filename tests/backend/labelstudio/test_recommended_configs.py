"""The labeling configs that we recommend."""

import re
from xml.etree import ElementTree

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from backend.labelstudio import labeling_config
from backend.labelstudio.recommended_configs import (
    KEYS,
    KINDS,
    Kind,
    LabelTag,
    checked,
    label_config,
    names_of,
    tags_of,
)
from tests.support.labeling_configs import shown

OUTPUTS = {
    "masks": ("mask", "BrushLabels"),
    "polygons": ("outline", "PolygonLabels"),
    "boxes": ("box", "Rectangle"),
}
# What Label Studio 1.23.2's editor has on keys without Ctrl and Alt (its keymap.json).
TAKEN = {*"hoemkwprvbu[]", "shift+1", "shift+2", "shift+r"}


@pytest.mark.parametrize("kind", KINDS)
def test_our_server_reads_what_it_recommends(kind: Kind) -> None:
    config = labeling_config.parse(label_config(["Dog", LabelTag("Car", "car", "automobile, taxi")], kind))
    (output,) = config.outputs
    assert (output.name, output.tag) == OUTPUTS[kind]
    assert [label.value for label in output.labels] == ["Dog", "car"]
    assert output.label_of("taxi") == "car"
    assert [(prompt.name, prompt.tag) for prompt in config.prompts] == [("click", "KeyPoint")]
    assert config.prompt_boxes == config.phrases == frozenset()
    assert (config.idle, config.namings) == ((), ())
    assert config.status_of == "said"
    assert config.image_key == "image"


@pytest.mark.parametrize("kind", KINDS)
def test_one_list_stands_above_the_picture(kind: Kind) -> None:
    tags = [tag.tag for tag in ElementTree.fromstring(label_config(["Dog"], kind))]
    assert tags.index("Image") > 0
    assert [tag for tag in tags[: tags.index("Image")] if tag.endswith("Labels")] == [tags[0]]


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_points_to_data_other_than_the_image(kind: Kind) -> None:
    """With a second field, or a fixed text, Label Studio offers JSON and CSV alone for an export."""
    tags = ElementTree.fromstring(label_config(["Dog"], kind)).iter()
    assert {tag.get("value") for tag in tags if tag.tag in ("Image", "Text")} == {"$image"}


@pytest.mark.parametrize("kind", KINDS)
def test_keys_are_unique_and_none_of_a_tool(kind: Kind) -> None:
    xml = label_config([f"label {number}" for number in range(60)], kind)
    keys = [tag.get("hotkey", "") for tag in shown(xml)]
    assert keys[:3] == ["1", "2", "3"]
    assert keys[: len(KEYS)] == list(KEYS)
    assert len(set(KEYS)) == len(KEYS) > 40
    assert not set(KEYS) & TAKEN
    # Label Studio gives a key to every label that has no hotkey, also those of tools.
    others = [tag.get("hotkey") for tag in ElementTree.fromstring(xml).iter("Label")][len(KEYS) :]
    assert set(others) == {" "}


@pytest.mark.parametrize("kind", KINDS)
def test_a_label_more_changes_no_other(kind: Kind) -> None:
    names = [f"label {number}" for number in range(50)]
    for before, after in zip(
        shown(label_config(names[:-1], kind)), shown(label_config(names, kind)), strict=False
    ):
        assert before.attrib == after.attrib


TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\ufffe\uffff"), max_size=20)


@given(st.lists(TEXT, min_size=1, max_size=8), st.sampled_from(KINDS))
def test_whatever_labels_hold_comes_back(names: list[str], kind: Kind) -> None:
    try:
        tags = list(checked(map(LabelTag, names)))
    except ValueError:
        assert any("$" in name for name in names)
        return
    assume(tags)
    xml = label_config(tags, kind)
    assert [tag.get("value") for tag in shown(xml)] == [tag.value for tag in tags]
    assert [(tag.value, tag.alias, tag.predicted_values) for tag in tags_of(xml)] == [
        (tag.value, "", "") for tag in tags
    ]


def test_labels_of_a_config_keep_their_aliases_words_and_colours() -> None:
    xml = """<View><Image name="image" value="$image"/>
    <BrushLabels name="mask" toName="image">
      <Label value="Traffic cone" alias="cone" background="orange"/><Label value="Car"/>
    </BrushLabels>
    <KeyPointLabels name="click" toName="image" smart="true">
      <Label value="Car" predicted_values="taxi" hotkey="c"/><Label value="Traffic cone" alias="cone"/>
    </KeyPointLabels>
    <Choices name="weather" toName="image"><Choice value="Rain"/></Choices></View>"""
    tags = tags_of(xml)
    assert tags == [LabelTag("Traffic cone", "cone", "", "orange"), LabelTag("Car", "", "taxi", "")]
    for kind in KINDS:
        first, second = shown(label_config(tags, kind))
        assert (first.get("background"), first.get("alias")) == ("orange", "cone")
        assert re.fullmatch("#[0-9a-f]{6}", second.get("background", ""))


def test_a_further_label_keeps_away_from_the_colours_of_a_project() -> None:
    first, second = (tag.get("background", "") for tag in shown(label_config(["Dog", "Car"])))
    (_, added) = shown(label_config([LabelTag("Car", background=second), "Bus"]))
    assert added.get("background") not in (second, "")
    (_, added) = shown(label_config([LabelTag("Car", background=first), "Bus"]))
    assert added.get("background") not in (first, "")


def test_a_project_keeps_its_names() -> None:
    """Label Studio refuses a config that its tasks and annotations do not fit."""
    xml = """<View><Image name="photo" value="$pictures[0].url"/>
    <Labels name="kind" toName="photo"><Label value="Dog"/></Labels>
    <Rectangle name="click" toName="photo"/><PolygonLabels name="label" toName="photo"><Label value="Dog"/>
    </PolygonLabels></View>"""
    for kind in KINDS:
        drawn = {"masks": "mask", "polygons": "label", "boxes": "click"}[kind]
        made = label_config(tags_of(xml), kind, names_of(xml, kind))
        config = labeling_config.parse(made)
        assert (config.image_key, config.image_name) == ("pictures[0].url", "photo")
        assert config.outputs[0].name == drawn
        assert config.outputs[0].labels_name == ("kind" if kind == "boxes" else None)
        names = [name for tag in ElementTree.fromstring(made).iter() if (name := tag.get("name"))]
        assert len(set(names)) == len(names)
        assert label_config(tags_of(made), kind, names_of(made, kind)) == made
