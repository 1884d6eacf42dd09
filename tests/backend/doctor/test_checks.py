"""`vlsam doctor` and the look after /setup, against answers as measured with Label Studio 1.23.2."""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from backend.commands.cli import main
from backend.doctor.checks import FAILED, NOTE, OK, SKIPPED, Api, Finding, Watch, access, diagnose
from backend.images.errors import Denied
from backend.images.load import Images
from backend.images.studio_urls import Server
from backend.labelstudio.recommended_configs import KINDS, Kind, Names, label_config
from backend.runtime.engine import Engine
from backend.settings import DetectionSettings, Settings
from backend.web.app import create_app
from model.deadline import NEVER
from tests.support.images import data_url
from tests.support.labeling_configs import CONFIG
from tests.support.processes import free_port
from tests.support.settings import settings_with
from tests.support.vlm_endpoint import listing

LEGACY = "e2e0" * 10
ACCESS = "h.eyJ0b2tlbl90eXBlIjoiYWNjZXNzIn0.s"  # {"token_type":"access"}
REFRESH = "h.eyJ0b2tlbl90eXBlIjoicmVmcmVzaCJ9.s"
DISABLED = (
    "Authentication token no longer valid: "
    "legacy token authentication has been disabled for this organization"
)
PRIVATE = "URL resolves to a reserved network address (block: 127.0.0.0/8)"

GOOD = label_config(["Cat", "Dog"])

TRIED = {
    "result": [{"id": "a", "from_name": "mask"}, {"id": "b", "from_name": "mask"}],
    "seen": ["cat", "dog"], "unlabelled": [], "log": "/var/log/vlsam.log",
}  # fmt: skip

TRY = "POST /api/ml/7/interactive-annotating"

Answer = tuple[int, Any]
PETS = {"title": "Pets", "label_config": GOOD, "model_version": "v1", "show_collab_predictions": True}


def versions(**counts: int) -> Answer:
    """Of stored predictions, beside a connected backend."""
    static = [{"model_version": version, "count": count} for version, count in counts.items()]
    return 200, {"static": static, "live": [{"id": 7, "title": "VL-SAM"}]}


def one_task(**data: str) -> Answer:
    return 200, {"tasks": [{"id": 5, "data": data}]}


def allowed(url: str) -> Settings:
    """Whose default backend, at PORT, is not running."""
    return settings_with(label_studio_url=url, allowed_hosts=(("127.0.0.1", None),), port=free_port())


def images_at(url: str) -> Images:
    settings = allowed(url)
    return Images(settings.images, settings.label_studio)


@dataclass
class Studio:
    """A Label Studio, and a backend, at one address: `answers` by method and path, else 404."""

    url: str = ""
    answers: dict[str, Answer] = field(default_factory=dict)
    makers: dict[str, Callable[[], Answer]] = field(default_factory=dict)  # of answers that differ
    asked: list[str] = field(default_factory=list)
    sent: list[Any] = field(default_factory=list)
    wait: threading.Event | None = None

    def find(self, check: str, *, key: str | None = LEGACY, status: str | None = None) -> Finding:
        """The first finding of a check, with this status if one is given."""
        return next(f for f in self.findings(key) if f.check == check and status in (None, f.status))

    def findings(self, key: str | None = LEGACY) -> list[Finding]:
        settings = allowed(self.url)
        images = Images(settings.images, settings.label_studio)
        return list(diagnose(Api(Server(self.url, key), images), 3, images, settings))


