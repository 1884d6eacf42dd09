"""Log in to Label Studio by its form, for the demo and the tests, so that no token is needed."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import requests

from backend.labelstudio_api.client import StudioError
from model import connections

JSON = Any
# Longer than the 100 s that Label Studio gives a backend's /predict.
TIMEOUT_S = 130.0


class Studio:
    """A logged-in session with Label Studio. The behaviour stated here was measured with 1.23.2."""

    def __init__(self, url: str, email: str, password: str) -> None:
        """Log in. Raises StudioError for a wrong password."""
        self.url = url.rstrip("/")
        self._session = connections.Session()
        self.send("GET", "/user/login/")
        form = {"email": email, "password": password, "csrfmiddlewaretoken": self._csrf_token()}
        answer = self.send("POST", "/user/login/", data=form, allow_redirects=False)
        # A wrong password shows the form again.
        if answer.status_code != 302:
            raise StudioError(f"Label Studio at {self.url} does not accept this password for {email}.")

    def close(self) -> None:
        self._session.close()

    def find_project(self, title: str) -> int | None:
        found = self.json("GET", "/api/projects", params={"title": title, "page_size": 1000})["results"]
        return next((int(project["id"]) for project in found if project["title"] == title), None)

    def create_project(self, title: str, label_config: str) -> int:
        project = {"title": title, "label_config": label_config}
        return int(self.json("POST", "/api/projects", json=project)["id"])

    def change_project(self, project: int, **settings: JSON) -> None:
        self.json("PATCH", f"/api/projects/{project}", json=settings)

    def project(self, project: int) -> JSON:
        return self.json("GET", f"/api/projects/{project}")

    def import_files(self, project: int, paths: Iterable[Path]) -> None:
        """Upload images. Each becomes a task with `image` = "/data/upload/<project>/<8 digits>-<name>"."""
        # Of several files in fields of one name, only the last becomes a task.
        files = {f"file-{number}": (path.name, path.read_bytes()) for number, path in enumerate(paths)}
        self.json("POST", f"/api/projects/{project}/import", files=files)

    def tasks(self, project: int) -> list[dict[str, JSON]]:
        """List all tasks, oldest first. Label Studio requests no predictions for this."""
        query = {"project": project, "page_size": 1000, "fields": "all"}
        tasks: list[dict[str, JSON]] = self.json("GET", "/api/tasks", params=query)["tasks"]
        return sorted(tasks, key=lambda task: int(task["id"]))

    def connect_backend(self, project: int, url: str, *, interactive: bool = True) -> int:
        """Connect the backend at `url`, and disconnect all others. Return its id.

        Label Studio sends requests only to the first backend of a project, which may be of an earlier run.
        """
        existing = {b["url"]: int(b["id"]) for b in self.backends(project)}
        for other in existing.keys() - {url}:
            self.send("DELETE", f"/api/ml/{existing[other]}")
        if url in existing:
            return existing[url]
        backend = {"project": project, "url": url, "title": "VL-SAM", "is_interactive": interactive}
        return int(self.json("POST", "/api/ml", json=backend)["id"])

    def backends(self, project: int) -> JSON:
        """List the backends. Label Studio first calls each one's /setup, and lists its `model_version`."""
        return self.json("GET", "/api/ml", params={"project": project})

    def retrieve_predictions(self, project: int, tasks: Sequence[int] | None = None) -> None:
        """Run the Data Manager's action "Retrieve Predictions" on these tasks, or on all.

        Label Studio waits for the backend. It answers 200 even if there are no predictions.
        """
        chosen = {"all": True, "excluded": []} if tasks is None else {"all": False, "included": list(tasks)}
        self.action("retrieve_tasks_predictions", project, chosen)

    def action(self, name: str, project: int, chosen: Mapping[str, JSON]) -> None:
        body = {"selectedItems": chosen, "project": project}
        self.json("POST", "/api/dm/actions", params={"id": name, "project": project}, json=body)

    def predictions(self, project: int) -> JSON:
        return self.json("GET", "/api/predictions", params={"project": project})

    def json(self, method: str, path: str, **options: Any) -> JSON:
        """Send a request as the signed-in user. Return the JSON of the answer. Raises StudioError."""
        return self.send(method, path, **options).json()

    def send(self, method: str, path: str, **options: Any) -> requests.Response:
        # Django requires the cookie's token in a header, except for a GET.
        headers = {"X-CSRFToken": self._csrf_token()} if self._session.cookies else {}
        try:
            answer = self._session.request(
                method, self.url + path, headers=headers, timeout=TIMEOUT_S, **options
            )
        except requests.RequestException as error:
            why = connections.distrust(error) or f"cannot be reached: {error}"
            raise StudioError(f"Label Studio at {self.url} {why}") from error
        if not answer.ok:
            reason = answer.text[:500]
            raise StudioError(
                f"Label Studio answered {answer.status_code} to {method} {path}: {reason}",
                status=answer.status_code,
            )
        return answer

    def _csrf_token(self) -> str:
        return str(self._session.cookies.get("csrftoken"))
