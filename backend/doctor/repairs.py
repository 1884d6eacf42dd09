"""Make the repairs of `vlsam doctor --fix`, each only after the user agreed to it."""

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

from backend.doctor.checks import first_task, versions_of
from backend.doctor.finding import FAILED, NOTE, OK, Finding
from backend.labelstudio import labeling_config
from backend.labelstudio.recommended_configs import Kind, LabelTag, Names, label_config
from backend.labelstudio_api.client import StudioClient, StudioError
from backend.settings import ServerSettings
from backend.telemetry.logs import printable, redacted

CHECK = "fix"
TITLE = "VL-SAM"  # of a backend that is connected

note = partial(Finding, CHECK, NOTE)


@dataclass(frozen=True)
class Change:
    """A change of one setting, which the user can accept or decline."""

    question: str  # the change, and the value before
    done: str  # the message afterwards
    make: Callable[[], None]  # raises StudioError


def consent(change: Change) -> bool | None:
    """Ask at the terminal whether to make a change. Return None if stdin is no terminal."""
    if sys.stdin is None or not sys.stdin.isatty():  # None where it is closed
        return None
    print(f"{printable(redacted(change.question))} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def made(changes: Iterable[Change | Finding], agreed: Callable[[Change], bool | None]) -> Iterator[Finding]:
    """Make each change for which `agreed` is true. Yield each finding: OK, FAILED, or NOTE if not made."""
    none = True
    try:
        for change in changes:
            none = False
            if isinstance(change, Finding):
                yield change
                continue
            answer = agreed(change)
            if answer:
                try:
                    change.make()
                    yield Finding(CHECK, OK, change.done)
                except StudioError as error:
                    yield Finding(CHECK, FAILED, error.problem, error.cure)
            elif answer is None:
                message = f"Not done, since there is no terminal to ask at: {change.question}"
                yield note(message, "run it in a terminal, or agree to all of it with --yes")
            else:
                yield note(f"Not done: {change.question}")
    except StudioError as error:
        none = False
        yield Finding(CHECK, FAILED, error.problem, error.cure)
    if none:
        yield note("There is nothing that can be set from here.")


def changes(
    client: StudioClient,
    project: int,
    backend_url: str,
    tags: Sequence[LabelTag],
    kind: Kind,
    login: Mapping[str, Any] = MappingProxyType({}),
) -> Iterator[Change | Finding]:
    """Yield a change for each missing setting of a project, or a finding if the user has to set it.

    Each setting is read after the change before it. `tags` and `kind` are the labels and regions of the
    config for a project without one. `login` holds the fields for basic auth. Raises StudioError.
    """
    yield from _config(client, project, tags, kind)
    yield from _backend(client, project, backend_url, login)
    yield from _shown(client, project)


def _config(
    client: StudioClient, project: int, tags: Sequence[LabelTag], kind: Kind
) -> Iterator[Change | Finding]:
    before = client.project(project).get("label_config")
    if not labeling_config.is_empty(before or ""):
        if tags:
            yield note(
                "The project has a labeling config, and --labels does not replace it.",
                "paste what `vlsam config` prints into Settings, Labeling Interface, Code",
            )
        return
    if not tags:
        yield note("The project has no labeling config.", 'name its labels: --fix --labels "Dog,Car"')
        return
    names = ", ".join(tag.name for tag in tags[:5]) + (" ..." if len(tags) > 5 else "")
    xml = label_config(tags, kind, Names(field=_image_field(client, project)))
    yield Change(
        f"Give project {project}, which has no labeling config, the recommended one for {kind} of {names}?",
        f"Project {project} has the recommended labeling config for {kind} now.",
        lambda: _set(client, project, "label_config", before, xml),
    )


def login(settings: ServerSettings) -> Mapping[str, Any]:
    """Return the basic-auth fields of a backend's connection, or {} if the settings have no user."""
    if settings.basic_auth_user is None:
        return {}
    return {
        "auth_method": "BASIC_AUTH",
        "basic_auth_user": settings.basic_auth_user,
        "basic_auth_pass": settings.basic_auth_pass,
    }


# Values of a task's data that an <Image> may show.
_ADDRESS = re.compile(r"(?i)[\w.+-]+://|data:image/|/data/|.*\.(?:jpe?g|png|webp|gif|bmp|tiff?)$")


def _image_field(client: StudioClient, project: int) -> str:
    """Return the name of the first task's field with an image address, or "image". Raises StudioError."""
    data = (first_task(client, project) or {}).get("data")
    if not isinstance(data, dict):
        return Names().field
    fields = [
        name for name, value in data.items()
        if labeling_config.FIELD.fullmatch(f"${name}") and isinstance(value, str) and _ADDRESS.match(value)
    ]  # fmt: skip
    # Uploads from before there was a config fit any field name.
    present = Names().field in fields or not fields or "$undefined$" in data
    return Names().field if present else fields[0]


def _backend(client: StudioClient, project: int, url: str, login: Mapping[str, Any]) -> Iterator[Change]:
    backends = client.backends(project)
    if not backends:
        body = {"project": project, "url": url, "title": TITLE, "is_interactive": True, **login}
        yield Change(
            f"Connect {url} to project {project}, with Interactive preannotations on?",
            f"Project {project} is connected to {url}.",
            lambda: _send(client, "POST", "/api/ml", body),
        )
    elif not backends[0].get("is_interactive"):
        first = backends[0]
        # Label Studio 1.23.2 answers 500 if one of them is missing.
        same = {"url": first.get("url"), "project": project, **(login if first.get("url") == url else {})}
        yield Change(
            f"Turn on Interactive preannotations of {first.get('url')}, for it to be sent clicks?",
            f"Interactive preannotations of {first.get('url')} are on.",
            lambda: _send(client, "PATCH", f"/api/ml/{first['id']}", {**same, "is_interactive": True}),
        )


def _shown(client: StudioClient, project: int) -> Iterator[Change]:
    """Yield a change to an existing model version if the project's own has no predictions and no backend."""
    settings = client.project(project)
    if settings.get("show_collab_predictions") is False:  # a person switched them off
        return
    counts, titles = versions_of(client, project)
    before = settings.get("model_version")
    ours = next((backend.get("model_version") for backend in client.backends(project)), None)
    wanted = ours if ours in counts else next(iter(counts), next(iter(titles), ""))
    if wanted and before not in (*counts, *titles):
        was = f"of {before}, of which there are none" if before else "none"
        yield Change(
            f"Show the predictions of {wanted} in project {project}, which shows {was}?",
            f"Project {project} shows the predictions of {wanted}.",
            lambda: _set(client, project, "model_version", before, wanted),
        )


def _set(client: StudioClient, project: int, name: str, before: Any, value: str) -> None:
    """Set one setting of a project. Raises StudioError, also if its value is no longer `before`."""
    if client.project(project).get(name) != before:
        raise StudioError(f"Somebody has changed {name} of project {project} meanwhile.", "look again")
    _send(client, "PATCH", f"/api/projects/{project}", {name: value})


def _send(client: StudioClient, method: str, path: str, body: Mapping[str, Any]) -> None:
    answer = client.send(method, path, body)
    if answer.status not in (200, 201):
        raise StudioError(
            f"Label Studio answered HTTP {answer.status} to {method} {path}: {answer.text[:200]}",
            "set it in the project's settings by hand",
        )
