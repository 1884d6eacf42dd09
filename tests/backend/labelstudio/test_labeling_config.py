import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.labelstudio import labeling_config
from backend.labelstudio.labeling_config import (
    SHAPES,
    ConfigError,
    Control,
    Label,
    LabelConfig,
    TaskError,
    data_with,
    field_of,
    parse,
)
from backend.labelstudio.term_matching import fold


def control(*labels: Label) -> Control:
    return Control("brush", "BrushLabels", "image", labels)


def view(body: str) -> LabelConfig:
    return parse(f'<View><Image name="image" value="$photo"/>{body}</View>')


def tag(kind: str, attributes: str = "", name: str | None = None) -> str:
    return f'<{kind} name="{name or kind}" toName="image" {attributes}><Label value="Cat"/></{kind}>'


def image(value: str) -> str:
    """Return a config whose image has these attributes."""
    return f"<View><Image name='i' {value}/>{tag('BrushLabels').replace('image', 'i')}</View>"


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
    assert config.of(None).names == ("Cat",)


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


@pytest.mark.parametrize(
    "beside",
    [
        '<Image name="other" value="$b"/>',
        '<Image name="other" valueList="$b"/><Choices name="c" toName="other"><Choice value="x"/></Choices>',
        '<Image name="other" value="$b"/><BrushLabels name="o" toName="other"/>',  # no labels
        '<Image name="other" value="$b"/><Brush name="o" toName="other"/>',  # nothing names its regions
        '<Repeater on="$all"><Image name="{{idx}}" value="$all[{{idx}}]"/></Repeater>',
        '<Repeater on="$all"><Choices name="{{idx}}" toName="image"><Choice value="x"/></Choices></Repeater>',
    ],
)
def test_the_image_is_the_one_that_controls_with_labels_point_to(beside: str) -> None:
    labelled = '<Image name="image" value="$photo"/>' + tag("BrushLabels")
    for body in (beside + labelled, labelled + beside):
        config = parse(f"<View>{body}</View>")
        assert (config.image_key, config.image_name, names(config)) == ("photo", "image", ["BrushLabels"])


def test_prompts_and_names_are_those_of_the_labelled_image() -> None:
    both = "".join(
        f'<TextArea name="{name}{on}" toName="{on}" {more}/>'
        for on in ("other", "image")
        for name, more in (("asked-", 'smart="true"'), ("named-", 'perRegion="true"'))
    )
    config = view('<Image name="other" value="$b"/>' + tag("BrushLabels") + both)
    assert config.phrases == {"asked-image"}
    assert [naming.name for naming in config.namings] == ["named-image"]


# Where the image of a task is


NESTED = {"photo": {"url": "a.jpg"}, "imgs": ["b.jpg", {"x": ["c.jpg"]}], "photo.odd": "d.jpg", "none": None}


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("$photo.url", "a.jpg"),
        (" $photo.url ", "a.jpg"),
        ("$imgs[0]", "b.jpg"),
        ("$imgs.0", "b.jpg"),
        ("$imgs[1].x[0]", "c.jpg"),
        ("$photo.odd", "d.jpg"),  # a field of that very name goes first
        ("$none", None),
    ],
)
def test_an_image_is_found_where_the_editor_finds_it(value: str, found: str | None) -> None:
    config = parse(image(f"value='{value}'"))
    assert config.source(NESTED) == found


@pytest.mark.parametrize(
    "path",
    [
        "photo.uri",
        "photo.url.x",
        "imgs[2]",
        "imgs[-1]",
        "imgs[00]",
        "imgs[x]",
        "imgs[" + "9" * 99 + "]",
        "[",
        ".",
    ],
)
def test_a_path_that_leads_nowhere_is_named(path: str) -> None:
    with pytest.raises(TaskError, match=re.escape(f"no field {path!r}, where the image should be")):
        parse(image(f"value='${path}'")).source(NESTED)


def test_a_list_of_images_is_told_so() -> None:
    with pytest.raises(TaskError, match=r"'imgs' holds a list, .* such as value='\$imgs\[0\]'"):
        parse(image("value='$imgs'")).source(NESTED)


