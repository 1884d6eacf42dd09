"""Why does nothing happen? Label Studio 1.23.2 shows its users no failure of an ML backend.

`vlsam doctor` walks the whole way; `Watch` does the part that a server needs, after /setup. What Label Studio
answers in each case was measured.
"""

import argparse
import json
import logging
import os
import re
import sys
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
import requests

from backend.images.access_tokens import token_kind
from backend.images.errors import Denied, Refused
from backend.images.load import Images
from backend.images.studio_urls import Server
from backend.labelstudio import labeling_config, recommended_configs
from backend.labelstudio.labeling_config import ConfigError, TaskError
from backend.labelstudio.next_protocol import TRIAL
from backend.settings import Settings
from backend.telemetry.logs import redacted
from model import connections
from model.deadline import Deadline
from model.types import ImageError, ModelLoadError, RemoteVLMError
from model.vlm.remote_vlm import RemoteVLM
from model.weights.download import at_hand

log = logging.getLogger(f"vlsam.{__name__}")

OK, NOTE, FAILED, SKIPPED = "ok", "note", "failed", "skipped"
TIMEOUT_S = 20.0
TASKS = 5  # that are tried
UNKNOWN_PLACE = "where `vlsam serve` was started; in Docker `docker compose logs vlsam`"
TRIAL_S = 130.0  # longer than the 100 s that Label Studio gives a prediction
HEALTH_S = 1.0  # what Label Studio gives a backend's /health
WATCH_S = 300.0  # so long a project is not looked at again
MAX_WATCHED = 1000
MAX_AT_ONCE = 4

ABOUT = """\
Label Studio shows its users no error of an ML backend: they see nothing. This walks the whole way from here
to a project's images and back, and says what to do where it ends. Without --fix it changes nothing.

Run it where `vlsam serve` runs, with the same environment: the key is read from LABEL_STUDIO_API_KEY, and
never from the command line. Exit status 1 if anything failed.

With --fix it offers what it can set in Label Studio, asks about each (y/N), and looks again: the connection
of the backend, Interactive preannotations, which predictions are shown, and the recommended labeling config
for a project that has none. Nothing else is ever changed.

  ok       as it should be
  note     works, but is often the reason for what people report
  FAILED   with what to do about it
  skipped  cannot be looked at because of an earlier failure

examples:
  vlsam doctor --project 3                                          Label Studio at $LABEL_STUDIO_URL
  vlsam doctor --label-studio-url http://localhost:8080 --project 3
  docker compose exec vlsam vlsam doctor --project 3                in the container, whose network counts
  vlsam doctor --project 3 --fix --labels "Dog,Car"                 set what is missing, asking first
"""

_WHERE = "inside a container `localhost` is the container itself; use the other's service name or host name"
_NEW_KEY = "create a Personal Access Token in Account & Settings, and set LABEL_STUDIO_API_KEY to it"
_UNBLOCK = "start Label Studio with USE_DEFAULT_BANNED_SUBNETS=false"


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    check: str
    status: str  # OK, NOTE, FAILED or SKIPPED
    message: str
    cure: str = ""

    def __str__(self) -> str:
        mark = self.status.upper() if self.status == FAILED else self.status
        cure = f"\n{'':9}{'':12}-> {_line(self.cure)}" if self.cure else ""
        return f"{mark:9}{self.check:12}{_line(self.message)}{cure}"


class Trouble(Exception):
    """A check failed: what is wrong, and what to do about it, a sentence each."""

    def __init__(self, message: str, cure: str) -> None:
        super().__init__(message)
        self.cure = cure


@dataclass(frozen=True)
class Answer:
    """What Label Studio answered."""

    status: int
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")

    def json(self) -> Any:
        """Raises ValueError."""
        return json.loads(self.body)


