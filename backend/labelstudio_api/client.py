"""Call Label Studio's HTTP API: one client and one error type for all commands.

Measured with Label Studio 1.23.2.
"""

import json
import logging
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar
from urllib.parse import urlencode

from backend.images.access_tokens import token_kind
from backend.images.errors import Busy, Denied, TooLarge, Unreachable, Untrusted
from backend.images.fetch import Fetcher
from backend.images.http_url import HttpUrl, shown
from backend.images.pinned_http import Request
from backend.images.studio_urls import Server
from backend.settings import ImageSettings, LabelStudioSettings
from model.deadline import Deadline
from model.types import ImageError

log = logging.getLogger(f"vlsam.{__name__}")

T = TypeVar("T")
PAGE = 100  # tasks

RESUME = "the same command goes on from here"
IN_CONTAINER = (
    "inside a container `localhost` is the container itself; use the other's service name or host name"
)
OWN_LOG = "look into Label Studio's log"
LESS = "give the tasks addresses instead of images, or fewer and simpler regions"
NEW_KEY = "create a Personal Access Token in Account & Settings, and set LABEL_STUDIO_API_KEY to it"


@dataclass(frozen=True)
class RequestLimits:
    """Limits of time and size for the requests of a client. Times are in seconds."""

    timeout: float  # for the whole answer
    silence: float = math.inf  # until the first byte of an answer, and between two
    max_bytes: int | None = None  # of an answer; None for VLSAM_MAX_IMAGE_BYTES
    pauses: tuple[float, ...] = ()  # before each further try while Label Studio fails


ONE_TRY = RequestLimits(timeout=20.0)
BATCH = RequestLimits(timeout=600.0, silence=120.0, max_bytes=2**31 - 1, pauses=(1.0, 3.0, 10.0, 30.0))


class StudioError(ValueError):
    """Label Studio refused a request, could not be reached, or is not set up as needed.

    `problem` is a sentence. `cure` is what the user can do about it. `status` is the HTTP status, or 0 if
    there is none. `temporary` is true if the same request may succeed later.
    """

    def __init__(self, problem: str, cure: str = "", *, status: int = 0, temporary: bool = False) -> None:
        super().__init__(f"{problem.rstrip('.')}; {cure}" if cure else problem)
        self.problem, self.cure, self.status, self.temporary = problem, cure, status, temporary


@dataclass(frozen=True)
class Answer:
    """An HTTP answer of Label Studio."""

    status: int
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")

    def json(self) -> Any:
        """Return the body, parsed as JSON. Raises ValueError."""
        return json.loads(self.body)


