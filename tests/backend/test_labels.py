from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.labels import SHAPES, ConfigError, Control, Label, LabelConfig, parse


def control(*labels: Label) -> Control:
    return Control("brush", "BrushLabels", "image", labels)


def view(body: str) -> LabelConfig:
    return parse(f'<View><Image name="image" value="$photo"/>{body}</View>')


def tag(kind: str, attributes: str = "", name: str | None = None) -> str:
    return f'<{kind} name="{name or kind}" toName="image" {attributes}><Label value="Cat"/></{kind}>'


def names(config: LabelConfig) -> list[str]:
    return [control.name for control in config.outputs]


def test_a_recorded_config(capture: Callable[..., Any]) -> None:
    config = parse(capture("server_setup")["schema"])
    assert config.image_key == "image"
    assert [(c.name, c.type) for c in config.outputs] == [("brush", "brushlabels"), ("poly", "polygonlabels")]
    assert [label.value for label in config.outputs[0].labels] == ["Cat", "Dog"]


def test_smart_controls_are_prompt_tools() -> None:
    config = view(tag("RectangleLabels", 'smart="true"') + tag("PolygonLabels") + tag("KeyPointLabels"))
    assert names(config) == ["PolygonLabels"]
    assert names(view(tag("BrushLabels", 'smartOnly="true"') + tag("RectangleLabels"))) == ["RectangleLabels"]
    assert names(view(tag("BrushLabels", 'smart="false"'))) == ["BrushLabels"]


def test_the_only_region_control_is_output_even_when_smart() -> None:
    assert names(view(tag("KeyPointLabels") + tag("RectangleLabels", 'smart="true"'))) == ["RectangleLabels"]


def test_of_smart_controls_alone_the_one_that_sends_no_prompts_is_output() -> None:
    both = tag("RectangleLabels", 'smart="true"') + tag("BrushLabels", 'smart="true"')
    assert names(view(both)) == ["BrushLabels"]


def test_a_keypoint_control_is_a_tool_to_click_with_unless_it_says_otherwise() -> None:
    assert names(view(tag("BrushLabels") + tag("KeyPointLabels"))) == ["BrushLabels"]
    both = tag("BrushLabels") + tag("KeyPointLabels", 'smart="false"')
    assert names(view(both)) == ["BrushLabels", "KeyPointLabels"]
    assert names(view(tag("KeyPointLabels"))) == ["KeyPointLabels"]


def test_every_control_that_draws() -> None:
    tags = [f"{shape}Labels" for shape in SHAPES.values()]
    config = view("".join(tag(kind, 'smart="false"') for kind in tags))
    assert [(c.tag, c.type, c.shape) for c in config.outputs] == [
        (f"{name}Labels", f"{shape}labels", shape) for shape, name in SHAPES.items()
    ]
    assert config.predicted == config.outputs


def test_controls_that_share_a_labels_tag(capture: Callable[..., Any]) -> None:
    config = parse(capture("ui_47_labels_rect", 1)["label_config"])
    assert [(c.name, c.type, c.labels_name) for c in config.outputs] == [
        ("brush", "brush", "label"),
        ("poly", "polygon", "label"),
    ]
    assert config.outputs[0].label_of("cats") == "Cat"
    # Else an object would be predicted once for each tool to draw it with.
    assert [c.name for c in config.predicted] == ["brush"]


def test_controls_without_labels_need_a_labels_tag_on_their_image() -> None:
    plain = '<Brush name="brush" toName="image"/>'
    shared = '<Labels name="label" toName="{}"><Label value="Cat"/></Labels>'
    assert names(view(plain + shared.format("image"))) == ["brush"]
    with pytest.raises(ConfigError, match=r"no <Labels> with a <Brush>"):
        view(plain)
    with pytest.raises(ConfigError, match=r"no <Labels> with a <Brush>"):
        view(plain + shared.format("other"))


def test_only_the_first_image_counts() -> None:
    config = view(
        '<Image name="other" value="$b"/>'
        + tag("BrushLabels")
        + '<PolygonLabels name="p" toName="other"><Label value="Cat"/></PolygonLabels>'
    )
    assert (config.image_key, names(config)) == ("photo", ["BrushLabels"])