class Api:
    """Label Studio's API with a token, asked as images are: within the same limits, at the same hosts."""

    def __init__(self, server: Server, images: Images) -> None:
        self.server = server
        self._fetcher = images.fetcher

    def get(self, path: str) -> Any:
        """The JSON at a path. Raises Trouble."""
        answer = self.send("GET", path)
        if answer.status == 401:
            raise _refused(self.server.token or "", answer.text)
        if answer.status != 200:
            raise Trouble(
                f"Label Studio answered HTTP {answer.status} to {path}.", "look into Label Studio's log"
            )
        try:
            return answer.json()
        except ValueError:
            raise _not_label_studio(self.server.url) from None

    def send(
        self, method: str, path: str, body: Any = None, *, anonymous: bool = False, timeout: float = TIMEOUT_S
    ) -> Answer:
        """Raises Trouble where there is no answer."""
        server = replace(self.server, token=None) if anonymous else self.server
        deadline = Deadline.after(timeout)
        try:
            answer = Answer(*self._fetcher.ask(method, path, server, deadline=deadline, json=body))
        except Denied as error:
            raise Trouble(str(error), _NEW_KEY) from None
        except ImageError as error:
            raise Trouble(str(error), f"start Label Studio, correct LABEL_STUDIO_URL; {_WHERE}") from None
        if 300 <= answer.status < 400:
            raise Trouble(
                f"{server.url} redirects to {answer.text}.", "give that address as LABEL_STUDIO_URL"
            )
        return answer


def access(api: Api, project: int, images: Images) -> Iterator[Finding]:
    """From the connection to an image of the project: what a server needs for an answer."""
    check = "connection"
    try:
        yield Finding(check, OK, _connect(api))
        check = "token"
        yield Finding(check, OK, _token(api))
        check = "project"
        found = project_of(api, project)
        yield Finding(check, OK, f"Project {project} is {found.get('title')!r}.")
        check = "config"
        xml = str(found.get("label_config") or "")
        config = _config(xml)
        yield from _about(config)
        yield _exports(config, labeling_config.data_keys(xml))
        check = "image"
        yield _image(api, project, config, images)
    except Trouble as trouble:
        yield Finding(check, FAILED, str(trouble), trouble.cure)


def diagnose(
    api: Api,
    project: int,
    images: Images,
    settings: Settings,
    backend_url: str | None = None,
    tasks: int = TASKS,
) -> Iterator[Finding]:
    """All checks, each as soon as it is done.

    `backend_url` is where Label Studio is to find the backend, and `tasks` is how many are tried.
    """
    known = empty = False
    for finding in access(api, project, images):
        known = known or (finding.check == "project" and finding.status == OK)
        empty = empty or (finding.check == "image" and finding.status == SKIPPED)
        yield finding
    connected: Mapping[str, Any] = {}
    first: Mapping[str, Any] = {}
    default = backend_url or f"http://localhost:{settings.server.port}"
    if known:
        try:
            backends = backends_of(api, project)
            first = next(iter(backends), {})
            yield from _connected(api, project, backends, default)
            connected = first
        except Trouble as trouble:
            yield Finding("backend", FAILED, str(trouble), trouble.cure)
        yield from _shown(api, project, connected.get("model_version"))
    else:
        yield Finding("backend", SKIPPED, "Which backend the project has cannot be asked.")
    yield from _model(backend_url or str(first.get("url") or default), connected, settings)
    if (endpoint := settings.detection.options.remote_vlm) is not None:
        yield _listing(endpoint)
    if connected and not empty:
        yield from _trials(api, project, connected, tasks)
    elif known:
        why = "the project has none" if connected else "no backend would answer"
        yield Finding("trial", SKIPPED, f"No task can be tried: {why}.")
        yield Finding("log", OK, f"The server's log: {UNKNOWN_PLACE}.")


def _connect(api: Api) -> str:
    answer = api.send("GET", "/api/version/", anonymous=True)
    try:
        return f"Label Studio {answer.json()['release']} answers at {api.server.url}."
    except (ValueError, LookupError, TypeError):
        raise _not_label_studio(api.server.url) from None


def _not_label_studio(url: str) -> Trouble:
    return Trouble(f"What answers at {url} is no Label Studio.", "correct the address, port and path")


def _token(api: Api) -> str:
    token = api.server.token or ""
    if not token:
        raise Trouble("LABEL_STUDIO_API_KEY is not set.", _NEW_KEY)
    if token_kind(token) == "cut":
        raise Trouble(
            "LABEL_STUDIO_API_KEY is a personal access token without its signature, which is the part after "
            "its second dot.",
            "copy the whole token, or create another one in Account & Settings",
        )
    if token_kind(token) == "unfit":
        raise Trouble(
            "LABEL_STUDIO_API_KEY has quotes, spaces or other characters that stand in no token.",
            "set it to the token alone, without quotes, and without `Token` or `Bearer` before it",
        )
    if token_kind(token) == "access":
        raise Trouble("LABEL_STUDIO_API_KEY is an access token, which ends after 5 minutes.", _NEW_KEY)
    user = api.get("/api/current-user/whoami")
    kind = "legacy token" if token_kind(token) is None else "personal access token"
    return f"The {kind} is that of {user.get('email') if isinstance(user, dict) else '?'}."


