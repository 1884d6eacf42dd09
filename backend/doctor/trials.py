"""Have Label Studio request predictions for some tasks, as trials of `vlsam doctor`."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar
from xml.sax.saxutils import quoteattr

from backend.doctor.finding import FAILED, NOTE, OK, Finding, one_line
from backend.labelstudio.request import TRIAL
from backend.labelstudio.status_control import STATUS
from backend.labelstudio_api.client import StudioClient, StudioError

T = TypeVar("T")

UNKNOWN_PLACE = "where `vlsam serve` was started; in Docker `docker compose logs vlsam`"
TRIAL_S = 130.0  # longer than the 100 s that Label Studio gives a prediction


def trial_findings(
    client: StudioClient, project: int, connected: Mapping[str, Any], number: int
) -> Iterator[Finding]:
    """Have Label Studio request predictions for at most `number` tasks. Yield findings on the answers."""
    place, tried = UNKNOWN_PLACE, 0
    unlabelled: Counter[str] = Counter()
    try:
        for task in _some_tasks(client, project, number):
            try:
                answer = _tried(client, connected, task)
            except StudioError as error:
                yield Finding("trial", FAILED, error.problem, error.cure)
                continue
            if answer is None:  # a server without this event, or another backend
                yield _trial(client, connected)
                break
            place = str(answer.get("log") or place)
            if not tried and answer.get("on_open") == "prewarm":
                yield Finding("trial", NOTE, "Opened tasks get no predictions: VLSAM_ON_OPEN=prewarm.")
            unlabelled.update(set(_of_type(str, answer.get("unlabelled"))))
            tried += 1
            yield _of_trial(task, answer, place)
    except StudioError as error:
        yield Finding("trial", FAILED, error.problem, error.cure)
    if unlabelled:
        terms = ", ".join(f"{term[:40]} ({n} of {tried} tasks)" for term, n in unlabelled.most_common(5))
        yield Finding("trial", NOTE, f"Seen without a label: {terms}.", _label_for(unlabelled))
    yield Finding("log", OK, f"The server's log: {place}.")


def _some_tasks(client: StudioClient, project: int, number: int) -> Iterator[int]:
    """Yield the ids of at most `number` tasks, spread over the project. Raises StudioError."""
    index, total = 0, number
    while index < min(number, total):
        page = 1 + index * total // min(number, total)
        listed = client.get("/api/tasks", project=project, page_size=1, page=page, fields="all")
        try:
            total, task = int(listed["total"]), int(listed["tasks"][0]["id"])
        except (LookupError, TypeError, ValueError):
            return
        yield task
        index += 1


def _tried(client: StudioClient, connected: Mapping[str, Any], task: int) -> Mapping[str, Any] | None:
    """Request a task's trial report. Return None if the backend does not support it. Raises StudioError."""
    path = f"/api/ml/{connected['id']}/interactive-annotating"
    body = {"task": task, "context": {"event": TRIAL}}
    try:
        answer = client.send("POST", path, body, timeout=TRIAL_S).json()
    except ValueError:
        return None
    if isinstance(answer, dict) and answer.get("errors"):
        raise StudioError(
            f"Label Studio got no answer for task {task}: {one_line(str(answer['errors']))[:200]}.",
            f"see the server's log for the reason: {UNKNOWN_PLACE}",
        )
    data = answer.get("data") if isinstance(answer, dict) else None
    return data if isinstance(data, dict) and "log" in data else None


def _of_trial(task: int, answer: Mapping[str, Any], place: str) -> Finding:
    if reason := answer.get("reason"):
        return Finding("trial", FAILED, f"Task {task}: {reason}", f"the server's log has more: {place}")
    items = _of_type(dict, answer.get("result"))
    regions = {str(item.get("id")) for item in items if item.get("from_name") != STATUS}
    seen = _of_type(str, answer.get("seen"))
    terms = ", ".join(term[:40] for term in seen[:10])
    saw = f"the model saw {terms}" if seen else "the model found no object"
    if not regions:
        fitting = set(seen).difference(_of_type(str, answer.get("unlabelled")))
        why = " What a label fits is annotated already, or no control can draw it." if fitting else ""
        return Finding("trial", NOTE, f"Task {task} got no regions: {saw}.{why}")
    return Finding("trial", OK, f"Task {task} got {len(regions)} regions: {saw}.")


def _of_type(kind: type[T], given: Any) -> list[T]:
    """Return the items of a list that are instances of a class, [] if `given` is no list."""
    return [item for item in given if isinstance(item, kind)] if isinstance(given, list) else []


def _label_for(terms: Counter[str]) -> str:
    """Return advice on the label to add to the labeling config for the most frequent term."""
    (term, _), *_ = terms.most_common(1)
    value, name = quoteattr(term[:1].upper() + term[1:]), quoteattr(term)
    more = "; and so for the others" if len(terms) > 1 else ""
    return f"add <Label value={value}/>, or predicted_values={name} to the label that means it{more}"


def _trial(client: StudioClient, connected: Mapping[str, Any]) -> Finding:
    """Have Label Studio request a prediction for a random task. Return a finding. Raises StudioError."""
    path = f"/api/ml/{connected['id']}/predict/test?random=true"
    answer = client.send("POST", path, timeout=TRIAL_S)
    try:
        tried = answer.json()
        task, items = tried["task"]["id"], tried["response"]
        if items == []:
            message = f"Task {task}: VLSAM_ON_OPEN=prewarm makes no predictions for one task."
            return Finding("trial", NOTE, message)
        result = items[0].get("result")
    except (ValueError, LookupError, TypeError, AttributeError):
        raise StudioError(
            "Label Studio got no prediction.",
            "import a task if there is none; see the server's log for the reason",
        ) from None
    if result is None:
        raise StudioError(f"The server could not annotate task {task}.", "see the server's log")
    if not result:
        return Finding(
            "trial",
            NOTE,
            f"Task {task} got no regions.",
            "if it shows anything: the server's log lists the terms without a label; see predicted_values",
        )
    return Finding("trial", OK, f"Task {task} got {len(result)} results.")
