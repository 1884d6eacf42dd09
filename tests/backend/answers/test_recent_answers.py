"""The memory by itself, and what an annotator has of it: click after click, as the browser sends them."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as arrays
from label_studio_sdk.converter.brush import mask2rle

from backend.answers import recent_answers
from backend.answers.ml_backend import VLSAMBackend
from backend.answers.recent_answers import Answer, RecentAnswers
from backend.answers.resources import Resources
from backend.labelstudio import region_meta
from backend.labelstudio.region_reading import decode
from backend.web.app import create_app
from model.patches import Patch
from model.types import Mask
from tests.support.clock import Clock
from tests.support.detections import disc
from tests.support.editor_gestures import box, click
from tests.support.images import data_url
from tests.support.labeling_configs import CONFIG
from tests.support.stand_in import StandIn

SHAPE = (60, 80)
IMAGE = data_url()


def rle(mask: Mask) -> list[int]:
    return list(mask2rle(mask.astype(np.uint8) * 255))


@pytest.fixture
def clock() -> Clock:
    return Clock()


def answer(region_id: str, *prompts: str, at: float = 1000.0, mask: Mask | None = None) -> Answer:
    spots = dict.fromkeys(prompts, (1.0, 2.0, True))
    patch = Patch.of(disc(20, 30, 5) if mask is None else mask)
    return Answer(region_id, "brush", ("Cat",), {}, patch, None, spots, spots, "", None, at)


# By itself


@given(arrays.arrays(np.bool_, SHAPE), arrays.arrays(np.bool_, SHAPE))
def test_a_patch_is_its_mask(mask: Mask, other: Mask) -> None:
    patch = Patch.of(mask)
    assert (patch.mask == mask).all()
    union = (mask | other).sum()
    assert patch.iou(Patch.of(other)) == pytest.approx((mask & other).sum() / union if union else 0)


def test_answers_are_kept_for_30_seconds_by_key_the_newest_first(clock: Clock) -> None:
    kept = RecentAnswers(clock)
    kept.remember(("a",), answer("x", "1"))
    clock.now += 20
    kept.remember(("a",), answer("y", "2", at=clock.now))
    assert [a.region_id for a in kept.recall(("a",))] == ["y", "x"]
    assert kept.recall(("b",)) == []
    clock.now += 11
    assert [a.region_id for a in kept.recall(("a",))] == ["y"]
    clock.now += 20
    assert kept.recall(("a",)) == []


def test_an_answer_takes_the_place_of_those_to_the_same_prompts(clock: Clock) -> None:
    kept = RecentAnswers(clock)
    kept.remember(("a",), answer("x", "1"))
    kept.remember(("a",), answer("y", "1", "2"))
    assert [a.region_id for a in kept.recall(("a",))] == ["y"]
    # The answer to the first click took longer than that to both.
    kept.remember(("a",), answer("late", "2"))
    assert [a.region_id for a in kept.recall(("a",))] == ["y"]


def test_without_prompt_ids_nothing_is_kept(clock: Clock) -> None:
    kept = RecentAnswers(clock)
    kept.remember(("a",), answer("x"))
    assert kept.recall(("a",)) == []


def test_the_oldest_answers_go_where_they_are_too_many(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent_answers, "MAX_BYTES", 5 * answer("x", "1").nbytes)
    kept = RecentAnswers(clock)
    for number in range(8):
        kept.remember((str(number % 2),), answer(str(number), str(number)))
    left = [a.region_id for key in ("0", "1") for a in kept.recall((key,))]
    assert len(left) == 5
    assert "7" in left


def test_what_one_answer_takes_is_counted() -> None:
    small, large = answer("x", "1"), answer("x", "1", mask=np.ones(SHAPE, bool))
    assert large.nbytes - small.nbytes > 4000
    assert replace(small, logits=np.zeros((256, 256), np.float32)).nbytes - small.nbytes == 4 * 256**2
    noted = replace(small, meta={"text": ["a" * 10_000, "b"], "vlsam": {}})  # what people write has no bound
    assert noted.nbytes - small.nbytes > 40_000
    assert replace(small, labels=("a" * 10_000, "b")).nbytes - small.nbytes > 39_000


# In an annotator's hands


@dataclass
class Annotator:
    """A browser at one task: draws prompts, sees suggestions, and saves drafts when a test says so."""

    backend: VLSAMBackend
    task_id: int = 7
    auto_accept: bool = False
    drawn: dict[str, dict[str, Any]] = field(default_factory=dict)  # prompts on the screen
    regions: dict[str, dict[str, Any]] = field(default_factory=dict)
    drafts: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    suggested: dict[str, Any] | None = None
    numbers: itertools.count = field(default_factory=itertools.count)  # type: ignore[type-arg]
    reason: str = ""

    def click(
        self,
        x: float,
        y: float,
        *,
        positive: bool = True,
        prompt: str | None = None,
        labels: Sequence[str] = ("Cat",),
    ) -> dict[str, Any]:
        gesture = click(x, y, positive=positive)
        gesture["value"].update(labels=[*labels], keypointlabels=[*labels])
        return self._draw(gesture, prompt)

    def box(
        self, x: float, y: float, width: float, height: float, prompt: str | None = None
    ) -> dict[str, Any]:
        return self._draw(box(x, y, x + width, y + height), prompt)

    def _draw(self, gesture: dict[str, Any], prompt: str | None) -> dict[str, Any]:
        prompt = prompt or f"{id(self)}-{next(self.numbers)}"
        self.drawn[prompt] = {**gesture, "id": prompt}
        context = {"result": [item for item in self.drawn.values() if item["type"] == gesture["type"]]}
        task = {
            "id": self.task_id,
            "data": {"image": IMAGE},
            "drafts": self.drafts,
            "annotations": self.annotations,
        }
        (prediction,) = self.backend.predict([task], context=context)
        self.reason = prediction.get("reason", "")
        self.suggested = next(iter(prediction["result"]), None)
        if self.auto_accept:
            self.accept()
        return self.suggested or {}

    def accept(self) -> None:
        if self.suggested:
            self.regions[self.suggested["id"]] = self.suggested
        self.drawn.clear()

    def delete_prompt(self) -> None:
        self.drawn.popitem()

    def save_draft(self, *, number: int = 1) -> None:
        result = [*self.regions.values(), *self.drawn.values()]
        changed = f"2026-01-01T00:00:{next(self.numbers):02}Z"
        self.drafts = [{"id": number, "result": result, "updated_at": changed, "annotation": None}]


@pytest.fixture
def resources(make_resources: Callable[..., Resources], clock: Clock) -> Resources:
    return make_resources(clock=clock)


@pytest.fixture
def person(resources: Resources) -> Annotator:
    return Annotator(VLSAMBackend(CONFIG, resources=resources, project="1.1"))


@pytest.fixture
def other(resources: Resources) -> Annotator:
    return Annotator(VLSAMBackend(CONFIG, resources=resources, project="1.1"))


def points(stand_in: StandIn) -> list[list[float]]:
    return [[float(value) for value in point] for point in stand_in.prompts[-1].points.round()]


def test_auto_accept_one_region_grows_click_by_click(person: Annotator, stand_in: StandIn) -> None:
    person.auto_accept = True
    first = person.click(20, 30)
    assert person.click(23, 30)["id"] == first["id"]
    assert person.click(24, 33, positive=False)["id"] == first["id"]
    assert points(stand_in) == [[20, 30], [23, 30], [24, 33]]
    assert stand_in.prompts[-1].labels.tolist() == [1, 1, 0]
    assert len(person.regions) == 1


def test_auto_accept_a_region_with_several_labels_is_gone_on_from_by_any_of_them(person: Annotator) -> None:
    person.auto_accept = True
    first = person.click(20, 30, labels=["Cat", "Dog"])
    second = person.click(22, 30, labels=["Dog"])
    assert (second["id"], second["value"]["brushlabels"]) == (first["id"], ["Cat", "Dog"])
    cat = person.click(60, 30, labels=["Cat"])
    assert person.click(62, 30, labels=["Dog"])["id"] != cat["id"]


def test_auto_accept_clicks_without_a_label_go_on_in_the_region_that_they_are_in(
    person: Annotator, stand_in: StandIn
) -> None:
    person.auto_accept = True
    cat, dog = person.click(20, 30), person.click(60, 30, labels=["Dog"])
    for x, region, label in ((22, cat, "Cat"), (62, dog, "Dog"), (24, cat, "Cat")):
        again = person.click(x, 30, labels=[])
        assert (again["id"], again["value"]["brushlabels"]) == (region["id"], [label])
    assert points(stand_in) == [[20, 30], [22, 30], [24, 30]]
    assert len(person.regions) == 2
    assert person.click(40, 5, labels=[]) == {}
    assert "The click has no label" in person.reason


def test_auto_accept_clicks_without_a_label_have_the_only_one_there_is(resources: Resources) -> None:
    only = VLSAMBackend(CONFIG.replace('<Label value="Dog"/>', ""), resources=resources, project="1.1")
    person = Annotator(only, auto_accept=True)
    first = person.click(20, 30, labels=[])
    assert first["value"]["brushlabels"] == ["Cat"]
    assert person.click(22, 30, labels=[])["id"] == first["id"]
    assert person.click(60, 30, labels=[])["id"] != first["id"]


def test_by_hand_accepted_clicks_without_a_label_go_on_from_their_answer(
    person: Annotator, stand_in: StandIn
) -> None:
    person.click(20, 30)
    person.accept()
    person.save_draft()
    first = person.click(23, 30, labels=[])
    assert person.click(27, 30, labels=[])["id"] == first["id"]  # outside of the region in the draft
    assert points(stand_in) == [[20, 30], [23, 30], [27, 30]]
    mask = decode(first, SHAPE)
    start = stand_in.prompts[-1].mask
    assert mask is not None
    assert start is not None
    assert (start == mask).all()


def test_a_click_beside_a_region_stays_the_regions_own_when_the_next_one_is_inside(
    person: Annotator, stand_in: StandIn
) -> None:
    first = person.click(20, 30)
    holed = disc(20, 30, 5) & ~disc(20, 30, 2)
    value = {"format": "rle", "brushlabels": ["Cat"], "rle": rle(holed)}
    person.suggested = {**first, "value": value}
    person.accept()
    person.save_draft()
    assert person.click(21, 30, labels=[])["id"] == first["id"]  # for its fresh mask is that of the region
    assert person.click(23, 30, labels=[])["id"] == first["id"]
    assert points(stand_in) == [[21, 30], [23, 30]]


def test_a_click_that_had_no_answer_is_no_part_of_the_next_one(person: Annotator, stand_in: StandIn) -> None:
    """It stays on the screen until somebody deletes it."""
    person.click(20, 30)
    person.accept()
    person.save_draft()
    assert person.click(60, 30, labels=[]) == {}
    person.click(22, 30, labels=[])
    assert points(stand_in) == [[20, 30], [22, 30]]


def test_auto_accept_a_click_elsewhere_makes_another_region(person: Annotator, stand_in: StandIn) -> None:
    person.auto_accept = True
    first = person.click(20, 30)
    assert person.click(60, 30)["id"] != first["id"]
    assert points(stand_in) == [[60, 30]]
    assert person.click(22, 30)["id"] == first["id"]
    assert len(person.regions) == 2


def test_a_click_beside_a_region_costs_one_decode_and_one_more_where_it_is_meant_for_it(
    person: Annotator, stand_in: StandIn
) -> None:
    person.auto_accept = True
    first = person.box(10, 20, 30, 15)
    person.click(60, 45)
    assert len(stand_in.prompts) == 2
    assert person.box(9, 19, 32, 17)["id"] == first["id"]
    fresh, joined = stand_in.prompts[2:]
    assert fresh.mask is None
    assert joined.mask is not None


def test_auto_accept_goes_on_from_the_draft_once_it_is_saved(
    person: Annotator, stand_in: StandIn, clock: Clock
) -> None:
    person.auto_accept = True
    first = person.click(20, 30)
    person.save_draft()
    clock.now += 100
    assert person.click(22, 30)["id"] == first["id"]
    # The draft has the region as it was before the second click.
    assert person.click(18, 30)["id"] == first["id"]
    assert points(stand_in) == [[20, 30], [22, 30], [18, 30]]


def test_auto_accept_a_draft_from_before_the_accept_is_not_the_last_word(
    person: Annotator, stand_in: StandIn
) -> None:
    """As in the captures ui_21 and ui_22: the draft shows the first prompt, not yet its region."""
    person.click(20, 30)
    person.save_draft()
    person.accept()
    first = person.suggested
    assert first is not None
    assert person.click(22, 30)["id"] == first["id"]
    assert points(stand_in) == [[20, 30], [22, 30]]


def test_a_region_that_was_undone_leaves_no_influence(person: Annotator, stand_in: StandIn) -> None:
    person.auto_accept = True
    first = person.click(20, 30)
    person.save_draft()
    person.regions.clear()
    person.save_draft()
    assert person.click(22, 30)["id"] != first["id"]
    assert points(stand_in) == [[22, 30]]
    assert stand_in.prompts[-1].mask is None


def test_a_region_that_was_changed_by_hand_is_as_the_draft_says(person: Annotator, stand_in: StandIn) -> None:
    person.auto_accept = True
    first = person.click(20, 30)
    by_hand = disc(20, 30, 9)
    value = {"format": "rle", "brushlabels": ["Cat"], "rle": rle(by_hand)}
    person.regions[first["id"]] = {**first, "value": value}
    person.save_draft()
    assert person.click(26, 30)["id"] == first["id"]
    mask = stand_in.prompts[-1].mask
    assert mask is not None
    assert (mask == by_hand).all()


def test_by_hand_accepted_clicks_go_on_in_one_region(person: Annotator, stand_in: StandIn) -> None:
    first = person.click(20, 30)
    assert person.click(24, 30)["id"] == first["id"]
    mask = decode(first, SHAPE)
    assert mask is not None
    start = stand_in.prompts[-1].mask
    assert start is not None
    assert (start == mask).all()  # the second click starts from the first answer
    person.accept()
    assert person.click(60, 30)["id"] != first["id"]
    assert points(stand_in) == [[60, 30]]


def test_clicks_that_turn_out_to_be_meant_for_a_region_start_from_that_region(
    person: Annotator, stand_in: StandIn
) -> None:
    """Not from the answer that they had while no click was inside of it."""
    person.click(20, 30)
    theirs = {"id": "hand", "from_name": "brush", "to_name": "image", "type": "brushlabels"}
    value = {"format": "rle", "brushlabels": ["Cat"], "rle": rle(disc(40, 30, 6))}
    person.regions["hand"] = {**theirs, "value": value}
    person.save_draft()
    assert person.click(40, 30)["id"] == "hand"
    start = stand_in.prompts[-1].mask
    assert start is not None
    assert (start == disc(40, 30, 6)).all()
    assert points(stand_in) == [[20, 30], [40, 30]]


def test_a_prompt_that_was_moved_or_deleted_leaves_no_influence(person: Annotator, stand_in: StandIn) -> None:
    person.click(20, 30, prompt="a")
    person.click(40, 30, prompt="b")
    person.click(42, 33, prompt="b")  # moved
    assert points(stand_in) == [[20, 30], [42, 33]]
    assert stand_in.prompts[-1].mask is None
    person.click(24, 28, prompt="c")
    person.delete_prompt()
    person.click(25, 25, prompt="d")
    assert points(stand_in) == [[20, 30], [42, 33], [25, 25]]
    assert stand_in.prompts[-1].mask is None


def test_a_deleted_only_prompt_leaves_no_influence_once_a_draft_tells(
    person: Annotator, stand_in: StandIn
) -> None:
    person.click(20, 30)
    person.delete_prompt()
    person.save_draft()
    person.click(22, 30)
    assert points(stand_in) == [[22, 30]]
    assert stand_in.prompts[-1].mask is None


def test_the_same_prompts_again_are_answered_afresh(person: Annotator, stand_in: StandIn) -> None:
    first = person.click(20, 30, prompt="a")
    assert person.click(20, 30, prompt="a")["id"] != first["id"]
    assert stand_in.prompts[-1].mask is None


def test_a_box_then_a_click_count_together_before_and_after_the_draft(
    person: Annotator, stand_in: StandIn, clock: Clock
) -> None:
    first = person.box(10, 20, 30, 15)
    assert person.click(20, 25)["id"] == first["id"]
    assert stand_in.prompts[-1].box == pytest.approx((10, 20, 40, 35))
    person.click(25, 30)
    assert stand_in.prompts[-1].box == pytest.approx((10, 20, 40, 35))
    assert points(stand_in) == [[20, 25], [25, 30]]
    person.save_draft()
    clock.now += 100
    person.click(30, 30)
    assert stand_in.prompts[-1].box == pytest.approx((10, 20, 40, 35))
    assert points(stand_in) == [[20, 25], [25, 30], [30, 30]]


def test_a_box_that_was_moved_leaves_no_influence(person: Annotator, stand_in: StandIn) -> None:
    person.box(10, 20, 30, 15, prompt="box")
    person.click(20, 25)
    person.box(40, 20, 30, 15, prompt="box")
    assert stand_in.prompts[-1].box == pytest.approx((40, 20, 70, 35))
    assert stand_in.prompts[-1].mask is None
    assert points(stand_in) == []


def test_a_negative_click_cuts_from_a_region_that_only_the_browser_has(person: Annotator) -> None:
    person.auto_accept = True
    first = person.click(20, 30)
    assert person.click(22, 30, positive=False)["id"] == first["id"]
    assert person.click(60, 30, positive=False) == {}
    assert "negative clicks only" in person.reason


# Never another person's, task's, project's or image's


def test_two_people_at_one_task_with_drafts(person: Annotator, other: Annotator, stand_in: StandIn) -> None:
    person.save_draft(number=1)
    other.save_draft(number=2)
    person.auto_accept = other.auto_accept = True
    mine = person.click(20, 30)
    theirs = other.click(22, 30)
    assert theirs["id"] != mine["id"]
    assert points(stand_in) == [[22, 30]]
    assert stand_in.prompts[-1].mask is None
    assert person.click(18, 30)["id"] == mine["id"]
    assert points(stand_in) == [[20, 30], [18, 30]]
    assert other.click(25, 30)["id"] == theirs["id"]


def test_one_with_a_draft_and_one_without(person: Annotator, other: Annotator, stand_in: StandIn) -> None:
    person.auto_accept = other.auto_accept = True
    person.save_draft()
    mine = person.click(20, 30)
    theirs = other.click(22, 30)
    assert theirs["id"] != mine["id"]
    assert points(stand_in) == [[22, 30]]
    assert person.click(24, 30)["id"] == mine["id"]


def test_two_who_click_several_times_without_drafts(
    person: Annotator, other: Annotator, stand_in: StandIn
) -> None:
    """More than one prompt at once is not Auto-Accept, so whoever sends none of them is somebody else."""
    person.click(20, 30)
    mine = person.click(24, 30)
    theirs = other.click(22, 30)
    assert theirs["id"] != mine["id"]
    assert points(stand_in) == [[22, 30]]
    assert other.click(22, 34)["id"] == theirs["id"]
    assert person.click(20, 33)["id"] == mine["id"]


def test_without_any_draft_only_the_first_seconds_count(
    person: Annotator, other: Annotator, clock: Clock
) -> None:
    person.auto_accept = True
    mine = person.click(20, 30)
    clock.now += recent_answers.DRAFT_SECONDS + 0.1
    assert other.click(22, 30)["id"] != mine["id"]


@pytest.mark.parametrize("what", ["task", "project", "server", "label", "image"])
def test_never_across(what: str, person: Annotator, resources: Resources, stand_in: StandIn) -> None:
    person.auto_accept = True
    mine = person.click(20, 30)
    project, hostname = ("2.2", "") if what == "project" else ("1.1", "http://else" * (what == "server"))
    backend = VLSAMBackend(CONFIG, resources=resources, project=project, hostname=hostname)
    value = {"x": 22 / 0.8, "y": 50, "keypointlabels": ["Dog" if what == "label" else "Cat"]}
    item = {"id": "new", "type": "keypointlabels", "from_name": "kp", "value": value, "is_positive": True}
    image = data_url(shade=9) if what == "image" else IMAGE
    task = {"id": 8 if what == "task" else 7, "data": {"image": image}}
    (prediction,) = backend.predict([task], context={"result": [item]})
    assert prediction["result"][0]["id"] != mine["id"]
    assert points(stand_in) == [[22, 30]]


def test_a_region_in_the_task_ends_its_memory(person: Annotator, stand_in: StandIn) -> None:
    """Submitted before any draft was saved, then changed."""
    person.auto_accept = True
    first = person.click(20, 30)
    moved = {**first, "value": {"format": "rle", "brushlabels": ["Cat"], "rle": rle(disc(60, 30, 5))}}
    person.annotations = [{"id": 1, "result": [moved]}]
    assert person.click(20, 30)["id"] != first["id"]
    assert stand_in.prompts[-1].mask is None


def test_a_region_that_relations_name_is_not_replaced_by_memory_either(person: Annotator) -> None:
    person.auto_accept = True
    first = person.click(20, 30)
    relation = {"type": "relation", "from_id": first["id"], "to_id": "x"}
    person.annotations = [{"id": 1, "result": [relation]}]
    second = person.click(22, 30)
    assert second["id"] != first["id"]
    assert second["meta"]["text"] == [f"Supersedes region {first['id']}"]
    assert region_meta.read(second["meta"], SHAPE) is not None


# Recorded contexts


@pytest.fixture
def post(resources: Resources, capture: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    """Send a recorded body, its image replaced and its newest click moved if wanted; the region answered."""
    client = create_app(resources=resources).test_client()
    image = data_url(800, 600)

    def send(name: str, at: tuple[float, float] | None = None, prompt: str | None = None) -> dict[str, Any]:
        body = capture(name)
        body["tasks"][0]["data"]["image"] = image
        newest = body["params"]["context"]["result"][-1]
        if at is not None:
            newest["value"] |= {"x": at[0] / 8, "y": at[1] / 6}
        newest["id"] = prompt or newest["id"]
        answer = client.post("/predict", json=body)
        assert answer.json is not None
        (prediction,) = answer.json["results"]
        (region,) = prediction["result"]
        return dict(region)

    return send


def test_recorded_auto_accept_with_a_draft_that_lags(
    post: Callable[..., dict[str, Any]], stand_in: StandIn
) -> None:
    first = post("ui_21_autoaccept_1")
    assert points(stand_in) == [[305, 253]]
    elsewhere = post("ui_22_autoaccept_2")
    assert elsewhere["id"] != first["id"]
    assert points(stand_in) == [[591, 391]]
    again = post("ui_22_autoaccept_2", at=(307, 254), prompt="third")
    assert again["id"] == first["id"]
    assert points(stand_in) == [[305, 253], [307, 254]]


def test_recorded_auto_accept_before_the_first_draft(
    post: Callable[..., dict[str, Any]], stand_in: StandIn
) -> None:
    first = post("ui_70_autoaccept_same_id")
    assert post("ui_70_autoaccept_same_id", at=(307, 254), prompt="second")["id"] == first["id"]
    assert post("ui_70_autoaccept_same_id", at=(309, 254), prompt="third")["id"] == first["id"]
    assert points(stand_in) == [[305, 253], [307, 254], [309, 254]]


def test_recorded_second_click_goes_on_from_the_first(
    post: Callable[..., dict[str, Any]], stand_in: StandIn, capture: Callable[..., Any]
) -> None:
    first = post("ui_01_first_positive_click")
    ids = {item["id"] for item in capture("ui_01_first_positive_click")["params"]["context"]["result"]}
    both = {item["id"] for item in capture("ui_02_second_positive_click")["params"]["context"]["result"]}
    assert ids < both
    assert post("ui_02_second_positive_click")["id"] == first["id"]
    assert stand_in.prompts[-1].mask is not None


def test_recorded_box_that_was_moved_takes_nothing_of_where_it_was(
    post: Callable[..., dict[str, Any]], stand_in: StandIn
) -> None:
    post("ui_06_smart_rect")
    post("ui_07_moved_kp")
    assert stand_in.prompts[-1].mask is None
    assert stand_in.prompts[-1].box == pytest.approx((209, 157, 476, 415), abs=1)
