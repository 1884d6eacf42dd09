"""An annotator at work: real gestures in Label Studio's editor, and what is seen, saved and exported.

Of this scene's three objects the built-in models find the dog well and the horse with too much beside it;
the shoe's name is not among the labels, so it is left to the annotator.
"""

import json
import re
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
from PIL import Image, ImageDraw
from playwright.sync_api import expect, sync_playwright
from pycocotools import mask as coco

from backend.labelstudio.recommended_configs import label_config
from model.builtin.scenes import NAMES, Scene, draw_scene
from tests.support.browser_editor import FLAGS, Editor, config, iou, shared_labels_config
from tests.support.editor_gestures import Mask, click_on_pixel, context, deepest, mask_of
from tests.support.label_studio_user import Studio
from tests.support.studio_servers import OWNER, MakeProject, Project, Servers, save_image

SIZE = (400, 300)
LABELS = (
    '<Label value="horse" background="#00a0ff"/><Label value="dog" background="#e03060"/>'
    '<Label value="boot" background="#20c020"/>'
)
BRUSH = config(
    LABELS, '<BrushLabels name="mask" toName="image" smart="false">{labels}</BrushLabels>', width=SIZE[0]
)


SHARED = shared_labels_config(LABELS, "Brush", width=SIZE[0])
BITMASK = config(
    LABELS,
    '<BitmaskLabels name="mask" toName="image" smart="false">{labels}</BitmaskLabels>'
    '<Text name="said" value="VL-SAM says:"/>'
    '<TextArea name="vlsam_status" toName="said" editable="false" showSubmitButton="false"/>',
    width=SIZE[0],
)


@pytest.fixture(scope="module")
def opened(chromium: str, servers: Servers) -> Iterator[Editor]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        try:
            yield Editor(browser, servers.studio.url, OWNER)
        finally:
            browser.close()


@pytest.fixture
def editor(opened: Editor, request: pytest.FixtureRequest) -> Iterator[Editor]:
    """The editor, of whose last state a picture is kept."""
    yield opened
    opened.save_picture(request.node.name.removeprefix("test_"))


@pytest.fixture(scope="module")
def scene() -> Scene:
    return draw_scene(
        np.random.default_rng(29),
        width=SIZE[0],
        height=SIZE[1],
        count=3,
        scale=(0.35, 0.5),
        degrade=True,
        names=NAMES,
    )


@pytest.fixture(scope="module")
def horse(scene: Scene) -> Mask:
    return visible(scene, "horse")


@pytest.fixture(scope="module")
def shoe(scene: Scene) -> Mask:
    return visible(scene, "shoe")


def visible(scene: Scene, name: str) -> Mask:
    (thing,) = (thing for thing in scene.objects if thing.name == name)
    return thing.visible


class Tasks:
    """Pre-annotated tasks of one scene, each of which is used up by one test."""

    def __init__(self, studio: Studio, project: Project, label_config: str) -> None:
        self.project, self.label_config = project, label_config
        self._predicted: dict[int, list[dict[str, Any]]] = {}
        # What a slow machine does not reach within the deadline is to be asked for again.
        while left := [task for task in project.tasks if task not in self._predicted]:
            studio.retrieve_predictions(project.id, left)
            found = {int(p["task"]): p["result"] for p in studio.predictions(project.id)}
            assert len(found) > len(self._predicted)
            self._predicted = found
        self._unused = iter(project.tasks)

    def open_next(self, editor: Editor, **settings: bool) -> tuple[int, list[dict[str, Any]]]:
        """The id of the opened task, and its predicted regions."""
        task = next(self._unused)
        self.open(editor, task, **settings)
        return task, self._predicted[task]

    def open(self, editor: Editor, task: int, **settings: bool) -> None:
        regions = len({region["id"] for region in self._predicted[task]})
        editor.open(self.project.id, task, self.label_config, regions=regions, **settings)


@pytest.fixture(scope="module")
def tasks(
    make_project: MakeProject, studio: Studio, scene: Scene, tmp_path_factory: pytest.TempPathFactory
) -> Tasks:
    folder = tmp_path_factory.mktemp("browser")
    images = [folder / f"{number}.png" for number in range(10)]
    for path in images:
        Image.fromarray(scene.image).save(path)
    return Tasks(studio, make_project("Browser", BRUSH, images), BRUSH)


