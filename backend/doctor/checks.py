"""Run the checks of `vlsam doctor`, from the connection to Label Studio to a prediction.

Label Studio 1.23.2 shows its users no error of an ML backend. Its answer in each case was measured.
"""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import requests

from backend.doctor.config_checks import config_findings, exports_finding
from backend.doctor.finding import FAILED, NOTE, OK, SKIPPED, Finding
from backend.doctor.trials import UNKNOWN_PLACE, trial_findings
from backend.images.access_tokens import token_kind
from backend.images.errors import Refused
from backend.labelstudio import labeling_config
from backend.labelstudio.labeling_config import ConfigError, LabelConfig, TaskError
from backend.labelstudio_api.client import IN_CONTAINER, NEW_KEY, StudioClient, StudioError, check_token
from backend.settings import ModelSettings, Settings
from model import connections
from model.types import ImageError, ModelLoadError, RemoteVLMError
from model.vlm.remote_vlm import RemoteVLM
from model.weights.names import local_path

TIMEOUT_S = 20.0  # of the server's /health
HEALTH_S = 1.0  # that Label Studio gives a backend's /health

_UNBLOCK = "start Label Studio with USE_DEFAULT_BANNED_SUBNETS=false"


def access(client: StudioClient, project: int) -> Iterator[Finding]:
    """Check the connection, token, project, labeling config and an image. Stop at the first StudioError."""
    check = "connection"
    try:
        yield Finding(check, OK, _connection(client))
        check = "token"
        yield Finding(check, OK, _token(client))
        check = "project"
        settings = client.project(project)
        yield Finding(check, OK, f"Project {project} is {settings.get('title')!r}.")
        check = "config"
        xml = str(settings.get("label_config") or "")
        config = _config(xml)
        yield from config_findings(config)
        yield exports_finding(config, labeling_config.data_keys(xml))
        check = "image"
        yield _image(client, project, config)
    except StudioError as error:
        yield Finding(check, FAILED, error.problem, error.cure)


def diagnose(
    client: StudioClient, project: int, settings: Settings, backend_url: str | None, tasks: int
) -> Iterator[Finding]:
    """Run all checks, and yield each finding as soon as there is one.

    `backend_url` is the address of the backend for Label Studio, by default the connected backend's. At most
    `tasks` tasks get a trial prediction.
    """
    statuses: dict[str, str] = {}
    for finding in access(client, project):
        statuses[finding.check] = finding.status
        yield finding
    known, empty = statuses.get("project") == OK, statuses.get("image") == SKIPPED
    connected: Mapping[str, Any] = {}
    first: Mapping[str, Any] = {}
    default = backend_url or f"http://localhost:{settings.server.port}"
    if known:
        try:
            backends = client.backends(project)
            first = next(iter(backends), {})
            yield from _connected(client, project, backends, default)
            connected = first
        except StudioError as error:
            yield Finding("backend", FAILED, error.problem, error.cure)
        yield from _shown(client, project, connected.get("model_version"))
    else:
        yield Finding("backend", SKIPPED, "The project's backend cannot be read.")
    yield from _model(backend_url or str(first.get("url") or default), connected, settings)
    if (endpoint := settings.detection.options.remote_vlm) is not None:
        yield _listing(endpoint)
    if connected and not empty:
        yield from trial_findings(client, project, connected, tasks)
    elif known:
        why = "the project has none" if connected else "no backend would answer"
        yield Finding("trial", SKIPPED, f"No task can be tried: {why}.")
        yield Finding("log", OK, f"The server's log: {UNKNOWN_PLACE}.")


def _connection(client: StudioClient) -> str:
    answer = client.send("GET", "/api/version/", anonymous=True)
    try:
        return f"Label Studio {answer.json()['release']} answers at {client.server.url}."
    except (ValueError, LookupError, TypeError):
        raise client.not_label_studio() from None


def _token(client: StudioClient) -> str:
    token = client.server.token or ""
    if not token:
        raise StudioError("LABEL_STUDIO_API_KEY is not set.", NEW_KEY)
    check_token(token)
    if token_kind(token) == "access":
        raise StudioError("LABEL_STUDIO_API_KEY is an access token, which ends after 5 minutes.", NEW_KEY)
    user = client.get("/api/current-user/whoami")
    kind = "legacy token" if token_kind(token) is None else "personal access token"
    return f"The {kind} is that of {user.get('email') if isinstance(user, dict) else '?'}."


def _config(xml: str) -> LabelConfig:
    try:
        return labeling_config.parse(xml)
    except ConfigError as error:
        cure = "Settings, Labeling Interface, Code: take one of the configs in the README"
        raise StudioError(str(error), cure) from None


