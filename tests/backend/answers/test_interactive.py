import base64
import json
import logging
import re
import threading
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from label_studio_sdk.converter.brush import mask2rle
from label_studio_sdk.label_interface import LabelInterface
from PIL import Image as Pillow

from backend.answers.interactive import click_of
from backend.answers.resources import Resources
from backend.answers.task_image import Access
from backend.labelstudio import labeling_config
from backend.labelstudio.region_reading import decode
from backend.labelstudio.request import Interaction
from backend.labelstudio.tasks import Task
from model.types import ModelLoadError
from tests.support.detections import detection, disc
from tests.support.editor_gestures import click_context
from tests.support.labeling_configs import CONFIG
from tests.support.predictions import OPEN, SPLIT, STATUS, backend, shown, task
from tests.support.stand_in import StandIn
from tests.support.waiting import wait_for

Make = Callable[..., Resources]


def free_click(x: float, y: float, prompt_id: str = "p") -> dict[str, Any]:
    value = {"x": x / 0.8, "y": y / 0.6, "width": 0.2}
    return {
        "result": [
            {"value": value, "type": "keypoint", "from_name": "kp", "id": prompt_id, "is_positive": True}
        ]
    }


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


def test_a_click_makes_a_new_region(make_resources: Make, stand_in: StandIn) -> None:
    ours = backend(make_resources())
    one, two = (ours.predict([task()], context=click_context(20, 30))[0] for _ in range(2))
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
    (answer,) = ours.predict([task(predictions=[predicted])], context=click_context(25, 30))
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
    """Scripts send such prompts, without an id and `from_name`."""
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
        (click_context(20, 30), "The mask is empty"),
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
    (answer,) = ours.predict([task(predictions=[predicted])], context=click_context(25, 30))
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
    ours.predict([task(predictions=[predicted], drafts=drafts)], context=click_context(22, 22))
    assert stand_in.prompts[1].points.round(1).tolist()[-2:] == [[25, 30], [22, 22]]


def test_f13_sizes_in_a_task_are_not_those_of_the_file(make_resources: Make, stand_in: StandIn) -> None:
    """The file counts. Percentages fit any size, so clicks and polygons of a resized image do, too."""
    ours = backend(make_resources())
    predicted = ours.predict([task()])[0]
    resized = {"original_width": 800, "original_height": 600}
    polygon = {**predicted["result"][1], "id": "outline", **resized}
    asked = click_context(25, 30)
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
    (answer,) = ours.predict([task_of_another_size], context=click_context(25, 30))
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
        (click_context(20, 30, "Unicorn"), "No output control has the label"),
        (click_context(20, 30, positive=False), "negative clicks only"),
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
    (answer,) = backend(make_resources()).predict([bad], context=click_context(20, 30))
    assert answer["result"] == []


def test_a_failure_is_written_into_the_status_and_the_next_success_clears_it(make_resources: Make) -> None:
    ours = backend(make_resources(), STATUS)
    (failed,) = ours.predict([task()], context=click_context(20, 30, positive=False))
    assert shown(failed) == ["There are negative clicks only, and no region of their label is below them."]
    (answered,) = ours.predict([task()], context=click_context(20, 30))
    assert [region["type"] for region in answered["result"]] == ["brushlabels", "textarea"]
    assert shown(answered) == []


def test_f36_a_click_without_a_label_takes_that_of_its_region_and_elsewhere_says_what_is_missing(
    make_resources: Make, caplog: pytest.LogCaptureFixture
) -> None:
    ours = backend(make_resources(), STATUS)
    predicted = ours.predict([task()])[0]
    for x, label, index in ((20, "Cat", 0), (60, "Dog", 2)):
        nameless = click_context(x, 30, None)
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


def test_weights_that_cannot_be_loaded_are_told_too(make_resources: Make) -> None:
    def load() -> Any:
        raise ModelLoadError("The weights of the segmenter are corrupt.")

    (failed,) = backend(make_resources(load=load), STATUS).predict([task()], context=click_context(20, 30))
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
    (answer,) = ours.predict([task(drafts=[{"id": 1, "result": [told]}])], context=click_context(20, 30))
    assert shown(answer) == []


def test_f6_a_click_that_takes_too_long_is_an_empty_answer(make_resources: Make, stand_in: StandIn) -> None:
    stand_in.hold = threading.Event()
    (answer,) = backend(make_resources(deadline=0.1)).predict([task()], context=click_context(20, 30))
    assert answer["result"] == []
    stand_in.hold.set()


def test_a_click_does_not_wait_for_the_rest_of_a_batch(make_resources: Make, stand_in: StandIn) -> None:
    ours, stand_in.seconds = backend(make_resources()), 0.05
    batch = threading.Thread(target=ours.predict, args=([task(n) for n in range(6)],))
    batch.start()
    wait_for(lambda: bool(stand_in.order))
    ours.predict([task()], context=click_context(20, 30))
    batch.join()
    assert stand_in.order.index("click") <= 2


def test_each_click_is_one_line_in_the_log(
    make_resources: Make, stand_in: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "vlsam.backend.answers.interactive")
    ours = backend(make_resources())
    predicted = ours.predict([task()])[0]
    ours.predict([task(9)], context=click_context(20, 30, "Dog", id="p"))
    ours.predict([task(9, predictions=[predicted])], context=click_context(31.9, 30, id="p"))
    stand_in.refine = lambda *_: detection("", disc(20, 30, 8))  # type: ignore[method-assign]
    ours.predict([task(9, predictions=[predicted])], context=click_context(25, 30, positive=False, id="p"))
    ours.predict([task(9)], context=click_context(25, 30, positive=False, id="p"))
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
    backend(resources, STATUS).predict([task(9)], context=click_context(20, 30))
    lines = [line for record in caplog.records if "Task" in (line := record.getMessage())]
    assert [re.sub(r"\d+ ms", "N ms", line) for line in lines] == [
        "Task 9: no answer to the click with Cat: The weights are corrupt. (N ms)"
    ]
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
    ours.predict([task(9, predictions=[predicted])], context=click_context(20, 30))
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
    ours.predict([task(predictions=[predicted])], context=click_context(20, 30))
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
    made = backend(make_resources(), config).predict([task()], context=click_context(60, 30, "C\nt\u202e"))[
        0
    ]["result"]
    made[0]["id"] = "a\nTask 1: all is well"
    asked = click_context(60, 30, "C\nt\u202e")
    backend(make_resources(), config).predict([task(drafts=[{"id": 1, "result": made}])], context=asked)
    new, corrected = [record.getMessage() for record in caplog.records]
    assert new.startswith("Task 1: click with C\\nt\\u202e: new region ")
    assert "corrected region a\\nTask 1: all is well, " in corrected


def sent(*prompts: Any, control: Any = "kp") -> dict[str, Any]:
    """Return a context with a click for each id; None stands for a click without one."""
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
        wait_for(lambda: resources.queue.waiting() == waiting)

    with caplog.at_level(logging.INFO):
        threads = [ask("running", 1, sent("z"))]
        wait_for(lambda: bool(stand_in.order))
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
