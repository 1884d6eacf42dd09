"""A stranger does what the printed text says, word for word, in a browser that was never used before.

`make e2e ARGS='-k stranger'` records what he sees as tests/e2e/artifacts/correction.gif; a copy of it
is docs/correction.gif.
"""

import re
from collections.abc import Callable, Iterator
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from label_studio_sdk.converter.brush import mask2rle
from PIL import Image, ImageDraw, ImageFont
from playwright.sync_api import Browser, Locator, expect, sync_playwright

from backend.demo import instructions
from backend.labelstudio.recommended_configs import KINDS, Kind, label_config
from model.builtin.scenes import NAMES, Scene, draw_scene
from tests.support.browser_editor import ARTIFACTS, FLAGS, Editor, iou
from tests.support.editor_gestures import Mask, deepest, mask_of
from tests.support.label_studio_user import Studio
from tests.support.studio_servers import OWNER, MakeProject, Project, Servers, save_image

SIZE = (400, 300)
KEYS = {"Ctrl": "Control", "Alt": "Alt", "M": "m", "Esc": "Escape", "Z": "z"}
WRONG_PART = "a part of a region that does not belong to its object"
MISSED = "the object, then each further one of that name"
MISSED_PART = "that part"


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        try:
            yield opened
        finally:
            opened.close()


@pytest.fixture(scope="module")
def scene() -> Scene:
    """The dog is found, the horse with a part of the dog, and the shoe has no name among the labels."""
    rng = np.random.default_rng(29)
    return draw_scene(
        rng, width=SIZE[0], height=SIZE[1], count=3, scale=(0.35, 0.5), degrade=True, names=NAMES
    )


def visible(scene: Scene, name: str) -> Mask:
    (thing,) = (thing for thing in scene.objects if thing.name == name)
    return thing.visible


