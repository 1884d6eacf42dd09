"""Tasks in, predictions out: the ML backend class of the Label Studio ecosystem."""

from collections.abc import Callable, Mapping
from typing import Any

from backend.answers import batch, interactive
from backend.answers.placement import Prediction
from backend.answers.resources import PROCESS, Resources
from backend.answers.task_image import Access
from backend.images.http_url import HttpUrl
from backend.images.studio_urls import Server
from backend.labelstudio import labeling_config, next_protocol

try:
    from label_studio_ml.model import LabelStudioMLBase
except ImportError:
    LabelStudioMLBase = object


class VLSAMBackend(LabelStudioMLBase):  # type: ignore[misc]
    """The ML backend: one instance per project (label-studio-ml 1.0.9) or per request (our app).

    An instance holds a labeling config and the way to Label Studio; the resources are shared.
    """

    def __init__(
        self,
        label_config: str | None = None,
        train_output: Mapping[str, Any] | None = None,
        *,
        resources: Resources | None = None,
        project: str = "",
        caller: str = "",
        gone: Callable[[], bool] = lambda: False,
        hostname: str = "",
        access_token: str = "",
        **_: Any,
    ) -> None:
        # Not the base class's: it would parse the config with a parser that expands entities.
        self.label_config = label_config
        self.hostname, self.access_token = hostname, access_token
        self.project = (
            project  # as Label Studio names it in its requests; label-studio-ml 1.0.9 does not tell
        )
        self.caller = caller  # the IP address that /setup came from
        self.gone = gone  # whether nobody waits for the answer any longer
        self.resources = resources or PROCESS.resources()
        self.model_version = self.resources.version

    def predict(
        self, tasks: list[Any], context: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> list[Prediction]:
        """Predictions for `tasks`: one item per task in order, or with a `context` one for the click.

        An item is {"result": [...], "score": float, "model_version": str}, or {} for a task that failed or
        was not reached in time: Label Studio 1.23.2 skips such an item and asks again, while it stores an
        empty result and never asks again. With VLSAM_ON_OPEN=prewarm a batch of one task is answered with no
        item at all, and its image is encoded in the background. An empty answer to a click says why under
        "reason". Raises ConfigError and Unavailable.
        """
        access = Access(self.resources, self.server, self.project, self.gone)
        event = context.get("event") if isinstance(context, Mapping) else None
        if context is not None and event is not None and event != next_protocol.TRIAL:
            return [interactive.event(access, context)]
        config = labeling_config.parse(self.label_config or "")
        deadline = self.resources.deadline()
        if event is not None:
            return [batch.trial(access, tasks[0] if tasks else None, config, deadline)]
        # Label Studio 1.23.2 does not say why it asks: an opened task looks like a chosen one that is alone.
        if context is None and len(tasks) == 1 and self.resources.settings.answers.on_open == "prewarm":
            batch.prewarm(access, tasks[0], config, deadline)
            return []
        if isinstance(context, Mapping):
            return [interactive.interact(access, tasks[0] if tasks else None, context, config, deadline)]
        with self.resources.queue.admitted():
            return batch.annotate_all(access, tasks, config, deadline)

    @property
    def server(self) -> Server | None:
        """The Label Studio to fetch uploads from: LABEL_STUDIO_URL, else what /setup said.

        LABEL_STUDIO_API_KEY is not sent to an address from /setup, which anybody may have called, and a token
        from /setup to no other address than the one that came with it. What tasks have below the address of
        /setup is asked at LABEL_STUDIO_URL.
        """
        settings = self.resources.settings
        url, token = self.hostname.rstrip("/"), self.access_token or None
        if settings.label_studio.url:
            ours = settings.label_studio.url
            named = HttpUrl.parse(ours).has_origin_of(url)
            return Server(ours, settings.label_studio.api_key or (token if named else None), name=url)
        return Server(url, token, self.caller) if url else None
