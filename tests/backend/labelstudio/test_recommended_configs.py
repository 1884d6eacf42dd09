"""`vlsam config`: the labeling configs that we recommend."""

import re
import shlex
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from backend.commands.cli import main
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
from tests.support.fake_label_studio import Studio

OUTPUTS = {
    "masks": ("mask", "BrushLabels"),
    "polygons": ("outline", "PolygonLabels"),
    "boxes": ("box", "Rectangle"),
}
# What Label Studio 1.23.2's editor has on keys without Ctrl and Alt (its keymap.json).
TAKEN = {*"hoemkwprvbu[]", "shift+1", "shift+2", "shift+r"}


def shown(xml: str) -> list[ElementTree.Element]:
    """The <Label> tags of the list above the picture."""
    return [tag for tag in next(iter(ElementTree.fromstring(xml))) if tag.tag == "Label"]


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


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(["config", *arguments])
    return status, *capsys.readouterr()


def test_the_command_prints_the_config_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    for kind in KINDS:
        status, out, err = run(capsys, "--labels", "Dog,Car", "--for", kind)
        assert (status, err) == (0, "")
        assert out == label_config(["Dog", "Car"], kind)
    assert run(capsys, "--labels", "Dog,Car")[1] == label_config(["Dog", "Car"], "masks")


def test_commas_spaces_blanks_and_repeats(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "--labels", ' Dog , "Boots, ""black""",, <Car> & co ,Dog')
    assert status == 0
    assert [tag.get("value") for tag in shown(out)] == ["Dog", 'Boots, "black"', "<Car> & co"]
    assert err == "vlsam: 2 empty or repeated labels are left out\n"


def test_labels_from_a_file_and_further_ones(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes("\ufeffDog\r\nBoots, black\r\n\r\nHündin 🐕\r\n".encode())
    status, out, err = run(capsys, "--from", str(path), "--labels", "Bus")
    assert status == 0
    assert [tag.get("value") for tag in shown(out)] == ["Dog", "Boots, black", "Hündin 🐕", "Bus"]
    assert "1 empty" in err


def test_labels_from_another_config(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "old.xml"
    path.write_text(label_config([LabelTag("Car", "car", "taxi"), LabelTag("Dog")], "boxes"))
    status, out, _ = run(capsys, "--from", str(path), "--for", "polygons")
    assert status == 0
    assert [(tag.value, tag.alias, tag.predicted_values) for tag in tags_of(out)] == [
        ("Car", "car", "taxi"),
        ("Dog", "", ""),
    ]
    assert run(capsys, "--from", str(path), "--for", "boxes")[1] == path.read_text()


@pytest.mark.parametrize("source", [("project", "7"), ("project 7",), ("labelstudio://7",)])
def test_the_labels_and_names_of_a_project(
    source: tuple[str, ...], studio: Studio, capsys: pytest.CaptureFixture[str]
) -> None:
    studio.project["label_config"] = """<View><Image name="photo" value="$picture"/>
    <BrushLabels name="kind" toName="photo"><Label value="Dog" alias="dog" background="red"/>
    </BrushLabels></View>"""
    status, out, err = run(capsys, "--from", *source, "--labels", "Bus")
    assert (status, err) == (0, "")
    assert tags_of(out)[0] == LabelTag("Dog", "dog", "", "red")
    assert [tag.get("value") for tag in shown(out)] == ["Dog", "Bus"]
    config = labeling_config.parse(out)
    assert (config.image_key, config.image_name, config.outputs[0].name) == ("picture", "photo", "kind")


def test_more_labels_than_keys_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "--labels", ",".join(f"label {number}" for number in range(60)))
    assert status == 0
    assert len(shown(out)) == 60
    assert f"the first {len(KEYS)} of 60 labels have a key" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "there are no labels: give --labels"),
        (("--labels", " , "), "there are no labels"),
        (("--labels", 'Dog,"Car'), "is not a list with commas"),
        (("--labels", "Price $5"), "has a $ before a word"),
        (("--labels", "a\x00b"), "characters that no labeling config can hold"),
        (("--labels", "a\x1b[31m"), "characters that no labeling config can hold"),
        (("--labels", "\ufffe"), "characters that no labeling config can hold"),
        (("--labels", "\udcff"), "characters that no labeling config can hold"),
        (("--labels", "x" * 201), "more than 200 characters"),
        (("--labels", ",".join(map(str, range(1001)))), "more than 1000 labels"),
        (("--from", "none.txt"), "--from none.txt cannot be read"),
        (("--from", "."), "--from . cannot be read"),
        (("--from", "labelstudio://seven"), "labelstudio://7"),
        (("--from", "project", "seven"), "labelstudio://7"),
        (("--from", "project", "7", "8"), "labelstudio://7"),
        (("--from", "one.txt", "two.txt"), "give one file, or project and its number"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("xml", "said"),
    [
        ("<View><Image", "not well-formed"),
        ('<View><Image name="image" value="$image"/></View>', "has no <BrushLabels>"),
        (
            '<View><Image name="image" value="$image"/>'
            '<BrushLabels name="mask" toName="image" value="$kinds"/></View>',
            "has no labels: they come with the data of tasks",
        ),
    ],
)
def test_a_config_without_labels_is_said(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, xml: str, said: str
) -> None:
    path = tmp_path / "config.xml"
    path.write_text(xml)
    status, out, err = run(capsys, "--from", str(path))
    assert (status, out) == (2, "")
    assert said in err


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_shows_what_the_command_prints(capsys: pytest.CaptureFixture[str], kind: Kind) -> None:
    page = (Path(__file__).parents[3] / "docs/label-studio/configs.md").read_text()
    command = f'vlsam config --labels "Dog,Traffic cone" --for {kind}'
    _, xml, _ = run(capsys, *shlex.split(command)[2:])
    assert f"```sh\n{command}\n```\n\n```xml\n{xml}```\n" in page
