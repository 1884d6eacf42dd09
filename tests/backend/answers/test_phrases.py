"""Text prompts and settings beside the image: by name, by task, and through the whole backend."""

import json
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from backend.answers.ml_backend import VLSAMBackend
from backend.answers.resources import Resources
from backend.labelstudio import labeling_config, prompt_controls, tasks
from backend.labelstudio.prompt_controls import Wishes
from backend.labelstudio.region_reading import decode
from backend.labelstudio.request import Interaction
from backend.labelstudio.tasks import Task
from backend.settings import Settings
from model.builtin.scenes import draw_scene
from model.pipeline import VLSAM
from model.segmentation.non_maximum_suppression import iou
from model.vlm_stage import MAX_PHRASE
from tests.support.detections import detection, disc
from tests.support.editor_gestures import click, context
from tests.support.images import image_url
from tests.support.labeling_configs import CONFIG
from tests.support.predictions import task
from tests.support.stand_in import StandIn

Make = Callable[..., Resources]
SETTINGS = """
  <TextArea name="vlsam_prompt" toName="image"/>
  <TextArea name="caption" toName="image"/>
  <TextArea name="asked" toName="image" smart="true"/>
  <TextArea name="of_region" toName="image" perRegion="true" smart="true"/>
  <Choices name="vlsam_level" toName="image"><Choice value="auto"/><Choice value="part"/></Choices>
  <Number name="vlsam_score" toName="image" min="0" max="1"/>
</View>"""
TYPED = CONFIG.replace("</View>", SETTINGS)
PARSED = labeling_config.parse(TYPED)


def text(*texts: str, name: str = "vlsam_prompt", number: str = "t") -> dict[str, Any]:
    value = {"text": list(texts)}
    return {"value": value, "id": number, "from_name": name, "to_name": "image", "type": "textarea"}


def level(*chosen: Any) -> dict[str, Any]:
    return {"value": {"choices": list(chosen)}, "id": "c", "from_name": "vlsam_level", "type": "choices"}


def score(number: Any) -> dict[str, Any]:
    return {"value": {"number": number}, "id": "n", "from_name": "vlsam_score", "type": "number"}


def wishes(context: Any, task: Any) -> Wishes:
    return Interaction.parse(Task.parse(task), context, PARSED).wishes


def draft(*items: Any, **more: Any) -> dict[str, Any]:
    return {"id": 1, "result": list(items), "updated_at": "2026-01-01", **more}


def backend(resources: Resources, config: str = TYPED) -> VLSAMBackend:
    return VLSAMBackend(config, resources=resources)


def ask(ours: VLSAMBackend, *items: Any, **more: Any) -> dict[str, Any]:
    (answer,) = ours.predict([task(**more)], context=context(*items))
    json.dumps(answer)
    return dict(answer)


# Which text is a prompt


def test_text_controls_are_prompts_by_name_or_where_they_say_so() -> None:
    told = '<TextArea name="vlsam_status" toName="image" smart="true"/></View>'
    assert labeling_config.parse(TYPED.replace("</View>", told)).phrases == {"vlsam_prompt", "asked"}


def test_a_text_without_end_is_read_as_far_as_it_may_be_a_phrase() -> None:
    """It is looked through for words, each of which is an object of its own."""
    typed = prompt_controls.typed(tasks.entries([text("  " + "cat " * 1_000_000)]), PARSED)
    assert typed is not None
    assert typed.startswith("cat cat")
    assert MAX_PHRASE < len(typed) <= 10_000


def test_the_text_submitted_last_counts() -> None:
    assert prompt_controls.typed(tasks.entries([text("dog", "the cat")]), PARSED) == "the cat"
    assert (
        prompt_controls.typed(tasks.entries([text("dog"), score(0.5), text("cat", name="asked")]), PARSED)
        == "cat"
    )


@pytest.mark.parametrize("name", ["caption", "vlsam_status", "of_region", "nowhere", [], {}, None])
def test_other_texts_are_no_prompts(make_resources: Make, name: Any) -> None:
    assert prompt_controls.typed(tasks.entries([text("dog", name=name)]), PARSED) is None
    answer = ask(backend(make_resources()), text("dog", name=name))
    assert answer["result"] == []
    assert "no text for the model" in answer["reason"]


@pytest.mark.parametrize("value", [None, 3, [], [None], [""], [" \n"], [{"text": "dog"}], ""])
def test_what_is_no_text_is_none(value: Any) -> None:
    assert prompt_controls.typed(tasks.entries([{**text(), "value": {"text": value}}]), PARSED) is None


def test_the_status_says_what_was_not_found(make_resources: Make) -> None:
    ours = backend(
        make_resources(), TYPED.replace("</View>", '<TextArea name="vlsam_status" toName="image"/></View>')
    )
    (told,) = ask(ours, text("zebra"))["result"]
    assert (told["from_name"], "does not find 'zebra'" in told["value"]["text"][0]) == ("vlsam_status", True)
    assert ask(ours, {**told, "id": "s"})["reason"].endswith("no text for the model.")


