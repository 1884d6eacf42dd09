"""What `vlsam doctor --fix` can set in Label Studio, each thing only after somebody agreed to it."""

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from backend.doctor.checks import (
    FAILED,
    NOTE,
    OK,
    Api,
    Finding,
    Trouble,
    backends_of,
    project_of,
    versions_of,
)
from backend.labelstudio import labeling_config
from backend.labelstudio.recommended_configs import Kind, LabelTag, Names, label_config
from backend.settings import Settings
from backend.telemetry.logs import printable, redacted

CHECK = "fix"
TITLE = "VL-SAM"  # of a backend that is connected


@dataclass(frozen=True)
class Change:
    """One thing that can be set."""

    question: str  # what is to be done, and what was there before
    done: str  # what to say afterwards
    make: Callable[[], None]  # raises Trouble


Consent = Callable[[Change], bool | None]  # None where nobody can be asked


def consent(*, yes: bool) -> Consent:
    """Ask at the terminal. `yes` agrees to everything; where there is no terminal, nobody can be asked."""

    def ask(change: Change) -> bool | None:
        if yes:
            return True
        if sys.stdin is None or not sys.stdin.isatty():  # None where it is closed
            return None
        print(f"{printable(redacted(change.question))} [y/N] ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    return ask


def made(changes: Iterable[Change | Finding], agreed: Consent) -> Iterator[Finding]:
    """Makes the changes that are agreed to, and says of each what became of it: OK where it was made."""
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
                except Trouble as trouble:
                    yield Finding(CHECK, FAILED, str(trouble), trouble.cure)
            elif answer is None:
                cure = "run it in a terminal, or agree to all of it with --yes"
                yield Finding(CHECK, NOTE, f"Not done, for nobody can be asked here: {change.question}", cure)
            else:
                yield Finding(CHECK, NOTE, f"Not done: {change.question}")
    except Trouble as trouble:
        none = False
        yield Finding(CHECK, FAILED, str(trouble), trouble.cure)
    if none:
        yield Finding(CHECK, NOTE, "There is nothing that can be set from here.")


def changes(
    api: Api,
    project: int,
    backend_url: str,
    tags: Sequence[LabelTag],
    kind: Kind,
    login: Mapping[str, Any] = MappingProxyType({}),
) -> Iterator[Change | Finding]:
    """What a project lacks and its API can set, each found when the one before is done. Raises Trouble.

    `tags` are for a project without a labeling config, whose regions are of a `kind`, and `login` is what the
    backend asks for.
    """
    yield from _config(api, project, tags, kind)
    yield from _backend(api, project, backend_url, login)
    yield from _shown(api, project)


def _config(api: Api, project: int, tags: Sequence[LabelTag], kind: Kind) -> Iterator[Change | Finding]:
    before = project_of(api, project).get("label_config")
    if not labeling_config.is_empty(before or ""):
        if tags:
            yield Finding(
                CHECK, NOTE, "The project has a labeling config, and --labels does not replace it.",
                "paste what `vlsam config` prints into Settings, Labeling Interface, Code",
            )  # fmt: skip
        return
    if not tags:
        yield Finding(
            CHECK, NOTE, "The project has no labeling config.", 'name its labels: --fix --labels "Dog,Car"'
        )
        return
    names = ", ".join(tag.name for tag in tags[:5]) + (" ..." if len(tags) > 5 else "")
    xml = label_config(tags, kind, Names(field=_image_field(api, project)))
    yield Change(
        f"Give project {project}, which has no labeling config, the recommended one for {kind} of {names}?",
        f"Project {project} has the recommended labeling config for {kind} now.",
        lambda: _set(api, project, "label_config", before, xml),
    )


def login(settings: Settings) -> Mapping[str, Any]:
    """What Label Studio is told for a server that asks for BASIC_AUTH_USER and BASIC_AUTH_PASS."""
    if settings.server.basic_auth_user is None:
        return {}
    return {
        "auth_method": "BASIC_AUTH",
        "basic_auth_user": settings.server.basic_auth_user,
        "basic_auth_pass": settings.server.basic_auth_pass,
    }


# Values of a task's data that an <Image> may show.
_ADDRESS = re.compile(r"(?i)[\w.+-]+://|data:image/|/data/|.*\.(?:jpe?g|png|webp|gif|bmp|tiff?)$")


def _image_field(api: Api, project: int) -> str:
    """The field of a project's tasks where the image is, "image" unless the first task says otherwise.

    Raises Trouble.
    """
    found = api.get(f"/api/tasks?project={project}&page_size=1&fields=all")
    try:
        data = found["tasks"][0]["data"].items()
    except (LookupError, TypeError, AttributeError):
        return Names().field
    fields = [
        name for name, value in data
        if labeling_config.FIELD.fullmatch(f"${name}") and isinstance(value, str) and _ADDRESS.match(value)
    ]  # fmt: skip
    # What was uploaded before there was a config takes any name.
    known = Names().field in fields or not fields or "$undefined$" in dict(data)
    return Names().field if known else fields[0]


def _backend(api: Api, project: int, url: str, login: Mapping[str, Any]) -> Iterator[Change]:
    backends = backends_of(api, project)
    if not backends:
        body = {"project": project, "url": url, "title": TITLE, "is_interactive": True, **login}
        yield Change(
            f"Connect {url} to project {project}, with Interactive preannotations on?",
            f"Project {project} is connected to {url}.",
            lambda: _send(api, "POST", "/api/ml", body),
        )
    elif not backends[0].get("is_interactive"):
        first = backends[0]
        # 1.23.2 answers 500 where one of them is missing.
        same = {"url": first.get("url"), "project": project, **(login if first.get("url") == url else {})}
        yield Change(
            f"Turn on Interactive preannotations of {first.get('url')}, for it to be sent clicks?",
            f"Interactive preannotations of {first.get('url')} are on.",
            lambda: _send(api, "PATCH", f"/api/ml/{first['id']}", {**same, "is_interactive": True}),
        )


def _shown(api: Api, project: int) -> Iterator[Change]:
    """Where predictions of no version that exists are shown, one of a version that does."""
    found = project_of(api, project)
    if found.get("show_collab_predictions") is False:  # somebody wants none shown
        return
    counts, titles = versions_of(api, project)
    before = found.get("model_version")
    ours = next((backend.get("model_version") for backend in backends_of(api, project)), None)
    wanted = ours if ours in counts else next(iter(counts), next(iter(titles), ""))
    if wanted and before not in (*counts, *titles):
        was = f"of {before}, of which there are none" if before else "none"
        yield Change(
            f"Show the predictions of {wanted} in project {project}, which shows {was}?",
            f"Project {project} shows the predictions of {wanted}.",
            lambda: _set(api, project, "model_version", before, wanted),
        )


def _set(api: Api, project: int, name: str, before: Any, value: str) -> None:
    """Set one setting of a project, unless somebody has set it meanwhile. Raises Trouble."""
    if project_of(api, project).get(name) != before:
        raise Trouble(f"Somebody has changed {name} of project {project} meanwhile.", "look again")
    _send(api, "PATCH", f"/api/projects/{project}", {name: value})


def _send(api: Api, method: str, path: str, body: Mapping[str, Any]) -> None:
    answer = api.send(method, path, body)
    if answer.status not in (200, 201):
        raise Trouble(
            f"Label Studio answered HTTP {answer.status} to {method} {path}: {answer.text[:200]}",
            "set it in the project's settings by hand",
        )