def together(regions: list[dict[str, Any]]) -> Mask:
    mask: Mask = np.any([mask_of(region) for region in regions], axis=0)
    return mask


def labelled(regions: list[dict[str, Any]], label: str) -> dict[str, Any]:
    (region,) = (region for region in regions if region["value"][region["type"]] == [label])
    return region


def test_predictions_are_drawn_pixel_by_pixel(editor: Editor, tasks: Tasks) -> None:
    _, predicted = tasks.open_next(editor)
    assert sorted(editor.labels()) == ["dog", "horse"]
    editor.see(together(predicted), 0.98)


def test_a_click_and_an_alt_click_add_what_was_missed(editor: Editor, tasks: Tasks, shoe: Mask) -> None:
    """The second click is sent along with the first, and what was suggested before goes."""
    _, predicted = tasks.open_next(editor)
    x, y = deepest(shoe)
    (first,) = editor.click(x, y, "click", "boot")
    assert mask_of(first)[y, x]
    away = deepest(~(shoe | together(predicted)))
    (second,) = editor.click(*away, "click", "boot", negative=True)
    mask = mask_of(second)
    assert mask[y, x]
    assert not mask[away[1], away[0]]
    assert iou(mask, shoe) > 0.7
    editor.accept()
    assert sorted(editor.labels()) == ["boot", "dog", "horse"]
    editor.see(together([*predicted, second]), 0.98)


def test_a_box_adds_what_was_missed(editor: Editor, tasks: Tasks, shoe: Mask) -> None:
    _, predicted = tasks.open_next(editor)
    rows, columns = np.nonzero(shoe)
    (region,) = editor.drag(columns.min(), rows.min(), columns.max(), rows.max(), "box", "boot")
    assert iou(mask_of(region), shoe) > 0.7
    editor.accept()
    assert sorted(editor.labels()) == ["boot", "dog", "horse"]
    editor.see(together([*predicted, region]), 0.98)


def test_a_predicted_region_is_corrected_in_place_submitted_and_exported(
    editor: Editor, tasks: Tasks, studio: Studio, horse: Mask
) -> None:
    """All ids, evidence and masks survive the draft, the reload of the page and the saved annotation."""
    task, predicted = tasks.open_next(editor)
    wrong = labelled(predicted, "horse")
    before = mask_of(wrong)
    editor.see(together(predicted), 0.98)
    editor.save_picture("correction-before")
    x, y = deepest(before & ~horse)
    (corrected,) = editor.click(x, y, "click", "horse", negative=True, inside=True)
    after = mask_of(corrected)
    assert corrected["id"] == wrong["id"]
    assert corrected["meta"] != wrong["meta"]
    assert not after[y, x]
    assert iou(after, horse) > iou(before, horse) + 0.1
    editor.accept()
    assert sorted(editor.labels()) == ["dog", "horse"]
    expected = [corrected, labelled(predicted, "dog")]
    editor.see(together(expected), 0.98)
    editor.save_picture("correction-after")
    editor.draft()
    (draft,) = studio.task(task)["drafts"]

    tasks.open(editor, task)
    editor.see(together(expected), 0.98)
    saved = studio.annotation(editor.submit())
    for kept in draft, saved:
        assert len(kept["result"]) == 2
        for label, region in (("horse", corrected), ("dog", expected[1])):
            same = labelled(kept["result"], label)
            assert same["id"] == region["id"]
            assert same["meta"] == region["meta"]
            assert (mask_of(same) == mask_of(region)).all()

    (exported,) = json.loads(studio.export(tasks.project.id, "JSON"))
    (annotation,) = exported["annotations"]
    assert {region["id"] for region in annotation["result"]} == {region["id"] for region in predicted}
    with ZipFile(BytesIO(studio.export(tasks.project.id, "BRUSH_TO_COCO"))) as archive:
        exported = json.loads(archive.read("result_coco.json"))
    names = {category["id"]: category["name"] for category in exported["categories"]}
    # One annotation for each part of a mask.
    rings = [
        ring
        for annotation in exported["annotations"]
        if names[annotation["category_id"]] == "horse"
        for ring in annotation["segmentation"]
    ]
    encoded = coco.merge(coco.frPyObjects(rings, SIZE[1], SIZE[0]))
    assert iou(coco.decode(encoded).astype(bool), after) > 0.9