def test_labels_nested_in_views_and_comments_between_them() -> None:
    config = view(
        '<BrushLabels name="b" toName="image"><!-- pets --><View><Label value="Cat"/></View></BrushLabels>'
    )
    assert [label.value for label in config.outputs[0].labels] == ["Cat"]


def test_results_carry_the_alias() -> None:
    config = view('<BrushLabels name="b" toName="image"><Label value="Hauskatze" alias="cat"/></BrushLabels>')
    assert config.outputs[0].label_of("cats") == "cat"
    assert config.outputs[0].label_of("hauskatze") == "cat"
    assert config.label_control("cat") is config.outputs[0]
    assert config.label_control("Hauskatze") is None


@pytest.mark.parametrize(
    ("term", "label"),
    [
        ("Vehicle", "Vehicle"),
        ("vehicles", "Vehicle"),
        ("pickup truck", "Vehicle"),
        ("Pickup-Trucks", "Vehicle"),
        ("bus", "bus"),
        ("buses", "bus"),
        ("mice", "Mouse"),
        ("octopuses", "octopus"),
        ("wolves", "wolf"),
        ("butterflies", "butterfly"),
        ("knife", "Knives"),
        ("Wine-Glasses", "wine glass"),
        ("bu", None),
        ("truck", None),
        ("", None),
    ],
)
def test_terms_find_labels_by_case_number_and_predicted_values(term: str, label: str | None) -> None:
    known = control(
        Label("Vehicle", ("Vehicle", "car", "pickup truck")),
        *(Label(name, (name,)) for name in ("bus", "Mouse", "octopus", "wolf", "butterfly")),
        *(Label(name, (name,)) for name in ("Knives", "wine glass")),
    )
    assert known.label_of(term) == label


def test_an_exact_match_goes_before_a_looser_one() -> None:
    known = control(Label("cats", ("cats",)), Label("Cat", ("Cat",)), Label("cat", ("cat",)))
    assert [known.label_of(term) for term in ("cat", "Cat", "cats", "CATS")] == ["cat", "Cat", "cats", "cats"]


@given(st.text(max_size=30))
def test_any_term_finds_a_label_or_none(term: str) -> None:
    assert control(Label("Cat", ("Cat",))).label_of(term) in ("Cat", None)


@pytest.mark.parametrize(
    ("xml", "sentence"),
    [
        ("", "is empty"),
        ("<View><Image name='i' value='$i'>", "not well-formed"),
        ("\0", "not well-formed"),
        ("<View><Text name='t' value='$t'/></View>", "no <Image>"),
        (
            "<View><Image name='i' value='$i'/></View>",
            "no <BrushLabels>, <PolygonLabels>, <RectangleLabels> or the like",
        ),
        ("<View><Image name='i' value='$i'/><BrushLabels name='b' toName='i'/></View>", "with labels"),
        ("<View><Image name='i' value='https://x/$id.jpg'/></View>", "instead of a single field"),
        ("<!DOCTYPE v [<!ENTITY a 'b'>]><View>&a;</View>", "DOCTYPE"),
        ("<!DOCTYPE v SYSTEM 'http://127.0.0.1/x.dtd'><View/>", "DOCTYPE"),
        ("<View>&a;</View>", "not well-formed"),
        ("<View>" + "x" * 1_000_000, "longer"),
    ],
)
def test_a_config_that_cannot_be_used_is_one_sentence(xml: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence.replace("$", r"\$")):
        parse(xml)


def test_entities_are_not_expanded() -> None:
    bomb = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 12))
    with pytest.raises(ConfigError, match="DOCTYPE"):
        parse(f'<!DOCTYPE v [<!ENTITY l0 "lol">{bomb}]><View>&l11;</View>')


@given(st.text(max_size=200))
def test_hostile_text_is_a_config_error(xml: str) -> None:
    with pytest.raises(ConfigError):
        parse(xml)
