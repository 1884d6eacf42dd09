"""Select the annotation, draft or prediction of each task that is exported."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backend.datasets.items import Item
from backend.labelstudio import tasks
from backend.labelstudio_api.client import StudioClient, StudioError


@dataclass(frozen=True)
class Selection:
    """Selects the entry of each task that is exported."""

    client: StudioClient
    what: str  # annotations, drafts or predictions
    version: str | None = None  # the version of predictions; None for the newest

    @classmethod
    def of(
        cls, client: StudioClient, settings: Mapping[str, Any], what: str, version: str | None
    ) -> "Selection":
        """Make a project's selection. `settings`: its API fields. `version`: that of --model-version."""
        if what == "predictions" and version is None and (shown := settings.get("model_version")):
            # For a project that shows a backend's answers, this is the backend's title.
            titles = [backend.get("title") for backend in client.backends(int(settings["id"]))]
            version = None if shown in titles else str(shown)
        return cls(client, what, version)

    def read(self, item: Item) -> bytes | None:
        """Return the JSON of all entries of a task; None if the task was deleted. Raises StudioError."""
        paths = {
            "annotations": f"/api/tasks/{item.task}/annotations/",
            "drafts": f"/api/tasks/{item.task}/drafts",  # a list of tasks has only those of the token's owner
            "predictions": f"/api/predictions/?task={item.task}",
        }
        try:
            return self.client.read(paths[self.what]).body
        except StudioError as error:
            if error.status == 404:
                return None
            raise

    def mark(self, task: Mapping[str, Any]) -> str:
        """Return text that changes when the entries of a task may have changed."""
        if self.what == "drafts":  # which do not change their task
            return str(time.time_ns())
        counts = ("updated_at", "total_annotations", "cancelled_annotations", "total_predictions")
        return " ".join([str(self.version), *(str(task.get(name, "")) for name in counts)])

    def choose(self, entries: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any] | None, str, int]:
        """Return the entry to export or None, the reason for None, and the number of candidates."""
        why = f"without {'an annotation' if self.what == 'annotations' else f'a {self.what[:-1]}'}"
        if self.what == "annotations":  # Label Studio 1.23.2 does not list them, others may
            entries = [entry for entry in entries if entry.get("was_cancelled") is not True]
        if self.version is not None:
            why += f" of {self.version}"
            entries = [entry for entry in entries if entry.get("model_version") == self.version]
        return max(entries, key=_rank, default=None), why, len(entries)


def _rank(entry: Mapping[str, Any]) -> tuple[bool, str, int]:
    number = entry.get("id")
    return entry.get("ground_truth") is True, tasks.changed(entry), number if type(number) is int else 0