@pytest.fixture
def studio() -> Iterator[Studio]:
    """One in which all is as it should be."""
    studio = Studio()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            call = f"{self.command} {self.path.partition('?')[0]}"
            studio.asked.append(call)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            studio.sent.append(json.loads(body) if body else None)
            if studio.wait is not None:
                assert studio.wait.wait(10)
            made = studio.makers.get(call)
            missing = (404, {"detail": "Not found."})
            said_of_call = studio.answers.get(call, missing)
            status, said = made() if made else studio.answers.get(f"{self.command} {self.path}", said_of_call)
            data = said.encode() if isinstance(said, str) else json.dumps(said).encode()
            self.send_response(status)
            if status == 302:
                self.send_header("Location", said)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PATCH = answer

        def log_message(self, format: str, *args: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        studio.url = f"http://127.0.0.1:{server.server_port}"
        backend = {
            "id": 7, "url": studio.url, "state": "CO", "readable_state": "Connected", "error_message": None,
            "is_interactive": True, "model_version": "v1",
        }  # fmt: skip
        studio.answers = {
            "GET /api/version/": (200, {"release": "1.23.2"}),
            "GET /api/current-user/whoami": (200, {"id": 1, "email": "ann@example.com"}),
            "GET /api/projects/3": (200, PETS),
            "GET /api/projects/3/model-versions/": versions(v1=4),
            "GET /api/tasks": (200, {"total": 1, "tasks": [{"id": 5, "data": {"image": data_url()}}]}),
            "GET /api/ml": (200, [backend]),
            "POST /api/ml": (400, {"detail": "Validation error"}),
            "GET /health": (200, {"status": "UP", "model_version": "v1", "model": "ready"}),
            TRY: (200, {"data": TRIED}),
            "POST /api/ml/7/predict/test": (200, {"task": {"id": 5}, "response": [{"result": [{}, {}]}]}),
        }
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield studio
        server.shutdown()


def test_all_is_well(studio: Studio) -> None:
    findings = studio.findings()
    assert {finding.status for finding in findings} == {OK}
    assert list(dict.fromkeys(finding.check for finding in findings)) == [
        "connection", "token", "project", "config", "image", "backend", "predictions", "server", "model",
        "trial", "log",
    ]  # fmt: skip
    told = "\n".join(map(str, findings))
    for said in (
        "Label Studio 1.23.2 answers", "legacy token is that of ann@example.com", "Project 3 is 'Pets'",
        "Regions go to BrushLabels 'mask'", "2 labels: Cat, Dog", "boxes come from KeyPoint 'click'",
        "of BrushLabels 'mask': Brush labels to COCO, PNG, NumPy hold them", "task 5 is here: 80 x 60",
        "sends clicks to it", "shows 4 predictions of v1", "v1 is loaded",
        "Task 5 got 2 regions: the model saw cat, dog", "The server's log: /var/log/vlsam.log",
    ):  # fmt: skip
        assert said in told


# Each failure has a sentence of its own, and a cure


@pytest.mark.parametrize(
    ("call", "answer", "check", "said", "cure"),
    [
        ("GET /api/version/", (200, "<html>nginx</html>"), "connection", "is no Label Studio", "port"),
        ("GET /api/version/", (302, "https://studio.example/"), "connection", "redirects to https", "URL"),
        ("GET /api/current-user/whoami", (401, {"detail": DISABLED}), "token", "are disabled", "Personal"),
        (
            "GET /api/current-user/whoami",
            (401, {"detail": "Invalid token."}),
            "token",
            "not know",
            "Personal",
        ),
        ("GET /api/current-user/whoami", (500, {}), "token", "HTTP 500", "log"),
        ("GET /api/projects/3", (404, {}), "project", "sees no project 3", "/projects/<number>/"),
        ("GET /api/projects/3", (403, {}), "project", "sees no project 3", "member"),
        ("GET /api/projects/3", (200, {"label_config": "<View/>"}), "config", "no <Image>", "README"),
        ("GET /api/projects/3", (200, {"label_config": None}), "config", "is empty", "README"),
        (
            "GET /api/projects/3",
            (200, {"label_config": GOOD.replace('value="$image"', 'valueList="$pages"')}),
            "config",
            "<Image name='image'> has valueList='$pages'. This model labels one image of a task",
            "README",
        ),
        ("GET /api/tasks", one_task(photo="x"), "image", "no field 'image'", "of: photo"),
        ("GET /api/tasks", one_task(image="/data/upload/3/x.png"), "image", "HTTP 404", "import it again"),
        ("GET /api/tasks", one_task(image="/data/local-files/?d=x.png"), "image", "HTTP 404", "LOCAL_FILES"),
        (
            "GET /api/tasks",
            one_task(image="http://127.0.0.1:9/x.png"),
            "image",
            "cannot be reached",
            "by hand",
        ),
        (
            "GET /api/tasks",
            one_task(image="http://127.0.0.2:8080/ls/data/local-files/?d=x.png"),
            "image",
            "is refused",
            "VLSAM_LABEL_STUDIO_HOSTS",
        ),
        (
            "GET /api/tasks",
            one_task(image="http://127.0.0.1:9/data/upload/3/x.png"),
            "image",
            "cannot be reached",
            "VLSAM_LABEL_STUDIO_HOSTS",
        ),
        ("GET /api/ml", (200, []), "backend", "No ML backend is connected", "Connect Model"),
        (
            "GET /health",
            (200, {"model_version": "v1", "model": "failed"}),
            "model",
            "could not be loaded",
            "log",
        ),
        (
            "GET /health",
            (200, {"model_version": "v2", "model": "ready"}),
            "model",
            "runs v2, the project has v1",
            "Data Manager",
        ),
        (
            "POST /api/ml/7/interactive-annotating",
            (200, {"errors": ["503 Server Error"]}),
            "trial",
            "got no answer for task 5: ['503 Server Error'].",
            "log",
        ),
        (
            "POST /api/ml/7/interactive-annotating",
            (200, {"data": {"result": [], "reason": "The image is gone.", "log": "/x.log"}}),
            "trial",
            "Task 5: The image is gone.",
            "log has more: /x.log",
        ),
    ],
)
def test_what_fails(studio: Studio, call: str, answer: Answer, check: str, said: str, cure: str) -> None:
    studio.answers[call] = answer
    found = studio.find(check, status=FAILED)
    assert said in found.message
    assert cure in found.cure


def test_after_a_failure_only_what_does_not_need_it_is_looked_at(studio: Studio) -> None:
    studio.answers["GET /api/projects/3"] = (404, {})
    statuses = [(finding.check, finding.status) for finding in studio.findings()]
    assert statuses == [
        ("connection", OK), ("token", OK), ("project", FAILED), ("backend", SKIPPED),
        ("server", FAILED), ("model", OK),
    ]  # fmt: skip
    # With no project there is no backend's address, and none listens on the default one, so the weights
    # are looked for on this machine.


def test_no_label_studio() -> None:
    images = images_at("http://127.0.0.1:9")
    (found,) = access(Api(Server("http://127.0.0.1:9", LEGACY), images), 3, images)
    assert (found.check, found.status) == ("connection", FAILED)
    assert "cannot be reached (" in found.message
    assert "container" in found.cure


def test_tokens(studio: Studio) -> None:
    assert "is not set" in studio.find("token", key=None).message
    assert "ends after 5 minutes" in studio.find("token", key=ACCESS).message
    refused = studio.find("token", key=REFRESH)
    assert refused.status == FAILED
    assert "refused the personal access token" in refused.message
    studio.answers["POST /api/token/refresh/"] = (200, {"access": ACCESS})
    assert "personal access token is that of ann" in studio.find("token", key=REFRESH).message


def change_backend(studio: Studio, **changes: Any) -> None:
    status, (backend,) = studio.answers["GET /api/ml"]
    studio.answers["GET /api/ml"] = (status, [{**backend, **changes}])


@pytest.mark.parametrize("connected", [True, False])
def test_private_addresses_are_refused(studio: Studio, connected: bool) -> None:
    """Also where it was connected before Label Studio was updated. The probe cannot connect anything."""
    studio.answers["POST /api/ml"] = (403, {"detail": PRIVATE})
    if connected:
        change_backend(studio, state="DI", readable_state="Disconnected")
    else:
        studio.answers["GET /api/ml"] = (200, [])
    found = studio.find("backend")
    assert "its address is private" in found.message
    assert "USE_DEFAULT_BANNED_SUBNETS=false" in found.cure
    (probe,) = (body for call, body in zip(studio.asked, studio.sent, strict=True) if call == "POST /api/ml")
    assert list(probe) == ["url"]


def test_a_host_that_label_studio_does_not_find(studio: Studio) -> None:
    studio.answers["POST /api/ml"] = (500, {"detail": "Can't resolve hostname vlsam"})
    change_backend(studio, state="DI", readable_state="Disconnected", url="http://vlsam.invalid:9090")
    assert "does not find the host of http://vlsam.invalid:9090" in studio.find("backend").message


def test_a_backend_in_trouble(studio: Studio) -> None:
    change_backend(studio, state="ER", readable_state="Error", error_message="Read timed out")
    assert "Error, Read timed out" in studio.find("backend").message
    change_backend(studio, state="CO", is_interactive=False)
    found = studio.find("backend")
    assert "does not send clicks" in found.message
    assert "Interactive preannotations" in found.cure


def test_what_works_but_is_often_the_reason(studio: Studio) -> None:
    studio.answers["GET /health"] = (200, {"model_version": "vlsam-builtin-1", "model": "loading"})
    change_backend(studio, model_version="vlsam-builtin-1")
    studio.answers[TRY] = (200, {"data": {**TRIED, "result": [], "on_open": "prewarm"}})
    notes = "\n".join(str(f) for f in studio.findings() if f.status == NOTE)
    assert "still loading" in notes
    assert "nothing of photographs" in notes
    assert "saw cat, dog. What a label fits is annotated already, or no control can draw it." in notes
    assert "Opened tasks get no predictions: VLSAM_ON_OPEN=prewarm" in notes


@pytest.mark.parametrize(
    ("version", "stored", "status", "said", "cure"),
    [
        ("v1", versions(v1=4, old=2), OK, "shows 4 predictions of v1", ""),
        ("VL-SAM", versions(), OK, "shows what 'VL-SAM' answers", ""),
        ("", versions(v1=4, old=2), FAILED, "none of its 6 predictions in Label All Tasks", "choose v1"),
        (None, versions(old=2), FAILED, "none of its 2 predictions", "choose old"),
        ("", versions(), NOTE, "asks no backend", "prelabel tasks: VL-SAM"),
        ("VL-SAM", versions(v1=4), NOTE, "what 'VL-SAM' answers, so the score column is empty", "choose v1"),
        (
            "gone",
            versions(v1=4),
            FAILED,
            "predictions of gone, and has none of it; there are v1 (4)",
            "choose v1",
        ),
        ("gone", versions(), FAILED, "predictions of gone, and has none of it.", "choose the model"),
        ("yolo", versions(yolo=9, v1=4), NOTE, "the 4 of v1 are not seen", "choose v1"),
        ("yolo", versions(yolo=9), OK, "shows 9 predictions of yolo", ""),
        ("v1", (404, {}), SKIPPED, "cannot be asked", ""),
        ("v1", (200, []), SKIPPED, "cannot be asked", ""),
    ],
)
def test_what_hides_predictions(
    studio: Studio, version: str | None, stored: Answer, status: str, said: str, cure: str
) -> None:
    studio.answers["GET /api/projects/3"] = (200, {**PETS, "model_version": version})
    studio.answers["GET /api/projects/3/model-versions/"] = stored
    found = [finding for finding in studio.findings() if finding.check == "predictions"]
    assert [finding.status for finding in found] == [status]
    assert said in found[0].message
    assert cure in found[0].cure


def test_predictions_that_are_switched_off(studio: Studio) -> None:
    """Label Studio empties the version where they are switched off."""
    studio.answers["GET /api/projects/3"] = (
        200,
        {**PETS, "model_version": "", "show_collab_predictions": False},
    )
    found = [finding for finding in studio.findings() if finding.check == "predictions"]
    assert [finding.status for finding in found] == [NOTE, FAILED]
    assert "no predictions at all" in found[0].message
    assert "turn on Settings, Annotation" in found[0].cure


BRUSH = '<BrushLabels name="mask" toName="image"><Label value="Cat"/></BrushLabels>'
LIST = '<Labels name="l" toName="image"><Label value="Cat"/></Labels>'
CLICK = """<KeyPointLabels name="click" toName="image" smart="true">
  <Label value="Cat"/><Label value="Dog"/>
</KeyPointLabels>"""


@pytest.mark.parametrize(
    ("controls", "said"),
    [
        (BRUSH, "nothing to click with"),
        (BRUSH.replace("<BrushLabels ", '<BrushLabels smart="false" ') + CLICK, "with Dog is not answered"),
        (BRUSH + CLICK, "Auto-Detect offers BrushLabels 'mask', too, whose smart tool sends nothing"),
    ],
)
def test_notes_on_the_config(studio: Studio, controls: str, said: str) -> None:
    config = f'<View><Image name="image" value="$image"/>{controls}</View>'
    studio.answers["GET /api/projects/3"] = (200, {"title": "Pets", "label_config": config})
    assert said in studio.find("config", status=NOTE).message


def test_a_project_without_tasks(studio: Studio) -> None:
    studio.answers["GET /api/tasks"] = (200, {"tasks": []})
    found = {finding.check: finding.status for finding in studio.findings()}
    assert found["image"] == found["trial"] == SKIPPED


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        ((200, {"task": {"id": 5}, "response": [{"result": [{}, {}]}]}), OK, "Task 5 got 2 results"),
        ((200, {"task": {"id": 5}, "response": [{"result": []}]}), NOTE, "Task 5 got no regions"),
        ((200, {"task": {"id": 5}, "response": []}), NOTE, "VLSAM_ON_OPEN=prewarm"),
        ((200, {"task": {"id": 5}, "response": [{}]}), FAILED, "could not annotate task 5"),
        ((500, {"detail": "ML backend did not return"}), FAILED, "got no prediction"),
    ],
)
@pytest.mark.parametrize("known", [{"result": [], "reason": "This model has no answer to the event."}, None])
def test_a_server_that_does_not_say_what_it_saw(
    studio: Studio, known: Any, answer: Answer, status: str, said: str
) -> None:
    studio.answers[TRY] = (200, {"data": known}) if known else (404, {})
    studio.answers["POST /api/ml/7/predict/test"] = answer
    (found,) = (finding for finding in studio.findings() if finding.check == "trial")
    assert found.status == status
    assert said in found.message
    assert "where `vlsam serve` was started" in studio.find("log").message