@pytest.mark.parametrize("path", ["image", "photo.url", "imgs[0]", "a.b[0].c[0][0]"])
def test_new_tasks_have_their_image_where_it_is_looked_for(path: str) -> None:
    data = data_with(path, "a.jpg")
    assert path == "image" or path not in data
    assert field_of(data, path) == "a.jpg"
    with pytest.raises(ValueError, match="one of several"):
        data_with(f"{path}[1]", "a.jpg")


def test_labels_may_be_deep_in_the_data_too() -> None:
    config = view('<BrushLabels name="b" toName="image" value="$meta.kinds[0]"/>')
    assert config.of({"meta": {"kinds": [["Cone"]]}}).names == ("Cone",)
    assert config.of({"meta": {"kinds": 3}}).names == ()


# How much work it is


LARGE = view(
    "<Labels name='l' toName='image'>"
    + "".join(f"<Label value='Thing {n}'/>" for n in range(1000))
    + "</Labels>"
    + "".join(f"<Brush name='b{n}' toName='image'/>" for n in range(100))
    + "<BrushLabels name='other' toName='image'>"
    + "".join(f"<Label value='Thing {n}'/>" for n in range(1000))
    + "</BrushLabels>"
)


def test_a_thousand_terms_among_a_thousand_labels_are_looked_up_not_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked_at, compared = Counter[str](), Counter[str]()
    written, equal = fold, Control.__eq__

    def folded(name: str) -> set[str]:
        looked_at[name] += 1
        return written(name)

    def same(one: Control, other: object) -> bool:
        compared[one.name] += 1
        return equal(one, other)

    monkeypatch.setattr(labeling_config, "fold", folded)
    monkeypatch.setattr(Control, "__eq__", same)
    config = LARGE.of({})
    for number in range(1000):
        assert [label for _, label in config.named(f"things {number}")] == []
        assert [label for _, label in config.named(f"thing {number}")] == [f"Thing {number}"] * 2
        assert config.label_control(f"Thing {number}") is config.outputs[0]
        assert config.has(f"THING {number}")
        assert not config.has(f"unicorn {number}")
        assert config.output("other") is config.outputs[-1]
    assert looked_at.total() < 20_000  # some rules for each name: comparing takes millions
    assert compared.total() == 0


def test_of_controls_that_share_labels_the_first_is_predicted_however_many_they_are() -> None:
    assert [control.name for control in LARGE.predicted] == ["b0", "other"]


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


BRUSH = "<BrushLabels name='b' toName='i'><Label value='Cat'/></BrushLabels>"
OTHER = "<Image name='j' value='$b'/>" + BRUSH.replace("'i'", "'j'") + "</View>"
NAMES = "<TextArea name='t' toName='i' perRegion='true'/>"
SEVERAL = (
    "with labels for several images, as <Image name='i'> and <Image name='j'>. This model labels one image of"
)


def nested(depth: int, count: int) -> str:
    """Controls inside of controls, each of which has all labels."""
    opened = "<View><Image name='i' value='$a'/>" + "<BrushLabels name='b' toName='i'>" * depth
    return opened + "<Label value='a'/>" * count + "</BrushLabels>" * depth + "</View>"