def _refused(token: str, said: str) -> Trouble:
    if token_kind(token) is not None:
        return Trouble("Label Studio refuses the personal access token.", _NEW_KEY)
    if "legacy token authentication has been disabled" in said:
        return Trouble(
            "Legacy tokens are disabled in this Label Studio, as they are by default.",
            f"{_NEW_KEY} (or Organization, Access Token Settings: allow legacy tokens)",
        )
    if "." in token:
        return Trouble(
            "Label Studio does not know this token. It has a dot, so it may be a part of a personal access "
            "token, which has two.",
            f"copy the whole token, or {_NEW_KEY}",
        )
    return Trouble("Label Studio does not know this legacy token.", _NEW_KEY)


def project_of(api: Api, project: int) -> Mapping[str, Any]:
    """A project's settings. Raises Trouble."""
    answer = api.send("GET", f"/api/projects/{project}")
    if answer.status in (403, 404):
        raise Trouble(
            f"This user sees no project {project}.",
            "take the number from the project's address, /projects/<number>/, or a token of a member",
        )
    found = api.get(f"/api/projects/{project}")
    if not isinstance(found, dict):
        raise _not_label_studio(api.server.url)
    return found


def _config(xml: str) -> labeling_config.LabelConfig:
    try:
        return labeling_config.parse(xml)
    except ConfigError as error:
        raise Trouble(
            str(error), "Settings, Labeling Interface, Code: take one of the configs in the README"
        ) from None


def _about(config: labeling_config.LabelConfig) -> Iterator[Finding]:
    known = {label.value: None for control in config.predicted for label in control.labels}
    own = any(control.labels_key is not None for control in config.outputs)
    outputs = ", ".join(f"{control.tag} {control.name!r}" for control in config.outputs)
    yield Finding("config", OK, f"Regions go to {outputs}.")
    each = ", and each task brings its own" if own else ""
    yield Finding("config", OK, f"{len(known)} labels: {', '.join(known) or '-'}{each}.")
    prompts = ", ".join(f"{control.tag} {control.name!r}" for control in config.prompts)
    if not prompts:
        yield Finding(
            "config",
            NOTE,
            "There is nothing to click with.",
            'add <KeyPoint name="click" toName="..." smart="true" smartOnly="true"/>, as `vlsam config` does',
        )
        return
    yield Finding("config", OK, f"Clicks and boxes come from {prompts}.")
    idle = ", ".join(f"{control.tag} {control.name!r}" for control in config.idle)
    if idle:
        yield Finding(
            "config",
            NOTE,
            f"Auto-Detect offers {idle}, too, whose smart tool sends nothing.",
            'give it smart="false"',
        )
    clickable = {label.value: None for control in config.prompts for label in control.labels}
    lost = [label for label in clickable if config.label_control(label) is None]
    if lost and not own:
        yield Finding(
            "config",
            NOTE,
            f"A click with {', '.join(lost)} is not answered: no control takes regions of that label.",
            "add these labels to an output control as well",
        )


# The exports of Label Studio 1.23.2 that hold the regions of a control, by its tag. Measured.
_RINGS, _MASKS = ("COCO", "YOLO"), ("PNG", "NumPy")
_HELD = {
    "BrushLabels": ("Brush labels to COCO", *_MASKS),
    "Brush": _MASKS,
    "PolygonLabels": _RINGS,
    "RectangleLabels": (*_RINGS, "Pascal VOC"),
    "Rectangle": (*_RINGS, "Pascal VOC"),
}
# What it offers for a tag that is there, whatever becomes of it.
_OFFERED = {**_HELD, "Brush": _HELD["BrushLabels"]}


