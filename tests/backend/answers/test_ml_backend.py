import base64
import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from label_studio_sdk.converter.brush import mask2rle
from label_studio_sdk.label_interface import LabelInterface
from PIL import Image as Pillow

from backend.answers.interactive import click_of
from backend.answers.ml_backend import VLSAMBackend
from backend.answers.resources import Resources
from backend.answers.task_image import Access
from backend.labelstudio import labeling_config, region_meta
from backend.labelstudio.region_reading import decode
from backend.labelstudio.request import Interaction
from backend.labelstudio.tasks import Task
from backend.runtime.job_queue import CLICK
from backend.telemetry import logs
from model.builtin.scenes import NAMES, draw_scene
from model.deadline import NEVER
from model.pipeline import VLSAM
from model.types import ModelLoadError
from tests.support.detections import detection, disc
from tests.support.images import data_url
from tests.support.labeling_configs import CONFIG
from tests.support.stand_in import StandIn
from tests.support.waiting import wait_for

Make = Callable[..., Resources]
SPLIT = CONFIG.replace('<Label value="Dog"/></BrushLabels>', "</BrushLabels>")  # dogs are polygons only


def task(number: int = 1, image: Any = None, **more: Any) -> dict[str, Any]:
    return {"id": number, "data": {"image": image or data_url(shade=number)}, **more}


def click(x: float, y: float, label: str = "Cat", *, positive: bool = True) -> dict[str, Any]:
    value = {"x": x / 0.8, "y": y / 0.6, "width": 0.2, "keypointlabels": [label]}
    return {"result": [{"value": value, "type": "keypointlabels", "id": "p", "is_positive": positive}]}


def backend(resources: Resources, config: str = CONFIG, **more: Any) -> VLSAMBackend:
    return VLSAMBackend(config, resources=resources, **more)


# Batches


def test_f8_a_batch_has_one_prediction_per_task_in_order(make_resources: Make, stand_in: StandIn) -> None:
    predictions = backend(make_resources()).predict([task(1), task(2), task(3)])
    assert [image[0, 0, 0] for image in stand_in.images] == [1, 2, 3]
    assert [p["model_version"] for p in predictions] == ["v1"] * 3
    first = predictions[0]["result"]
    assert [(r["from_name"], r["value"][r["type"]]) for r in first] == [
        ("brush", ["Cat"]),
        ("poly", ["Cat"]),
        ("brush", ["Dog"]),
        ("poly", ["Dog"]),
    ]
    assert predictions[0]["score"] == pytest.approx(0.7)
    assert LabelInterface(CONFIG).validate_prediction(predictions[0], return_errors=True) == []
    json.dumps(predictions)


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
    (answer,) = backend(make_resources(), config).predict([task()], context=click(20, 30))
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
    both = {"result": click(20, 30)["result"] + [{**click(70, 30)["result"][0], "id": "q"}]}
    (answer,) = ours.predict([task()], context=both)
    assert len(answer["result"]) == 1


def test_f30_ids_are_the_same_for_the_same_image_and_unique_otherwise(make_resources: Make) -> None:
    ours = backend(make_resources())
    one, again, other = ours.predict([task(1), task(1), task(2)])
    ids = [[r["id"] for r in prediction["result"]] for prediction in (one, again, other)]
    assert ids[0] == ids[1]
    assert len(set(ids[0] + ids[2])) == 8


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


@pytest.fixture
def with_unicorn(stand_in: StandIn) -> StandIn:
    stand_in.found = [detection("cat", disc(20, 30, 12)), detection("unicorn", disc(40, 30, 5))]
    return stand_in


def placed(prediction: dict[str, Any]) -> list[tuple[str, list[str], Any]]:
    """Control, labels and notes of each region."""
    return [
        (r["from_name"], r["value"].get(r["type"]), r["meta"].get("text"))
        for r in prediction["result"]
        if "meta" in r
    ]


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


def test_the_model_is_told_the_labels_of_the_task(make_resources: Make, stand_in: StandIn) -> None:
    config = """<View><Image name="image" value="$image"/>
      <BrushLabels name="brush" toName="image" value="$kinds"/></View>"""
    tasks = [task(n) for n in (1, 2)]
    cat = {"value": "Cat", "predicted_values": "kitten"}
    tasks[0]["data"]["kinds"], tasks[1]["data"]["kinds"] = [cat, {"value": "Dog"}], [cat]
    backend(make_resources(), config).predict(tasks)
    one, two = backend(make_resources(vocabulary="both"), config).predict(tasks)
    assert stand_in.vocabularies == [(), (), ("Cat", "kitten", "Dog"), ("Cat", "kitten")]
    assert [labels for _, labels, _ in placed(one)] == [["Cat"], ["Dog"]]
    assert [labels for _, labels, _ in placed(two)] == [["Cat"]]
    for prediction in (one, two):
        assert LabelInterface(config).validate_prediction(prediction, return_errors=True) == []
    # A click brings the label, and the task says that it is one.
    (answer,) = backend(make_resources(), config).predict(tasks[:1], context=click(20, 30, "Dog"))
    assert answer["result"][0]["value"]["brushlabels"] == ["Dog"]


@pytest.mark.parametrize(("vocabulary", "times"), [("open", 1), ("project", 2)])
def test_an_annotation_is_shared_by_those_who_ask_for_the_same(
    make_resources: Make,
    stand_in: StandIn,
    monkeypatch: pytest.MonkeyPatch,
    vocabulary: str,
    times: int,
) -> None:
    stand_in.hold = threading.Event()
    resources = make_resources(vocabulary=vocabulary)
    flights, arrived = resources.annotating.flight, threading.Semaphore(0)

    def of(key: Any) -> Any:
        flight = flights(key)
        arrived.release()
        return flight

    monkeypatch.setattr(resources.annotating, "flight", of)

    def ask(config: str) -> Any:
        return backend(resources, config).predict([task()])

    with ThreadPoolExecutor(3) as people:
        asked = [people.submit(ask, config) for config in (CONFIG, CONFIG, CONFIG.replace("Dog", "Horse"))]
        assert all(arrived.acquire(timeout=10) for _ in asked)
        stand_in.hold.set()
        assert all(future.result(10) for future in asked)
    assert stand_in.order == ["batch"] * times


