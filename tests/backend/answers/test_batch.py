import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from label_studio_sdk.label_interface import LabelInterface

from backend.answers.ml_backend import VLSAMBackend
from backend.answers.resources import Resources
from backend.runtime.job_queue import CLICK
from backend.telemetry import logs
from model.deadline import NEVER
from model.pipeline import VLSAM
from model.types import ModelLoadError
from tests.support.detections import detection, disc
from tests.support.editor_gestures import click_context
from tests.support.images import data_url
from tests.support.labeling_configs import CONFIG
from tests.support.predictions import SPLIT, backend, placed, task
from tests.support.stand_in import StandIn
from tests.support.waiting import wait_for

Make = Callable[..., Resources]


CONE = "traffic cone"


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


def test_f30_ids_are_the_same_for_the_same_image_and_unique_otherwise(make_resources: Make) -> None:
    ours = backend(make_resources())
    one, again, other = ours.predict([task(1), task(1), task(2)])
    ids = [[r["id"] for r in prediction["result"]] for prediction in (one, again, other)]
    assert ids[0] == ids[1]
    assert len(set(ids[0] + ids[2])) == 8


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
    (answer,) = backend(make_resources(), config).predict(tasks[:1], context=click_context(20, 30, "Dog"))
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
    (answer,) = ours.predict([{"id": 1, "data": data}], context=click_context(20, 30))
    assert [(r["from_name"], r["to_name"]) for r in answer["result"]] == [("brush", "image")]
    asked = click_context(20, 30)
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


@pytest.mark.slow
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
    """Each takes 0.2 s by this clock, of 0.7 s."""
    ours = backend(make_resources(clock=lambda: 0.2 * len(stand_in.images), deadline=0.7))
    predictions = ours.predict([task(number) for number in range(10)])
    assert [bool(prediction) for prediction in predictions] == [True] * 3 + [False] * 7


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


def prewarming(make_resources: Make, **settings: Any) -> VLSAMBackend:
    return backend(make_resources(on_open="prewarm", **settings), project="1.1")


@contextmanager
def busy(resources: Resources) -> Iterator[None]:
    """Keep the models at work."""
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
    wait_for(lambda: not len(ours.resources.background.running))
    assert ours.predict([task(5)], context=click_context(20, 30))[0]["result"]
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
        clicked = pool.submit(ours.predict, [task(8)], context=click_context(20, 30))
        wait_for(lambda: ours.resources.queue.waiting() == 3)
    assert batch.result(10)[0]["result"]
    assert clicked.result(10)[0]["result"]
    wait_for(lambda: not len(ours.resources.background.running))
    # The batch's second image comes when its first is done: what waits may go in between.
    assert stand_in.encoded[:2] == [8, 6]
    assert sorted(stand_in.encoded) == [5, 6, 7, 8]


def test_prewarm_takes_on_only_so_much_at_a_time(make_resources: Make, stand_in: StandIn) -> None:
    ours = prewarming(make_resources, queue=3)
    with busy(ours.resources):
        assert [ours.predict([task(number)]) for number in range(1, 9)] == [[]] * 8
        assert len(ours.resources.background.running) == 3
    wait_for(lambda: not len(ours.resources.background.running))
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
    wait_for(lambda: "made to fail to encode" in caplog.text and not ours.resources.background.running)
    assert ours.predict([task(5)], context=click_context(20, 30))[0]["result"]


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
    assert tried["reason"] == "The server failed; see its log."