def many_tasks(studio: Studio, total: int) -> None:
    """Tasks whose ids are ten times their places."""
    data = {"image": data_url()}
    for page in range(1, total + 1):
        studio.answers[f"GET /api/tasks?project=3&page_size=1&page={page}&fields=all"] = (
            200, {"total": total, "tasks": [{"id": 10 * page, "data": data}]},
        )  # fmt: skip


@pytest.mark.parametrize(
    ("total", "tried"), [(1, [1]), (3, [1, 2, 3]), (5, [1, 2, 3, 4, 5]), (100, [1, 21, 41, 61, 81])]
)
def test_some_tasks_are_tried_all_over_the_project(studio: Studio, total: int, tried: list[int]) -> None:
    many_tasks(studio, total)
    findings = studio.findings()
    assert [f.message.partition(" got")[0] for f in findings if f.check == "trial"] == [
        f"Task {10 * place}" for place in tried
    ]


def test_a_task_that_fails_takes_no_other_along(studio: Studio) -> None:
    many_tasks(studio, 3)
    answers = iter(
        [{"data": TRIED}, {"errors": ["Read timed out"]}, {"data": {**TRIED, "reason": "Too big."}}]
    )
    studio.makers[TRY] = lambda: (200, next(answers))
    trials = [finding for finding in studio.findings() if finding.check == "trial"]
    assert [(finding.status, finding.message.partition(" got")[0]) for finding in trials] == [
        (OK, "Task 10"), (FAILED, "Label Studio"), (FAILED, "Task 30: Too big."),
    ]  # fmt: skip
    assert "task 20: ['Read timed out']" in trials[1].message