OPEN = """<View><Image name="image" value="$image"/><Brush name="brush" toName="image"/>
  <TextArea name="what" toName="image" perRegion="true"/>
  <Taxonomy name="kind" toName="image" perRegion="true">
    <Choice value="Animal"><Choice value="Cat"/></Choice></Taxonomy>
  <KeyPoint name="kp" toName="image" smart="true"/></View>"""


def free_click(x: float, y: float, prompt_id: str = "p") -> dict[str, Any]:
    value = {"x": x / 0.8, "y": y / 0.6, "width": 0.2}
    return {
        "result": [
            {"value": value, "type": "keypoint", "from_name": "kp", "id": prompt_id, "is_positive": True}
        ]
    }


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


def test_a_click_without_a_label_makes_or_corrects_a_region_without_one(
    make_resources: Make, with_unicorn: StandIn
) -> None:
    ours = backend(make_resources(labels_in_place=True), OPEN)
    (prediction,) = ours.predict([task()])
    saved = {"result": prediction["result"], "created_at": "2026-01-01"}
    (new,) = ours.predict([task(predictions=[saved])], context=free_click(70, 10))
    assert [r["type"] for r in new["result"]] == ["brush"]
    assert new["result"][0]["id"] not in {r["id"] for r in prediction["result"]}
    # A person changed the words; they stay with the region.
    edited = json.loads(json.dumps(prediction["result"]))
    edited[1]["value"]["text"] = ["my cat", "asleep"]
    draft = {"id": 3, "result": edited, "created_at": "2026-01-02"}
    (answer,) = ours.predict([task(predictions=[saved], drafts=[draft])], context=free_click(20, 30, "q"))
    brush, text, kind = answer["result"]
    assert {brush["id"], text["id"], kind["id"]} == {prediction["result"][0]["id"]}
    assert text["value"] == {"text": ["my cat", "asleep"]}
    assert kind["value"] == {"taxonomy": [["Animal", "Cat"]]}


def test_names_of_a_tools_labels_are_no_labels_where_regions_have_none(make_resources: Make) -> None:
    clicks = '<KeyPointLabels name="kp" toName="image" smart="true"><Label value="This"/></KeyPointLabels>'
    config = OPEN.replace('<KeyPoint name="kp" toName="image" smart="true"/>', clicks)
    (answer,) = backend(make_resources(), config).predict([task()], context=click(70, 10, "This"))
    assert [(r["type"], set(r["value"])) for r in answer["result"]] == [("brush", {"format", "rle"})]
    ours = backend(make_resources(labels_in_place=True), config)
    (prediction,) = ours.predict([task()])
    saved = {"result": prediction["result"], "created_at": "2026-01-01"}
    (answer,) = ours.predict([task(predictions=[saved])], context=click(20, 30, "This"))
    assert answer["result"][0]["id"] == prediction["result"][0]["id"]


def test_what_the_model_says_writes_no_lines_of_its_own_into_the_log(
    make_resources: Make, stand_in: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    hostile = "cup\n2026-01-01 ERROR all is lost\x1b[2J\u202e<script>alert(1)</script>"
    stand_in.found = [detection(hostile, disc(20, 30, 12))]
    with caplog.at_level(logging.INFO):
        (prediction,) = backend(make_resources(leftover="keep")).predict([task()])
    assert all(record.getMessage().isprintable() for record in caplog.records)
    assert LabelInterface(CONFIG).validate_prediction(prediction, return_errors=True) == []


def test_the_labelled_image_is_found_beside_a_reference_and_deep_in_the_data(
    make_resources: Make, stand_in: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    reference = '<Image name="reference" value="$map"/><Image name="image" value="$photos[0].url"/>'
    config = CONFIG.replace('<Image name="image" value="$image"/>', reference)
    data = {"map": data_url(shade=9), "photos": [{"url": data_url(shade=5)}]}
    ours = backend(make_resources(), config)
    found, failed = ours.predict([{"id": 1, "data": data}, {"id": 2, "data": {**data, "photos": []}}])
    assert [image[0, 0, 0] for image in stand_in.images] == [5]
    assert len(found["result"]) == 4
    assert failed == {}
    assert "Task 2 failed: the task's data has no field 'photos[0].url'" in caplog.text
    (answer,) = ours.predict([{"id": 1, "data": data}], context=click(20, 30))
    assert [(r["from_name"], r["to_name"]) for r in answer["result"]] == [("brush", "image")]
    asked = click(20, 30)
    asked["result"][0]["to_name"] = "reference"
    (answer,) = ours.predict([{"id": 1, "data": data}], context=asked)
    assert answer["reason"].startswith(
        "The prompt is on 'reference', and regions are made on <Image name='image'>"
    )


def test_an_image_that_holds_nothing_is_not_a_failure(make_resources: Make, stand_in: StandIn) -> None:
    stand_in.found = [detection("cat", np.zeros((60, 80), bool))]
    assert backend(make_resources()).predict([task()]) == [
        {"result": [], "score": 0.0, "model_version": "v1"}
    ]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (None, "has no data"),
        (3, "has no data"),
        ({}, "has no data"),
        ({"id": 7, "data": None}, "Task 7 failed: the task has no data"),
        ({"id": 7, "data": {"photo": "x"}}, "no field 'image'"),
        ({"id": 7, "data": {"image": None}}, "no image address"),
        ({"id": 7, "data": {"image": "data:image/png;base64,aGVsbG8="}}, "text where an image should be"),
    ],
)
def test_f8_one_bad_task_never_fails_the_batch(
    make_resources: Make, caplog: pytest.LogCaptureFixture, bad: Any, reason: str
) -> None:
    first, failed, last = backend(make_resources()).predict([task(1), bad, task(2)])
    assert failed == {}
    assert len(first["result"]) == len(last["result"]) == 4
    assert reason in caplog.text


