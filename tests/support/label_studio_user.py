"""A person in Label Studio: what the end-to-end tests do beyond what the demo does."""

from collections.abc import Mapping, Sequence

from backend.demo import studio
from backend.demo.studio import JSON


class Studio(studio.Studio):
    """A logged-in session. The behaviour of Label Studio stated here was measured with 1.23.2."""

    def personal_access_token(self) -> str:
        """Create a token. Label Studio answers 409 if the account has one already."""
        return str(self.json("POST", "/api/token/", json={})["token"])

    def allow_legacy_tokens(self, allowed: bool) -> None:
        settings = {"legacy_api_tokens_enabled": allowed, "api_tokens_enabled": True}
        self.json("POST", "/api/jwt/settings", json=settings)

    def next_task(self, project: int) -> dict[str, JSON]:
        """Return the first task of *Label All Tasks*, with those predictions that it shows."""
        found: dict[str, JSON] = self.json("GET", f"/api/projects/{project}/next")
        return found

    def import_tasks(self, project: int, data: Sequence[Mapping[str, JSON]]) -> None:
        """Import one task for each mapping, which holds the values of the labeling config's variables."""
        self.json("POST", f"/api/projects/{project}/import", json=list(data))

    def task(self, task: int) -> dict[str, JSON]:
        """Open a task. Without a prediction, Label Studio waits for the backend to make one."""
        opened: dict[str, JSON] = self.json("GET", f"/api/tasks/{task}")
        return opened

    def set_interactive(self, backend: int, project: int, url: str, interactive: bool) -> None:
        # 1.23.2 answers 500 if the URL or the project is missing.
        same = {"url": url, "project": project}
        self.json("PATCH", f"/api/ml/{backend}", json={**same, "is_interactive": interactive})

    def webhooks(self, project: int) -> list[dict[str, JSON]]:
        found: list[dict[str, JSON]] = self.json("GET", "/api/webhooks", params={"project": project})
        return found

    def delete_predictions(self, project: int) -> None:
        self.action("delete_tasks_predictions", project, {"all": True, "excluded": []})

    def add_prediction(self, task: int, result: list[JSON], model_version: str) -> int:
        prediction = {"task": task, "result": result, "model_version": model_version, "score": 0.5}
        return int(self.json("POST", "/api/predictions", json=prediction)["id"])

    def interactive(self, backend: int, task: int, context: Mapping[str, JSON]) -> dict[str, JSON]:
        """Send the editor's request after a smart click; return {"data": ...} or {"errors": [...]}."""
        path = f"/api/ml/{backend}/interactive-annotating"
        answer: dict[str, JSON] = self.json("POST", path, json={"task": task, "context": context})
        return answer

    def submit(self, task: int, result: list[JSON], parent_prediction: int | None = None) -> dict[str, JSON]:
        """Save an annotation. Label Studio calls the backend's webhook before it answers."""
        annotation = {"result": result, "parent_prediction": parent_prediction, "lead_time": 1.0}
        saved: dict[str, JSON] = self.json("POST", f"/api/tasks/{task}/annotations/", json=annotation)
        return saved

    def skip(self, task: int) -> None:
        """Skip a task, as the editor's button does: with a cancelled annotation."""
        self.json("POST", f"/api/tasks/{task}/annotations/", json={"result": [], "was_cancelled": True})

    def annotations(self, task: int) -> list[dict[str, JSON]]:
        """List the annotations of all people, without skipped ones."""
        found: list[dict[str, JSON]] = self.json("GET", f"/api/tasks/{task}/annotations/")
        return found

    def change_annotation(self, annotation: int, **fields: JSON) -> None:
        self.json("PATCH", f"/api/annotations/{annotation}/", json=fields)

    def save_draft(self, task: int, result: list[JSON]) -> None:
        """Save a draft, as the editor does until a person submits."""
        self.json("POST", f"/api/tasks/{task}/drafts", json={"result": result, "lead_time": 1.0})

    def annotation(self, annotation: int) -> dict[str, JSON]:
        saved: dict[str, JSON] = self.json("GET", f"/api/annotations/{annotation}/")
        return saved

    def export(self, project: int, kind: str) -> bytes:
        """Return the annotations as JSON, or as a ZIP for kinds with several files, as COCO and YOLO."""
        path = f"/api/projects/{project}/export"
        return self.send("GET", path, params={"exportType": kind, "download_resources": "false"}).content