def test_f37_terms_without_a_label_are_named_with_the_line_to_add(studio: Studio) -> None:
    many_tasks(studio, 5)
    seen = iter(
        [["traffic cone", "cart"], ["traffic cone"], [], ["traffic cone", "traffic cone"], ['a "b" & c']]
    )

    def one_more() -> Answer:
        found = next(seen)
        return 200, {"data": {**TRIED, "result": [], "seen": found, "unlabelled": found}}

    studio.makers[TRY] = one_more
    trials = [finding for finding in studio.findings() if finding.check == "trial"]
    assert len(trials) == 6
    assert trials[1].message == "Task 20 got no regions: the model saw traffic cone."
    assert trials[2].message == "Task 30 got no regions: the model found no object."
    assert trials[5].status == NOTE
    assert trials[5].message == (
        'Seen without a label: traffic cone (3 of 5 tasks), cart (1 of 5 tasks), a "b" & c (1 of 5 tasks).'
    )
    assert trials[5].cure == (
        'add <Label value="Traffic cone"/>, or predicted_values="traffic cone" to the label that means it; '
        "and so for the others"
    )


@pytest.mark.parametrize(
    ("controls", "status", "said"),
    [
        (
            '<BrushLabels name="o" toName="image"><Label value="Cat"/></BrushLabels>',
            OK,
            "PNG, NumPy hold them",
        ),
        (
            '<PolygonLabels name="o" toName="image"><Label value="Cat"/></PolygonLabels>',
            OK,
            "COCO, YOLO hold",
        ),
        (
            '<RectangleLabels name="o" toName="image"><Label value="Cat"/></RectangleLabels>',
            OK,
            "COCO, YOLO, Pascal VOC hold them",
        ),
        (
            f'{LIST}<Rectangle name="o" toName="image"/>',
            OK,
            "COCO, YOLO, Pascal VOC hold them",
        ),
        (
            f'<BrushLabels name="o" toName="image"><Label value="Cat"/></BrushLabels>{CLICK}',
            NOTE,
            "exports to COCO, YOLO are empty or call everything `default` because of KeyPointLabels 'click'. "
            "Of BrushLabels 'o': Brush labels to COCO, PNG, NumPy hold them",
        ),
        (
            f'{LIST}<Brush name="o" toName="image"/>',
            NOTE,
            "to Brush labels to COCO are empty or call everything `default`. Of Brush 'o': PNG, NumPy hold",
        ),
        (
            f'{LIST}<Polygon name="o" toName="image"/>',
            NOTE,
            "Polygon 'o': only JSON holds them",
        ),
        (
            '<PolygonLabels name="o" toName="image"><Label value="Cat"/></PolygonLabels>' + CLICK,
            NOTE,
            "exports to COCO, YOLO are empty or call everything `default` because of KeyPointLabels 'click'. "
            "Of PolygonLabels 'o': only JSON holds them",
        ),
        (
            '<BrushLabels name="o" toName="image"><Label value="Cat"/></BrushLabels>'
            '<RectangleLabels name="box" toName="image" smart="true"><Label value="Cat"/></RectangleLabels>',
            NOTE,
            "exports to COCO, YOLO, Pascal VOC are empty",
        ),
        (
            '<BrushLabels name="o" toName="image"><Label value="Cat"/></BrushLabels>'
            '<Text name="said" value="VL-SAM says:"/><TextArea name="vlsam_status" toName="said"/>',
            NOTE,
            "JSON and CSV alone, for its tags show 2 values: $image, VL-SAM says:",
        ),
    ],
)
def test_exports_that_hold_the_regions_and_those_that_do_not(
    studio: Studio, controls: str, status: str, said: str
) -> None:
    config = f'<View><Image name="image" value="$image"/>{controls}</View>'
    studio.answers["GET /api/projects/3"] = (200, {**PETS, "label_config": config})
    found = [f for f in studio.findings() if f.check == "config" and "export" in f.message]
    assert [finding.status for finding in found] == [status]
    assert said in found[0].message
    assert ("vlsam export" in found[0].cure) == (status == NOTE)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_wrong_with_a_recommended_config(studio: Studio, kind: Kind) -> None:
    config = label_config(["Cat", "Dog"], kind)
    studio.answers["GET /api/projects/3"] = (200, {**PETS, "label_config": config})
    assert {f.status for f in studio.findings() if f.check == "config"} == {OK}