def test_a_model_that_fails_on_one_image(
    make_resources: Make, stand_in: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    stand_in.fail_on = {1}
    first, failed, last = backend(make_resources()).predict([task(1), task(2), task(3)])
    assert (bool(first), failed, bool(last)) == (True, {}, True)
    assert "Task 2 failed" in caplog.text


def test_f35_an_image_that_the_models_refuse_fails_alone_in_one_line(
    make_resources: Make, builtin: VLSAM, caplog: pytest.LogCaptureFixture
) -> None:
    strip, photo = data_url(900, 4), data_url()
    failed, done = backend(make_resources(lambda: builtin)).predict([task(image=strip), task(image=photo)])
    assert failed == {}
    assert "result" in done
    assert "Task 1 failed: the VLM does not take an image of 900 x 4 pixels: " in caplog.text
    assert not [record for record in caplog.records if record.exc_info]


def test_f6_a_batch_that_runs_out_of_time_returns_what_is_done(
    make_resources: Make, stand_in: StandIn
) -> None:
    stand_in.seconds = 0.2
    predictions = backend(make_resources(deadline=0.7)).predict([task(n) for n in range(10)])
    done = [bool(prediction) for prediction in predictions]
    assert len(done) == 10
    assert 1 <= sum(done) <= 3
    assert done == sorted(done, reverse=True)


def test_f6_no_task_begins_that_would_end_after_the_deadline(make_resources: Make, stand_in: StandIn) -> None:
    """Each takes 40 s by this clock: the third would begin at 80 s of 90, and end at 120."""
    ours = backend(make_resources(clock=lambda: 40.0 * len(stand_in.images)))
    predictions = ours.predict([task(1), task(2), task(3), task(4)])
    assert [bool(each) for each in predictions] == [True, True, False, False]
    assert len(stand_in.images) == 2


def test_one_image_that_takes_longer_than_a_batch_may(make_resources: Make, stand_in: StandIn) -> None:
    stand_in.hold = threading.Event()
    assert backend(make_resources(deadline=0.2)).predict([task(1), task(2)]) == [{}, {}]
    stand_in.hold.set()


# Opening a task


def prewarming(make_resources: Make, **settings: Any) -> VLSAMBackend:
    return backend(make_resources(on_open="prewarm", **settings), project="1.1")


@contextmanager
def busy(resources: Resources) -> Iterator[None]:
    """The models are at work all the while."""
    begun, go = threading.Event(), threading.Event()

    def work(_: object) -> None:
        begun.set()
        go.wait(20)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(resources.queue.run, work, priority=CLICK, deadline=NEVER)
        try:
            assert begun.wait(20)
            yield
        finally:
            go.set()


def test_f30_the_two_requests_for_an_opened_task_are_annotated_once(
    make_resources: Make, stand_in: StandIn
) -> None:
    stand_in.hold = threading.Event()
    resources = make_resources()
    ours, strict = backend(resources, project="1.1"), backend(resources, SPLIT, project="2.2")
    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(each.predict, [task(5)]) for each in (ours, ours, strict)]
        wait_for(lambda: resources.queue.admitted_requests == 3 and len(stand_in.images) == 1)
        time.sleep(0.1)
        stand_in.hold.set()
        one, same, other = (answer.result(10)[0]["result"] for answer in answers)
    assert one == same
    assert [r["from_name"] for r in one] == ["brush", "poly", "brush", "poly"]
    assert [r["from_name"] for r in other] == ["brush", "poly", "poly"]  # by its own labels
    assert len(stand_in.images) == 1
    assert ours.predict([task(5)])[0]["result"] == one
    assert len(stand_in.images) == 2  # nothing is kept


def test_two_images_are_annotated_each_on_its_own(make_resources: Make, stand_in: StandIn) -> None:
    ours = backend(make_resources(), project="1.1")
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(ours.predict, [task(number)]) for number in (5, 6)]
        ids = {answer.result(10)[0]["result"][0]["id"] for answer in answers}
    assert len(ids) == 2
    assert sorted(image[0, 0, 0] for image in stand_in.images) == [5, 6]


def test_prewarm_answers_an_opened_task_at_once_and_the_click_finds_it_encoded(
    make_resources: Make, stand_in: StandIn
) -> None:
    ours = prewarming(make_resources)
    with busy(ours.resources):
        assert ours.predict([task(5)]) == []
        assert ours.predict([task(5)]) == []
    wait_for(lambda: not len(ours.resources.background))
    assert ours.predict([task(5)], context=click(20, 30))[0]["result"]
    assert (stand_in.encoded, stand_in.images) == ([5], [])


def test_prewarm_does_not_wait_for_models_that_load(make_resources: Make, stand_in: StandIn) -> None:
    go = threading.Event()

    def load() -> StandIn:
        go.wait(10)
        return stand_in

    ours = prewarming(make_resources, load=load)
    assert ours.predict([task(5)]) == []
    go.set()
    wait_for(lambda: stand_in.encoded == [5])


def test_prewarm_annotates_chosen_tasks(make_resources: Make, stand_in: StandIn) -> None:
    ours = prewarming(make_resources)
    assert all(p["result"] for p in ours.predict([task(1), task(2)]))
    assert len(stand_in.images) == 2