def _exports(config: labeling_config.LabelConfig, data_keys: Collection[str]) -> Finding:
    """Which exports of Label Studio's own hold the regions, and which it offers that do not."""
    cure = "`vlsam export` writes all of any config; `vlsam config` prints one whose exports hold the regions"
    drawn = ", ".join(f"{control.tag} {control.name!r}" for control in config.outputs)
    if len(data_keys) > 1:
        return Finding(
            "config",
            NOTE,
            f"Label Studio exports this config to JSON and CSV alone, for its tags show {len(data_keys)} "
            f"values: {', '.join(sorted(data_keys))}.",
            f"give a <Text> that only holds a control the value of the image; {cure}",
        )
    points = [control for control in config.prompts if control.tag == "KeyPointLabels"]
    held = dict.fromkeys(name for control in config.outputs for name in _HELD.get(control.tag, ()))
    offered = dict.fromkeys(
        name
        for control in (*config.outputs, *config.prompts)
        if control.takes_labels
        for name in _OFFERED.get(control.tag, ())
    )
    spoiled = _RINGS if points else ()  # whatever else there is
    empty = [name for name in offered if name not in held]
    good = [name for name in held if name not in spoiled]
    right = f"{', '.join(good)} hold them, and but for JSON no other" if good else "only JSON holds them"
    bad = list(dict.fromkeys([*empty, *spoiled]))
    if not bad:
        status = OK if good else NOTE
        return Finding(
            "config", status, f"Of Label Studio's exports of {drawn}: {right}.", "" if good else cure
        )
    why = f" because of KeyPointLabels {points[0].name!r}" if spoiled else ""
    return Finding(
        "config",
        NOTE,
        f"Label Studio's exports to {', '.join(bad)} are empty or call everything `default`{why}. "
        f"Of {drawn}: {right}.",
        cure,
    )


def _image(api: Api, project: int, config: labeling_config.LabelConfig, images: Images) -> Finding:
    answer = api.get(f"/api/tasks?project={project}&page_size=1&fields=all")
    tasks = answer.get("tasks") if isinstance(answer, dict) else None
    if not tasks:
        return Finding("image", SKIPPED, "The project has no tasks yet.", "import images, then look again")
    task = tasks[0]
    try:
        source = config.source(task)
    except TaskError as error:
        raise Trouble(
            f"Task {task.get('id')}: {error}",
            f"<Image value> must be $ and a field of the tasks, one of: {', '.join(task.get('data') or ())}",
        ) from None
    try:
        image = images.load(source, api.server, task=task.get("id"))
    except Refused as error:
        cure = _other_name(source) or "correct the task's data or the settings"
        raise Trouble(f"Task {task.get('id')}: {error}", cure) from None
    except ImageError as error:
        raise Trouble(f"Task {task.get('id')}: {error}", _other_name(source) or _image_cure(source)) from None
    height, width = image.shape[:2]
    return Finding("image", OK, f"The image of task {task.get('id')} is here: {width} x {height} pixels.")


def _other_name(source: Any) -> str:
    """What to do where a URL looks like Label Studio's; "" for another."""
    if re.match(r"(?i)https?://[^?]*/(data/upload|data/local-files|storage-data)/", str(source)):
        return "if that is another address of this Label Studio, name it in VLSAM_LABEL_STUDIO_HOSTS"
    return ""


def _image_cure(source: Any) -> str:
    if str(source).startswith("/data/local-files"):
        return "start Label Studio with LOCAL_FILES_SERVING_ENABLED=true, add the folder in Cloud Storage"
    if str(source).startswith("/"):
        return "if Label Studio's own page does not show it either, import it again"
    return f"fetch it from this machine by hand: a firewall, proxy or login is in the way; {_WHERE}"


def backends_of(api: Api, project: int) -> list[Mapping[str, Any]]:
    """List the backends of a project. Label Studio calls /health and /setup of each before it answers.

    Raises Trouble.
    """
    found = api.get(f"/api/ml?project={project}")
    return [backend for backend in (found if isinstance(found, list) else []) if isinstance(backend, dict)]


def _connected(
    api: Api, project: int, backends: Sequence[Mapping[str, Any]], backend_url: str
) -> Iterator[Finding]:
    """Whether the backend that Label Studio asks works: the first of the project. Raises Trouble."""
    if not backends:
        _probe(api, backend_url)
        raise Trouble(
            f"No ML backend is connected to project {project}.",
            f"Settings, Model, Connect Model: {backend_url}, with Interactive preannotations on",
        )
    first = backends[0]
    if others := ", ".join(str(backend.get("url")) for backend in backends[1:]):
        told = f"Label Studio asks {first.get('url')} alone, its first backend, and never {others}."
        yield Finding("backend", NOTE, told, "Settings, Model: delete those that are not to be asked")
    if first.get("state") != "CO":
        _probe(api, str(first.get("url")))
        raise Trouble(
            f"Label Studio cannot use {first.get('url')}: {first.get('readable_state')}, "
            f"{first.get('error_message') or 'no answer to /health'}. Until it answers, Retrieve predictions "
            "and clicks do nothing, and Label Studio says nothing of it.",
            f"start `vlsam serve` again, or correct the URL in Settings, Model; {_WHERE}",
        )
    if not first.get("is_interactive"):
        raise Trouble(
            f"Label Studio does not send clicks to {first.get('url')}.",
            "Settings, Model, Edit: turn on Interactive preannotations",
        )
    yield Finding("backend", OK, f"Label Studio reaches {first['url']} and sends clicks to it.")


