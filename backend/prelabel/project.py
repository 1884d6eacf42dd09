"""Label Studio as source and destination of `vlsam prelabel`, by its SDK."""

import json
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx
from label_studio_sdk import LabelStudio
from label_studio_sdk.core.api_error import ApiError

from backend.images.access_tokens import token_kind
from backend.images.load import Images
from backend.images.studio_urls import Server
from backend.labelstudio.labeling_config import LabelConfig, TaskError
from backend.prelabel.naming import image_name
from backend.prelabel.sources import Item, SourceError, stamp
from backend.prelabel.state import DONE, FAILED, Row, State
from backend.settings import Settings
from model import connections
from model.types import Image, ImageError

log = logging.getLogger(f"vlsam.{__name__}")

T = TypeVar("T")
PAGE = 100  # tasks
# A request with predictions: so many tasks or, of large masks, characters. Label Studio takes 250 MB.
CHUNK, CHUNK_CHARACTERS = 50, 10_000_000
PAUSES = (1.0, 3.0, 10.0, 30.0)  # seconds before each further try


class ProjectError(ValueError):
    """Label Studio cannot be used. The message is one sentence."""


class Missing(ProjectError):
    """What is asked for is not there."""


def number(address: str) -> int | None:
    """The project of labelstudio://7, None for another address. Raises SourceError."""
    if not address.startswith("labelstudio://"):
        return None
    found = re.fullmatch(r"labelstudio://(\d{1,9})/?", address)
    if not found:
        raise SourceError(f"{address}: a project is named by its number, as in labelstudio://7")
    return int(found[1])


@contextmanager
def connected(settings: Settings) -> Iterator[LabelStudio]:
    """The Label Studio of the settings. Raises ProjectError."""
    url, key = settings.label_studio.url, settings.label_studio.api_key
    if not url or not key:
        raise ProjectError("a project of Label Studio needs LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY")
    if token_kind(key) == "cut":
        raise ProjectError("LABEL_STUDIO_API_KEY lacks its signature, the part after its second dot")
    if token_kind(key) == "unfit":
        raise ProjectError("LABEL_STUDIO_API_KEY has quotes, spaces or the like: give the token alone")
    # Imports of large masks take their time.
    with connections.client(httpx, timeout=120) as http:
        # Without the slash the SDK exchanges a personal access token beside a path of the address.
        yield _asking(lambda: LabelStudio(base_url=f"{url}/", api_key=key, httpx_client=http))


def get(client: LabelStudio, project: int | None) -> Any:
    """What Label Studio says of a project. Raises ProjectError."""
    try:
        return _asking(lambda: client.projects.get(id=project))
    except Missing as error:
        raise ProjectError(
            f"{error}; the number of a project is in the address of its page, as in /projects/7"
        ) from None


def label_config(client: LabelStudio, project: int | None) -> str:
    return str(get(client, project).label_config)


def titles_of_backends(client: LabelStudio, project: int) -> list[str]:
    """What a project's model_version is where what a backend answers is shown."""
    return [str(backend.title) for backend in _asking(lambda: client.ml.list(project=project))]


def read(client: LabelStudio, path: str, **query: Any) -> bytes:
    """The body of what Label Studio answers to a GET, which the SDK would make objects of. Raises Missing."""

    def ask() -> bytes:
        # The SDK's client knows how to ask with each kind of token.
        http = client._client_wrapper.httpx_client
        answer = http.request(path, method="GET", params=query, request_options={"max_retries": 0})
        if answer.status_code != 200:
            raise ApiError(status_code=answer.status_code, body=answer.text)
        return bytes(answer.content)

    return _asking(ask)


def show(client: LabelStudio, project: int, version: str, *, anyway: bool) -> Iterator[str]:
    """Have Label Studio show the predictions of a version; yields a line for each thing to tell.

    Label Studio 1.23.2 shows a project's predictions of one version (Project.model_version) in *Label All
    Tasks*, the score column and uncertainty sampling. It begins empty, which shows none, or as the title of
    the first backend that was connected, which shows what that backend answers, and no score. Another version
    is somebody's choice: it is replaced, and predictions that are switched off are switched on, with
    `anyway` alone. Raises nothing, for the predictions are there already.
    """
    where = f"project {project}, Settings, Annotation, Use predictions to prelabel tasks"
    try:
        yield from _show(client, project, version, where, anyway=anyway)
    except (ProjectError, Refused) as error:
        if "Model version doesn't exist" in str(error):  # as Label Studio calls one without a prediction
            yield f"project {project} has no predictions of {version} to show"
        else:
            yield f"{error}. To see the predictions choose {version} in Label Studio: {where}"