def test_clicks_and_batches_go_before_what_is_prewarmed(make_resources: Make, stand_in: StandIn) -> None:
    ours = prewarming(make_resources)
    with ThreadPoolExecutor(2) as pool, busy(ours.resources):
        ours.predict([task(5)])
        wait_for(lambda: ours.resources.queue.waiting() == 1)
        batch = pool.submit(ours.predict, [task(6), task(7)])
        wait_for(lambda: ours.resources.queue.waiting() == 2)
        clicked = pool.submit(ours.predict, [task(8)], context=click(20, 30))
        wait_for(lambda: ours.resources.queue.waiting() == 3)
    assert batch.result(10)[0]["result"]
    assert clicked.result(10)[0]["result"]
    wait_for(lambda: not len(ours.resources.background))
    # The batch's second image comes when its first is done: what waits may go in between.
    assert stand_in.encoded[:2] == [8, 6]
    assert sorted(stand_in.encoded) == [5, 6, 7, 8]


def test_prewarm_takes_on_only_so_much_at_a_time(make_resources: Make, stand_in: StandIn) -> None:
    ours = prewarming(make_resources, queue=3)
    with busy(ours.resources):
        assert [ours.predict([task(number)]) for number in range(1, 9)] == [[]] * 8
        assert len(ours.resources.background) == 3
    wait_for(lambda: not len(ours.resources.background))
    assert sorted(stand_in.encoded) == [1, 2, 3]


@pytest.mark.parametrize(
    ("opened", "reason"),
    [
        ({"id": 1, "data": {}}, "no field 'image'"),
        ({"id": 1, "data": {"image": "ftp://nowhere/a.png"}}, "not supported"),
        ("no task", "the task has no data"),
    ],
)
def test_what_cannot_be_prewarmed_is_logged_and_not_raised(
    opened: Any, reason: str, make_resources: Make, caplog: pytest.LogCaptureFixture
) -> None:
    assert prewarming(make_resources).predict([opened]) == []
    wait_for(lambda: reason in caplog.text)


