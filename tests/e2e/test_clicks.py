"""Smart clicks and boxes through Label Studio's own endpoint.

Nothing here depends on what the model finds by itself: the first region is made by a click, and becomes
a prediction of the task by the API, as an import of predictions would.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from backend.labelstudio.recommended_configs import label_config
from backend.labelstudio.status_control import STATUS
from backend.labelstudio_api.client import StudioError
from model.builtin.scenes import NAMES, Scene, draw_scene
from tests.support.editor_gestures import box, click_on_pixel, context, deepest, mask_of
from tests.support.label_studio_user import Studio
from tests.support.studio_servers import MakeProject, Project

SIZE = (400, 300)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return draw_scene(
        np.random.default_rng(7), width=SIZE[0], height=SIZE[1], count=2, scale=(0.4, 0.5), degrade=False
    )


@pytest.fixture(scope="module")
def project(make_project: MakeProject, scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("clicks")
    images = [folder / f"clicks-{number}.png" for number in range(6)]
    for path in images:
        Image.fromarray(scene.image).save(path)
    return make_project("Clicks", label_config(NAMES), images)


class Annotator:
    """Gestures in one task, each answered with one region, and with what the status control is to show."""

    def __init__(self, studio: Studio, project: Project, task: int) -> None:
        self.studio, self.project, self.task = studio, project, task

    def result(self, *gestures: dict[str, Any]) -> list[dict[str, Any]]:
        answer = self.studio.interactive(self.project.backend, self.task, context(*gestures))
        assert not answer.get("errors"), answer
        return [item for item in answer["data"]["result"] if item["from_name"] != STATUS]

    def region(self, *gestures: dict[str, Any]) -> dict[str, Any]:
        (region,) = self.result(*gestures)
        return region


@pytest.fixture(scope="module")
def fresh(studio: Studio, project: Project) -> Annotator:
    """A task without any prediction."""
    return Annotator(studio, project, project.tasks[0])


@pytest.fixture(scope="module")
def target(scene: Scene, fresh: Annotator) -> dict[str, Any]:
    """A region."""
    thing = scene.objects[-1]
    return fresh.region(click_on_pixel(*deepest(thing.visible), SIZE, thing.name))


@pytest.fixture(scope="module")
def others(project: Project) -> Iterator[int]:
    return iter(project.tasks[1:])


@pytest.fixture
def predicted(studio: Studio, project: Project, target: dict[str, Any], others: Iterator[int]) -> Annotator:
    """A task whose only prediction is the target, and where nobody clicked yet: clicks are remembered."""
    task = next(others)
    studio.add_prediction(task, [target], "earlier")
    return Annotator(studio, project, task)


def label_of(region: dict[str, Any]) -> str:
    (label,) = region["value"]["brushlabels"]
    return str(label)


def test_a_click_makes_a_region_with_the_clicked_label(scene: Scene, fresh: Annotator) -> None:
    thing = scene.objects[0]
    x, y = deepest(thing.visible)
    region = fresh.region(click_on_pixel(x, y, SIZE, thing.name))
    assert (region["from_name"], region["to_name"], region["type"]) == ("mask", "image", "brushlabels")
    assert label_of(region) == thing.name
    assert mask_of(region)[y, x]
    assert "vlsam" in region["meta"]


def test_regions_of_clicks_have_fresh_long_ids(scene: Scene, fresh: Annotator) -> None:
    gesture = click_on_pixel(*deepest(scene.objects[0].visible), SIZE, "dog")
    ids = {fresh.region(gesture)["id"] for _ in range(2)}
    assert len(ids) == 2
    assert all(len(region_id) >= 16 for region_id in ids)


def test_a_smart_box_makes_a_region(scene: Scene, fresh: Annotator) -> None:
    thing = scene.objects[-1]
    rows, columns = np.nonzero(thing.visible)
    corners = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    gesture = box(*corners, thing.name, size=SIZE, from_name="box")
    region = fresh.region(gesture)
    assert label_of(region) == thing.name
    assert region["type"] == "brushlabels"
    assert mask_of(region).any()


def test_a_click_inside_a_predicted_region_corrects_it(predicted: Annotator, target: dict[str, Any]) -> None:
    x, y = deepest(mask_of(target))
    region = predicted.region(click_on_pixel(x, y, SIZE, label_of(target)))
    assert region["id"] == target["id"]
    assert region["from_name"] == target["from_name"]
    assert mask_of(region)[y, x]


def test_a_negative_click_corrects_the_region_below_it(predicted: Annotator, target: dict[str, Any]) -> None:
    mask = mask_of(target)
    x, y = deepest(mask)
    # The last answer counts as the region for some seconds, and then the prediction again.
    current = predicted.region(click_on_pixel(x, y, SIZE, label_of(target)))
    rows, columns = np.nonzero(mask & mask_of(current))
    farthest = int(np.hypot(columns - x, rows - y).argmax())
    outside = click_on_pixel(columns[farthest], rows[farthest], SIZE, label_of(target), positive=False)
    assert predicted.region(outside)["id"] == target["id"]
    both = predicted.region(click_on_pixel(x, y, SIZE, label_of(target)), outside)
    assert both["id"] == target["id"]
    assert mask_of(both)[y, x]


def test_a_click_elsewhere_makes_another_region(predicted: Annotator, target: dict[str, Any]) -> None:
    x, y = deepest(~mask_of(target))
    region = predicted.region(click_on_pixel(x, y, SIZE, label_of(target)))
    assert region["id"] != target["id"]
    assert len(region["id"]) >= 16
    assert mask_of(region)[y, x]


def test_a_click_with_another_label_makes_another_region(
    predicted: Annotator, target: dict[str, Any]
) -> None:
    other = next(name for name in NAMES if name != label_of(target))
    region = predicted.region(click_on_pixel(*deepest(mask_of(target)), SIZE, other))
    assert region["id"] != target["id"]
    assert label_of(region) == other


@pytest.mark.parametrize(
    "gestures",
    [
        pytest.param((click_on_pixel(10, 10, SIZE, "no such label"),), id="unknown label"),
        pytest.param((click_on_pixel(10, 10, SIZE, "dog", positive=False),), id="negative click on nothing"),
        pytest.param((), id="no gesture"),
    ],
)
def test_what_cannot_be_answered_gives_no_region(
    fresh: Annotator, gestures: tuple[dict[str, Any], ...]
) -> None:
    assert fresh.result(*gestures) == []


def test_a_typed_phrase_makes_the_region_that_it_names(
    studio: Studio, make_project: MakeProject, scene: Scene, tmp_path: Path
) -> None:
    controls = (
        '<TextArea name="vlsam_prompt" toName="image"/><Number name="vlsam_score" toName="image"/>'
        '<Choices name="vlsam_level" toName="image"><Choice value="auto"/><Choice value="part"/></Choices>'
    )
    path = tmp_path / "typed.png"
    Image.fromarray(scene.image).save(path)
    project = make_project("Typed", label_config(NAMES).replace("<View>", f"<View>{controls}", 1), [path])
    annotator = Annotator(studio, project, project.tasks[0])
    thing = max(scene.objects, key=lambda thing: int(thing.visible.sum()))

    def typed(phrase: str) -> dict[str, Any]:
        value = {"text": [phrase]}
        return {
            "value": value,
            "id": "t1",
            "from_name": "vlsam_prompt",
            "to_name": "image",
            "type": "textarea",
        }

    region = annotator.region(typed(f"the {thing.name} over there"))
    assert label_of(region) == thing.name
    mask = mask_of(region)
    assert (mask & thing.visible).sum() > 0.6 * (mask | thing.visible).sum()
    # What was typed and set is saved beside the region, and is no region of anybody's.
    score = {"value": {"number": 0.1}, "id": "n1", "from_name": "vlsam_score", "to_name": "image"}
    studio.submit(project.tasks[0], [region, typed(thing.name), {**score, "type": "number"}])
    assert annotator.result(typed(thing.name)) == []
    corrected = annotator.region(click_on_pixel(*deepest(mask), SIZE, thing.name))
    assert corrected["id"] == region["id"]


def test_what_was_annotated_is_not_predicted_again(
    studio: Studio, make_project: MakeProject, scene: Scene, tmp_path: Path
) -> None:
    path = tmp_path / "annotated.png"
    Image.fromarray(scene.image).save(path)
    project = make_project("Annotated", label_config(NAMES), [path])
    annotator = Annotator(studio, project, project.tasks[0])
    studio.retrieve_predictions(project.id)
    (before,) = studio.predictions(project.id)
    accepted, *others = before["result"]
    studio.submit(project.tasks[0], [accepted], parent_prediction=before["id"])
    studio.delete_predictions(project.id)
    studio.retrieve_predictions(project.id)
    (after,) = studio.predictions(project.id)
    assert after["result"] == others
    assert annotator.result(click_on_pixel(*deepest(mask_of(accepted)), SIZE, label_of(accepted)))


def test_label_studio_refuses_what_does_not_fit_the_config(studio: Studio, project: Project) -> None:
    """Its validation, which it ships with off, is on in these tests."""
    bad = {"id": "b", "from_name": "mask", "to_name": "image", "type": "brushlabels", "value": {"rle": [1]}}
    with pytest.raises(StudioError, match="400"):
        studio.add_prediction(project.tasks[0], [{**bad, "value": {"brushlabels": ["no label"]}}], "bad")


def test_the_next_protocols_events_come_through_this_label_studio(studio: Studio, project: Project) -> None:
    def ask(event: str) -> dict[str, Any]:
        answer = studio.interactive(project.backend, project.tasks[0], {"event": event})
        return dict(answer["data"])

    assert ask("capabilities")["result"][0]["value"]["prompts"] == ["point", "box"]
    assert ask("release")["result"] == []
    assert "no answer to the event" in ask("track")["reason"]


def test_a_corrected_region_survives_submission_and_the_next_click(
    studio: Studio, project: Project, predicted: Annotator, target: dict[str, Any]
) -> None:
    """The annotation comes back with the region's evidence, and a click finds the region in it again."""
    x, y = deepest(mask_of(target))
    corrected = predicted.region(click_on_pixel(x, y, SIZE, label_of(target)))
    (prediction,) = [p for p in studio.predictions(project.id) if p["task"] == predicted.task]
    annotation = studio.submit(predicted.task, [corrected], parent_prediction=prediction["id"])
    kept = studio.annotation(annotation["id"])
    (region,) = kept["result"]
    assert kept["parent_prediction"] == prediction["id"]
    assert region["id"] == target["id"]
    assert region["meta"] == corrected["meta"]
    assert (mask_of(region) == mask_of(corrected)).all()

    again = predicted.region(click_on_pixel(x, y, SIZE, label_of(target)))
    assert again["id"] == target["id"]


def test_saving_calls_the_backends_webhook_and_harms_nothing(
    studio: Studio, project: Project, fresh: Annotator, scene: Scene
) -> None:
    """Connecting made Label Studio send each event of the project there, too."""
    (hook,) = studio.webhooks(project.id)
    (backend,) = studio.backends(project.id)
    assert hook["url"] == f"{backend['url']}/webhook"
    thing = scene.objects[0]
    region = fresh.region(click_on_pixel(*deepest(thing.visible), SIZE, thing.name))
    annotation = studio.submit(fresh.task, [region])
    assert annotation["result"][0]["id"] == region["id"]
    assert studio.backends(project.id)[0]["readable_state"] == "Connected"
    assert fresh.region(click_on_pixel(*deepest(thing.visible), SIZE, thing.name))["id"] == region["id"]


def test_opening_a_task_without_predictions_fetches_one(
    studio: Studio, make_project: MakeProject, tmp_path: Path
) -> None:
    path = tmp_path / "opened.png"
    Image.new("RGB", (64, 48), "grey").save(path)
    project = make_project("Opened", label_config(NAMES), [path])
    assert studio.predictions(project.id) == []
    assert len(studio.task(project.tasks[0])["predictions"]) == 1