def test_a_correction_that_is_submitted_at_once_is_saved_as_it_is_shown(
    editor: Editor, tasks: Tasks, studio: Studio, horse: Mask
) -> None:
    """No draft and no reload is between: 1.23.2 submits what a replaced region was made with."""
    _, predicted = tasks.open_next(editor)
    x, y = deepest(mask_of(labelled(predicted, "horse")) & ~horse)
    (corrected,) = editor.click(x, y, "click", "horse", negative=True, inside=True)
    editor.accept()
    saved = studio.annotation(editor.submit())["result"]
    assert (mask_of(labelled(saved, "horse")) == mask_of(corrected)).all()


def test_with_auto_accept_each_click_goes_on_with_the_same_region(
    editor: Editor, tasks: Tasks, shoe: Mask
) -> None:
    """Also before a draft tells of the region: the editor saves drafts seconds later."""
    _, predicted = tasks.open_next(editor, auto_accept=True)
    x, y = deepest(shoe)
    (first,) = editor.click(x, y, "click", "boot")
    outside = deepest(~(shoe | together([*predicted, first])))
    (second,) = editor.click(x + 3, y, "click", "boot", inside=True)
    assert second["id"] == first["id"]
    assert sorted(editor.labels()) == ["boot", "dog", "horse"]
    editor.see(together([*predicted, second]), 0.98)
    assert not mask_of(second)[outside[1], outside[0]]


@pytest.mark.parametrize("keep_label", [False, True], ids=["", "keep_label"])
@pytest.mark.parametrize("auto_accept", [False, True], ids=["", "auto_accept"])
def test_two_clicks_make_one_region_whatever_the_settings(
    editor: Editor, tasks: Tasks, studio: Studio, shoe: Mask, auto_accept: bool, keep_label: bool
) -> None:
    """A label that is kept has the editor store a ghost beside the region: its pixels as a keypoint's."""
    task, _ = tasks.open_next(editor, auto_accept=auto_accept, keep_label=keep_label)
    x, y = deepest(shoe)
    (first,) = editor.click(x, y, "click", "boot")
    if keep_label:
        (second,) = editor.click_again(x + 30, y, inside=True)
    else:
        (second,) = editor.click(x + 30, y, "click", "boot", inside=True)
    assert len(second["meta"]["vlsam"]["points"]) == 2
    assert mask_of(second)[y, x]
    assert mask_of(second)[y, x + 30]
    if auto_accept:
        assert second["id"] == first["id"]
    else:
        editor.accept()
    wait_for_draft(editor, studio, task, second)
    labels = [
        label.split(", ") for label in sorted(editor.labels())
    ]  # a ghost's is named beside its region's
    assert [set(each) for each in labels] == [{"boot"}, {"dog"}, {"horse"}]

    saved = studio.annotation(editor.submit())["result"]
    kept = labelled([region for region in saved if region["type"] == "brushlabels"], "boot")
    assert (mask_of(kept) == mask_of(second)).all()
    ghosts = [region for region in saved if region["type"] != "brushlabels"]
    assert {ghost["type"] for ghost in ghosts} == ({"keypointlabels"} if keep_label else set())
    answer = studio.interactive(tasks.project.backend, task, context(click_on_pixel(x, y, SIZE, "boot")))
    (corrected,) = answer["data"]["result"]
    assert (corrected["id"], corrected["type"]) == (kept["id"], "brushlabels")


def wait_for_draft(editor: Editor, studio: Studio, task: int, region: dict[str, Any]) -> None:
    """Until a draft holds the region as it was answered."""
    for _ in range(120):
        drafts = studio.task(task)["drafts"]
        if any(item.get("meta") == region["meta"] for draft in drafts for item in draft["result"]):
            return
        editor.page.wait_for_timeout(500)
    raise AssertionError("no draft holds the region")