def test_a_prewarm_whose_encode_fails_leaves_the_click_to_try_again(
    make_resources: Make, stand_in: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    stand_in.fail_to_encode = 1
    ours = prewarming(make_resources)
    assert ours.predict([task(5)]) == []
    wait_for(lambda: "made to fail to encode" in caplog.text and not ours.resources.background)
    assert ours.predict([task(5)], context=click(20, 30))[0]["result"]


# Clicks


def test_a_click_makes_a_new_region(make_resources: Make, stand_in: StandIn) -> None:
    ours = backend(make_resources())
    one, two = (ours.predict([task()], context=click(20, 30))[0] for _ in range(2))
    (region,) = one["result"]
    assert (region["from_name"], region["type"], region["value"]["brushlabels"]) == (
        "brush",
        "brushlabels",
        ["Cat"],
    )
    assert len(region["id"]) >= 16
    assert region["id"] != two["result"][0]["id"]
    mask = decode(region, (60, 80))
    assert mask is not None
    assert mask[30, 20]
    assert one["model_version"] == "v1"


def test_a_click_keeps_all_labels_of_the_region_below_it(make_resources: Make) -> None:
    ours = backend(make_resources(), CONFIG.replace('name="brush"', 'name="brush" choice="multiple"'))
    predicted = ours.predict([task()])[0]
    predicted["result"][0]["value"]["brushlabels"] = ["Dog", "Cat"]
    (answer,) = ours.predict([task(predictions=[predicted])], context=click(25, 30))
    (region,) = answer["result"]
    assert region["id"] == predicted["result"][0]["id"]
    assert region["value"]["brushlabels"] == ["Dog", "Cat"]


@pytest.mark.parametrize(
    "prompt",
    [
        {
            "type": "rectanglelabels",
            "value": {"x": 12.5, "y": 25, "width": 25, "height": 50, "rectanglelabels": ["Dog"]},
            "original_width": 1080,
            "original_height": 1080,
        },
        {
            "type": "keypointlabels",
            "value": {"x": 25, "y": 50, "keypointlabels": ["Dog"]},
            "is_positive": True,
        },
        {"type": "keypointlabels", "value": {"x": 25, "y": 50, "labels": ["Dog"]}, "to_name": None},
    ],
)
@pytest.mark.parametrize(("config", "control"), [(CONFIG, "brush"), (SPLIT, "poly")])
def test_a_prompt_of_no_control_goes_to_the_first_that_knows_its_label(
    make_resources: Make, prompt: dict[str, Any], config: str, control: str
) -> None:
    """As scripts send it, for which an id and `from_name` mean nothing."""
    (answer,) = backend(make_resources(), config).predict([task()], context={"result": [prompt]})
    (region,) = answer["result"]
    assert (region["from_name"], region["value"][region["type"]]) == (control, ["Dog"])
    mask = decode(region, (60, 80))
    assert mask is not None
    assert mask[30, 20]
    assert LabelInterface(config).validate_prediction(answer, return_errors=True) == []


def test_a_prompt_of_no_control_with_an_unknown_label_is_told_so(make_resources: Make) -> None:
    prompt = {"type": "rectanglelabels", "value": {"x": 1, "y": 1, "width": 50, "height": 50}}
    prompt["value"] |= {"rectanglelabels": ["Banana"]}  # type: ignore[operator]
    (answer,) = backend(make_resources()).predict([task()], context={"result": [prompt]})
    assert (answer["result"], answer["reason"]) == ([], "No output control has the label 'Banana'.")


def test_an_empty_mask_is_never_a_region_whatever_its_score(
    make_resources: Make, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    nothing = detection("cat", np.zeros((60, 80), bool), score=0.9)
    stand_in.found = [nothing]
    monkeypatch.setattr(stand_in, "refine", lambda *_: nothing)
    ours = backend(
        make_resources(), CONFIG.replace("</View>", '<TextArea name="vlsam_prompt" toName="image"/></View>')
    )
    with caplog.at_level(logging.INFO):
        (batch,) = ours.predict([task()])
    assert "0 detections, 0 regions" in caplog.text
    typed = {"type": "textarea", "from_name": "vlsam_prompt", "value": {"text": ["cat"]}}
    bare = {"type": "keypointlabels", "value": {"x": 25, "y": 50, "positive": True}}
    for context, reason in (
        (click(20, 30), "The mask is empty"),
        ({"result": [typed]}, "does not find 'cat'"),
        ({"result": [bare]}, "The mask is empty"),
    ):
        (answer,) = ours.predict([task()], context=context)
        assert reason in answer.pop("reason")
        assert answer == batch == {"result": [], "score": 0.0, "model_version": "v1"}


def test_a_click_corrects_the_predicted_region_below_it(make_resources: Make, stand_in: StandIn) -> None:
    ours = backend(make_resources())
    predicted = ours.predict([task()])[0]
    brush = predicted["result"][0]
    brush["meta"]["text"] = ["mind the tail"]
    (answer,) = ours.predict([task(predictions=[predicted])], context=click(25, 30))
    (region,) = answer["result"]
    assert region["id"] == brush["id"]
    assert region["meta"]["text"] == ["mind the tail"]
    assert region["meta"]["vlsam"]["term"] == "cat"
    prompt = stand_in.prompts[0]
    assert prompt.points[-1].tolist() == [25, 30]
    assert len(prompt.points) == 2
    assert prompt.mask is not None
    # A second click, on the corrected region in a draft, brings the first one along.
    drafts = [{"id": 1, "result": [region], "updated_at": "2026-01-01"}]
    ours.predict([task(predictions=[predicted], drafts=drafts)], context=click(22, 22))
    assert stand_in.prompts[1].points.round(1).tolist()[-2:] == [[25, 30], [22, 22]]


def test_f13_sizes_in_a_task_are_not_those_of_the_file(make_resources: Make, stand_in: StandIn) -> None:
    """The file counts. Percentages fit any size, so clicks and polygons of a resized image do, too."""
    ours = backend(make_resources())
    predicted = ours.predict([task()])[0]
    resized = {"original_width": 800, "original_height": 600}
    polygon = {**predicted["result"][1], "id": "outline", **resized}
    asked = click(25, 30)
    asked["result"][0] |= resized
    (answer,) = ours.predict([task(annotations=[{"id": 1, "result": [polygon]}])], context=asked)
    (region,) = answer["result"]
    assert (region["id"], region["type"]) == ("outline", "polygonlabels")
    assert (region["original_width"], region["original_height"]) == (80, 60)
    assert stand_in.prompts[0].mask is not None
    assert stand_in.prompts[0].mask[30, 20]
    assert stand_in.prompts[0].points[-1].tolist() == [25, 30]


def test_f13_the_pixels_of_a_mask_of_another_size_are_not_used(
    make_resources: Make, stand_in: StandIn
) -> None:
    ours = backend(make_resources())
    region = {**ours.predict([task()])[0]["result"][0], "id": "mask", "meta": {}}
    region["value"] = {**region["value"], "rle": mask2rle(np.full((600, 800), 255, np.uint8))}
    task_of_another_size = task(annotations=[{"id": 1, "result": [region]}])
    (answer,) = ours.predict([task_of_another_size], context=click(25, 30))
    assert answer["result"][0]["id"] != "mask"
    assert stand_in.prompts[0].mask is None


@pytest.mark.parametrize("orientation", range(2, 9))
def test_f12_results_are_of_the_image_as_it_is_shown(
    make_resources: Make, stand_in: StandIn, orientation: int
) -> None:
    """Label Studio 1.23.2 and browsers turn an image by its EXIF orientation before they show it."""
    exif, file = Pillow.Exif(), BytesIO()
    exif[0x0112] = orientation
    stored = (80, 60) if orientation < 5 else (60, 80)
    Pillow.new("RGB", stored, (200, 10, 10)).save(file, "JPEG", exif=exif)
    address = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
    (prediction,) = backend(make_resources()).predict([task(1, address)])
    assert stand_in.images[0].shape == (60, 80, 3)
    sizes = {(region["original_width"], region["original_height"]) for region in prediction["result"]}
    assert sizes == {(80, 60)}


@pytest.mark.parametrize(
    ("context", "reason"),
    [
        ({}, "no click and no rectangle"),
        ({"result": None}, "no click and no rectangle"),
        (click(20, 30, "Unicorn"), "No output control has the label"),
        (click(20, 30, positive=False), "negative clicks only"),
    ],
)
def test_what_cannot_be_answered_is_an_empty_answer_with_a_logged_reason(
    make_resources: Make, caplog: pytest.LogCaptureFixture, context: dict[str, Any], reason: str
) -> None:
    (answer,) = backend(make_resources()).predict([task(5)], context=context)
    assert reason in answer.pop("reason")
    assert answer == {"result": [], "score": 0.0, "model_version": "v1"}
    assert reason in caplog.text
    assert "Task 5" in caplog.text


@pytest.mark.parametrize("bad", [None, {"id": 1}, {"id": 1, "data": {"image": "data:,"}}])
def test_a_click_on_a_bad_task_is_an_empty_answer(make_resources: Make, bad: Any) -> None:
    (answer,) = backend(make_resources()).predict([bad], context=click(20, 30))
    assert answer["result"] == []


# In the editor a failure shows only where the config has a place for it

STATUS = CONFIG.replace(
    "</View>",
    '<Text name="said" value="VL-SAM says:"/><TextArea name="vlsam_status" toName="said"/></View>',
)


def shown(answer: dict[str, Any]) -> list[str]:
    """The lines in the TextArea `vlsam_status` after an answer."""
    *_, status = answer["result"]
    assert (status["from_name"], status["to_name"]) == ("vlsam_status", "said")
    assert (status["type"], status["origin"]) == ("textarea", "prediction")
    assert list(status["value"]) == ["text"]
    lines: list[str] = status["value"]["text"]
    return lines


def test_a_failure_is_written_into_the_status_and_the_next_success_clears_it(make_resources: Make) -> None:
    ours = backend(make_resources(), STATUS)
    (failed,) = ours.predict([task()], context=click(20, 30, positive=False))
    assert shown(failed) == ["There are negative clicks only, and no region of their label is below them."]
    (answered,) = ours.predict([task()], context=click(20, 30))
    assert [region["type"] for region in answered["result"]] == ["brushlabels", "textarea"]
    assert shown(answered) == []


def test_f36_a_click_without_a_label_takes_that_of_its_region_and_elsewhere_says_what_is_missing(
    make_resources: Make, caplog: pytest.LogCaptureFixture
) -> None:
    ours = backend(make_resources(), STATUS)
    predicted = ours.predict([task()])[0]
    for x, label, index in ((20, "Cat", 0), (60, "Dog", 2)):
        nameless = click(x, 30)
        nameless["result"][0]["value"]["keypointlabels"] = []
        (answer,) = ours.predict([task(predictions=[predicted])], context=nameless)
        region, _ = answer["result"]
        assert region["id"] == predicted["result"][index]["id"]
        assert (region["value"]["brushlabels"], shown(answer)) == ([label], [])
    nameless["result"][0]["value"]["x"] = 50
    (answer,) = ours.predict([task(predictions=[predicted])], context=nameless)
    said = (
        "The click has no label and no region is below it. Click inside a region to correct it, or choose a "
        "label first: Cat, Dog."
    )
    assert (shown(answer), answer["reason"], len(answer["result"])) == ([said], said, 1)
    assert said in caplog.text


def test_predictions_with_regions_have_no_status(make_resources: Make) -> None:
    (prediction,) = backend(make_resources(), STATUS).predict([task()])
    assert "vlsam_status" not in json.dumps(prediction)


CONE = "traffic cone"


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
    (answer,) = ours.predict([task(predictions=[one])], context=click(20, 30))
    assert shown(answer) == []


def test_a_trial_says_what_was_seen_and_stores_nothing(make_resources: Make, stand_in: StandIn) -> None:
    stand_in.found.append(detection(CONE, disc(40, 10, 5)))
    ours = backend(make_resources())
    (tried,) = ours.predict([task()], context={"event": "vlsam_trial"})
    (predicted,) = ours.predict([task()])
    assert tried == {
        **predicted, "seen": ["cat", "dogs", CONE], "unlabelled": [CONE], "on_open": "annotate",
        "log": logs.place(),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"id": 1}, "the task has no data"),
        ({"id": 1, "data": {"image": "data:,"}}, "is not base64"),
        (None, "the task has no data"),
    ],
)
def test_a_trial_that_fails_says_why_and_where_the_log_is(
    make_resources: Make, bad: Any, reason: str
) -> None:
    (tried,) = backend(make_resources()).predict([bad], context={"event": "vlsam_trial"})
    assert reason in tried["reason"]
    assert (tried["result"], tried["log"]) == ([], logs.place())


