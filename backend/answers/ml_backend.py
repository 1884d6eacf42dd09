"""Answer the prediction requests of Label Studio: a function for each kind, and a label-studio-ml class."""

from collections.abc import Callable, Mapping
from typing import Any

from backend.answers import batch, interactive
from backend.answers.placement import Prediction
from backend.answers.resources import PROCESS, Resources
from backend.answers.task_image import Access
from backend.images.studio_urls import Server
from backend.labelstudio import request
from backend.labelstudio.request import Batch, Event, Interaction, Trial

try:
    from label_studio_ml.model import LabelStudioMLBase
except ImportError:
    LabelStudioMLBase = object


class VLSAMBackend(LabelStudioMLBase):  # type: ignore[misc]
    """The ML backend of one project, as label-studio-ml needs it."""

    def __init__(
        self,
        label_config: str | None = None,
        train_output: Mapping[str, Any] | None = None,
        *,
        resources: Resources | None = None,
        project: str = "",  # which label-studio-ml 1.0.9 does not pass
        gone: Callable[[], bool] = lambda: False,
        hostname: str | None = "",
        access_token: str | None = "",
        **_: Any,
    ) -> None:
        # The base class would parse the config with a parser that expands entities.
        self.label_config = label_config
        self.hostname, self.access_token = hostname or "", access_token or ""  # None if /setup had null
        self.resources = resources or PROCESS.resources()
        self.model_version = self.resources.version
        server = Server.choose(self.resources.settings.label_studio, self.hostname, self.access_token)
        self.access = Access(self.resources, server, project, gone)

    def predict(
        self, tasks: list[Any], context: Mapping[str, Any] | None = None, **_: Any
    ) -> list[Prediction]:
        """Return one prediction per task. With a `context`, return the answer to a click in the first task.

        Raises ConfigError and Unavailable.
        """
        config = self.label_config or ""
        if context is None:
            return answer_batch(request.parse_batch(tasks, config), self.access)
        return answer_context(request.parse_context(tasks, context, config), self.access)


def answer_context(request: Event | Trial | Interaction, access: Access) -> list[Prediction]:
    """Return a list of one answer to a click, a text, a trial or an event. If it is empty, it has a "reason".

    Raises Unavailable.
    """
    resources = access.resources
    deadline = resources.deadline()
    match request:
        case Event(name):
            return [interactive.event(name, resources.version)]
        case Trial():
            return [batch.trial(access, request, deadline)]
        case Interaction():
            return [interactive.interact(access, request, deadline)]


def answer_batch(request: Batch, access: Access) -> list[Prediction]:
    """Return the prediction of each task, in order.

    A prediction is {"result": [...], "score": float, "model_version": str}. It is {} if the task failed or
    the deadline passed: Label Studio 1.23.2 does not store {} and requests the task again later. With
    VLSAM_ON_OPEN=prewarm, return [] for a batch of one task, and encode its image in the background.

    Raises Unavailable.
    """
    resources = access.resources
    deadline = resources.deadline()
    # Label Studio 1.23.2 does not say why it asks: an opened task looks like a chosen one that is alone.
    if len(request.tasks) == 1 and resources.settings.answers.on_open == "prewarm":
        batch.prewarm(access, request.tasks[0], request.config, deadline)
        return []
    with resources.queue.admitted():
        return batch.annotate_all(access, request, deadline)