def _probe(api: Api, url: str) -> None:
    """Raises Trouble where Label Studio would refuse to call a URL for its address alone.

    A POST that lacks its project can never be saved, but the URL is judged all the same: 403 for a private
    address, 500 for a name that does not resolve.
    """
    answer = api.send("POST", "/api/ml", {"url": url})
    if answer.status == 403 and "reserved network address" in answer.text:
        raise Trouble(f"Label Studio refuses {url}, for its address is private.", _UNBLOCK)
    if answer.status == 500:
        raise Trouble(f"Label Studio does not find the host of {url}.", _WHERE)


def versions_of(api: Api, project: int) -> tuple[dict[str, int], list[str]]:
    """How many predictions of each version a project has, and its backends' titles. Raises Trouble."""
    said = api.get(f"/api/projects/{project}/model-versions/?extended=true&include_live_models=true")
    try:
        counts = {str(each["model_version"]): int(each["count"]) for each in said["static"]}
        return counts, [str(each["title"]) for each in said["live"] or ()]
    except (LookupError, TypeError, ValueError):
        raise _not_label_studio(api.server.url) from None


def _shown(api: Api, project: int, ours: Any) -> Iterator[Finding]:
    """What hides predictions: the project's `model_version`, and its switch for showing any.

    The version is empty, that of stored predictions, or the title of a backend, which then is asked. *Label
    All Tasks* shows predictions of this version alone, as do the score column and uncertainty sampling, for
    which a title is no version.
    """
    check, hidden = "predictions", "in Label All Tasks and the score column"
    cure = "Settings, Annotation, Use predictions to prelabel tasks"
    try:
        found = project_of(api, project)
        counts, titles = versions_of(api, project)
    except Trouble:
        yield Finding(check, SKIPPED, "Which predictions the project shows cannot be asked.")
        return
    shown, total = found.get("model_version") or "", sum(counts.values())
    listed = ", ".join(f"{version} ({count})" for version, count in counts.items())
    choose = f"{cure}: choose {ours if ours in counts else next(iter(counts), 'the model')}"
    if found.get("show_collab_predictions") is False:
        yield Finding(check, NOTE, "Annotators are shown no predictions at all.", f"turn on {cure}")
    if not shown and total:
        yield Finding(check, FAILED, f"The project shows none of its {total} predictions {hidden}.", choose)
    elif not shown and titles:
        yield Finding(check, NOTE, "Label All Tasks asks no backend for predictions.", f"{cure}: {titles[0]}")
    elif shown in titles and total:
        yield Finding(check, NOTE, f"Shown is what {shown!r} answers, so the score column is empty.", choose)
    elif shown and shown not in (*titles, *counts):
        others = f"; there are {listed}" if counts else ""
        yield Finding(
            check, FAILED, f"The project shows predictions of {shown}, and has none of it{others}.", choose
        )
    elif shown in counts and shown != ours and ours in counts:
        yield Finding(
            check,
            NOTE,
            f"The project shows predictions of {shown}: the {counts[ours]} of {ours} are not seen {hidden}.",
            choose,
        )
    elif shown in counts:
        yield Finding(check, OK, f"The project shows {counts[shown]} predictions of {shown}.")
    else:
        told = f"shows what {shown!r} answers" if shown else "has no predictions yet"
        yield Finding(check, OK, f"The project {told}.")