@pytest.mark.parametrize(
    "token",
    [
        REFRESH.removesuffix("s"),
        REFRESH.removesuffix(".s"),
        "eyJhbGciOiJIUzI1NiJ9",
        "eyJhbGciOiJIUzI1NiJ9.eyJ0b2",
        "eyJhbGciO",
    ],
)
def test_f38_a_token_without_its_last_part_is_no_legacy_token(studio: Studio, token: str) -> None:
    found = studio.find("token", key=token)
    assert (found.status, found.message) == (
        FAILED,
        "LABEL_STUDIO_API_KEY is a personal access token without its signature, which is the part after its "
        "second dot.",
    )
    assert studio.asked == ["GET /api/version/"]  # nobody is asked with half a token


@pytest.mark.parametrize(
    "token",
    [f'"{REFRESH}"', f"'{LEGACY}'", f"Bearer {REFRESH}", f"{REFRESH}\n.", f"{REFRESH}\u200b", "eyJh…"],
)
def test_f38_what_stands_around_a_token_is_told(studio: Studio, token: str) -> None:
    found = studio.find("token", key=token)
    assert (found.status, found.message) == (
        FAILED, "LABEL_STUDIO_API_KEY has quotes, spaces or other characters that stand in no token.",
    )  # fmt: skip
    assert studio.asked == ["GET /api/version/"]
    with pytest.raises(Denied, match="has quotes, spaces or the like"):
        images_at(studio.url).fetcher.ask("GET", "/", Server(studio.url, token), deadline=NEVER)