def _show(client: LabelStudio, project: int, version: str, where: str, *, anyway: bool) -> Iterator[str]:
    found = get(client, project)
    shown, switched_on = found.model_version or "", found.show_collab_predictions is not False
    titles: list[str] = []
    if shown not in ("", version):
        titles = titles_of_backends(client, project)
    changes: dict[str, Any] = {}
    if shown != version and (anyway or shown in ("", *titles)):
        changes["model_version"] = version
    if anyway and not switched_on:
        changes["show_collab_predictions"] = switched_on = True
    if changes:
        _asking(lambda: client.projects.update(id=project, **changes))
        before = f", no longer {'those of backend ' if shown in titles else ''}{shown}" if shown else ""
        yield f"project {project} shows the predictions of {version} now{before if shown != version else ''}"
    elif shown != version:
        yield (
            f"project {project} shows the predictions of {shown}: those of {version} are not seen in Label "
            f"All Tasks and the score column. The same command with --show changes that, as does {where}"
        )
    if not switched_on:
        yield (
            f"project {project} shows annotators no predictions at all. The same command with --show changes "
            f"that, as does {where}"
        )


class Tasks:
    """The tasks of a project, oldest first, but for those with a prediction of version `without`.

    `mark` adds to an item's stamp what of the task tells that it has changed.
    """

    def __init__(
        self,
        client: LabelStudio,
        project: int,
        settings: Settings,
        config: LabelConfig,
        *,
        without: str | None,
        mark: Callable[[Any], str] = lambda task: "",
    ) -> None:
        self.loader = TaskImages(settings, config)
        self.skipped: Counter[str] = Counter()
        self.cancelled: set[int] = set()  # tasks of those listed that somebody has skipped
        self._client, self._project, self._config, self._mark = client, project, config, mark
        self._query: dict[str, Any] = {"ordering": ["tasks:id"]}
        if without is not None:
            having = {
                "filter": "filter:tasks:predictions_model_versions",
                "operator": "not_contains",
                "type": "List",
                "value": [without],
            }
            self._query["filters"] = {"conjunction": "and", "items": [having]}

    def items(self) -> Iterator[Item]:
        page, listed = 1, 0
        while page:
            # The SDK's own pager tries nothing again, and a list may be long.
            found = _asking(partial(self._page, page))
            for task in found:
                try:
                    source = self._config.source({"data": task.data})
                except TaskError:  # which its loader tells
                    source = None
                if getattr(task, "cancelled_annotations", 0):
                    self.cancelled.add(int(task.id))
                address = source if isinstance(source, str) else ""
                key = str(task.id)
                name = image_name(address, local=False) or key
                marked = stamp(address, *filter(None, [self._mark(task)]))
                yield Item(key, address, dict(task.data), int(task.id), name, stamp=marked)
            listed += len(found)
            page = page + 1 if len(found) == PAGE else 0
        if "filters" in self._query:
            everything = _asking(lambda: self._client.projects.get(id=self._project)).task_number or 0
            if everything > listed:
                self.skipped["labelled by this model already (--all replaces)"] = everything - listed

    def _page(self, page: int) -> list[Any]:
        try:
            pager = self._client.tasks.list(
                project=self._project,
                page=page,
                page_size=PAGE,
                query=json.dumps(self._query),
                fields="task_only",
            )
        except ApiError as error:
            if error.status_code == 404 and page > 1:  # what Label Studio says behind the last page
                return []
            raise
        return list(pager.items or ())


class TaskImages:
    """Reads the images of tasks, whose data is not to be trusted: no files of this machine."""

    def __init__(self, settings: Settings, config: LabelConfig) -> None:
        self._settings, self._config, self._images = (
            settings,
            config,
            Images(settings.images, settings.label_studio),
        )
        self._server = Server(settings.label_studio.url or "", settings.label_studio.api_key)

    def __reduce__(self) -> tuple[type["TaskImages"], tuple[Settings, LabelConfig]]:
        return TaskImages, (self._settings, self._config)  # its locks stay here

    def load(self, item: Item) -> Image:
        return self.read(item)[1]

    def read(self, item: Item) -> tuple[bytes, Image]:
        try:
            source = self._config.source({"data": item.data})
        except TaskError as error:
            raise ImageError(str(error)) from None
        return self._images.read(source, self._server, task=item.task)

    def path(self, item: Item) -> Path | None:
        return None  # LOCAL_FILES_DOCUMENT_ROOT is for reading alone


