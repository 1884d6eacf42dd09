import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.answers.resources import Resources
from backend.runtime.job_queue import CLICK
from backend.settings import Settings
from backend.telemetry import logs
from tests.support.paths import ROOT
from tests.support.settings import settings_with
from tests.support.stand_in import StandIn
from tests.support.waiting import soon

JWT = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJ0b2tlbl90eXBlIjoiYWNjZXNzIn0.sIgNaTuRe-_09"


@pytest.mark.parametrize(
    "line",
    [
        "Authorization: Token {secret}",
        "{{'Authorization': 'Bearer {secret}', 'Accept': '*/*'}}",
        "authorization=Basic {secret}",
        "GET /data?X-Amz-Credential=a%2Fb&X-Amz-Signature={secret}&X-Amz-Expires=300",
        "https://account.blob/container/dog.png?sv=2024&sig={secret}",
        '{{"access_token": "{secret}", "project": "1.1"}}',
        "{{'refresh_token': '{secret}'}}",
        "Server(url='http://one', token='{secret}')",
        "https://joe:{secret}@host/dog.png",
        "https://{secret}@host/list.csv",
        "https://host/list.csv?private_token={secret}",
        "https://host/list.csv?a=1&apikey={secret}",
        "https://host/list.csv?AWSAccessKeyId=a&Signature={secret}&Expires=1",
        "https://host/list.csv?auth={secret}",
        "s3://key:{secret}@bucket/list.csv",
    ],
)
def test_f29_secrets_are_hidden_wherever_they_stand(line: str) -> None:
    secret = "d0c5a1f0e7b34c1b9d2e"
    shown = logs.redacted(line.format(secret=secret))
    assert secret not in shown
    assert logs.HIDDEN in shown


def test_f29_a_token_of_label_studio_is_known_by_its_form() -> None:
    assert JWT not in logs.redacted(f"refused: {JWT}")


@pytest.mark.parametrize(
    "line",
    [
        "Task 7: 3 detections, 3 regions, 0 terms without a label",
        "token: Legacy tokens are disabled in this Label Studio, as they are by default.",
        "LABEL_STUDIO_API_KEY is not used without LABEL_STUDIO_URL: it is sent to no other address.",
        "Loaded vlsam-builtin-0123456789 in 1.2 s.",
        "http://studio:8080/data/upload/1/dog.png?page=2",
        "abfs://container@account/photos/",
        "http://host/list.csv?tokenizer=a&keyboard=b&monkey=c&author=d",
    ],
)
def test_other_lines_stay_as_they_are(line: str) -> None:
    assert logs.redacted(line) == line


def test_an_address_that_was_signed_again_is_the_same_without_its_secrets() -> None:
    signed = "https://host/list.csv?set={}&X-Amz-Date={}&X-Amz-Expires=300&X-Amz-Signature={}"
    once, again = logs.unsigned(signed.format(7, 1, "abcd")), logs.unsigned(signed.format(7, 2, "efgh"))
    assert once == again != logs.unsigned(signed.format(8, 1, "abcd"))
    assert "abcd" not in once
    assert logs.unsigned("https://host/list.csv?expires=7") == "https://host/list.csv?expires=7"


@given(st.text(max_size=200))
def test_any_text_can_be_logged(text: str) -> None:
    assert isinstance(logs.redacted(text, ("sesame",)), str)


HOSTILE = "cup\n2026-01-01 ERROR all is lost\r\x1b[2J\x9b31m\u202e\u2028\ud800 Ölbild 猫"


def entry(message: str, *args: Any, error: BaseException | None = None) -> str:
    info = (type(error), error, error.__traceback__) if error else None
    record = logging.LogRecord("x", logging.ERROR, "f", 1, message, args, info)
    record.exc_text = f"Traceback by another handler: {HOSTILE}"  # which ours must not take over
    return logs.Formatter().format(record)


def test_an_entry_is_one_line_that_a_terminal_shows_and_does_not_obey() -> None:
    (line,) = entry("Task %s failed: %s", HOSTILE, "no image").split("\n")[:1]
    assert line.isprintable()
    assert (
        r"cup\n2026-01-01 ERROR all is lost\r\x1b[2J\x9b31m\u202e\u2028\ud800 Ölbild 猫 failed: no image"
        in line
    )


