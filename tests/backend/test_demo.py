import shlex
from pathlib import Path

import pytest

from backend import instructions, services
from backend.cli import main
from backend.demo import ready
from backend.services import Account

OWNER = Account("demo@example.com", "a-password", "0123" * 10)


def test_what_is_printed_says_how_to_correct_where_the_log_is_and_what_looks_for_a_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    backend = services.start("The backend", ["true"], "http://127.0.0.1:1", tmp_path / "backend.log", {})
    backend.stop()
    printed = ready("http://127.0.0.1:2", 7, OWNER, backend)
    assert instructions.TEXT in printed
    assert f"logs to {backend.log}" in printed

    *settings, command, name, option, project = shlex.split(printed.splitlines()[-1])
    assert (name, option, project) == ("doctor", "--project", "7")
    assert Path(command).exists()
    for setting in settings:
        monkeypatch.setenv(*setting.split("=", 1))
    assert main([name, option, project]) == 1
    assert "http://127.0.0.1:2/api/version/ cannot be reached" in capsys.readouterr().out