class Importer:
    """Puts predictions into a project, in chunks, each once however often the run is killed.

    sent.jsonl in the state says what Label Studio has taken. Where a kill or a broken connection leaves that
    open, Label Studio is asked which of these tasks have a prediction of this version. With `replace` those
    are deleted before their new ones are sent.
    """

    def __init__(self, client: LabelStudio, project: int, version: str, *, replace: bool) -> None:
        self._client, self._project, self._version, self._replace = client, project, version, replace
        self._waiting: list[tuple[Item, Row]] = []
        self._size = 0

    def resume(self, state: State) -> None:
        """Send what is done and was not, as far as is known."""
        sent = self._sent(state.folder)
        for _, item, row in state.rows():
            if row["status"] == DONE and item.task not in sent:
                self.add(item, row, state, in_doubt=True)
        self._flush(state, in_doubt=True)

    def add(self, item: Item, row: Row, state: State, *, in_doubt: bool = False) -> None:
        """Take one row, and send what has come together. Raises ProjectError."""
        if row["status"] != DONE:
            return
        self._waiting.append((item, row))
        self._size += len(json.dumps(row["prediction"]))
        if len(self._waiting) >= CHUNK or self._size >= CHUNK_CHARACTERS:
            self._flush(state, in_doubt=in_doubt)

    def finish(self, state: State) -> None:
        """Send the rest; also what an earlier run that labelled everything could not send."""
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
            left = chunk
            if in_doubt or tries > 1 or self._replace:
                left = [each for each in chunk if not self._has_one(each[0].task)]
            if left:
                # The SDK would send again after a lost answer without asking what was taken.
                self._client.projects.import_predictions(
                    self._project,
                    request=[{"task": item.task, **row["prediction"]} for item, row in left],
                    request_options={"max_retries": 0},
                )

        try:
            _asking(send)
        except Refused as refused:
            if len(chunk) > 1:  # one that cannot be taken, as of a task that was deleted, spoils them all
                for each in chunk:
                    self._send([each], state, in_doubt=True)
                return
            item = chunk[0][0]
            log.warning("Task %s: %s", item.task, refused)
            state.save({"key": item.key, "status": FAILED, "reason": str(refused)})
            return
        with (state.folder / "sent.jsonl").open("a") as file:
            file.write(json.dumps({"tasks": [item.task for item, _ in chunk]}) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _has_one(self, task: int | None) -> bool:
        """Whether the task has a prediction of this version; with `replace` it has none afterwards."""
        found = [p for p in self._client.predictions.list(task=task) if p.model_version == self._version]
        if self._replace:
            for prediction in found:
                self._client.predictions.delete(id=prediction.id)
            return False
        return bool(found)

    def _sent(self, folder: Path) -> set[int]:
        path = folder / "sent.jsonl"
        if not path.exists():
            return set()
        text = path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        os.truncate(path, len(whole))  # a torn line
        return {task for line in whole.splitlines() for task in json.loads(line)["tasks"]}


class Refused(Exception):
    """Label Studio says 400: the request is at fault."""


def _asking(ask: Callable[[], T]) -> T:
    """What Label Studio answers, tried again while it is out of reach. Raises ProjectError and Refused."""
    for pause in (*PAUSES, None):
        try:
            return ask()
        except ApiError as error:
            status = error.status_code or 0
            told = f"Label Studio answered HTTP {status}: {_text(error.body)}"
            if status == 400:
                raise Refused(told) from None
            if status == 404:
                raise Missing(told) from None
            if status in (401, 403):
                told += "; LABEL_STUDIO_API_KEY must be a token of somebody who may do this"
            if status < 500 and status not in (408, 429):
                raise ProjectError(told) from None
        except httpx.HTTPError as error:
            if distrust := connections.distrust(error):
                raise ProjectError(f"Label Studio {distrust}") from None
            told = f"Label Studio cannot be reached ({type(error).__name__})"
        if pause is None:
            break
        log.warning("%s; trying again in %g s.", told, pause)
        time.sleep(pause)
    raise ProjectError(f"{told}; the same command goes on from here")


def _text(body: Any) -> str:
    return " ".join(str(body).split())[:300]