def test_a_trial_that_fails_for_the_models(make_resources: Make, stand_in: StandIn) -> None:
    def load() -> Any:
        raise ModelLoadError("The weights of the segmenter are corrupt.")

    asked: dict[str, Any] = {"context": {"event": "vlsam_trial"}}
    (tried,) = backend(make_resources(load=load)).predict([task()], **asked)
    assert tried["reason"] == "The weights of the segmenter are corrupt."
    stand_in.fail_on = {0}
    (tried,) = backend(make_resources()).predict([task()], **asked)
    assert tried["reason"] == "The server failed; its log says why."


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


def test_weights_that_cannot_be_loaded_are_told_too(make_resources: Make) -> None:
    def load() -> Any:
        raise ModelLoadError("The weights of the segmenter are corrupt.")

    (failed,) = backend(make_resources(load=load), STATUS).predict([task()], context=click(20, 30))
    assert shown(failed) == ["The weights of the segmenter are corrupt."]


def test_the_status_is_never_a_prompt(make_resources: Make, stand_in: StandIn) -> None:
    told = {
        "from_name": "vlsam_status", "to_name": "said", "type": "textarea", "id": "s",
        "value": {"text": ["the cat on the left"]},
    }  # fmt: skip
    ours = backend(make_resources(), STATUS)
    (answer,) = ours.predict([task()], context={"result": [told]})
    assert [item["from_name"] for item in answer["result"]] == ["vlsam_status"]
    assert stand_in.order == []
    (answer,) = ours.predict([task(drafts=[{"id": 1, "result": [told]}])], context=click(20, 30))
    assert shown(answer) == []


def test_f6_a_click_that_takes_too_long_is_an_empty_answer(make_resources: Make, stand_in: StandIn) -> None:
    stand_in.hold = threading.Event()
    (answer,) = backend(make_resources(deadline=0.1)).predict([task()], context=click(20, 30))
    assert answer["result"] == []
    stand_in.hold.set()


def test_a_click_does_not_wait_for_the_rest_of_a_batch(make_resources: Make, stand_in: StandIn) -> None:
    ours, stand_in.seconds = backend(make_resources()), 0.05
    batch = threading.Thread(target=ours.predict, args=([task(n) for n in range(6)],))
    batch.start()
    while not stand_in.order:
        time.sleep(0.005)
    ours.predict([task()], context=click(20, 30))
    batch.join()
    assert stand_in.order.index("click") <= 2


