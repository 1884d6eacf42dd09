"""Which changes `vlsam doctor --fix` makes, and whom it asks; tests/e2e/test_doctor.py makes them."""

import io
import os
import pty
import sys
from collections.abc import Iterator
from itertools import islice

import pytest

from backend.doctor.finding import FAILED, NOTE, OK, Finding
from backend.doctor.repairs import Change, consent, made
from backend.labelstudio_api.client import StudioError


def change(log: list[str], name: str = "one", *, fails: bool = False) -> Change:
    def make() -> None:
        if fails:
            raise StudioError(f"{name} is refused.", "do it by hand")
        log.append(name)

    return Change(f"Do {name}?", f"{name} is done.", make)


def test_what_is_agreed_to_is_made_and_the_rest_is_told() -> None:
    log: list[str] = []
    changes = [change(log, name, fails=name == "four") for name in ("one", "two", "three", "four")]
    answers = iter([True, False, None, True])
    findings = [*made(changes, lambda change: next(answers))]
    assert log == ["one"]
    assert [(finding.status, finding.message) for finding in findings] == [
        (OK, "one is done."),
        (NOTE, "Not done: Do two?"),
        (NOTE, "Not done, since there is no terminal to ask at: Do three?"),
        (FAILED, "four is refused."),
    ]
    assert "--yes" in findings[2].cure


def test_where_nothing_can_be_set_that_is_told() -> None:
    assert [*made([], lambda change: True)] == [
        Finding("fix", NOTE, "There is nothing that can be set from here.")
    ]


def test_trouble_on_the_way_takes_nothing_along() -> None:
    log: list[str] = []

    def changes() -> Iterator[Change]:
        yield change(log)
        raise StudioError("Label Studio is gone.", "start it")

    done, failed = made(changes(), lambda change: True)
    assert (done.status, failed.status, failed.message) == (OK, FAILED, "Label Studio is gone.")
    assert log == ["one"]
    (failed,) = made(islice(changes(), 1, None), lambda change: True)
    assert failed.message == "Label Studio is gone."  # and not that there is nothing to set


@pytest.mark.parametrize(
    ("typed", "agreed"),
    [("y", True), ("YES", True), ("n", False), ("", False), ("yo", False), ("\x04", False)],
)
def test_at_a_terminal_each_change_is_asked_about(
    typed: str, agreed: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "r+b", buffering=0) as terminal, os.fdopen(theirs, "r", encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        terminal.write(f"{typed}\n".encode())
        assert consent(Change("Do\x1b[2J it?", "", lambda: None)) is agreed
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "Do\\x1b[2J it? [y/N] ")


@pytest.mark.parametrize("stdin", [io.StringIO("y\n"), None], ids=["a pipe", "closed"])
def test_without_a_terminal_nobody_is_asked(
    monkeypatch: pytest.MonkeyPatch, stdin: io.StringIO | None
) -> None:
    monkeypatch.setattr(sys, "stdin", stdin)
    assert consent(change([])) is None
