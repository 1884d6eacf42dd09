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


def test_outputs_whose_smart_tool_sends_nothing_unless_they_have_none() -> None:
    tags = [f"{shape}Labels" for shape in SHAPES.values()]
    assert [c.tag for c in view("".join(tag(kind) for kind in tags)).idle] == ["BrushLabels", "BitmaskLabels"]
    assert view("".join(tag(kind, 'smart="false"') for kind in tags)).idle == ()
    shared = '<Labels name="l" toName="image"><Label value="Cat"/></Labels>'
    assert [c.tag for c in view(shared + '<Brush name="b" toName="image"/>').idle] == ["Brush"]


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


def test_controls_without_labels_are_output_where_something_else_names_their_regions() -> None:
    text = '<TextArea name="what" toName="image" perRegion="{}"/>'
    plain = '<Brush name="brush" toName="image"/>'
    config = view(plain + text.format("true") + '<KeyPoint name="kp" toName="image"/>')
    assert [(c.name, c.takes_labels) for c in config.outputs] == [("brush", False)]
    assert [(naming.name, naming.words("dog")) for naming in config.namings] == [("what", ["dog"])]
    with pytest.raises(ConfigError, match=r'no <Brush> with a <TextArea perRegion="true">'):
        view(plain + text.format("false"))
    with pytest.raises(ConfigError, match=r"no <Brush> with"):
        view(plain + text.format("true").replace("what", "vlsam_status"))
    # A box to prompt with has no labels either, and stays one.
    mixed = tag("BrushLabels", 'smart="false"') + '<Rectangle name="drag" toName="image"/>'
    assert names(view(mixed + text.format("true"))) == ["BrushLabels"]
    assert names(view(tag("KeyPointLabels") + plain + text.format("true"))) == ["brush"]


def test_a_taxonomy_names_what_it_has_a_choice_for() -> None:
    config = view(
        """<Brush name="b" toName="image"/><Taxonomy name="kind" toName="image" perRegion="true">
        <Choice value="Animal"><Choice value="Dog"/><Choice value="Hauskatze" alias="cat"/></Choice>
        <Choice value="Furniture"><Choice value="Sofa"/></Choice></Taxonomy>"""
    )
    (kind,) = config.namings
    assert kind.words("dogs") == [["Animal", "Dog"]]
    assert kind.words("cat") == [["Animal", "cat"]]
    assert kind.words("couch") == [["Furniture", "Sofa"]]
    assert kind.words("animal") == [["Animal"]]
    assert kind.words("unicorn") is None


@pytest.mark.parametrize("control", ['<BrushLabels name="b" toName="image" value="$kinds"/>',
    '<Labels name="l" toName="image" value="$kinds"/><Brush name="b" toName="image"/>'])  # fmt: skip
def test_labels_from_a_tasks_data(control: str) -> None:
    config = view(control)
    assert config.named("cone") == []
    data = {
        "kinds": [{"value": "Cone", "predicted_values": "pylon"}, {"value": "Hund", "alias": "dog"}, "Cup"]
    }
    of_task = config.of(data)
    found = {term: label for term in ("cones", "pylon", "dog", "cup") for _, label in of_task.named(term)}
    assert found == {"cones": "Cone", "pylon": "Cone", "dog": "dog", "cup": "Cup"}
    assert of_task.names == ("Cone", "pylon", "Hund", "dog", "Cup")
    assert config.named("cone") == []  # another task's labels stay its own


@pytest.mark.parametrize(
    "given", [None, 3, "Cone", {"value": "Cone"}, [None, 3, [], {}, {"value": 3}, "", "x" * 201]]
)
def test_data_that_holds_no_labels(given: Any) -> None:
    config = view('<BrushLabels name="b" toName="image" value="$kinds"><Label value="Cat"/></BrushLabels>')
    assert config.of({"kinds": given}).names == ("Cat",)
    assert config.of(given).names == ("Cat",)


def test_labels_of_a_config_and_of_data_in_one_control_are_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    view('<BrushLabels name="x" toName="image" value="$kinds"><Label value="Cat"/></BrushLabels>')
    assert "refuses predictions with the latter where its prediction validation is on" in caplog.text


def test_labels_from_data_are_bounded() -> None:
    config = view('<BrushLabels name="b" toName="image" value="$kinds"/>')
    assert len(config.of({"kinds": [f"thing {n}" for n in range(5000)]}).names) == 1000


@pytest.mark.parametrize(
    ("label", "term"),
    [
        ("Car", "automobiles"),
        ("automobile", "car"),
        ("Couches", "sofa"),
        ("Television", "tv"),
        ("tvmonitor", "tv"),
    ],
)
def test_a_label_is_found_by_a_synonym(label: str, term: str) -> None:
    known = control(Label(label, (label,)))
    assert known.label_of(term) is None
    assert known.synonym_of(term) == label


def test_no_synonym_is_asked_where_a_control_has_the_very_word() -> None:
    config = view(
        """<BrushLabels name="b" toName="image"><Label value="Automobile"/><Label value="Couch"/>
        </BrushLabels><PolygonLabels name="p" toName="image"><Label value="Car"/></PolygonLabels>
        <RectangleLabels name="r" toName="image"><Label value="sofas"/><Label value="Couch"/>
        </RectangleLabels>"""
    )
    named = {
        term: [(c.name, label) for c, label in config.named(term)] for term in ("cars", "sofa", "settee")
    }
    assert named["cars"] == [("p", "Car")]
    assert named["sofa"] == [("r", "sofas")]
    assert named["settee"] == [("b", "Couch"), ("r", "sofas")]


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
def test_f19_a_config_that_cannot_be_used_is_one_sentence(xml: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence.replace("$", r"\$")):
        parse(xml)


def test_entities_are_not_expanded() -> None:
    bomb = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 12))
    with pytest.raises(ConfigError, match="DOCTYPE"):
        parse(f'<!DOCTYPE v [<!ENTITY l0 "lol">{bomb}]><View>&l11;</View>')


def test_tags_are_not_nested_without_end() -> None:
    deep = "<Choice value='a'>" * 3000 + "</Choice>" * 3000
    with pytest.raises(ConfigError, match="more than 100 tags in each other"):
        parse(f"<View><Image name='i' value='$i'/><Taxonomy name='t' toName='i' perRegion='true'>{deep}")


@given(st.text(max_size=200))
def test_f19_hostile_text_is_a_config_error(xml: str) -> None:
    with pytest.raises(ConfigError):
        parse(xml)