class StudioClient:
    """A client of one Label Studio, on a host that the fetcher may use. Thread-safe.

    With the limits of a batch command, failed requests are retried after the server has once answered. So
    a wrong address is reported at once.
    """

    def __init__(self, server: Server, fetcher: Fetcher, limits: RequestLimits = ONE_TRY) -> None:
        self.server = server
        self.fetcher = fetcher
        self._limits = limits
        self._has_answered = False

    @classmethod
    def connect(cls, images: ImageSettings, label_studio: LabelStudioSettings) -> "StudioClient":
        """Create the client of a batch command for the server in the settings. Raises StudioError."""
        if not label_studio.url or not label_studio.api_key:
            raise StudioError("A project of Label Studio needs LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY.")
        check_token(label_studio.api_key)
        server = Server(label_studio.url, label_studio.api_key)
        return cls(server, Fetcher(images, label_studio), BATCH)

    def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        anonymous: bool = False,
        timeout: float | None = None,
    ) -> Answer:
        """Send one request. Return its answer, of any status but 3xx. Raises StudioError if it has none."""
        server = replace(self.server, token=None) if anonymous else self.server
        limits = self._limits
        try:
            request = Request(
                method,
                HttpUrl.parse(f"{server.url}{path}"),
                server,
                Deadline.after(timeout or limits.timeout),
                json=body,
                byte_seconds=limits.silence,
            )
            answer = Answer(*self.fetcher.ask(request, max_bytes=limits.max_bytes))
        except Denied as error:
            raise StudioError(str(error), NEW_KEY) from None
        except Untrusted as error:
            raise StudioError(str(error)) from None
        except TooLarge as error:
            raise StudioError(str(error), LESS if limits.max_bytes else "") from None
        except Busy as error:  # when it exchanges a personal access token
            self._has_answered = True
            raise StudioError(str(error), OWN_LOG, temporary=True) from None
        except ImageError as error:
            cure = f"start Label Studio, correct LABEL_STUDIO_URL; {IN_CONTAINER}"
            raise StudioError(str(error), cure, temporary=isinstance(error, Unreachable)) from None
        if 300 <= answer.status < 400:
            base = shown(answer.text).removesuffix(path.partition("?")[0])
            raise StudioError(f"{server.url} redirects to {base}.", "give that address as LABEL_STUDIO_URL")
        return answer

    def call(self, method: str, path: str, body: Any = None) -> Answer:
        """Send one request, and return its answer. Raises StudioError for any status but 2xx."""
        answer = self.send(method, path, body)
        if not 200 <= answer.status < 300:
            raise self._failure(method, path, answer)
        self._has_answered = True
        return answer

    def retry(self, work: Callable[[], T]) -> T:
        """Return the result of `work`. Retry it while its error is temporary. Raises StudioError."""
        pauses = iter(self._limits.pauses)
        while True:
            try:
                return work()
            except StudioError as error:
                self._has_answered |= bool(error.status)
                if not (error.temporary and self._has_answered and self._limits.pauses):
                    raise
                if (pause := next(pauses, None)) is None:
                    raise StudioError(error.problem, RESUME, status=error.status) from None
                log.warning("%s Trying again in %g s.", error.problem, pause)
                time.sleep(pause)

    def get(self, path: str, **query: Any) -> Any:
        """Return the parsed JSON at a path of the API; `query` has the URL parameters. Raises StudioError."""
        return self.parse(self.read(path, **query))

    def read(self, path: str, **query: Any) -> Answer:
        """Return the unparsed answer at a path; `query` has the URL parameters. Raises StudioError."""
        path = f"{path}?{urlencode(query)}" if query else path
        return self.retry(lambda: self.call("GET", path))

    def parse(self, answer: Answer) -> Any:
        try:
            return answer.json()
        except (ValueError, RecursionError):
            raise self.not_label_studio() from None

    def not_label_studio(self) -> StudioError:
        return StudioError(
            f"What answers at {self.server.url} is no Label Studio.", "correct the address, port and path"
        )

    def _failure(self, method: str, path: str, answer: Answer) -> StudioError:
        status = answer.status
        if status == 401:
            return _unauthorized(self.server.token or "", answer.text)
        temporary = status >= 500 or status in (408, 429)
        cure = OWN_LOG if temporary else ""
        if status == 403:
            cure = "LABEL_STUDIO_API_KEY must be a token of somebody who may do this"
        said = " ".join(answer.body[:2000].decode("utf-8", "replace").split())[:300]
        problem = f"Label Studio answered HTTP {status} to {method} {path.partition('?')[0]}: {said}"
        return StudioError(problem, cure, status=status, temporary=temporary)

    def project(self, number: int) -> Mapping[str, Any]:
        """Return a project's settings. Raises StudioError."""
        try:
            project = self.get(f"/api/projects/{number}/")
        except StudioError as error:
            if error.status in (403, 404):
                raise StudioError(
                    f"This user sees no project {number} at {self.server.url} (HTTP {error.status}).",
                    "take the number from the project's address, /projects/<number>/ (as in /projects/7), or "
                    "a token of a member",
                    status=error.status,
                ) from None
            raise
        if not isinstance(project, dict):
            raise self.not_label_studio()
        return project

    def label_config(self, number: int) -> str:
        """Return the XML of a project's labeling config. Raises StudioError."""
        return str(self.project(number).get("label_config") or "")

    def update_project(self, number: int, changes: Mapping[str, Any]) -> None:
        """Change some of a project's settings. Raises StudioError."""
        self.retry(lambda: self.call("PATCH", f"/api/projects/{number}/", changes))

    def backends(self, project: int) -> list[Mapping[str, Any]]:
        """Return the ML backends that are connected to a project. Raises StudioError."""
        return _objects(self.get("/api/ml/", project=project))

    def tasks(self, project: int, filters: Sequence[Mapping[str, Any]] = ()) -> Iterator[Mapping[str, Any]]:
        """Yield the tasks of a project by increasing id, without their annotations and predictions.

        `filters` are filters of Label Studio's Data Manager. A task must match all. Raises StudioError.
        """
        query: dict[str, Any] = {"ordering": ["tasks:id"]}
        if filters:
            query["filters"] = {"conjunction": "and", "items": list(filters)}
        page, seen, total = 1, set[int](), 1
        while len(seen) < total:
            try:
                listed = self.get(
                    "/api/tasks/",
                    project=project,
                    page=page,
                    page_size=PAGE,
                    query=json.dumps(query),
                    fields="task_only",
                )
            except StudioError as error:
                if error.status == 404 and page > 1:  # Label Studio's answer behind the last page
                    return
                raise
            try:
                total, tasks = int(listed["total"]), {int(task["id"]): task for task in listed["tasks"]}
            except (LookupError, TypeError, ValueError):
                raise self.not_label_studio() from None
            yield from (task for number, task in tasks.items() if number not in seen)
            if seen.issuperset(tasks):  # tasks were deleted meanwhile
                return
            seen.update(tasks)
            page += 1  # pages may be smaller than PAGE: TASK_API_PAGE_SIZE_MAX

    def predictions(self, task: int) -> list[Mapping[str, Any]]:
        """Return the predictions of a task, without a retry. Raises StudioError."""
        return _objects(self.parse(self.call("GET", f"/api/predictions/?task={task}")))

    def delete_prediction(self, number: int) -> None:
        """Delete the prediction with this id, without a retry. Raises StudioError."""
        self.call("DELETE", f"/api/predictions/{number}/")

    def import_predictions(self, project: int, predictions: Sequence[Mapping[str, Any]]) -> None:
        """Import predictions, without a retry, since it may store them twice. Raises StudioError."""
        self.call("POST", f"/api/projects/{project}/import/predictions", predictions)