def test_f39_a_backend_that_died_is_named_with_what_becomes_of_it(studio: Studio) -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    change_backend(studio, state="DI", readable_state="Disconnected", url=dead)
    found = studio.find("backend")
    assert found.status == FAILED
    assert f"cannot use {dead}: Disconnected" in found.message
    assert "Retrieve predictions and clicks do nothing, and Label Studio says nothing of it" in found.message
    assert f"No vlsam answers at {dead}" in studio.find("server", status=FAILED).message
    assert "where `vlsam serve` was started" in studio.find("log").message


def test_backends_that_are_never_asked(studio: Studio) -> None:
    status, backends = studio.answers["GET /api/ml"]
    studio.answers["GET /api/ml"] = (status, [*backends, {"url": "http://other:9090"}])
    assert "never http://other:9090" in studio.find("backend", status=NOTE).message
    assert studio.find("backend", status=OK)
    studio.answers["GET /api/ml"] = (status, [{**backends[0], "state": "DI"}, *backends])
    assert f"never {studio.url}" in studio.find("backend", status=NOTE).message  # though it would answer
    assert studio.find("backend", status=FAILED)


def test_labels_that_each_task_brings(studio: Studio) -> None:
    config = """<View><Image name="image" value="$image"/>
      <BrushLabels name="mask" toName="image" value="$names"/>
      <KeyPointLabels name="click" toName="image" smart="true" value="$names"/></View>"""
    studio.answers["GET /api/projects/3"] = (200, {"title": "Pets", "label_config": config})
    said = [f.message for f in studio.findings() if f.check == "config"]
    assert said[1] == "0 labels: -, and each task brings its own."


def test_a_server_that_only_label_studio_reaches(studio: Studio) -> None:
    change_backend(studio, url="http://127.0.0.1:9")
    found = studio.find("server")
    assert found.status == SKIPPED
    assert "Label Studio reaches it" in found.message


def test_the_endpoint_that_lists(studio: Studio) -> None:
    assert all(finding.check != "listing" for finding in studio.findings())
    with listing() as lister:
        lists = DetectionSettings(listing_url=lister.url, listing_model=lister.model, listing_key=lister.key)
        settings = replace(allowed(studio.url), detection=lists)
        images = Images(settings.images, settings.label_studio)

        def look() -> Finding:
            findings = diagnose(Api(Server(studio.url, LEGACY), images), 3, images, settings)
            return next(finding for finding in findings if finding.check == "listing")

        assert look() == Finding("listing", OK, f"big-vlm answers at {lister.url}.")
        assert [size for _, size in lister.asked] == [(64, 64)]
        lister.status = 401
        assert look() == Finding(
            "listing",
            FAILED,
            f"the listing endpoint {lister.url} refuses the key (401).",
            "give it one that is valid there (VLSAM_LISTING_URL, _MODEL, _KEY)",
        )
    assert "cannot be reached" in look().message