def _image(client: StudioClient, project: int, config: LabelConfig) -> Finding:
    task = first_task(client, project)
    if task is None:
        return Finding("image", SKIPPED, "The project has no tasks yet.", "import images, then look again")
    number = task.get("id")
    try:
        source = config.source(task.get("data"))
        height, width, _ = client.fetcher.load(source, client.server, task=number).shape
    except TaskError as error:
        fields = ", ".join(task.get("data") or ())
        cure = f"<Image value> must be $ and a field of the tasks, one of: {fields}"
        raise StudioError(f"Task {number}: {error}", cure) from None
    except ImageError as error:
        raise StudioError(f"Task {number}: {error}", _image_cure(str(source), error)) from None
    return Finding("image", OK, f"The image of task {number} is here: {width} x {height} pixels.")


def first_task(client: StudioClient, project: int) -> Mapping[str, Any] | None:
    """Return a project's first task, None if it has none. Raises StudioError."""
    listed = client.get("/api/tasks", project=project, page_size=1, fields="all")
    tasks = listed.get("tasks") if isinstance(listed, dict) else None
    return tasks[0] if tasks and isinstance(tasks[0], dict) else None


def _image_cure(source: str, error: ImageError) -> str:
    if re.match(r"(?i)https?://[^?]*/(data/upload|data/local-files|storage-data)/", source):
        return "if that is another address of this Label Studio, name it in VLSAM_LABEL_STUDIO_HOSTS"
    if isinstance(error, Refused):
        return "correct the task's data or the settings"
    if source.startswith("/data/local-files"):
        return "start Label Studio with LOCAL_FILES_SERVING_ENABLED=true, add the folder in Cloud Storage"
    if source.startswith("/"):
        return "if Label Studio's own page does not show it either, import it again"
    return f"fetch it from this machine by hand: a firewall, proxy or login is in the way; {IN_CONTAINER}"


def _connected(
    client: StudioClient, project: int, backends: Sequence[Mapping[str, Any]], backend_url: str
) -> Iterator[Finding]:
    """Check the project's first backend, the only one that Label Studio uses. Raises StudioError."""
    if not backends:
        _probe(client, backend_url)
        raise StudioError(
            f"No ML backend is connected to project {project}.",
            f"Settings, Model, Connect Model: {backend_url}, with Interactive preannotations on",
        )
    first = backends[0]
    if others := ", ".join(str(backend.get("url")) for backend in backends[1:]):
        message = f"Label Studio asks {first.get('url')} alone, its first backend, and never {others}."
        yield Finding("backend", NOTE, message, "Settings, Model: delete those that should not be used")
    if first.get("state") != "CO":
        _probe(client, str(first.get("url")))
        raise StudioError(
            f"Label Studio cannot use {first.get('url')}: {first.get('readable_state')}, "
            f"{first.get('error_message') or 'no answer to /health'}. Until it answers, Retrieve predictions "
            "and clicks do nothing, and Label Studio shows no error.",
            f"start `vlsam serve` again, or correct the URL in Settings, Model; {IN_CONTAINER}",
        )
    if not first.get("is_interactive"):
        raise StudioError(
            f"Label Studio does not send clicks to {first.get('url')}.",
            "Settings, Model, Edit: turn on Interactive preannotations",
        )
    yield Finding("backend", OK, f"Label Studio reaches {first['url']} and sends clicks to it.")


def _probe(client: StudioClient, url: str) -> None:
    """Check a backend's URL by Label Studio's own validation. Raises StudioError if Label Studio refuses it.

    The request names no project, so that Label Studio saves nothing. The answer is 403 for a private address
    and 500 for an unknown host.
    """
    answer = client.send("POST", "/api/ml", {"url": url})
    if answer.status == 403 and "reserved network address" in answer.text:
        raise StudioError(f"Label Studio refuses {url}, because its address is private.", _UNBLOCK)
    if answer.status == 500:
        raise StudioError(f"Label Studio does not find the host of {url}.", IN_CONTAINER)


def versions_of(client: StudioClient, project: int) -> tuple[dict[str, int], list[str]]:
    """Return the predictions' number for each model version, and the backends' titles. Raises StudioError."""
    versions = client.get(f"/api/projects/{project}/model-versions/?extended=true&include_live_models=true")
    try:
        counts = {str(version["model_version"]): int(version["count"]) for version in versions["static"]}
        return counts, [str(backend["title"]) for backend in versions["live"] or ()]
    except (LookupError, TypeError, ValueError):
        raise client.not_label_studio() from None