def _model(url: str, connected: Mapping[str, Any], settings: Settings) -> Iterator[Finding]:
    started = time.monotonic()
    try:
        answer = connections.request(
            "GET", f"{url.rstrip('/')}/health", timeout=TIMEOUT_S, allow_redirects=False
        )
        health = answer.json()
        version, state = health["model_version"], health["model"]
    except (requests.RequestException, ValueError, LookupError, TypeError) as error:
        said = f"No vlsam answers at {url} from here ({connections.distrust(error) or type(error).__name__})."
        if connected:
            yield Finding("server", SKIPPED, f"{said} Label Studio reaches it.")
        else:
            yield Finding("server", FAILED, said, "start `vlsam serve`, or give its address: --backend-url")
        yield _weights(settings)
        return
    seconds = time.monotonic() - started
    if seconds > HEALTH_S:
        yield Finding(
            "server",
            FAILED,
            f"{url}/health took {seconds:.1f} s, and Label Studio waits {HEALTH_S:.0f} s.",
            "give the machine fewer other things to do, or raise ML_TIMEOUT_HEALTH of Label Studio",
        )
    else:
        yield Finding("server", OK, f"vlsam answers at {url}.")
    theirs = connected.get("model_version", version)
    if theirs != version:
        yield Finding(
            "model",
            FAILED,
            f"The server runs {version}, the project has {theirs}.",
            "two servers share the address, or one was just restarted: load the Data Manager again",
        )
    if state == "failed":
        yield Finding("model", FAILED, f"{version} could not be loaded.", "the server's log says why")
    elif state == "loading":
        yield Finding("model", NOTE, f"{version} is still loading.", "wait; the server's log tells")
    else:
        yield Finding("model", OK, f"{version} is loaded.")
    if str(version).startswith("vlsam-builtin-"):
        yield Finding(
            "model",
            NOTE,
            "The weights that ship know 40 drawn objects and nothing of photographs.",
            "start `vlsam serve` with VLSAM_PROFILE=gpu-8g, gpu-24g or gpu-80g",
        )


def _trials(api: Api, project: int, connected: Mapping[str, Any], number: int) -> Iterator[Finding]:
    """Have Label Studio ask the backend about some tasks; the answers are stored nowhere."""
    place, tried = UNKNOWN_PLACE, 0
    unlabelled: Counter[str] = Counter()
    try:
        for task in _some_tasks(api, project, number):
            try:
                answer = _tried(api, connected, task)
            except Trouble as trouble:
                yield Finding("trial", FAILED, str(trouble), trouble.cure)
                continue
            if answer is None:  # a server that has no such event, or somebody else's
                yield _trial(api, connected)
                break
            place = str(answer.get("log") or place)
            if not tried and answer.get("on_open") == "prewarm":
                yield Finding("trial", NOTE, "Opened tasks get no predictions: VLSAM_ON_OPEN=prewarm.")
            unlabelled.update(set(_texts(answer.get("unlabelled"))))
            tried += 1
            yield _of_trial(task, answer, place)
    except Trouble as trouble:
        yield Finding("trial", FAILED, str(trouble), trouble.cure)
    if unlabelled:
        seen = ", ".join(f"{term[:40]} ({n} of {tried} tasks)" for term, n in unlabelled.most_common(5))
        yield Finding("trial", NOTE, f"Seen without a label: {seen}.", _label_for(unlabelled))
    yield Finding("log", OK, f"The server's log: {place}.")


def _some_tasks(api: Api, project: int, number: int) -> Iterator[int]:
    """The ids of at most so many tasks, spread over the project."""
    place, total = 0, number
    while place < min(number, total):
        page = 1 + place * total // min(number, total)
        found = api.get(f"/api/tasks?project={project}&page_size=1&page={page}&fields=all")
        try:
            total, task = int(found["total"]), int(found["tasks"][0]["id"])
        except (LookupError, TypeError, ValueError):
            return
        yield task
        place += 1


def _tried(api: Api, connected: Mapping[str, Any], task: int) -> Mapping[str, Any] | None:
    """What the backend has for a task; None where it does not know the question. Raises Trouble."""
    path = f"/api/ml/{connected['id']}/interactive-annotating"
    body = {"task": task, "context": {"event": TRIAL}}
    said = api.send("POST", path, body, timeout=TRIAL_S)
    try:
        answer = said.json()
    except ValueError:
        return None
    if isinstance(answer, dict) and answer.get("errors"):
        raise Trouble(
            f"Label Studio got no answer for task {task}: {_line(str(answer['errors']))[:200]}.",
            f"the server's log says why: {UNKNOWN_PLACE}",
        )
    data = answer.get("data") if isinstance(answer, dict) else None
    return data if isinstance(data, dict) and "log" in data else None


