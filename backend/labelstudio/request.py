"""Parse the body of POST /predict, once, into frozen types."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from backend.labelstudio import click_gestures, labeling_config, prompt_controls
from backend.labelstudio.labeling_config import LabelConfig
from backend.labelstudio.tasks import Entry, Task, control_of, entries, id_of, labels_of

MAX_TASKS = 10_000  # of a request
# The event of `vlsam doctor`: it makes Label Studio ask what would be predicted for a task, and why not.
TRIAL = "vlsam_trial"


class BadRequest(Exception):
    """A request cannot be read. The message is one sentence for the client: HTTP 400."""


@dataclass(frozen=True)
class Event:
    """A request with an event of Label Studio's development branch, which `next_protocol` answers."""

    name: Any  # untrusted


@dataclass(frozen=True, eq=False)
class Trial:
    """A request to annotate a task and to report the terms that the model saw."""

    task: Task
    config: LabelConfig


@dataclass(frozen=True, eq=False)
class Batch:
    """A request to annotate tasks."""

    tasks: Sequence[Task]
    config: LabelConfig


@dataclass(frozen=True, eq=False)
class Interaction:
    """A request to answer a click, a rectangle or a text of the editor."""

    task: Task
    config: LabelConfig  # with the labels of the task's data
    gestures: Sequence[click_gestures.Gesture]  # the newest last
    phrase: str | None  # a typed text, None if there are gestures
    wishes: prompt_controls.Wishes
    selected: Sequence[str] = ()  # labels that the context holds
    prompt_ids: frozenset[str] = frozenset()  # of all prompts; none if one of them has no id
    control: str = ""  # of the newest prompt
    empty: bool = False  # nothing was drawn or typed
    other_image: str | None = None  # the image that a prompt was drawn on, if there are no gestures

    @classmethod
    def parse(cls, task: Task, context: Mapping[str, Any], project_config: LabelConfig) -> "Interaction":
        given = context.get("result")
        items = [item for item in (given if isinstance(given, list) else []) if isinstance(item, Mapping)]
        newest = entries(items)
        config = project_config.of(task.data)
        gestures = click_gestures.gestures_of(items, config.image_name)
        phrase = prompt_controls.typed(newest, config)
        saved = task.own[0].items if task.own else ()
        ids = [prompt_id for item in items if (prompt_id := id_of(item)) is not None]
        control = control_of(items[-1]) if items else None
        named = len(ids) == len(items) and bool(control)
        return cls(
            task,
            config,
            gestures,
            None if gestures else phrase,
            prompt_controls.wishes_of(saved if phrase is None else newest),
            [label for item in newest for label in labels_of(item)],
            frozenset(ids) if named else frozenset(),
            control or "",
            given == [],
            None if gestures else click_gestures.other_image(items),
        )

    @property
    def kind(self) -> str:
        """The kind of interaction for the log: "text" or "click with LABELS"."""
        if self.phrase is not None:
            return "text"
        return click_gestures.click_with(self.gestures[-1].labels if self.gestures else ())

    @cached_property
    def drafted(self) -> Sequence[click_gestures.Gesture]:
        """The prompts in the newest draft; [] if there is no draft."""
        draft: Entry | None = self.task.draft
        return [] if draft is None else click_gestures.drafted_gestures(draft, self.config)


def parse_batch(tasks: Sequence[Any], label_config: str) -> Batch:
    """Parse a request without a context, which is to annotate tasks. Raises ConfigError."""
    return Batch([Task.parse(task) for task in tasks], labeling_config.parse(label_config))


def parse_context(
    tasks: Sequence[Any], context: Mapping[str, Any], label_config: str
) -> Event | Trial | Interaction:
    """Parse a request with a context, which is about the first task. Raises ConfigError."""
    event = context.get("event")
    if event is not None and event != TRIAL:
        return Event(event)
    config, task = labeling_config.parse(label_config), Task.parse(tasks[0] if tasks else None)
    return Trial(task, config) if event == TRIAL else Interaction.parse(task, context, config)


def parse_body(body: Mapping[str, Any]) -> Batch | Event | Trial | Interaction:
    """Parse the body of POST /predict. Raises BadRequest and ConfigError."""
    tasks, config, params = body.get("tasks"), body.get("label_config"), body.get("params", {})
    if not isinstance(tasks, list):
        raise BadRequest("tasks must be a list.")
    if len(tasks) > MAX_TASKS:
        raise BadRequest(f"tasks must hold at most {MAX_TASKS} tasks.")
    if not isinstance(config, str):
        raise BadRequest("label_config must be a text.")
    if not isinstance(params, dict):
        raise BadRequest("params must be an object.")
    context = params.get("context")
    if context is None:
        return parse_batch(tasks, config)
    if not isinstance(context, Mapping):
        raise BadRequest("params.context must be an object or null.")
    if context.get("event") is None and not tasks:
        raise BadRequest("tasks must hold the task of params.context.")
    return parse_context(tasks, context, config)
