"""A request is parsed once, at the border; behind it there are frozen types."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from backend.labelstudio import request
from backend.labelstudio.labeling_config import ConfigError, parse
from backend.labelstudio.request import BadRequest, Batch, Event, Interaction, Trial, parse_body
from backend.labelstudio.tasks import Entry, Task
from tests.support.editor_gestures import click
from tests.support.labeling_configs import CONFIG
from tests.support.paths import ROOT

TASK = {"id": 7, "data": {"image": "a.jpg"}, "project": 3}


def body(*tasks: Any, context: Any = None) -> dict[str, Any]:
    return {"tasks": [*tasks], "label_config": CONFIG, "params": {"context": context}}


def clicked(*items: Any, task: Any = TASK, config: str = CONFIG) -> Interaction:
    return Interaction.parse(Task.parse(task), {"result": list(items)}, parse(config))


def test_each_kind_of_request_has_a_type() -> None:
    batch = parse_body(body(TASK, TASK))
    assert isinstance(batch, Batch)
    assert [task.id for task in batch.tasks] == [7, 7]
    interaction = parse_body(body(TASK, context={"result": [click(10, 20)]}))
    assert isinstance(interaction, Interaction)
    assert interaction.gestures[0].labels == ("Cat",)
    assert parse_body(body(context={"event": "capabilities"})) == Event("capabilities")
    trial = parse_body(body(TASK, context={"event": request.TRIAL}))
    assert isinstance(trial, Trial)
    assert trial.task.name == "7"


@pytest.mark.parametrize("kind", [Batch, Trial, Interaction, Event, Task, Entry])
def test_the_types_are_frozen(kind: Any) -> None:
    assert kind.__dataclass_params__.frozen
    assert dataclasses.is_dataclass(kind)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"tasks": None}, "tasks must be a list"),
        ({"tasks": [{}] * (request.MAX_TASKS + 1)}, "at most 10000 tasks"),
        ({"label_config": 3}, "label_config must be a text"),
        ({"params": []}, "params must be an object"),
        ({"params": {"context": []}}, "params.context must be an object or null"),
        ({"tasks": [], "params": {"context": {}}}, "the task of params.context"),
    ],
)
def test_a_body_that_cannot_be_read_is_told_so(change: dict[str, Any], why: str) -> None:
    with pytest.raises(BadRequest, match=re.escape(why)):
        parse_body({**body(TASK), **change})


def test_an_event_needs_no_labeling_config() -> None:
    assert parse_body({**body(context={"event": "release"}), "label_config": "<View"}) == Event("release")
    with pytest.raises(ConfigError):
        parse_body({**body(TASK), "label_config": "<View"})


@pytest.mark.parametrize("raw", [None, 3, "task", [], {}, {"id": [], "data": [], "drafts": 3}])
def test_an_odd_task_is_one_without_id_and_data(raw: Any) -> None:
    """It fails alone, later, with a reason: no task takes the others of its batch along."""
    task = Task.parse(raw)
    assert (task.id, task.data, task.own, task.predicted) == (None, None, [], [])


def test_a_click_supersedes_only_where_every_prompt_has_an_id() -> None:
    assert clicked(click(10, 20, id="a"), click(30, 20, id="b")).prompt_ids == {"a", "b"}
    assert clicked(click(10, 20, id="a"), {**click(30, 20), "id": None}).prompt_ids == frozenset()
    assert clicked().prompt_ids == frozenset()


def test_the_labels_of_a_tasks_data_are_resolved_once() -> None:
    config = """<View><Image name="image" value="$image"/>
      <BrushLabels name="brush" toName="image" value="$names"/></View>"""
    task = {**TASK, "data": {"image": "a.jpg", "names": ["Newt"]}}
    assert clicked(click(10, 20), task=task, config=config).config.only_label == "Newt"


def test_nothing_behind_the_border_asks_whether_a_task_is_a_mapping() -> None:
    asks = re.compile(r"isinstance\((task|context)\b")
    rooms = [path for room in ("answers", "web") for path in (Path(ROOT) / "backend" / room).glob("*.py")]
    assert rooms
    assert [path.name for path in rooms if asks.search(path.read_text("utf-8"))] == []
