import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
from label_studio_sdk.label_interface import LabelInterface

from backend.answers.resources import Resources
from tests.support.detections import detection, disc
from tests.support.editor_gestures import click_context
from tests.support.labeling_configs import CONFIG
from tests.support.predictions import OPEN, SPLIT, STATUS, backend, placed, shown, task
from tests.support.stand_in import StandIn

Make = Callable[..., Resources]


CONE = "traffic cone"


def test_a_control_that_shares_its_labels_gets_two_results_of_one_id(make_resources: Make) -> None:
    config = """<View><Image name="image" value="$image"/>
      <Labels name="label" toName="image"><Label value="Cat"/><Label value="Dog"/></Labels>
      <KeyPoint name="kp" toName="image"/><Brush name="brush" toName="image"/>
      <Polygon name="poly" toName="image"/></View>"""
    (prediction,) = backend(make_resources(), config).predict([task()])
    assert LabelInterface(config).validate_prediction(prediction, return_errors=True) == []
    cat, cats_label, dog, dogs_label = prediction["result"]
    assert (cat["from_name"], cat["type"]) == ("brush", "brush")
    assert (cats_label["from_name"], cats_label["type"], cats_label["value"]["labels"]) == (
        "label",
        "labels",
        ["Cat"],
    )
    assert dogs_label["value"]["labels"] == ["Dog"]
    assert cat["id"] == cats_label["id"] != dog["id"] == dogs_label["id"]
    assert cat["meta"]["vlsam"]["term"] == "cat"
    (answer,) = backend(make_resources(), config).predict([task()], context=click_context(20, 30))
    assert [set(result["value"]) for result in answer["result"]] == [{"format", "rle"}, {"labels"}]


def test_an_ellipse_is_predicted_where_it_fits_and_drawn_where_it_was_asked_for(
    make_resources: Make, stand_in: StandIn
) -> None:
    config = """<View><Image name="image" value="$image"/><EllipseLabels name="ellipse" toName="image">
      <Label value="Cat"/><Label value="Dog"/></EllipseLabels></View>"""
    stand_in.found = [detection("cat", disc(20, 30, 12)), detection("dog", disc(20, 30, 9) | disc(70, 30, 9))]
    ours = backend(make_resources(), config)
    (prediction,) = ours.predict([task()])
    assert [result["value"]["ellipselabels"] for result in prediction["result"]] == [["Cat"]]
    both = {"result": click_context(20, 30)["result"] + [{**click_context(70, 30)["result"][0], "id": "q"}]}
    (answer,) = ours.predict([task()], context=both)
    assert len(answer["result"]) == 1


def test_two_of_a_kind_have_two_ids(make_resources: Make, stand_in: StandIn) -> None:
    stand_in.found = [detection("cat", disc(20, 30, 12)), detection("cat", disc(60, 30, 12))]
    (prediction,) = backend(make_resources()).predict([task()])
    assert len({r["id"] for r in prediction["result"]}) == 4


def test_every_control_takes_the_labels_that_it_knows(make_resources: Make) -> None:
    (prediction,) = backend(make_resources(), SPLIT).predict([task()])
    assert [(r["from_name"], r["value"][r["type"]]) for r in prediction["result"]] == [
        ("brush", ["Cat"]),
        ("poly", ["Cat"]),
        ("poly", ["Dog"]),
    ]