def check_token(token: str) -> None:
    """Check the form of an API key before it is sent. Raises StudioError if no token has this form."""
    match token_kind(token):
        case "cut":
            raise StudioError(
                "LABEL_STUDIO_API_KEY is a personal access token without its signature, which is the part "
                "after its second dot.",
                "copy the whole token, or create another one in Account & Settings",
            )
        case "unfit":
            raise StudioError(
                "LABEL_STUDIO_API_KEY has quotes, spaces or other characters that no token has.",
                "set it to the token alone, without quotes, and without `Token` or `Bearer` before it",
            )


def project_number(address: str) -> int | None:
    """Return 7 for "labelstudio://7", None for another scheme. Raises ValueError without a valid number."""
    if not address.startswith("labelstudio://"):
        return None
    number = re.fullmatch(r"labelstudio://(\d{1,9})/?", address)
    if not number:
        raise ValueError(f"{address}: a project is named by its number, as in labelstudio://7")
    return int(number[1])


def _unauthorized(token: str, said: str) -> StudioError:
    problem, cure = "Label Studio does not know this legacy token.", NEW_KEY
    if token_kind(token) is not None:
        problem = "Label Studio refuses the personal access token."
    elif "legacy token authentication has been disabled" in said:
        problem = "Legacy tokens are disabled in this Label Studio, as they are by default."
        cure = f"{NEW_KEY} (or Organization, Access Token Settings: allow legacy tokens)"
    elif "." in token:
        problem = (
            "Label Studio does not know this token. It has a dot, so it may be a part of a personal access "
            "token, which has two."
        )
        cure = f"copy the whole token, or {NEW_KEY}"
    return StudioError(problem, cure, status=401)


def _objects(value: Any) -> list[Mapping[str, Any]]:
    """Return the JSON objects in a list; [] for any other value."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