class Camera:
    """The pictures of an animation: the page with the step that is being done, and where the mouse is."""

    WIDTH, CAPTION = 800, 40

    def __init__(self) -> None:
        self._pictures: list[Image.Image] = []
        self._durations: list[int] = []

    def take(self, page_png: bytes, step: str, at: tuple[float, float] | None, *, ms: int) -> None:
        page = Image.open(BytesIO(page_png)).convert("RGB")
        if at is not None:
            x, y = at
            arrow = [(x, y), (x, y + 34), (x + 9, y + 26), (x + 24, y + 25)]
            ImageDraw.Draw(page).polygon(arrow, fill="black", outline="white", width=2)
        height = round(page.height * self.WIDTH / page.width)
        picture = Image.new("RGB", (self.WIDTH, height + self.CAPTION), "#202030")
        picture.paste(page.resize((self.WIDTH, height), Image.Resampling.LANCZOS))
        font = ImageFont.load_default(16)
        ImageDraw.Draw(picture).text((12, height + 10), step.replace("`", ""), font=font, fill="white")
        self._pictures.append(picture.quantize(128, dither=Image.Dither.NONE))
        self._durations.append(ms)

    def save(self, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        first, *others = self._pictures
        first.save(path, save_all=True, append_images=others, duration=self._durations, loop=0, optimize=True)


class Stranger:
    """Somebody who reads a step and does it. `actions` are those since an image is open."""

    def __init__(self, editor: Editor, places: dict[str, list[tuple[int, int]]], name: str) -> None:
        self.editor, self.page = editor, editor.page
        self.places, self.name = places, name  # where on the image the places are that the text speaks of
        self.actions = 0
        self.answer: list[dict[str, Any]] = []  # to the last click
        self.camera: Camera | None = None
        self._step = ""
        self._task = 0  # that is open

    def open(self, found: "Found") -> None:
        self.places[WRONG_PART] = [found.wrong_part]
        self.page.goto(found.url)

    def follow(self, steps: list[str]) -> None:
        for step in steps:
            self._step = step
            for sentence in re.findall(r"[^.]+\.", step):
                self._do(sentence.strip().rstrip("."))

    @property
    def regions(self) -> Locator:
        """The labels of all regions, in the list beside the image."""
        return self.page.locator(".lsf-outliner-item__title")

    @property
    def chosen(self) -> Locator:
        """The names above the image that are chosen for the next object."""
        return self.page.locator(".lsf-label_selected")

    @property
    def selected(self) -> Locator:
        """The heading over what is known of the selected region."""
        return self.page.locator(".lsf-detailed-region__title")

    def click(self, x: float, y: float) -> None:
        self.page.mouse.click(*self.editor.at(x, y))

    def press_together(self, *keys: str) -> None:
        self.page.keyboard.press("+".join(KEYS[key] for key in keys))

    def _do(self, sentence: str) -> None:
        rules: list[tuple[str, Callable[..., None]]] = [
            (r"[Pp]ress `([\w-]+)`, the last tool beside the image", self._press_last_tool),
            (r"[Pp]ress `([\w ]+)`", self._press),
            (r"[Pp]ress its name, above the image", self._press_name),
            (r"[Pp]ress the green tick", self._press_tick),
            (r"Turn on `([\w -]+)`, (?:below the image|beside it)", self._turn_on),
            (r"Hold `(\w+)`(?: and `(\w+)`)?, and click (.+)", self._hold_and_click),
            (r"(?:To .+, c|C)lick (.+)", self._hold_and_click),
            (r"The (?:first|next) image opens(?:: go on with step \d)?", self._image_opens),
            (r"The browser remembers steps \d to \d", lambda: None),  # the second image shows it
            (r"The name is put away|No name may be chosen then", self._no_name_is_chosen),
        ]
        for pattern, act in rules:
            if found := re.fullmatch(pattern, sentence):
                act(*found.groups())
                return
        raise AssertionError(f"a stranger does not know what to do: {sentence}")

    def _press(self, word: str) -> None:
        if word in KEYS:
            self._acting(None)
            self.page.keyboard.press(KEYS[word])
            self._acted()
        elif word == "Submit":
            with self.page.expect_response(
                lambda r: "/annotations" in r.url and r.request.method in ("POST", "PATCH")
            ):
                self._click_on(self.page.get_by_text(word, exact=True))
        else:
            self._click_on(self.page.get_by_text(word, exact=True))

    def _press_last_tool(self, name: str) -> None:
        tool = self.page.locator("button.lsf-tool").last
        tool.hover()
        expect(tool.get_by_text(name)).to_be_visible()
        self._click_on(tool)

    def _press_name(self) -> None:
        self._click_on(self.page.locator(".lsf-labels").first.get_by_text(self.name, exact=True))

    def _press_tick(self) -> None:
        tick = self.page.get_by_test_id("bottombar-accept-suggestions-button")
        self._click_on(tick)
        tick.wait_for(state="detached")

    def _turn_on(self, name: str) -> None:
        self._click_on(self.page.get_by_text(name, exact=True))
        expect(self.page.get_by_label(name, exact=True)).to_be_checked()

    def _hold_and_click(self, *words: str | None) -> None:
        *keys, place = [word for word in words if word is not None]
        for x, y in self.places[place]:
            at = self.editor.at(x, y)
            self._acting(at)
            with self.page.expect_response(lambda r: "/interactive-annotating" in r.url) as answer:
                self.editor.press([KEYS[key] for key in keys], partial(self.page.mouse.click, *at))
            expect(self.page.locator(".lsf-auto-accept__spinner")).to_have_count(0)
            self.answer = answer.value.json()["data"]["result"]
            self._acted(ms=2500)

    def _image_opens(self) -> None:
        task = "before => window.Htx?.task && window.Htx.task.id !== before && window.Htx.task.id"
        self._task = self.page.wait_for_function(task, arg=self._task).json_value()
        self.editor.wait_for_image(regions=2)
        self._see(None, ms=1500)

    def _no_name_is_chosen(self) -> None:
        expect(self.chosen).to_have_count(0)

    def _click_on(self, place: Locator) -> None:
        place.wait_for()
        box = place.bounding_box()
        assert box is not None
        self._acting((box["x"] + box["width"] / 2, box["y"] + box["height"] / 2))
        place.click()
        self._acted()

    def _acting(self, at: tuple[float, float] | None) -> None:
        self._at = at
        self._see(at, ms=1500)

    def _acted(self, ms: int = 700) -> None:
        self.actions += 1
        self._see(self._at, ms=ms)

    def _see(self, at: tuple[float, float] | None, *, ms: int) -> None:
        if self.camera is not None:
            self.page.wait_for_timeout(300)  # until what moves has come to rest
            self.camera.take(self.page.screenshot(), self._step, at, ms=ms)


def steps(text: str) -> list[str]:
    found = re.findall(r"^(\d)\. (.+)$", text, re.MULTILINE)
    assert [int(number) for number, _ in found] == [*range(1, len(found) + 1)]
    return [step for _, step in found]


class Found:
    """A project whose images all show the scene, and what was found there."""

    def __init__(self, studio: Studio, project: Project, url: str, scene: Scene) -> None:
        self.url = f"{url}/projects/{project.id}/data"
        self._studio, self._project = studio, project
        for _ in project.tasks:  # a slow machine may not reach all within the deadline
            studio.retrieve_predictions(project.id)
            self.regions = {int(p["task"]): p["result"] for p in studio.predictions(project.id)}
            if len(self.regions) == len(project.tasks):
                break
        self.wrong_part = deepest(shape_of(self.before(0), "horse") & visible(scene, "dog"))

    def before(self, number: int) -> list[dict[str, Any]]:
        """The predicted regions of an image."""
        found: list[dict[str, Any]] = self.regions[self._project.tasks[number]]
        return found

    def find_less(self, number: int, label: str, missed: Mask) -> None:
        """As if a region had been found without some of its pixels."""
        task, model = self._project.tasks[number], self._studio.backends(self._project.id)[0]
        (region,) = (item for item in self.before(number) if [label] in item["value"].values())
        left = np.where(mask_of(region) & ~missed, 255, 0).astype(np.uint8)
        region["value"]["rle"] = mask2rle(left)
        self._studio.delete_predictions(self._project.id)
        self._studio.add_prediction(task, self.before(number), model["model_version"])

    def saved(self, number: int) -> list[dict[str, Any]]:
        """The regions, and their labels where those are results of their own, of an image's annotation."""
        (annotation,) = self._studio.task(self._project.tasks[number])["annotations"]
        return [item for item in annotation["result"] if item["type"] != "textarea"]


def shape_of(results: list[dict[str, Any]], label: str) -> Mask:
    """The pixels of the one region with a label."""
    (region_id,) = {item["id"] for item in results if [label] in item["value"].values()}
    item = next(item for item in results if item["id"] == region_id)
    value = item["value"]
    if "rle" in value:
        return mask_of(item)
    shape = Image.new("1", SIZE)
    if "points" in value:
        corners = np.array(value["points"]) * SIZE / 100
    else:
        x, y = value["x"], value["y"]
        corners = np.array([[x, y], [x + value["width"], y + value["height"]]]) * SIZE / 100
    draw = ImageDraw.Draw(shape)
    (draw.polygon if "points" in value else draw.rectangle)([tuple(corner) for corner in corners], fill=1)
    return np.asarray(shape)


def box_around(shape: Mask) -> Mask:
    return np.outer(shape.any(axis=1), shape.any(axis=0))


@pytest.fixture
def find(
    make_project: MakeProject, studio: Studio, servers: Servers, scene: Scene, tmp_path: Path
) -> Callable[[Kind], Found]:
    def project(kind: Kind) -> Found:
        images = [save_image(tmp_path / f"{kind}-{number}.png", scene.image) for number in range(2)]
        made = make_project(f"Stranger: {kind}", label_config(["horse", "dog", "boot"], kind), images)
        return Found(studio, made, servers.studio.url, scene)

    return project


@pytest.fixture
def stranger(browser: Browser, servers: Servers, scene: Scene) -> Stranger:
    """In a new profile of the browser, logged in."""
    beside = deepest(~np.any([thing.visible for thing in scene.objects], axis=0))
    places = {MISSED: [deepest(visible(scene, "shoe")), beside]}
    return Stranger(Editor(browser, servers.studio.url, OWNER), places, "boot")


def expect_submitted(found: Found, number: int, stranger: Stranger, scene: Scene) -> None:
    """The two regions that were found and nothing else, and the horse as the click's answer has it."""
    before, after = found.before(number), found.saved(number)
    assert {item["id"] for item in after} == {item["id"] for item in before}
    assert {item["type"] for item in after} == {item["type"] for item in before}
    corrected = shape_of(after, "horse")
    assert (corrected == shape_of(stranger.answer, "horse")).all()
    assert (corrected != shape_of(before, "horse")).any()
    assert (shape_of(after, "dog") == shape_of(before, "dog")).all()
    horse = visible(scene, "horse")
    if after[0]["type"] == "rectangle":
        horse = box_around(horse)
    assert iou(corrected, horse) > iou(shape_of(before, "horse"), horse) + 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_a_stranger_corrects_and_submits_in_five_actions(
    stranger: Stranger, find: Callable[[Kind], Found], scene: Scene, kind: Kind
) -> None:
    found = find(kind)
    if kind == "masks":
        stranger.camera = Camera()
    stranger.open(found)
    todo = steps(instructions.CORRECT)
    stranger.follow(todo[:1])
    stranger.actions = 0
    stranger.follow(todo[1:])
    assert stranger.actions <= 5
    expect_submitted(found, 0, stranger, scene)
    if stranger.camera is not None:
        stranger.camera.save(ARTIFACTS / "correction.gif")
        stranger.camera = None

    # The second image is open now, and what the browser remembers is not to be done again.
    first, last = remembered(instructions.CORRECT)
    assert first == 2
    stranger.actions = 0
    stranger.follow(todo[last:-1])
    assert stranger.actions == 1
    stranger.follow([todo[-1].partition(".")[0] + "."])
    expect_submitted(found, 1, stranger, scene)


def test_a_stranger_adds_the_part_that_a_region_misses(
    stranger: Stranger, find: Callable[[Kind], Found], scene: Scene
) -> None:
    (sentences,) = re.findall(r"^- (To add a part .+)$", instructions.NOTES, re.MULTILINE)
    dog = visible(scene, "dog")
    left, right = np.flatnonzero(dog.any(axis=0))[[0, -1]]
    missed = dog & (np.arange(SIZE[0]) > left + 0.6 * (right - left))
    stranger.places[MISSED_PART] = [deepest(missed)]
    found = find("masks")
    found.find_less(0, "dog", dog & missed)
    stranger.open(found)
    todo = steps(instructions.CORRECT)
    stranger.follow([*todo[:4], sentences, todo[-1].partition(".")[0] + "."])
    before, after = found.before(0), found.saved(0)
    assert [item["id"] for item in after] == [item["id"] for item in before]
    assert iou(shape_of(before, "dog"), dog) < 0.7
    assert iou(shape_of(after, "dog"), dog) > 0.85
    assert (shape_of(after, "horse") == shape_of(before, "horse")).all()


def remembered(text: str) -> tuple[int, int]:
    (found,) = re.findall(r"The browser remembers steps (\d) to (\d)", text)
    return int(found[0]), int(found[1])


def test_without_auto_accept_a_stranger_presses_the_tick(
    stranger: Stranger, find: Callable[[Kind], Found], scene: Scene
) -> None:
    (number, tick), *_ = re.findall(
        r"Without step (\d), (press .+?) after your clicks, before `Submit`", instructions.NOTES
    )
    found = find("masks")
    stranger.open(found)
    todo = steps(instructions.CORRECT)
    stranger.follow(todo[:1])
    stranger.actions = 0
    stranger.follow([*todo[1 : int(number) - 1], *todo[int(number) : -1], f"{tick}.", todo[-1]])
    assert stranger.actions <= 5
    expect_submitted(found, 0, stranger, scene)


def test_a_stranger_adds_what_was_missed_and_takes_clicks_back(
    stranger: Stranger, find: Callable[[Kind], Found], scene: Scene
) -> None:
    assert "further click before `Submit` corrects further." in instructions.NOTES
    assert "`Ctrl`+`Z` takes the last click back, also one that left a point" in instructions.NOTES
    assert "without `Ctrl` only selects it. Press `Esc`, then go on" in instructions.NOTES
    found = find("masks")
    stranger.open(found)
    todo = steps(instructions.CORRECT)
    (done,) = re.findall(r"after steps 1 to (\d):", instructions.ADD)
    stranger.follow(todo[: int(done)])
    corner = stranger.editor.at(0, 0)
    stranger.click(*stranger.places[MISSED][0])  # no name is chosen yet
    expect(stranger.editor.status()).to_contain_text("has no label")
    assert np.allclose(stranger.editor.at(0, 0), corner, atol=15)  # the next click is where it is meant
    stranger.follow(steps(instructions.ADD))
    expect(stranger.chosen).to_have_count(0)
    expect(stranger.regions).to_have_text(["dog", "horse", "boot", "boot"])
    stranger.press_together("Ctrl", "Z")
    expect(stranger.regions).to_have_text(["dog", "horse", "boot"])

    asked = "**/interactive-annotating*"
    stranger.page.route(asked, lambda route: route.fulfill(json={"errors": ["no backend"]}))
    stranger.click(*stranger.places[MISSED][1])
    expect(stranger.regions).to_have_count(4)
    stranger.press_together("Ctrl", "Z")
    expect(stranger.regions).to_have_text(["dog", "horse", "boot"])
    stranger.page.unroute(asked)

    stranger.click(*deepest(visible(scene, "horse")))
    expect(stranger.selected).to_have_text(re.compile("horse$"))
    x, y = found.wrong_part
    stranger.places[WRONG_PART].append((x + 5, y))
    stranger.follow(["Press `Esc`."])
    stranger.actions = 0
    stranger.follow(todo[int(done) :])
    assert stranger.actions == 3
    saved = found.saved(0)
    assert sorted(item["type"] for item in saved) == ["brushlabels"] * 3
    assert iou(shape_of(saved, "boot"), visible(scene, "shoe")) > 0.7
    horse, before = visible(scene, "horse"), found.before(0)
    assert iou(shape_of(saved, "horse"), horse) > iou(shape_of(before, "horse"), horse) + 0.1