def _of_trial(task: int, answer: Mapping[str, Any], place: str) -> Finding:
    if reason := answer.get("reason"):
        return Finding("trial", FAILED, f"Task {task}: {reason}", f"the server's log has more: {place}")
    items = answer.get("result")
    regions = {
        str(item.get("id"))
        for item in (items if isinstance(items, list) else [])
        if isinstance(item, dict) and item.get("from_name") != labeling_config.STATUS
    }
    seen = _texts(answer.get("seen"))
    saw = (
        f"the model saw {', '.join(term[:40] for term in seen[:10])}" if seen else "the model found no object"
    )
    if not regions:
        fitting = set(seen).difference(_texts(answer.get("unlabelled")))
        why = " What a label fits is annotated already, or no control can draw it." if fitting else ""
        return Finding("trial", NOTE, f"Task {task} got no regions: {saw}.{why}")
    return Finding("trial", OK, f"Task {task} got {len(regions)} regions: {saw}.")


def _texts(given: Any) -> list[str]:
    return [text for text in (given if isinstance(given, list) else []) if isinstance(text, str)]


def _label_for(terms: Counter[str]) -> str:
    """What to add to a labeling config for the commonest terms."""
    (term, _), *_ = terms.most_common(1)
    value, name = quoteattr(term[:1].upper() + term[1:]), quoteattr(term)
    more = "; and so for the others" if len(terms) > 1 else ""
    return f"add <Label value={value}/>, or predicted_values={name} to the label that means it{more}"


def _trial(api: Api, connected: Mapping[str, Any]) -> Finding:
    """Have Label Studio ask about a task of its choice, as it does for a batch. Raises Trouble."""
    path = f"/api/ml/{connected['id']}/predict/test?random=true"
    answer = api.send("POST", path, timeout=TRIAL_S)
    try:
        tried = answer.json()
        task, items = tried["task"]["id"], tried["response"]
        if items == []:
            return Finding(
                "trial", NOTE, f"Task {task}: VLSAM_ON_OPEN=prewarm makes no predictions for one task."
            )
        result = items[0].get("result")
    except (ValueError, LookupError, TypeError, AttributeError):
        raise Trouble(
            "Label Studio got no prediction.", "import a task if there is none; the server's log says why"
        ) from None
    if result is None:
        raise Trouble(f"The server could not annotate task {task}.", "the server's log says why")
    if not result:
        return Finding(
            "trial",
            NOTE,
            f"Task {task} got no regions.",
            "if it shows anything: the server's log has the terms that are no label; see predicted_values",
        )
    return Finding("trial", OK, f"Task {task} got {len(result)} results.")


def _weights(settings: Settings) -> Finding:
    """Without a server to ask: whether what these settings name is on this machine."""
    profile = settings.models.select()
    try:
        missing = [name for name in (profile.vlm, profile.sam) if at_hand(name, profile.folder) is None]
    except ModelLoadError as error:  # another revision
        what, _, cure = str(error).partition(": ")
        return Finding("model", FAILED, f"{what}.", cure)
    if missing:
        return Finding(
            "model",
            FAILED,
            f"{', '.join(missing)}: not on this machine.",
            "run `vlsam download`, or correct VLSAM_VLM and VLSAM_SAM",
        )
    return Finding("model", OK, f"The weights of {profile.name} are on this machine.")


def _listing(endpoint: RemoteVLM) -> Finding:
    """Have whoever lists look at a grey picture: does it answer, know the model, take the key and images?"""
    try:
        endpoint.answer(np.full((64, 64, 3), 128, np.uint8), "What is in this picture?")
    except RemoteVLMError as error:
        what, _, cure = str(error).rpartition(": ")
        return Finding("listing", FAILED, f"{what}.", f"{cure} (VLSAM_LISTING_URL, _MODEL, _KEY)")
    return Finding("listing", OK, f"{endpoint.model} answers at {endpoint.url}.")