# Level and score


@pytest.mark.parametrize(
    ("items", "found"),
    [
        ((), Wishes()),
        ((level("part"), score(0.4)), Wishes("part", 0.4)),
        ((level("whole"), level("subpart")), Wishes("subpart", 0.0)),
        ((level("huge"), score(1.5)), Wishes()),
        ((level("part", "whole"), score("0.5")), Wishes()),
        ((level(["part"]), score(float("nan")), score(True), score(None)), Wishes()),
        (({**level("part"), "from_name": "size"}, {**score(0.5), "type": "choices"}), Wishes()),
        (({"from_name": ["vlsam_level"], "type": {}}, "junk", None, 7), Wishes()),
    ],
)
def test_level_and_score_come_from_controls_of_these_names(items: tuple[Any, ...], found: Wishes) -> None:
    assert wishes(context(click(1, 1)), task(drafts=[draft(*items)])) == found
    assert wishes(context(text("dog"), *items), task()) == found


def test_which_draft_or_annotation_level_and_score_come_from() -> None:
    newest = draft(level("whole"), updated_at="2026-01-02")
    saved = [{"id": 5, "result": [level("part"), score(0.5)]}]

    def of(*items: Any, **more: Any) -> Wishes:
        return wishes(context(*items), task(**more))

    assert of(drafts=[draft(level("part")), newest]).level == "whole"
    assert of(annotations=saved) == Wishes("part", 0.5)
    assert of(annotations=saved, drafts=[draft()]) == Wishes()  # cleared since
    assert of(annotations=saved * 2) == Wishes()  # whose is whose, nobody knows
    # All of them come with a text, so what is not there was cleared.
    assert of(text("dog"), drafts=[newest]) == Wishes()


def test_clicks_take_level_and_score_from_the_draft(make_resources: Make, stand_in: StandIn) -> None:
    ours = backend(make_resources())
    assert ask(ours, click(20, 30), drafts=[draft(level("part"), score(0.8))])["result"]
    assert stand_in.levels == ["part"]
    answer = ask(ours, click(20, 30), drafts=[draft(score(0.81))])
    assert answer["result"] == []
    assert answer["reason"] == "The score 0.80 is below the 0.81 of vlsam_score."


def test_settings_and_texts_are_never_regions_or_prompts(make_resources: Make, stand_in: StandIn) -> None:
    beside = [text("dog"), level("auto"), score(0.1)]
    ours = backend(make_resources())
    for context_too in ([], beside):
        answer = ask(ours, *context_too, click(20, 30), drafts=[draft(*beside)])
        assert [region["type"] for region in answer["result"]] == ["brushlabels"]
    assert stand_in.order == ["click", "click"]
    assert [prompt.points.tolist() for prompt in stand_in.prompts] == [[[20, 30]]] * 2


# From a phrase to regions


def test_a_phrase_becomes_a_region_with_the_label_of_its_noun(
    make_resources: Make, stand_in: StandIn
) -> None:
    answer = ask(backend(make_resources()), level("part"), score(0.2), text("the cat on the left"))
    (region,) = answer["result"]
    assert (region["from_name"], region["value"]["brushlabels"]) == ("brush", ["Cat"])
    assert region["meta"]["vlsam"]["term"] == "cat"
    assert len(region["id"]) >= 16
    found = decode(region, (60, 80))
    assert found is not None
    assert (found == disc(20, 30, 12)).all()
    assert (stand_in.order, stand_in.levels) == (["phrase"], ["part"])


def test_the_recorded_request_of_a_text(
    make_resources: Make, stand_in: StandIn, capture: Callable[..., Any]
) -> None:
    """Recorded with a TextArea named "prompt", before there was a convention."""
    body = capture("ui_65_text_after_globals")
    given = body["params"]["context"]["result"]
    assert [item["type"] for item in given] == ["number", "choices", "textarea"]
    config = labeling_config.parse(
        body["label_config"].replace('name="prompt"', 'name="prompt" smart="true"')
    )
    assert prompt_controls.typed(given, config) == "red circle"
    assert prompt_controls.label_of("red circle", "circle", (), config) is None


