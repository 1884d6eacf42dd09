"""`vlsam doctor`, and the requests of --fix."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from backend.commands.cli import main
from backend.labelstudio.recommended_configs import Names, label_config
from tests.support.doctor_studio import (
    LEGACY,
    PETS,
    Studio,
    change_backend,
    running,
)
from tests.support.processes import free_port


@pytest.fixture
def studio() -> Iterator[Studio]:
    with running() as studio:
        yield studio


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