def _shown(client: StudioClient, project: int, ours: Any) -> Iterator[Finding]:
    """Check the settings that hide predictions: `model_version` and `show_collab_predictions`.

    `model_version` is empty, a version of stored predictions, or the title of a backend. *Label All Tasks*
    shows predictions of this version only, or requests them from the backend of this title. The score column
    and uncertainty sampling use predictions of this version only. With a title they have no predictions.
    """
    ok, note, failed = (partial(Finding, "predictions", status) for status in (OK, NOTE, FAILED))
    hidden = "in Label All Tasks and the score column"
    cure = "Settings, Annotation, Use predictions to prelabel tasks"
    try:
        settings = client.project(project)
        counts, titles = versions_of(client, project)
    except StudioError:
        yield Finding("predictions", SKIPPED, "The project's prediction settings cannot be read.")
        return
    shown, total = settings.get("model_version") or "", sum(counts.values())
    listed = ", ".join(f"{version} ({count})" for version, count in counts.items())
    choose = f"{cure}: choose {ours if ours in counts else next(iter(counts), 'the model')}"
    if settings.get("show_collab_predictions") is False:
        yield note("Annotators are shown no predictions at all.", f"turn on {cure}")
    if not shown and total:
        yield failed(f"The project shows none of its {total} predictions {hidden}.", choose)
    elif not shown and titles:
        yield note("Label All Tasks asks no backend for predictions.", f"{cure}: {titles[0]}")
    elif not shown:
        yield ok("The project has no predictions yet.")
    elif shown in titles and total:
        yield note(f"Shown is what {shown!r} answers, so the score column is empty.", choose)
    elif shown in titles:
        yield ok(f"The project shows what {shown!r} answers.")
    elif shown not in counts:
        others = f"; there are {listed}" if counts else ""
        yield failed(f"The project shows predictions of {shown}, and has none of it{others}.", choose)
    elif shown != ours and ours in counts:
        unseen = f"the {counts[ours]} of {ours} are not seen {hidden}"
        yield note(f"The project shows predictions of {shown}: {unseen}.", choose)
    else:
        yield ok(f"The project shows {counts[shown]} predictions of {shown}.")


def _model(url: str, connected: Mapping[str, Any], settings: Settings) -> Iterator[Finding]:
    """Check the server at a URL, and compare its model version with that of the connected backend."""
    of_server, of_model = partial(Finding, "server"), partial(Finding, "model")
    started = time.monotonic()
    try:
        answer = connections.request(
            "GET", f"{url.rstrip('/')}/health", timeout=TIMEOUT_S, allow_redirects=False
        )
        health = answer.json()
        version, state = health["model_version"], health["model"]
    except (requests.RequestException, ValueError, LookupError, TypeError) as error:
        reason = connections.distrust(error) or type(error).__name__
        problem = f"No vlsam answers at {url} from here ({reason})."
        if connected:
            yield of_server(SKIPPED, f"{problem} Label Studio reaches it.")
        else:
            yield of_server(FAILED, problem, "start `vlsam serve`, or give its address: --backend-url")
        yield _weights(settings.models)
        return
    seconds = time.monotonic() - started
    if seconds > HEALTH_S:
        yield of_server(
            FAILED,
            f"{url}/health took {seconds:.1f} s, and Label Studio waits {HEALTH_S:.0f} s.",
            "reduce the load of the machine, or raise ML_TIMEOUT_HEALTH of Label Studio",
        )
    else:
        yield of_server(OK, f"vlsam answers at {url}.")
    theirs = connected.get("model_version", version)
    if theirs != version:
        yield of_model(
            FAILED,
            f"The server runs {version}, the project has {theirs}.",
            "two servers share the address, or one was just restarted: load the Data Manager again",
        )
    if state == "failed":
        yield of_model(FAILED, f"{version} could not be loaded.", "see the server's log")
    elif state == "loading":
        yield of_model(NOTE, f"{version} is still loading.", "wait; see the server's log")
    else:
        yield of_model(OK, f"{version} is loaded.")
    if str(version).startswith("vlsam-builtin-"):
        yield of_model(
            NOTE,
            "The weights that ship know 40 drawn objects and nothing of photographs.",
            "start `vlsam serve` with VLSAM_PROFILE=gpu-8g, gpu-24g or gpu-80g",
        )


def _weights(models: ModelSettings) -> Finding:
    """Check whether the weights of the settings' profile are on this machine."""
    profile = models.select()
    try:
        missing = [name for name in (profile.vlm, profile.sam) if local_path(name, profile.folder) is None]
    except ModelLoadError as error:  # another revision
        what, _, cure = str(error).partition(": ")
        return Finding("model", FAILED, f"{what}.", cure)
    if missing:
        cure = "run `vlsam download`, or correct VLSAM_VLM and VLSAM_SAM"
        return Finding("model", FAILED, f"{', '.join(missing)}: not on this machine.", cure)
    return Finding("model", OK, f"The weights of {profile.name} are on this machine.")


def _listing(endpoint: RemoteVLM) -> Finding:
    """Send a grey picture to the remote VLM, to check its address, model, key and image input."""
    try:
        endpoint.answer(np.full((64, 64, 3), 128, np.uint8), "What is in this picture?")
    except RemoteVLMError as error:
        what, _, cure = str(error).rpartition(": ")
        return Finding("listing", FAILED, f"{what}.", f"{cure} (VLSAM_LISTING_URL, _MODEL, _KEY)")
    return Finding("listing", OK, f"{endpoint.model} answers at {endpoint.url}.")
