"""The checks of `vlsam doctor`, against answers as measured with Label Studio 1.23.2."""

from dataclasses import replace
from pathlib import Path

import pytest

from backend.doctor.checks import access, diagnose
from backend.doctor.finding import FAILED, NOTE, OK, SKIPPED, Finding
from backend.images.errors import Denied
from backend.images.fetch import Fetcher
from backend.images.http_url import HttpUrl
from backend.images.pinned_http import Request
from backend.images.studio_urls import Server
from backend.labelstudio_api.client import StudioClient
from backend.settings import DetectionSettings
from model.deadline import NEVER
from tests.support.doctor_studio import (
    ACCESS,
    DISABLED,
    GOOD,
    LEGACY,
    PETS,
    PRIVATE,
    REFRESH,
    TRIED,
    TRY,
    Answer,
    Studio,
    allowed,
    change_backend,
    images_at,
    one_task,
    versions,
)
from tests.support.labeling_configs import CONFIG
from tests.support.processes import free_port
from tests.support.settings import settings_with
from tests.support.vlm_endpoint import listing


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


def test_no_label_studio() -> None:
    images = images_at("http://127.0.0.1:9")
    (found,) = access(StudioClient(Server("http://127.0.0.1:9", LEGACY), images), 3)
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
        ("v1", (404, {}), SKIPPED, "cannot be read", ""),
        ("v1", (200, []), SKIPPED, "cannot be read", ""),
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


def test_a_project_without_tasks(studio: Studio) -> None:
    studio.answers["GET /api/tasks"] = (200, {"tasks": []})
    found = {finding.check: finding.status for finding in studio.findings()}
    assert found["image"] == found["trial"] == SKIPPED


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
        FAILED, "LABEL_STUDIO_API_KEY has quotes, spaces or other characters that no token has.",
    )  # fmt: skip
    assert studio.asked == ["GET /api/version/"]
    request = Request("GET", HttpUrl.parse(studio.url), Server(studio.url, token), NEVER)
    with pytest.raises(Denied, match="has quotes, spaces or other invalid"):
        images_at(studio.url).ask(request)


def test_f39_a_backend_that_died_is_named_with_what_becomes_of_it(studio: Studio) -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    change_backend(studio, state="DI", readable_state="Disconnected", url=dead)
    found = studio.find("backend")
    assert found.status == FAILED
    assert f"cannot use {dead}: Disconnected" in found.message
    assert "Retrieve predictions and clicks do nothing, and Label Studio shows no error" in found.message
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
        images = Fetcher(settings.images, settings.label_studio)

        def look() -> Finding:
            findings = diagnose(StudioClient(Server(studio.url, LEGACY), images), 3, settings, None, 5)
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
    images = Fetcher(settings.images, settings.label_studio)
    api = StudioClient(Server("http://127.0.0.1:9", LEGACY), images)
    found = list(diagnose(api, 3, settings, "http://127.0.0.1:9", 5))[-1]
    assert (found.check, found.status, found.cure) == (
        "model",
        FAILED,
        "run `vlsam download`, or correct VLSAM_VLM and VLSAM_SAM",
    )
    assert "own.pth: not on this machine" in found.message
    (tmp_path / "own.pth").write_bytes(b"")
    found = list(diagnose(api, 3, settings, "http://127.0.0.1:9", 5))[-1]
    assert found.status == OK


def test_what_label_studio_says_cannot_draw_on_the_terminal(studio: Studio) -> None:
    studio.answers["GET /api/projects/3"] = (200, {"title": "\x1b[2J\nok", "label_config": CONFIG})
    finding = replace(studio.find("project"), message="\x1b[2J\nok       token  all is well")
    assert str(finding) == "ok       project      [2J ok       token  all is well"