def test_terms_without_a_label_are_dropped_and_counted(
    make_resources: Make, stand_in: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    stand_in.found.append(detection("unicorn", disc(40, 30, 5)))
    with caplog.at_level(logging.INFO):
        (prediction,) = backend(make_resources()).predict([task()])
    assert len(prediction["result"]) == 4
    assert "3 detections, 4 regions, 1 terms without a label: 'unicorn'" in caplog.text


CATS = [("brush", ["Cat"], None), ("poly", ["Cat"], None)]


@pytest.mark.parametrize(
    ("leftover", "more"),
    [
        ("drop", []),
        ("keep", [("brush", [], ["unicorn"])]),
        ("other:dogs", [("brush", ["Dog"], ["unicorn"]), ("poly", ["Dog"], ["unicorn"])]),
        ("other:Thing", []),
    ],
)
def test_the_policy_for_terms_without_a_label(
    make_resources: Make, with_unicorn: StandIn, leftover: str, more: list[Any]
) -> None:
    resources = make_resources(leftover=leftover)
    (prediction,) = backend(resources, project="1.1").predict([task()])
    assert placed(prediction) == CATS + more
    assert LabelInterface(CONFIG).validate_prediction(prediction, return_errors=True) == []
    assert resources.unmatched_terms.report("1") == ("1.1", [("unicorn", 1)])


def test_other_is_only_where_a_control_has_that_label(make_resources: Make, with_unicorn: StandIn) -> None:
    (prediction,) = backend(make_resources(leftover="other:Dog"), SPLIT).predict([task()])
    assert placed(prediction) == [*CATS, ("poly", ["Dog"], ["unicorn"])]


SHARED = """<View><Image name="image" value="$image"/>
  <Labels name="label" toName="image"><Label value="Cat"/></Labels>
  <Brush name="brush" toName="image"/></View>"""


def test_a_region_without_a_label_of_a_labels_tag_is_its_geometry_alone(
    make_resources: Make, with_unicorn: StandIn
) -> None:
    (prediction,) = backend(make_resources(leftover="keep"), SHARED).predict([task()])
    assert [r["type"] for r in prediction["result"]] == ["brush", "labels", "brush"]
    assert prediction["result"][2]["meta"]["text"] == ["unicorn"]
    assert LabelInterface(SHARED).validate_prediction(prediction, return_errors=True) == []


def test_a_term_gets_the_most_similar_label_from_the_threshold_on(
    make_resources: Make, stand_in: StandIn
) -> None:
    stand_in.found = [detection("tac", disc(20, 30, 12)), detection("unicorn", disc(40, 30, 5))]
    likeness = stand_in.similarity(["tac"], ["Cat", "Dog"])[0]
    assert likeness[0] == 0.5
    assert likeness[1] == 0
    (off,) = backend(make_resources()).predict([task()])
    (below,) = backend(make_resources(similarity=0.51)).predict([task()])
    (above,) = backend(make_resources(similarity=0.5)).predict([task()])
    assert placed(off) == placed(below) == []
    assert placed(above) == CATS


def test_a_project_without_labels_gets_every_object_with_its_name(
    make_resources: Make, with_unicorn: StandIn
) -> None:
    resources = make_resources()
    (prediction,) = backend(resources, OPEN, project="1.1").predict([task()])
    cat, cats_text, cats_kind, unicorn, unicorns_text = prediction["result"]
    assert (cat["type"], cats_text["value"], cats_kind["value"]) == (
        "brush", {"text": ["cat"]}, {"taxonomy": [["Animal", "Cat"]]}
    )  # fmt: skip
    assert cat["id"] == cats_text["id"] == cats_kind["id"] != unicorn["id"] == unicorns_text["id"]
    assert unicorns_text["value"] == {"text": ["unicorn"]}
    assert LabelInterface(OPEN).validate_prediction(prediction, return_errors=True) == []
    assert resources.unmatched_terms.report("1") == ("1.1", [])


def test_names_of_a_tools_labels_are_no_labels_where_regions_have_none(make_resources: Make) -> None:
    clicks = '<KeyPointLabels name="kp" toName="image" smart="true"><Label value="This"/></KeyPointLabels>'
    config = OPEN.replace('<KeyPoint name="kp" toName="image" smart="true"/>', clicks)
    (answer,) = backend(make_resources(), config).predict([task()], context=click_context(70, 10, "This"))
    assert [(r["type"], set(r["value"])) for r in answer["result"]] == [("brush", {"format", "rle"})]
    ours = backend(make_resources(labels_in_place=True), config)
    (prediction,) = ours.predict([task()])
    saved = {"result": prediction["result"], "created_at": "2026-01-01"}
    (answer,) = ours.predict([task(predictions=[saved])], context=click_context(20, 30, "This"))
    assert answer["result"][0]["id"] == prediction["result"][0]["id"]


def test_predictions_with_regions_have_no_status(make_resources: Make) -> None:
    (prediction,) = backend(make_resources(), STATUS).predict([task()])
    assert "vlsam_status" not in json.dumps(prediction)


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        ([], "VL-SAM found no object in this image."),
        ([CONE, "cart", CONE], "VL-SAM saw: traffic cone, cart. No label of this project fits."),
        (["a\x1b[2J\n"], "VL-SAM saw: a\\x1b[2J\\n. No label of this project fits."),
        (
            [f"thing {number}" for number in range(12)],
            f"VL-SAM saw: {', '.join(f'thing {n}' for n in range(10))} and 2 more. "
            "No label of this project fits.",
        ),
    ],
)
def test_f37_an_empty_prediction_says_why_where_people_look(
    make_resources: Make, stand_in: StandIn, terms: list[str], said: str
) -> None:
    stand_in.found = [detection(term, disc(20, 30, 12)) for term in terms]
    ours = backend(make_resources(), STATUS)
    one, again = ours.predict([task(1), task(1)])
    assert (shown(one), one["score"]) == ([said], 0.0)
    assert one == again  # Label Studio may ask twice
    assert LabelInterface(STATUS).validate_prediction(one, return_errors=True) == []
    # Where the config has no place for it, it is as empty as ever, and a click empties the place.
    assert backend(make_resources()).predict([task(1)])[0]["result"] == []
    (answer,) = ours.predict([task(predictions=[one])], context=click_context(20, 30))
    assert shown(answer) == []


def test_a_prediction_without_what_is_annotated_already_says_so(
    make_resources: Make, stand_in: StandIn
) -> None:
    ours = backend(make_resources(), STATUS)
    predicted = ours.predict([task()])[0]["result"]
    stand_in.found.append(detection(CONE, disc(40, 10, 5)))
    (empty,) = ours.predict([task(annotations=[{"id": 1, "result": predicted}])])
    assert shown(empty) == [
        "VL-SAM saw: traffic cone. No label of this project fits. VL-SAM saw: cat, dogs. It is annotated "
        "already, or no control of this project can draw it."
    ]