def test_what_is_typed_is_found_and_labelled_by_its_noun(
    editor: Editor, make_project: MakeProject, studio: Studio, scene: Scene, shoe: Mask, tmp_path: Path
) -> None:
    typed = BRUSH.replace('value="boot"', 'value="boot" predicted_values="shoe"').replace(
        "</View>", '<TextArea name="vlsam_prompt" toName="image" placeholder="What to find"/></View>'
    )
    path = save_image(tmp_path / "typed.png", scene.image)
    project = make_project("Typed in the browser", typed, [path])
    studio.retrieve_predictions(project.id)
    (prediction,) = studio.predictions(project.id)
    dog = labelled(prediction["result"], "dog")
    studio.submit(project.tasks[0], [dog], parent_prediction=prediction["id"])
    editor.open(project.id, project.tasks[0], typed, regions=1)
    assert editor.type("the dog", "What to find") == []  # there it is
    (region,) = editor.type("the blue shoe on the right", "What to find")
    assert region["value"]["brushlabels"] == ["boot"]
    assert iou(mask_of(region), shoe) > 0.7
    editor.accept()
    assert sorted(editor.labels()) == ["boot", "dog"]
    editor.see(mask_of(region) | mask_of(dog), 0.98)
    saved = studio.annotation(editor.submit())["result"]
    assert sorted(item["type"] for item in saved) == ["brushlabels", "brushlabels", "textarea"]
    (text,) = (item for item in saved if item["type"] == "textarea")
    assert text["value"] == {"text": ["the dog", "the blue shoe on the right"]}


def test_a_photo_stored_on_its_side_is_annotated_as_it_is_shown(
    editor: Editor,
    make_project: MakeProject,
    studio: Studio,
    scene: Scene,
    shoe: Mask,
    tmp_path: Path,
) -> None:
    path = save_image(tmp_path / "turned.jpg", scene.image, turned=True)
    tasks = Tasks(studio, make_project("Turned", BRUSH, [path]), BRUSH)
    _, predicted = tasks.open_next(editor)
    editor.see(together(predicted), 0.98)
    assert iou(mask_of(labelled(predicted, "dog")), visible(scene, "dog")) > 0.8
    (region,) = editor.click(*deepest(shoe), "click", "boot")
    assert iou(mask_of(region), shoe) > 0.7
    editor.accept()
    editor.see(together([*predicted, region]), 0.98)


def test_polygons_are_drawn_and_corrected_in_place(
    editor: Editor, make_project: MakeProject, studio: Studio, scene: Scene, tmp_path: Path
) -> None:
    outlines = config(
        LABELS, '<PolygonLabels name="outline" toName="image">{labels}</PolygonLabels>', width=SIZE[0]
    )
    path = save_image(tmp_path / "polygons.png", scene.image)
    tasks = Tasks(studio, make_project("Polygons in the browser", outlines, [path]), outlines)
    _, predicted = tasks.open_next(editor)
    horse, dog = labelled(predicted, "horse"), labelled(predicted, "dog")
    editor.see(polygon(horse) | polygon(dog), 0.9)  # its corners are drawn as dots, half of them outside
    x, y = deepest(polygon(horse) & ~visible(scene, "horse"))
    (corrected,) = editor.click(x, y, "click", "horse", negative=True, inside=True)
    assert corrected["id"] == horse["id"]
    assert not polygon(corrected)[y, x]
    editor.accept()
    assert sorted(editor.labels()) == ["dog", "horse"]
    editor.see(polygon(corrected) | polygon(dog), 0.9)


def test_with_one_list_of_labels_a_region_is_corrected_in_place(
    editor: Editor, make_project: MakeProject, studio: Studio, scene: Scene, horse: Mask, tmp_path: Path
) -> None:
    """A region that is replaced while it is selected breaks the editor; inside one no smart click is made."""
    path = save_image(tmp_path / "shared.png", scene.image)
    tasks = Tasks(studio, make_project("One list of labels", SHARED, [path]), SHARED)
    _, predicted = tasks.open_next(editor)
    geometry = [region for region in predicted if region["type"] == "brush"]
    assert len(predicted) == 2 * len(geometry) == 4
    assert sorted(editor.labels()) == ["dog", "horse"]
    editor.see(together(geometry), 0.98)
    wrong = geometry_of(predicted, "horse")
    x, y = deepest(mask_of(wrong) & ~horse)
    corrected, named = editor.click(x, y, "click", "horse", negative=True, inside=True)
    assert corrected["id"] == named["id"] == wrong["id"]
    assert named["value"]["labels"] == ["horse"]
    assert not mask_of(corrected)[y, x]
    editor.accept()
    assert sorted(editor.labels()) == ["dog", "horse"]
    saved = studio.annotation(editor.submit())["result"]
    assert sorted(region["type"] for region in saved) == ["brush"] * 2 + ["labels"] * 2
    assert (mask_of(geometry_of(saved, "horse")) == mask_of(corrected)).all()


