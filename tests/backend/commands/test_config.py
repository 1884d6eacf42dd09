import shlex
from pathlib import Path

import pytest

from backend.commands.cli import main
from backend.labelstudio import labeling_config
from backend.labelstudio.recommended_configs import (
    KEYS,
    KINDS,
    Kind,
    LabelTag,
    label_config,
    tags_of,
)
from tests.support.fake_label_studio import Studio
from tests.support.labeling_configs import shown


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
