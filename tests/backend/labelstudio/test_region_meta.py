import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.labelstudio import region_meta, region_reading, results
from backend.labelstudio.labeling_config import Control, Label
from model import patches
from model.types import Detection, Prompt
from tests.support.detections import detection, disc

SHAPE = (60, 80)


def result_of(found: Detection, tag: str = "BrushLabels") -> dict[str, Any]:
    control = Control("c", tag, "image", (Label("Cat", ("Cat",)),))
    (result,) = results.region(found.mask, control=control, labels=["Cat"], region_id="x" * 20, score=0.5)
    return json.loads(json.dumps({**result, "meta": region_meta.write(found, result)}))  # type: ignore[no-any-return]


def cat(prompt: Prompt | None = None) -> Detection:
    return detection("cat", disc(20, 30, 12), prompt)


def test_a_prompt_comes_back_to_a_hundredth_of_a_pixel() -> None:
    prompt = Prompt(
        np.array([[20.25, 30.5], [70, 5]], np.float32), np.array([1, 0]), box=(8.0, 18.0, 32.0, 42.0)
    )
    stored = region_meta.read(result_of(cat(prompt))["meta"], SHAPE)
    assert stored is not None
    assert stored.term == "cat"
    assert np.allclose(stored.prompt.points, prompt.points, atol=0.01)
    assert stored.prompt.labels.tolist() == [1, 0]
    assert np.allclose(stored.prompt.box or (), prompt.box or (), atol=0.01)


@pytest.mark.parametrize("tag", ["BrushLabels", "PolygonLabels", "RectangleLabels"])
def test_the_hash_is_of_the_mask_that_a_reader_decodes(tag: str) -> None:
    result = result_of(cat(), tag)
    mask = region_reading.decode(result, SHAPE)
    assert mask is not None
    assert result["meta"]["vlsam"]["mask"] == results.mask_hash(mask)


@given(st.text(max_size=3000), st.integers(0, 300), st.text(max_size=300))
def test_it_stays_under_two_kilobytes_and_can_be_read(term: str, clicks: int, version: str) -> None:
    points = np.random.default_rng(clicks).uniform(0, 60, (clicks, 2)).astype(np.float32)
    found = detection(term, disc(20, 30, 12), Prompt(points, np.ones(clicks, np.int64), box=(1, 2, 30.5, 40)))
    meta = region_meta.write(found, {})
    assert len(json.dumps(meta)) <= region_meta.MAX_BYTES
    stored = region_meta.read(json.loads(json.dumps(meta)), SHAPE)
    assert stored is not None
    kept = len(stored.prompt.points)
    assert kept >= min(clicks, 20)
    assert np.allclose(stored.prompt.points, points[clicks - kept :], atol=0.01)  # the newest


def test_points_that_a_model_placed_are_told_from_a_persons() -> None:
    points = Prompt.of((20, 30, 1), (22, 31, 1), (24, 32, 0))
    asked = cat(points)
    predicted = replace(asked, evidence=replace(asked.evidence, question="What is there?"))
    clicked = replace(
        asked, evidence=replace(asked.evidence, question="", prompt=replace(points, model_points=2))
    )
    for found, count in ((predicted, 3), (clicked, 2)):
        meta = result_of(found)["meta"]
        stored = region_meta.read(meta, SHAPE)
        assert stored is not None
        assert stored.prompt.model_points == count
        meta["vlsam"]["found"] = 4  # of three points
        assert region_meta.read(meta, SHAPE) is None


GOOD = {
    "v": 1,
    "term": "cat",
    "points": [[25, 50, 1]],
    "box": [10, 10, 40, 90],
    "scores": {"predicted_iou": 0.9},
    "model": "v1",
    "mask": "00",
}


def test_good_evidence_is_read() -> None:
    assert region_meta.read({"text": ["a note"], "vlsam": GOOD}, SHAPE) is not None
    assert region_meta.read({"vlsam": {**GOOD, "reduced": True}}, SHAPE) is not None


def test_an_image_that_was_seen_smaller_says_so() -> None:
    found = cat()
    assert "reduced" not in region_meta.write(found, {})["vlsam"]
    meta = region_meta.write(replace(found, evidence=replace(found.evidence, reduced=True)), {})
    assert meta["vlsam"]["reduced"] is True
    assert region_meta.read(json.loads(json.dumps(meta)), SHAPE) is not None


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2},
        {"term": 3},
        {"term": "x" * 201},
        {"model": None},
        {"mask": ["a"]},
        {"points": None},
        {"points": {}},
        {"points": [[1, 2]]},
        {"points": [[1, 2, 3]]},
        {"points": [[1, 2, True]]},
        {"points": [[1, 2, 1.0]]},
        {"points": [["1", 2, 1]]},
        {"points": [[-0.1, 2, 1]]},
        {"points": [[1, 100.1, 1]]},
        {"points": [[float("nan"), 2, 1]]},
        {"points": [[float("inf"), 2, 1]]},
        {"points": [[10**400, 2, 1]]},
        {"box": [1, 2, 3, 10**400]},
        {"points": [[1, 2, 1]] * 65},
        {"box": [1, 2, 3]},
        {"box": [1, 2, 1, 9]},
        {"box": "1234"},
        {"box": [1, 2, 101, 9]},
        {"box": [False, 2, 10, 9]},
        {"reduced": 1},
        {"reduced": None},
    ],
)
def test_one_odd_value_and_the_whole_is_ignored(change: dict[str, Any]) -> None:
    assert region_meta.read({"vlsam": {**GOOD, **change}}, SHAPE) is None


@pytest.mark.parametrize("meta", [None, [], "x", {}, {"vlsam": None}, {"vlsam": []}, {"text": ["hello"]}])
def test_meta_of_others_is_no_evidence(meta: Any) -> None:
    assert region_meta.read(meta, SHAPE) is None


def test_a_mask_that_nobody_changed_keeps_its_whole_prompt() -> None:
    # Even a point that its mask leaves out.
    prompt = Prompt(np.array([[20, 30], [70, 5]], np.float32), np.array([1, 1]))
    result = result_of(cat(prompt))
    stored = region_meta.read(result["meta"], SHAPE)
    assert stored is not None
    assert len(region_meta.consistent(stored, disc(20, 30, 12)).points) == 2


def test_of_a_changed_mask_what_contradicts_it_is_dropped() -> None:
    prompt = Prompt(
        np.array([[20, 30], [28, 30], [70, 5], [20, 22]], np.float32),
        np.array([1, 1, 0, 0]),
        box=(8.0, 18.0, 32.0, 42.0),
    )
    stored = region_meta.read(result_of(cat(prompt))["meta"], SHAPE)
    assert stored is not None
    smaller = region_meta.consistent(stored, disc(20, 30, 6))
    assert smaller.points.round().tolist() == [[20, 30], [70, 5], [20, 22]]
    assert smaller.box is not None
    wider = region_meta.consistent(stored, disc(20, 30, 12) | disc(50, 30, 9))
    assert wider.points.round().tolist() == [[20, 30], [28, 30], [70, 5]]
    assert wider.box is None


def test_points_outside_the_image_lie_in_no_mask() -> None:
    everywhere = np.ones(SHAPE, bool)
    points = [[0, 0], [79.9, 59.9], [80, 30], [30, 60], [-0.1, 5]]
    assert patches.contains(everywhere, points).tolist() == [True, True, False, False, False]