def test_weights_that_are_not_here(tmp_path: Path) -> None:
    settings = settings_with(sam=str(tmp_path / "own.pth"), model_dir=tmp_path)
    images = Images(settings.images, settings.label_studio)
    api = Api(Server("http://127.0.0.1:9", LEGACY), images)
    found = list(diagnose(api, 3, images, settings, "http://127.0.0.1:9"))[-1]
    assert (found.check, found.status, found.cure) == (
        "model",
        FAILED,
        "run `vlsam download`, or correct VLSAM_VLM and VLSAM_SAM",
    )
    assert "own.pth: not on this machine" in found.message
    (tmp_path / "own.pth").write_bytes(b"")
    found = list(diagnose(api, 3, images, settings, "http://127.0.0.1:9"))[-1]
    assert found.status == OK


def test_what_label_studio_says_cannot_draw_on_the_terminal(studio: Studio) -> None:
    studio.answers["GET /api/projects/3"] = (200, {"title": "\x1b[2J\nok", "label_config": CONFIG})
    finding = replace(studio.find("project"), message="\x1b[2J\nok       token  all is well")
    assert str(finding) == "ok       project      [2J ok       token  all is well"


# The command


def test_the_command(
    studio: Studio, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", LEGACY)
    monkeypatch.setenv("PORT", str(free_port()))
    command = ["doctor", "--label-studio-url", studio.url, "--project", "3"]
    assert main(command) == 0
    assert "ok       image       The image of task 5" in capsys.readouterr().out
    studio.answers["GET /api/ml"] = (200, [])
    assert main(command) == 1
    assert "FAILED   backend     No ML backend" in capsys.readouterr().out
    assert main([*command, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [item["check"] for item in found if item["status"] == "failed"] == ["backend", "server"]
    assert LEGACY not in json.dumps(found)


def test_secrets_are_not_printed(
    studio: Studio, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", LEGACY)
    change_backend(studio, state="ER", error_message=f"at http://ann:hunter2@other/ with {LEGACY}")
    for more in ((), ("--json",)):
        main(["doctor", "--label-studio-url", studio.url, "--project", "3", *more])
        said = "".join(capsys.readouterr())
        assert "at http://ann:[hidden]@other/ with [hidden]" in said
        assert "hunter2" not in said


# What --fix sends


@pytest.fixture
def fix(
    studio: Studio, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, list[Any]]]:
    """Runs --fix --yes; what it sent, by call."""
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", LEGACY)
    monkeypatch.setenv("VLSAM_ALLOWED_HOSTS", "127.0.0.1")

    def run(*more: str) -> dict[str, list[Any]]:
        studio.asked.clear()
        studio.sent.clear()
        main(
            ["doctor", "--label-studio-url", studio.url, "--project", "3", "--fix", "--yes", "--json", *more]
        )
        assert isinstance(json.loads(capsys.readouterr().out), list)
        sent: dict[str, list[Any]] = {}
        for call, body in zip(studio.asked, studio.sent, strict=True):
            if call.partition(" ")[0] == "PATCH" or "title" in (body or {}):
                sent.setdefault(call, []).append(body)
        return sent

    return run


Fix = Callable[..., dict[str, list[Any]]]


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({"image": "/data/upload/3/x.png"}, "image"),
        ({"id": "7", "note": "by the door", "photo": "https://pets.example/7?w=1"}, "photo"),
        ({"scan": "s3://pets/7.tif", "image": "s3://pets/7.png"}, "image"),
        ({"my photo": "/data/upload/3/x.png"}, "image"),  # which no config can name
        ({"$undefined$": "/data/upload/3/x.png", "url": "https://pets.example"}, "image"),
        (None, "image"),
    ],
)
def test_the_recommended_config_shows_the_field_that_the_tasks_have(
    studio: Studio, fix: Fix, data: dict[str, str] | None, field: str
) -> None:
    studio.answers["GET /api/projects/3"] = (200, {**PETS, "label_config": "<View></View>"})
    studio.answers["GET /api/tasks"] = (200, {"tasks": [{"id": 5, "data": data}] if data else []})
    studio.answers["PATCH /api/projects/3"] = (200, {})
    sent = fix("--labels", "Cat,Dog", "--for", "boxes")
    assert sent == {
        "PATCH /api/projects/3": [{"label_config": label_config(["Cat", "Dog"], "boxes", Names(field=field))}]
    }


def test_what_people_chose_stays(studio: Studio, fix: Fix) -> None:
    """A config of theirs, whatever it lacks; a version that is shown; that no prediction is."""
    studio.answers["GET /api/projects/3"] = (200, {**PETS, "label_config": "<View><Image/></View>"})
    assert fix("--labels", "Cat") == {}
    hidden = {**PETS, "model_version": "", "show_collab_predictions": False}
    studio.answers["GET /api/projects/3"] = (200, hidden)
    assert fix() == {}
    studio.answers["GET /api/projects/3"] = (200, {**hidden, "show_collab_predictions": True})
    studio.answers["PATCH /api/projects/3"] = (200, {})
    assert fix() == {"PATCH /api/projects/3": [{"model_version": "v1"}]}


def test_a_backend_that_asks_for_a_password_is_connected_with_it(
    studio: Studio, fix: Fix, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BASIC_AUTH_USER", "ann")
    monkeypatch.setenv("BASIC_AUTH_PASS", "hunter2")
    login = {"auth_method": "BASIC_AUTH", "basic_auth_user": "ann", "basic_auth_pass": "hunter2"}
    change_backend(studio, is_interactive=False)
    ours = {"url": studio.url, "project": 3, "is_interactive": True}
    assert fix("--backend-url", studio.url) == {"PATCH /api/ml/7": [{**ours, **login}]}
    assert fix("--backend-url", "http://127.0.0.1:9") == {"PATCH /api/ml/7": [ours]}  # somebody else's
    studio.answers["GET /api/ml"] = (200, [])
    assert fix("--backend-url", studio.url) == {"POST /api/ml": [{**ours, "title": "VL-SAM", **login}]}


@pytest.mark.parametrize("more", [["--yes"], ["--labels", "Cat"], ["--fix", "--labels", "a\x00b"]])
def test_what_cannot_be_is_said_before_anything_is_asked(
    studio: Studio, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    assert main(["doctor", "--label-studio-url", studio.url, "--project", "3", *more]) == 2
    assert "--fix" in (said := capsys.readouterr().err) or "characters" in said
    assert studio.asked == []


def test_the_command_needs_an_address(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--project", "3"]) == 2
    assert "LABEL_STUDIO_URL" in capsys.readouterr().err


def test_its_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["doctor", "--help"])
    said = capsys.readouterr().out
    for word in ("LABEL_STUDIO_API_KEY", "Exit status 1", "docker compose exec", "--backend-url"):
        assert word in said


# The look after /setup


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_setup_answers_before_it_looks_and_the_log_says_what_was_found(
    studio: Studio, make_engine: Callable[..., Engine], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    studio.answers["GET /api/current-user/whoami"] = (401, {"detail": DISABLED})
    studio.wait = threading.Event()  # Label Studio does not answer before it has our answer
    client = create_app(engine=make_engine()).test_client()
    body = {"project": "3.1700000000", "schema": CONFIG, "hostname": studio.url, "access_token": LEGACY}
    assert client.post("/setup", json=body).json == {"model_version": "v1"}
    client.post("/setup", json=body)  # the next page load
    studio.wait.set()
    until(lambda: "Legacy tokens are disabled" in caplog.text)
    assert "Project 3, token: Legacy tokens are disabled" in caplog.text
    assert "To do: create a Personal Access Token" in caplog.text
    assert studio.asked.count("GET /api/version/") == 1
    assert LEGACY not in caplog.text


def test_setup_cannot_make_us_ask_machines_of_our_own_network(
    studio: Studio, make_engine: Callable[..., Engine], caplog: pytest.LogCaptureFixture
) -> None:
    client = create_app(engine=make_engine()).test_client()
    body = {"project": "3.1", "schema": CONFIG, "hostname": studio.url, "access_token": LEGACY}
    assert client.post("/setup", json=body, environ_base={"REMOTE_ADDR": "203.0.113.5"}).status_code == 200
    until(lambda: "is refused" in caplog.text)
    assert studio.asked == []


def test_a_project_is_looked_at_again_with_another_token_or_after_some_minutes(
    studio: Studio, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    watch = Watch(images_at(studio.url))

    def images() -> int:
        return caplog.text.count("The image of task 5 is here")

    watch.begin("3.1", Server(studio.url, LEGACY))
    until(lambda: images() == 1)
    watch.begin("3.1", Server(studio.url, "other"))
    until(lambda: images() == 2)
    watch.begin("3.1", Server(studio.url, "other"))
    watch.begin("no number", Server(studio.url, "other"))
    monkeypatch.setattr("backend.doctor.checks.WATCH_S", 0.0)
    watch.begin("3.1", Server(studio.url, "other"))
    until(lambda: images() == 3)


def test_few_projects_are_looked_at_at_once(studio: Studio) -> None:
    studio.wait = threading.Event()
    watch = Watch(images_at(studio.url))
    for project in range(20):
        watch.begin(f"{project}.1", Server(studio.url, LEGACY))
    until(lambda: len(studio.asked) == 4)
    studio.wait.set()
    until(lambda: watch._running == 0)
    assert studio.asked.count("GET /api/version/") == 4
