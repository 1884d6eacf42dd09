"""Read the tasks of a Label Studio project as items, and their images."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from backend.datasets.file_names import image_name
from backend.datasets.items import Item, stamp
from backend.images.fetch import Fetcher
from backend.images.studio_urls import Server
from backend.labelstudio.labeling_config import LabelConfig, TaskError
from backend.labelstudio_api.client import StudioClient
from backend.settings import ImageSettings, LabelStudioSettings
from model.types import Image, ImageError


class ProjectTasks:
    """The tasks of a project as items, oldest first. Tasks with predictions of version `without` are omitted.

    `mark` returns a text for a task. The task is read again when this text changes.
    """

    def __init__(
        self,
        client: StudioClient,
        project: int,
        loader: "TaskImages",
        config: LabelConfig,
        *,
        without: str | None = None,
        mark: Callable[[Mapping[str, Any]], str] = lambda task: "",
    ) -> None:
        self.loader = loader
        self.skipped: Counter[str] = Counter()
        self.cancelled: set[int] = set()  # listed tasks that a person has skipped
        self._client, self._project, self._config, self._mark = client, project, config, mark
        self._without = without

    def items(self) -> Iterator[Item]:
        """Yield an item for each task. Raises StudioError."""
        listed, filters = 0, list[dict[str, Any]]()
        if self._without is not None:
            name = "filter:tasks:predictions_model_versions"
            value = [self._without]
            filters.append({"filter": name, "operator": "not_contains", "type": "List", "value": value})
        for task in self._client.tasks(self._project, filters):
            number, data = int(task["id"]), task.get("data")
            try:
                source = self._config.source(data)
            except TaskError:  # the loader reports it
                source = None
            if task.get("cancelled_annotations"):
                self.cancelled.add(number)
            address = source if isinstance(source, str) else ""
            name = image_name(address, local=False) or str(number)
            marked = stamp(address, *filter(None, [self._mark(task)]))
            fields = data if isinstance(data, dict) else {}
            yield Item(str(number), address, fields, number, name, stamp=marked)
            listed += 1
        if self._without is not None:
            total = self._client.project(self._project).get("task_number") or 0
            if total > listed:
                self.skipped["labelled by this model already (--all replaces)"] = total - listed


class TaskImages:
    """Reads the images of tasks. Reads local files only below LOCAL_FILES_DOCUMENT_ROOT."""

    def __init__(self, images: ImageSettings, label_studio: LabelStudioSettings, config: LabelConfig) -> None:
        self._images, self._config = Fetcher(images, label_studio), config
        self._server = Server(label_studio.url or "", label_studio.api_key)

    def read(self, item: Item) -> tuple[bytes, Image]:
        try:
            source = self._config.source(item.data)
        except TaskError as error:
            raise ImageError(str(error)) from None
        return self._images.read(source, self._server, task=item.task)

    def path(self, item: Item) -> Path | None:
        return None  # LOCAL_FILES_DOCUMENT_ROOT is for reading alone