class Watch:
    """Looks at the access to projects in the background and logs what it finds, seldom and few at a time."""

    def __init__(self, images: Images) -> None:
        self._images = images
        self._seen: OrderedDict[tuple[str, Server], float] = OrderedDict()
        self._running = 0
        self._lock = threading.Lock()

    def begin(self, project: str, server: Server) -> None:
        """Look at a project ("id.created", as Label Studio names it), unless that was done lately."""
        number = project.partition(".")[0]
        if not number.isdecimal():
            return
        now = time.monotonic()
        with self._lock:
            seen = self._seen.get((number, server))
            if (seen is not None and now - seen < WATCH_S) or self._running >= MAX_AT_ONCE:
                return
            self._seen[number, server] = now
            self._seen.move_to_end((number, server))
            while len(self._seen) > MAX_WATCHED:
                self._seen.popitem(last=False)
            self._running += 1
        threading.Thread(target=self._look, args=(int(number), server), name="watch", daemon=True).start()

    def _look(self, project: int, server: Server) -> None:
        try:
            for finding in access(Api(server, self._images), project, self._images):
                level = logging.INFO if finding.check == "image" else logging.DEBUG
                level = logging.WARNING if finding.status == FAILED else level
                cure = f" To do: {finding.cure}." if finding.cure else ""
                log.log(level, "%s", _line(f"Project {project}, {finding.check}: {finding.message}{cure}"))
        except Exception:
            log.exception("Project %d could not be looked at.", project)
        finally:
            with self._lock:
                self._running -= 1


def _line(text: str) -> str:
    """Text that may come from anywhere, as one printable line."""
    shown = "".join(char if char.isprintable() else " " for char in text)
    return shown if len(shown) <= 400 else f"{shown[:397]}..."


def add_to(commands: Any) -> None:
    """Put `doctor` under the main parser's commands."""
    doctor = commands.add_parser(
        "doctor",
        help="why does nothing happen in Label Studio?",
        description=ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    doctor.add_argument("--label-studio-url", metavar="URL", help="default: $LABEL_STUDIO_URL")
    doctor.add_argument("--project", type=int, required=True, metavar="N", help="the number in its address")
    doctor.add_argument(
        "--backend-url",
        metavar="URL",
        help="of `vlsam serve` (default: the one that the project has, or http://localhost:$PORT)",
    )
    doctor.add_argument(
        "--tasks", type=int, default=TASKS, metavar="N", help="how many tasks to try (default: %(default)s)"
    )
    doctor.add_argument("--fix", action="store_true", help="offer what can be set, and ask about each change")
    doctor.add_argument("--yes", action="store_true", help="with --fix: make the changes without asking")
    doctor.add_argument(
        "--labels", metavar="A,B", default="", help="with --fix: of a project that has no labeling config"
    )
    doctor.add_argument(
        "--for", dest="kind", choices=recommended_configs.KINDS, default="masks",
        help="with --labels: what its regions are (default: masks)",
    )  # fmt: skip
    doctor.add_argument("--json", action="store_true", help="print one JSON array, an item for each finding")
    doctor.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    url = {"LABEL_STUDIO_URL": args.label_studio_url} if args.label_studio_url else {}
    settings = Settings.from_env({**os.environ, **url})
    if settings.label_studio.url is None:
        raise ValueError("give --label-studio-url or set LABEL_STUDIO_URL")
    images = Images(settings.images, settings.label_studio)
    server = Server(settings.label_studio.url, settings.label_studio.api_key)
    backend_url = args.backend_url.rstrip("/") if args.backend_url else None
    if args.tasks < 1:
        raise ValueError("--tasks must be 1 or more")
    if not args.fix and (args.yes or args.labels):
        raise ValueError("--yes and --labels say what --fix shall do: give --fix, too")
    tags = list(recommended_configs.checked(recommended_configs.split(args.labels)))
    api, told = Api(server, images), list[Finding]()

    def tell(findings: Iterable[Finding]) -> list[Finding]:
        seen = []
        for finding in findings:
            message, cure = (redacted(text, settings.secrets) for text in (finding.message, finding.cure))
            seen.append(replace(finding, message=message, cure=cure))
            if not args.json:
                print(seen[-1], flush=True)
        told.extend(seen)
        return seen

    def look() -> list[Finding]:
        return tell(diagnose(api, args.project, images, settings, backend_url, args.tasks))

    findings = look()
    if args.fix:
        from backend.doctor import repairs  # which needs what is here

        default = backend_url or f"http://localhost:{settings.server.port}"
        login = repairs.login(settings)
        offered = repairs.changes(api, args.project, default, tags, args.kind, login)
        if any(f.status == OK for f in tell(repairs.made(offered, repairs.consent(yes=args.yes)))):
            findings = look()
    if args.json:
        json.dump([asdict(finding) for finding in told], sys.stdout)
        sys.stdout.write("\n")
    return int(any(finding.status == FAILED for finding in findings))
