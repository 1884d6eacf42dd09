"""Import the predictions of `vlsam prelabel` into a project, and have Label Studio show them."""

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from backend.datasets.items import Item
from backend.datasets.run_state import DONE, FAILED, Row, State
from backend.labelstudio_api.client import StudioClient, StudioError

log = logging.getLogger(f"vlsam.{__name__}")

# Limits of one import request in tasks and, for large masks, in characters. Label Studio accepts 250 MB.
CHUNK, CHUNK_CHARACTERS = 50, 10_000_000


class Importer:
    """Imports predictions into a project in chunks, each prediction once, even if the run is killed.

    sent.jsonl in the state lists the tasks whose predictions Label Studio has taken. After a kill or a broken
    connection, Label Studio is asked which tasks have one. `replace` deletes those of this version first.
    """

    def __init__(self, client: StudioClient, project: int, version: str, *, replace: bool) -> None:
        self._client, self._project, self._version, self._replace = client, project, version, replace
        self._waiting: list[tuple[Item, Row]] = []
        self._size = 0

    def resume(self, state: State) -> None:
        """Send the finished rows that are not marked as sent."""
        sent = _sent(state.folder)
        for _, item, row in state.rows():
            if row["status"] == DONE and item.task not in sent:
                self.add(item, row, state, in_doubt=True)
        self._flush(state, in_doubt=True)

    def add(self, item: Item, row: Row, state: State, *, in_doubt: bool = False) -> None:
        """Add a row to the chunk, and send the chunk when it is full. Raises StudioError."""
        if row["status"] != DONE:
            return
        self._waiting.append((item, row))
        self._size += len(json.dumps(row["prediction"]))
        if len(self._waiting) >= CHUNK or self._size >= CHUNK_CHARACTERS:
            self._flush(state, in_doubt=in_doubt)

    def finish(self, state: State) -> None:
        """Send the remaining rows, and those that an earlier run could not send."""
        self._flush(state, in_doubt=False)
        self.resume(state)

    def _flush(self, state: State, *, in_doubt: bool) -> None:
        chunk, self._waiting, self._size = self._waiting, [], 0
        if chunk:
            self._send(chunk, state, in_doubt)

    def _send(self, chunk: list[tuple[Item, Row]], state: State, in_doubt: bool) -> None:
        tries = 0

        def send() -> None:
            nonlocal tries
            tries += 1
            missing = chunk
            # After a lost answer it is open which of them were taken.
            if in_doubt or tries > 1 or self._replace:
                missing = [(item, row) for item, row in chunk if not self._has_prediction(item.task)]
            if missing:
                predictions = [{"task": item.task, **row["prediction"]} for item, row in missing]
                self._client.import_predictions(self._project, predictions)

        try:
            self._client.retry(send)
        except StudioError as error:
            if error.status != 400:
                raise
            if len(chunk) > 1:  # one bad prediction, as of a deleted task, has Label Studio refuse them all
                for pair in chunk:
                    self._send([pair], state, in_doubt=True)
                return
            item = chunk[0][0]
            log.warning("Task %s: %s", item.task, error.problem)
            state.save({"key": item.key, "status": FAILED, "reason": error.problem})
            return
        with (state.folder / "sent.jsonl").open("a") as file:
            file.write(json.dumps({"tasks": [item.task for item, _ in chunk]}) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _has_prediction(self, task: int | None) -> bool:
        """Return whether a task has a prediction of this version. Raises StudioError.

        With `replace`, delete these predictions first.
        """
        if task is None:
            return False
        ours = [p for p in self._client.predictions(task) if p.get("model_version") == self._version]
        if self._replace:
            for prediction in ours:
                self._client.delete_prediction(int(prediction["id"]))
            return False
        return bool(ours)

    def show(self, *, anyway: bool) -> Iterator[str]:
        """Set the project to show the predictions of this version. Yield messages, also for StudioError.

        Label Studio 1.23.2 shows a project's predictions of one version (Project.model_version) in *Label All
        Tasks*, the score column and uncertainty sampling. At first the version is empty, which shows none. Or
        it is the title of the first connected backend, which shows its answers and no score. A person chose
        any other version. Only `anyway` replaces it, and switches predictions on.
        """
        where = f"project {self._project}, Settings, Annotation, Use predictions to prelabel tasks"
        try:
            yield from self._show(where, anyway=anyway)
        except StudioError as error:
            if "Model version doesn't exist" in str(error):  # as Label Studio calls one without a prediction
                yield f"project {self._project} has no predictions of {self._version} to show"
            else:
                yield f"{error}. To see the predictions choose {self._version} in Label Studio: {where}"

    def _show(self, where: str, *, anyway: bool) -> Iterator[str]:
        client, version, project = self._client, self._version, f"project {self._project}"
        settings = client.project(self._project)
        shown = settings.get("model_version") or ""
        hidden = settings.get("show_collab_predictions") is False
        titles: list[str] = []
        if shown not in ("", version):
            titles = [str(backend.get("title")) for backend in client.backends(self._project)]
        changes: dict[str, Any] = {}
        if shown != version and (anyway or shown in ("", *titles)):
            changes["model_version"] = version
        if anyway and hidden:
            changes["show_collab_predictions"] = True
        if changes:
            client.update_project(self._project, changes)
            before = ""
            if shown not in ("", version):
                before = f", no longer {'those of backend ' if shown in titles else ''}{shown}"
            yield f"{project} shows the predictions of {version} now{before}"
        elif shown != version:
            yield (
                f"{project} shows the predictions of {shown}: those of {version} are not seen in Label "
                f"All Tasks and the score column. The same command with --show changes that, as does {where}"
            )
        if hidden and not anyway:
            yield (
                f"{project} shows annotators no predictions at all. The same command with --show changes "
                f"that, as does {where}"
            )


def _sent(folder: Path) -> set[int]:
    path = folder / "sent.jsonl"
    if not path.exists():
        return set()
    text = path.read_bytes()
    complete = text[: text.rfind(b"\n") + 1]
    os.truncate(path, len(complete))  # a kill may have cut the last line
    return {task for line in complete.splitlines() for task in json.loads(line)["tasks"]}