def test_each_click_is_one_line_in_the_log(
    make_resources: Make, stand_in: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "vlsam.backend.answers.interactive")
    ours = backend(make_resources())
    predicted = ours.predict([task()])[0]
    ours.predict([task(9)], context=click(20, 30, "Dog"))
    ours.predict([task(9, predictions=[predicted])], context=click(31.9, 30))
    stand_in.refine = lambda *_: detection("", disc(20, 30, 8))  # type: ignore[method-assign]
    ours.predict([task(9, predictions=[predicted])], context=click(25, 30, positive=False))
    ours.predict([task(9)], context=click(25, 30, positive=False))
    lines = [record.getMessage() for record in caplog.records]
    cat = predicted["result"][0]["id"]
    patterns = [
        r"Task 9: click with Dog: new region [0-9a-f]{32}, \d+ ms",
        rf"Task 9: click with Cat: joined \d+ pixels to region {cat}, \d+ ms",
        rf"Task 9: click with Cat: took \d+ pixels from region {cat}, \d+ ms",
        r"Task 9: no answer to the click with Cat: There are negative clicks only.*\. \(\d+ ms\)",
    ]
    assert len(lines) == len(patterns)
    for line, pattern in zip(lines, patterns, strict=True):
        assert re.fullmatch(pattern, line), line


def test_a_click_that_is_turned_away_is_a_line_in_the_log_too(
    make_resources: Make, caplog: pytest.LogCaptureFixture
) -> None:
    def load() -> Any:
        raise ModelLoadError("The weights are corrupt.")

    resources = make_resources(load=load)
    backend(resources, STATUS).predict([task(9)], context=click(20, 30))
    lines = [line for record in caplog.records if "Task" in (line := record.getMessage())]
    assert lines == ["Task 9: no answer to the click with Cat: The weights are corrupt."]
    assert 'vlsam_errors_total{kind="Unavailable"} 1.0' in resources.metrics.text().decode()


def test_what_a_click_did_to_a_rectangle_is_told_of_its_box(
    make_resources: Make, stand_in: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "vlsam.backend.answers.interactive")
    config = """<View><Image name="image" value="$image"/><RectangleLabels name="box" toName="image">
      <Label value="Cat"/></RectangleLabels></View>"""
    ours = backend(make_resources(), config)
    predicted = ours.predict([task()])[0]
    stand_in.refine = lambda *_: detection("", disc(20, 30, 12))  # type: ignore[method-assign]
    ours.predict([task(9, predictions=[predicted])], context=click(20, 30))
    assert "Task 9: click with Cat: corrected region" in caplog.text


def test_nobody_is_told_that_a_task_was_opened(make_resources: Make) -> None:
    (answer,) = backend(make_resources(), STATUS).predict([task()], context={"result": []})
    assert answer["result"] == []
    assert "no click" in answer["reason"]


def test_a_click_corrects_the_mask_behind_a_box(make_resources: Make, stand_in: StandIn) -> None:
    config = """<View><Image name="image" value="$image"/><RectangleLabels name="box" toName="image">
      <Label value="Cat"/></RectangleLabels></View>"""
    ours = backend(make_resources(), config)
    predicted = ours.predict([task()])[0]
    ours.predict([task(predictions=[predicted])], context=click(20, 30))
    behind, corrected = stand_in.prompts
    assert behind.box is not None
    assert behind.mask is None
    assert [20, 30] not in behind.points.tolist()
    assert corrected.points[-1].tolist() == [20, 30]
    assert corrected.mask is not None


def test_labels_and_ids_write_no_lines_of_their_own_into_the_log(
    make_resources: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "vlsam.backend.answers.interactive")
    config = CONFIG.replace('value="Cat"', 'value="C&#10;t&#x202e;"')
    made = backend(make_resources(), config).predict([task()], context=click(60, 30, "C\nt\u202e"))[0][
        "result"
    ]
    made[0]["id"] = "a\nTask 1: all is well"
    asked = click(60, 30, "C\nt\u202e")
    backend(make_resources(), config).predict([task(drafts=[{"id": 1, "result": made}])], context=asked)
    new, corrected = [record.getMessage() for record in caplog.records]
    assert new.startswith("Task 1: click with C\\nt\\u202e: new region ")
    assert "corrected region a\\nTask 1: all is well, " in corrected


def sent(*prompts: Any, control: Any = "kp") -> dict[str, Any]:
    """A context with a click for each id; None stands for one without."""
    value = {"x": 25, "y": 50, "keypointlabels": ["Cat"]}
    items = [{"type": "keypointlabels", "value": value, "from_name": control, "id": id_} for id_ in prompts]
    return {"result": [{k: v for k, v in item.items() if v is not None} for item in items]}