def geometry_of(regions: list[dict[str, Any]], label: str) -> dict[str, Any]:
    (name,) = (r["id"] for r in regions if r["type"] == "labels" and r["value"]["labels"] == [label])
    (region,) = (r for r in regions if r["type"] != "labels" and r["id"] == name)
    return region


@pytest.fixture(scope="module")
def bitmasks(
    make_project: MakeProject, studio: Studio, scene: Scene, tmp_path_factory: pytest.TempPathFactory
) -> Tasks:
    folder = tmp_path_factory.mktemp("bitmasks")
    images = [save_image(folder / f"{number}.png", scene.image) for number in range(2)]
    return Tasks(studio, make_project("Bitmasks", BITMASK, images), BITMASK)


def test_bitmasks_are_drawn_and_corrected_in_place(
    editor: Editor, bitmasks: Tasks, studio: Studio, horse: Mask
) -> None:
    """By a box from outside: 1.23.2 selects a bitmask region that is clicked, also where Ctrl is held."""
    _, predicted = bitmasks.open_next(editor)
    editor.see(together(predicted), 0.98)
    wrong = labelled(predicted, "horse")
    rows, columns = np.nonzero(horse)
    corrected, _ = editor.drag(columns.max(), rows.max(), columns.min(), rows.min(), "box", "horse")
    assert corrected["id"] == wrong["id"]
    assert corrected["meta"] != wrong["meta"]
    assert (mask_of(corrected) != mask_of(wrong)).any()
    editor.accept()
    assert sorted(editor.labels()) == ["dog", "horse"]
    editor.see(mask_of(corrected) | mask_of(labelled(predicted, "dog")), 0.98)
    saved = studio.annotation(editor.submit())["result"]
    kept = labelled([region for region in saved if region["type"] == "bitmasklabels"], "horse")
    assert kept["value"]["imageDataURL"] == corrected["value"]["imageDataURL"]


def test_the_editor_shows_why_a_click_has_no_answer_until_one_has(
    editor: Editor, bitmasks: Tasks, studio: Studio, shoe: Mask
) -> None:
    """Label Studio itself shows nothing."""
    _, predicted = bitmasks.open_next(editor)
    nowhere = deepest(~(shoe | together(predicted)))
    (failed,) = editor.click(*nowhere, "click", "boot", negative=True)
    assert failed["from_name"] == "vlsam_status"
    expect(editor.status()).to_have_text(
        "There are negative clicks only, and no region of their label is below them."
    )
    editor.save_picture("status")
    editor.click(*deepest(shoe), "click", "boot")
    expect(editor.status()).to_have_text("")
    editor.accept()
    saved = studio.annotation(editor.submit())["result"]
    assert sorted(item["type"] for item in saved) == ["bitmasklabels"] * 3 + ["textarea"]
    (status,) = (item for item in saved if item["type"] == "textarea")
    assert status["value"] == {"text": []}


def test_an_empty_prediction_says_why_when_its_task_is_opened(
    editor: Editor, make_project: MakeProject, studio: Studio, scene: Scene, tmp_path: Path
) -> None:
    """It is submitted with the annotation, whose exports are as ever."""
    Image.fromarray(scene.image).save(tmp_path / "empty.png")
    project = make_project("Empty", label_config(["unicorn"], "boxes"), [tmp_path / "empty.png"])
    studio.retrieve_predictions(project.id)
    editor.go_to(project.id, project.tasks[0])
    said = re.compile(r"^VL-SAM saw: .*dog.*\. No label of this project fits\.$")
    editor.reload_until(editor.status().filter(has_text=said))
    (saved,) = studio.annotation(editor.submit())["result"]
    assert (saved["from_name"], saved["type"]) == ("vlsam_status", "textarea")
    exported = ZipFile(BytesIO(studio.export(project.id, "COCO")))
    assert len(json.loads(exported.read("result.json"))["images"]) == 1


def polygon(region: dict[str, Any]) -> Mask:
    corners = np.array(region["value"]["points"]) * (SIZE[0] / 100, SIZE[1] / 100)
    drawing = Image.new("1", SIZE)
    ImageDraw.Draw(drawing).polygon([tuple(corner) for corner in corners], fill=1)
    return np.asarray(drawing)