def test_a_traceback_is_printable_and_begins_no_line_with_text_from_outside() -> None:
    def fail() -> None:
        try:
            raise KeyError(HOSTILE)
        except KeyError:
            raise ValueError(HOSTILE) from None

    try:
        fail()
    except ValueError as error:
        error.add_note(HOSTILE)
        first, *rest = entry("It failed.", error=error).split("\n")
    assert first.endswith("It failed.")
    assert rest[0] == "  Traceback (most recent call last):"
    assert all(line.isprintable() and line.startswith("  ") for line in rest)
    assert "  ValueError: cup" in rest
    assert "another handler" not in "".join(rest)


@pytest.mark.parametrize("command", ["log.warning('saw %s', HOSTILE)", "raise RuntimeError(HOSTILE)"])
def test_a_command_that_is_no_server_logs_and_fails_in_the_same_way(command: str) -> None:
    code = f"import logging; from backend.telemetry import logs; logs.of_command(); HOSTILE = {HOSTILE!r}; "
    code += f"log = logging.getLogger('x'); {command}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT, check=False)
    lines = done.stderr.decode().split("\n")
    assert any("cup" in line for line in lines)
    assert all(line.isprintable() and not line.startswith("2026") for line in lines)


def place(**options: Any) -> str:
    """Return `logs.place()` of a process with these options, such as its stderr."""
    code = "import sys; from backend.telemetry import logs; sys.stdout.write(logs.place())"
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT, check=True, **options
    )
    return str(done.stdout, "utf-8")


def test_where_the_log_is(tmp_path: Path) -> None:
    with (tmp_path / "server.log").open("w") as log:
        assert place(stderr=log) == str(tmp_path / "server.log")
        environment = {**os.environ, "JOURNAL_STREAM": ""}
        assert "`vlsam serve`" in place(stderr=subprocess.DEVNULL, env=environment)
        assert "journalctl" in place(stderr=subprocess.PIPE, env={**environment, "JOURNAL_STREAM": "8:1"})
        assert place(stderr=log, env={**environment, "JOURNAL_STREAM": "8:1"}) == str(tmp_path / "server.log")


@pytest.mark.parametrize("level", ["DEBUG", "INFO", "WARNING", "ERROR"])
def test_f29_what_the_settings_keep_secret_is_in_no_line_and_no_traceback(level: str) -> None:
    settings = settings_with(
        label_studio_url="http://studio",
        label_studio_api_key="sesame",
        basic_auth_user="joe",
        basic_auth_pass="open up",
        webhook_secret="psst!",
    )
    assert set(settings.secrets) == {"sesame", "open up", "psst!"}
    assert not any(secret in repr(settings) for secret in settings.secrets)
    try:
        raise ValueError("a library says: sesame, open up, psst!")
    except ValueError as error:
        info = (type(error), error, error.__traceback__)
    record = logging.LogRecord("x", getattr(logging, level), "f", 1, "with %s", ("sesame",), info)
    text = logs.Formatter(settings.secrets).format(record)
    assert "Traceback" in text
    assert not any(secret in text for secret in settings.secrets)


@pytest.mark.parametrize(
    ("given", "kept"),
    [("abc-1.2_3", True), (None, False), ("", False), ("a\nb", False), ("x" * 65, False), ("<b>", False)],
)
def test_a_request_keeps_the_name_that_its_sender_gave_it_if_it_is_one(given: str | None, kept: bool) -> None:
    name = logs.begin_request(given)
    assert (name == given) == kept
    assert name.isascii()
    assert len(name) >= 5


def test_what_the_models_log_names_the_request_that_they_work_for(stand_in: StandIn) -> None:
    resources = Resources(lambda: stand_in, Settings(), version="v1").start()
    seen: dict[str, str] = {}

    def ask(name: str) -> None:
        logs.begin_request(name)
        seen[name] = resources.queue.run(lambda model: _line(), priority=CLICK, deadline=soon())

    threads = [threading.Thread(target=ask, args=(f"request-{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 8
    assert all(f"[{name}]" in line for name, line in seen.items())


def _line() -> str:
    return logs.Formatter().format(logging.LogRecord("x", logging.INFO, "f", 1, "done", (), None))