def test_what_is_not_found_is_an_empty_answer_with_a_reason(
    make_resources: Make, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        answer = ask(backend(make_resources()), text("zebra\n\x1b[31m" + "z" * 200))
    assert answer["result"] == []
    assert answer["reason"].startswith("The model does not find 'zebra\\n\\x1b[31mzz")
    assert len(answer["reason"]) < 150
    assert "does not find" in caplog.text
    assert "\x1b" not in caplog.text


def test_a_region_below_the_score_is_not_answered(make_resources: Make) -> None:
    answer = ask(backend(make_resources()), score(0.9), text("cat"))
    assert (answer["result"], answer["reason"]) == ([], "The score 0.80 is below the 0.90 of vlsam_score.")


@pytest.mark.parametrize(
    ("phrase", "term", "more", "label"),
    [
        ("the Cat!", "cat", (), "Cat"),
        ("two dogs", "dog", (), "Dog"),
        ("wild cat in a tree", "wild cat", (), "Cat"),
        ("zebra", "zebra", (), None),
        ("zebra", "zebra", ({"type": "labels", "value": {"labels": ["Dog"]}},), "Dog"),
        ("zebra", "zebra", ({"type": "labels", "value": {"labels": ["Unicorn"]}},), None),
    ],
)
def test_the_label_of_a_phrase(phrase: str, term: str, more: tuple[Any, ...], label: str | None) -> None:
    selected = Interaction.parse(Task.parse(task()), context(text(phrase), *more), PARSED).selected
    assert prompt_controls.label_of(phrase, term, selected, PARSED) == label


def test_a_label_of_the_whole_phrase_comes_first_and_the_only_label_last() -> None:
    brush = '<View><Image name="i" value="$i"/><BrushLabels name="b" toName="i">{}</BrushLabels></View>'
    cars = labeling_config.parse(brush.format('<Label value="Car"/><Label value="Red car"/>'))
    assert prompt_controls.label_of("the red car", "car", (), cars) == "Red car"
    assert prompt_controls.label_of("the blue car", "car", (), cars) == "Car"
    assert (
        prompt_controls.label_of(
            "zebra", "zebra", (), labeling_config.parse(brush.format('<Label value="X"/>'))
        )
        == "X"
    )


def test_what_no_label_means_is_an_empty_answer_with_a_reason(
    make_resources: Make, stand_in: StandIn
) -> None:
    stand_in.found = [detection("zebra", disc(20, 30, 12))]
    answer = ask(backend(make_resources()), text("zebra"))
    assert (answer["result"], "predicted_values" in answer["reason"]) == ([], True)


def test_regions_without_labels_are_named_by_what_was_typed(make_resources: Make, stand_in: StandIn) -> None:
    config = """<View><Image name="i" value="$image"/><Brush name="b" toName="i"/>
      <TextArea name="vlsam_prompt" toName="i"/><TextArea name="what" toName="i" perRegion="true"/></View>"""
    stand_in.found = [detection("zebra", disc(20, 30, 12))]
    mask, name = ask(backend(make_resources(), config), text("the zebra"))["result"]
    assert (mask["type"], name["from_name"], name["value"]["text"]) == ("brush", "what", ["zebra"])
    assert mask["id"] == name["id"]


# What is there already


def test_what_the_person_has_a_region_of_is_not_answered_again(make_resources: Make) -> None:
    ours = backend(make_resources())
    (region,) = ask(ours, text("cat"))["result"]
    for more in ({"drafts": [draft(region)]}, {"annotations": [{"id": 3, "result": [region]}]}):
        answer = ask(ours, text("cat"), **more)
        assert (answer["result"], answer["reason"]) == ([], "There is a region of 'cat' already.")
    deleted = {"drafts": [draft(annotation=3)], "annotations": [{"id": 3, "result": [region]}]}
    assert ask(ours, text("cat"), **deleted)["result"]


def test_a_prediction_that_nobody_has_touched_is_replaced_in_its_place(make_resources: Make) -> None:
    ours = backend(make_resources())
    predicted = ours.predict([task()])[0]
    predicted["result"][0]["meta"]["text"] = ["mind the tail"]
    (region,) = ask(ours, text("cat"), predictions=[predicted])["result"]
    assert region["id"] == predicted["result"][0]["id"]
    assert region["meta"]["text"] == ["mind the tail"]
    predicted["result"][0]["value"]["brushlabels"] = ["Dog", "Cat"]
    (region,) = ask(ours, text("cat"), predictions=[predicted])["result"]
    assert region["value"]["brushlabels"] == ["Dog", "Cat"]
    relation = {"type": "relation", "from_id": region["id"], "to_id": "x", "direction": "right"}
    predicted["result"].append(relation)
    assert ask(ours, text("cat"), predictions=[predicted])["result"] == []


# The real models


def test_a_phrase_finds_its_object_in_a_drawn_scene(builtin: VLSAM) -> None:
    scene = draw_scene(np.random.default_rng(7), width=420, height=300, count=3, degrade=False)
    thing = max(scene.objects, key=lambda thing: int(thing.visible.sum()))
    values = "".join(f'<Label value="{name}"/>' for name in {o.name for o in scene.objects})
    config = (
        '<View><Image name="i" value="$image"/><TextArea name="vlsam_prompt" toName="i"/>'
        f'<BrushLabels name="b" toName="i">{values}</BrushLabels></View>'
    )
    resources = Resources(lambda: builtin, Settings(), version="v1").start()
    (answer,) = backend(resources, config).predict(
        [{"id": 1, "data": {"image": image_url(scene.image)}}],
        context=context(text(f"the {thing.name} over there")),
    )
    (region,) = answer["result"]
    assert region["value"]["brushlabels"] == [thing.name]
    found = decode(region, (300, 420))
    assert found is not None
    assert iou(found, thing.visible) > 0.6
