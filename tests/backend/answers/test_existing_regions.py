"""Predictions beside what people made."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from backend.answers.ml_backend import VLSAMBackend
from backend.answers.placement import Labelling, annotation
from backend.answers.resources import Resources
from backend.labelstudio.labeling_config import SHAPES, parse
from backend.labelstudio.tasks import Task
from tests.support.detections import detection, disc
from tests.support.images import data_url
from tests.support.labeling_configs import CONFIG
from tests.support.saved_annotations import region
from tests.support.stand_in import StandIn

Make = Callable[..., Resources]
CAT, DOG = disc(20, 30, 12), disc(60, 30, 9)
made = partial(region, config=CONFIG)  # by a person


def predicted(resources: Resources, **task: Any) -> list[tuple[str, str]]:
    """Control and label of what a batch predicts."""
    (found,) = VLSAMBackend(CONFIG, resources=resources).predict(
        [{"id": 1, "data": {"image": data_url()}, **task}]
    )
    return [(r["from_name"], r["value"][r["type"]][0]) for r in found["result"]]


DOGS = [("brush", "Dog"), ("poly", "Dog")]
BOTH = [("brush", "Cat"), ("poly", "Cat"), *DOGS]


@pytest.mark.parametrize("kind", ["annotations", "drafts"])
def test_what_people_have_a_region_of_is_not_predicted(make_resources: Make, kind: str) -> None:
    entry = {"id": 3, "result": made(CAT, "brush", "Cat")}
    assert predicted(make_resources(), **{kind: [entry]}) == DOGS
    assert predicted(make_resources(), **{kind: [{**entry, "was_cancelled": True}]}) == BOTH


@pytest.mark.parametrize(
    ("made", "left"),
    [
        (made(disc(23, 30, 12), "brush", "Cat"), DOGS),  # moved by hand
        (made(CAT, "poly", "Cat"), DOGS),  # one object is one region in every control
        (made(disc(20, 30, 6), "brush", "Cat"), BOTH),  # a quarter of it
        (made(CAT, "brush", "Dog"), BOTH),
        (made(CAT, "brush", "Dog", "Cat"), DOGS),  # choice="multiple": any of them is what it is
        (made(DOG, "brush", "Dog") + made(CAT, "brush", "Cat"), []),
        ([{"id": "made", "type": "choices", "from_name": "brush", "value": {"choices": ["Cat"]}}], BOTH),
        (["junk", None, {"from_name": {}, "type": []}], BOTH),
        ("junk", BOTH),
    ],
)
def test_the_same_object_is_of_the_same_label_and_overlaps_by_half(
    make_resources: Make, made: Any, left: list[tuple[str, str]]
) -> None:
    assert predicted(make_resources(), annotations=["junk", {"result": made}]) == left


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("shared", [False, True])
def test_regions_of_every_control_count(shape: str, shared: bool) -> None:
    tag, both = SHAPES[shape], '<Label value="Cat"/><Label value="Dog"/>'
    drawn = (
        f'<Labels name="l" toName="i">{both}</Labels><{tag} name="c" toName="i" smart="false"/>'
        if shared
        else f'<{tag}Labels name="c" toName="i" smart="false">{both}</{tag}Labels>'
    )
    config = parse(f'<View><Image name="i" value="$i"/>{drawn}</View>')
    found = [detection("cat", disc(20, 30, 12) | disc(30, 30, 12)), detection("dog", DOG)]
    everything, _ = annotation(found, Labelling(config), "image", "v1")
    cats = [r for r in everything if r["id"] == everything[0]["id"]]
    made = [{"result": [{**each, "id": "made"} for each in cats]}]
    known = Task.parse({"annotations": made}).made(config)
    left, _ = annotation(found, Labelling(config), "image", "v1", made=known)
    assert left == everything[len(cats) :]
    assert left


def test_a_rectangle_is_compared_with_the_masks_own() -> None:
    config = parse(
        '<View><Image name="i" value="$i"/><RectangleLabels name="c" toName="i"><Label value="Cat"/>'
        "</RectangleLabels></View>"
    )
    thin = [detection("cat", disc(15, 15, 6) | disc(60, 45, 6))]  # a tenth of its box
    everything, _ = annotation(thin, Labelling(config), "image", "v1")
    assert (
        annotation(
            thin,
            Labelling(config),
            "image",
            "v1",
            made=Task.parse({"drafts": [{"result": everything}]}).made(config),
        )[0]
        == []
    )


def test_an_object_that_was_kept_without_a_label_may_have_got_any() -> None:
    config = parse(CONFIG)
    found = [detection("zebra", CAT)]
    assert len(annotation(found, Labelling(config, "keep"), "image", "v1")[0]) == 1
    known = Task.parse({"annotations": [{"result": made(CAT, "brush", "Dog")}]}).made(config)
    assert annotation(found, Labelling(config, "keep"), "image", "v1", made=known)[0] == []


def test_the_ids_of_others_stay_as_they_are(make_resources: Make, stand_in: StandIn) -> None:
    """The second of two cats must not get the id of the first, which an annotation has."""
    stand_in.found = [detection("cat", CAT), detection("cat", DOG)]
    backend = VLSAMBackend(CONFIG, resources=make_resources())
    task = {"id": 1, "data": {"image": data_url()}}
    (first,) = backend.predict([task])
    accepted = [{"result": first["result"][:1]}]
    (second,) = backend.predict([{**task, "annotations": accepted}])
    assert second["result"] == first["result"][2:]


def test_a_broken_region_counts_as_none(make_resources: Make) -> None:
    mine = made(CAT, "brush", "Cat")
    mine[0]["value"]["rle"] = [1, 2, 3]
    assert predicted(make_resources(), annotations=[{"result": mine}]) == BOTH
