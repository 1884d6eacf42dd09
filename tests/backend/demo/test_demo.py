import shlex
from pathlib import Path

import pytest

from backend.commands.cli import main
from backend.demo import __main__, instructions, processes
from backend.demo.__main__ import ready
from backend.demo.processes import Account, ServiceError

OWNER = Account("demo@example.com", "a-password", "0123" * 10)


def test_what_is_printed_says_how_to_correct_and_export_where_the_log_is_and_what_looks_for_a_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    backend = processes.start("The backend", ["true"], "http://127.0.0.1:1", tmp_path / "backend.log", {})
    backend.stop()
    printed = ready("http://127.0.0.1:2", 7, OWNER, backend)
    assert instructions.TEXT in printed
    assert f"logs to {backend.log}" in printed

    lines = [shlex.split(line) for line in printed.splitlines() if line.startswith("  ")]
    (settings,) = (line[1:] for line in lines if line[0] == "export")
    for setting in settings:
        monkeypatch.setenv(*setting.split("=", 1))
    export, doctor = (line for line in lines if line[0] == str(processes.VLSAM))
    assert Path(export[0]).exists()
    assert main(doctor[1:]) == 1
    assert "http://127.0.0.1:2/api/version/ cannot be reached" in capsys.readouterr().out
    monkeypatch.delenv("LABEL_STUDIO_API_KEY")  # else it would wait for Label Studio
    assert main(export[1:]) == 2
    assert "needs LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY" in capsys.readouterr().err


def test_a_failure_is_told_line_by_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise ServiceError("The backend ended by itself.\nThe end of its log:\n  | \x1b[31mred")

    monkeypatch.setattr(__main__, "run", fail)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    assert __main__.main([]) == 1
    told = capsys.readouterr().err.splitlines()
    assert told[:3] == ["demo: The backend ended by itself.", "The end of its log:", "  | \\x1b[31mred"]