@pytest.mark.parametrize(
    ("first", "second", "answers"),
    [
        # The editor sends all prompts with each new one, and shows the newest answer only.
        ((7, sent("a")), (7, sent("a", "b")), ["newest"]),
        ((7, sent("a", "b")), (7, sent("c")), ["first", "newest"]),  # by two annotators
        ((7, sent("a")), (8, sent("a", "b")), ["first", "newest"]),
        ((7, sent("a")), (7, sent("a", "b", control="rect")), ["first", "newest"]),
        ((7, sent(None)), (7, sent("a", "b")), ["first", "newest"]),
        ((7, sent("a")), (7, sent("a", None)), ["first", "newest"]),
        ((7, sent("a", control=None)), (7, sent("a", "b", control=None)), ["first", "newest"]),
        ((None, sent("a")), (None, sent("a", "b")), ["first", "newest"]),
    ],
)
def test_a_click_that_a_newer_one_makes_pointless_is_an_empty_answer(
    make_resources: Make,
    stand_in: StandIn,
    caplog: pytest.LogCaptureFixture,
    first: tuple[Any, dict[str, Any]],
    second: tuple[Any, dict[str, Any]],
    answers: list[str],
) -> None:
    resources, stand_in.hold, found = make_resources(), threading.Event(), dict[str, Any]()

    def ask(name: str, number: Any, context: dict[str, Any]) -> threading.Thread:
        def answer() -> None:
            (found[name],) = backend(resources, project="1.1").predict(
                [{**task(), "id": number}], context=context
            )

        thread = threading.Thread(target=answer)
        thread.start()
        return thread

    def until(waiting: int) -> None:
        end = time.monotonic() + 5
        while resources.queue.waiting() != waiting:
            assert time.monotonic() < end
            time.sleep(0.005)

    with caplog.at_level(logging.INFO):
        threads = [ask("running", 1, sent("z"))]
        while not stand_in.order:
            time.sleep(0.005)
        threads.append(ask("first", *first))
        until(1)
        threads.append(ask("newest", *second))
        if answers == ["newest"]:  # and the first is told at once
            threads[1].join(5)
            assert set(found) == {"first"}
        until(len(answers))
        stand_in.hold.set()
        for thread in threads:
            thread.join(5)
    assert [name for name in ("first", "newest") if found[name]["result"]] == answers
    if answers == ["newest"]:
        assert found["first"]["result"] == []
        assert "newer click" in found["first"]["reason"]
        assert "Task 7: no answer to the click with Cat: A newer click" in caplog.text


def test_what_a_click_is_about_tells_projects_apart(make_resources: Make) -> None:
    resources = make_resources()
    clicked = Interaction.parse(Task.parse(task()), sent("a"), labeling_config.parse(CONFIG))
    one, other = (click_of(Access(resources, None, project), clicked) for project in "12")
    assert one is not None
    assert other is not None
    assert one.place != other.place


# Which Label Studio


def test_the_way_to_label_studio(make_resources: Make) -> None:
    from_setup = {"hostname": "http://localhost:8080/", "access_token": "theirs"}
    server = backend(make_resources(), **from_setup).access.server
    assert server is not None
    assert (server.url, server.token) == ("http://localhost:8080", "theirs")
    assert backend(make_resources()).access.server is None


def test_f16_the_settings_go_before_what_setup_said(make_resources: Make) -> None:
    resources = make_resources(label_studio_url="http://studio:8080", label_studio_api_key="ours")
    server = backend(resources, hostname="http://localhost:8080", access_token="theirs").access.server
    assert server is not None
    assert (server.url, server.token) == ("http://studio:8080", "ours")
    assert server.name == "http://localhost:8080"  # by which tasks may know it


def test_f16_a_token_from_setup_goes_to_the_address_that_came_with_it_alone(make_resources: Make) -> None:
    resources = make_resources(label_studio_url="http://studio:8080")
    for hostname, token in (("http://localhost:8080", None), ("http://Studio:8080/", "theirs")):
        server = backend(resources, hostname=hostname, access_token="theirs").access.server
        assert server is not None
        assert (server.url, server.token) == ("http://studio:8080", token)


def test_f16_our_key_is_not_sent_to_an_address_from_setup(make_resources: Make) -> None:
    server = backend(make_resources(label_studio_api_key="ours"), hostname="http://anybody").access.server
    assert server is not None
    assert server.token is None


# The models that ship


def every_name(kind: str, name: str) -> str:
    labels = "".join(f'<Label value="{value}"/>' for value in NAMES)
    return f'<{kind} name="{name}" toName="image">{labels}</{kind}>'


EVERYTHING = (
    '<View><Image name="image" value="$image"/>'
    + every_name("BrushLabels", "brush")
    + every_name("PolygonLabels", "poly")
    + every_name("RectangleLabels", "rect")
    + "</View>"
)


@pytest.fixture(scope="module")
def photo() -> str:
    scene = draw_scene(np.random.default_rng(3), width=320, height=240, count=2, degrade=False)
    file = BytesIO()
    Pillow.fromarray(scene.image).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def test_the_built_in_models_give_valid_predictions(make_resources: Make, builtin: VLSAM, photo: str) -> None:
    ours = backend(make_resources(lambda: builtin), EVERYTHING)
    first, second = ours.predict([task(1, photo), task(2, photo)])
    assert first == second
    assert LabelInterface(EVERYTHING).validate_prediction(first, return_errors=True) == []
    for region in json.loads(json.dumps(first))["result"]:
        assert decode(region, (240, 320)) is not None
        stored = region_meta.read(region["meta"], (240, 320))
        assert stored is not None
        assert len(stored.prompt.points) >= 1


def test_the_built_in_models_answer_clicks(make_resources: Make, builtin: VLSAM, photo: str) -> None:
    ours = backend(make_resources(lambda: builtin), EVERYTHING)

    def answer(x: float, y: float, **more: Any) -> dict[str, Any]:
        value = {"x": x / 3.2, "y": y / 2.4, "width": 0.2, "keypointlabels": ["cat"]}
        context = {"result": [{"value": value, "type": "keypointlabels", "id": "p", "is_positive": True}]}
        (prediction,) = ours.predict([task(1, photo, **more)], context=context)
        (region,) = prediction["result"]
        mask = decode(region, (240, 320))
        assert mask is not None
        assert mask[int(y), int(x)]
        return dict(region)

    first = answer(160.5, 120.5)
    again = answer(160.5, 120.5, annotations=[{"result": [first]}])
    assert again["id"] == first["id"]
    elsewhere = answer(3.5, 3.5, annotations=[{"result": []}])
    assert elsewhere["id"] != first["id"]