def repeated(body: str) -> str:
    return f"<Repeater on='$all'>{body}</Repeater>"


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
        (
            image("value='https://x/$id.jpg'"),
            "<Image name='i'> has value='https://x/$id.jpg' instead of a single",
        ),
        (image(f"value='${'x' * 201}'"), "instead of a single field"),
        (image(""), "has value='' instead of a single field"),
        (image("value='$a $b'"), "instead of a single field"),
        (image("valueList='$pages'"), "has valueList='$pages'. This model labels one image of a task"),
        (image("value='$a' valuelist='$pages'"), "has valueList='$pages'"),
        (
            repeated(image("value='$all[{{idx}}]'")),
            "<Repeater on='$all'> repeats <Image name='i'>. This model",
        ),
        (
            "<View><Image name='i' value='$a'/>" + repeated(BRUSH) + "</View>",
            "repeats <BrushLabels name='b'>",
        ),
        (
            "<View>" + repeated("<Image name='i_{{idx}}' value='$all[{{idx}}]'/>") + BRUSH + "</View>",
            "repeats",
        ),
        (image("value='$a'").replace("</View>", OTHER), SEVERAL),
        (
            "<View>" + "<Image name='i' value='$a'/>" * 100 + BRUSH * 101 + "</View>",
            "more than 200 images and",
        ),
        ("<View><Image name='i' value='$a'/>" + BRUSH + NAMES * 200 + "</View>", "more than 200 images and"),
        (nested(90, 3000), "too many labels in controls inside of controls"),
        ("<!DOCTYPE v [<!ENTITY a 'b'>]><View>&a;</View>", "DOCTYPE"),
        ("<!DOCTYPE v SYSTEM 'http://127.0.0.1/x.dtd'><View/>", "DOCTYPE"),
        ("<View>&a;</View>", "not well-formed"),
        ("<View>" + "x" * 1_000_000, "longer"),
    ],
)
def test_f19_a_config_that_cannot_be_used_is_one_sentence(xml: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        parse(xml)


def test_text_areas_of_the_image_are_no_matter() -> None:
    """Forms have many, and an answer none of them."""
    many = "<TextArea name='t' toName='i'/>" * 300
    assert parse(image("value='$a'").replace("</View>", many + "</View>")).outputs


@pytest.mark.parametrize(
    ("control", "to_name"),
    [
        ('<TextArea name="vlsam_status" toName="said"/>', "said"),
        ('<textarea name="vlsam_status" toName="image" smart="true"/>', "image"),
        ('<TextArea name="status" toName="said"/>', None),
        ('<Choices name="vlsam_status" toName="said"/>', None),
        ('<TextArea name="vlsam_status" toName="image" perRegion="true"/>', None),
        ("", None),
    ],
)
def test_the_status_is_a_text_area_of_that_name_that_is_not_about_regions(
    control: str, to_name: str | None
) -> None:
    config = view(f'{tag("BrushLabels")}<Text name="said" value="$photo"/>{control}')
    assert config.status_of == to_name
    assert (config.phrases, config.namings) == (frozenset(), ())  # and nobody prompts with it


def test_labels_that_many_images_share_are_not_read_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def count(tags: Iterable[Any]) -> list[Label]:
        read.append(len([*tags]))
        return [Label("Cat", ("Cat",))]

    monkeypatch.setattr(labeling_config, "labels_of", count)
    names = [f"i{n}" for n in range(150)]
    images = "".join(f"<Image name='{name}' value='$a'/>" for name in names)
    choices = f"<Taxonomy name='t' toName='{','.join(names)}' perRegion='true'>{'<Choice/>' * 9}</Taxonomy>"
    with pytest.raises(ConfigError, match="no <BrushLabels>"):
        parse(f"<View>{images}{choices}</View>")
    brush = f"<BrushLabels name='b' toName='{','.join(names)}'><Label/></BrushLabels>"
    with pytest.raises(ConfigError, match="for several images"):
        parse(f"<View>{images}{choices}{brush}</View>")
    assert sum(read) <= 2 * (9 + 1)


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


@pytest.mark.parametrize(
    ("xml", "empty"),
    [
        ("", True),
        (" <View></View>\n", True),
        ("<View><View/></View>", True),
        ('<View><Image name="image" value="$image"/></View>', False),
        ("<View><!DOCTYPE", False),
        ('<!DOCTYPE v [<!ENTITY a "a">]><View>&a;</View>', False),
    ],
)
def test_only_a_new_projects_config_is_empty(xml: str, empty: bool) -> None:
    assert labeling_config.is_empty(xml) is empty


def test_all_that_controls_point_to_is_what_is_shown() -> None:
    head = (
        '<View><Image name="image" value="$image"/><Header value="Pets"/><Text name="unused" value="none"/>'
    )
    brush = '<BrushLabels name="brush" toName="image"><Label value="Cat"/></BrushLabels>'
    status = '<Text name="said" value="{}"/><TextArea name="vlsam_status" toName="said"/></View>'
    assert labeling_config.data_keys(head + brush + status.format("$image")) == {"$image"}
    assert labeling_config.data_keys(head + brush + status.format("VL-SAM:")) == {"$image", "VL-SAM:"}
