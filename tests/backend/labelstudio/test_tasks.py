import logging
from typing import Any

import pytest

from backend.labelstudio import tasks
from backend.labelstudio.tasks import Entry, Task


@pytest.mark.parametrize("given", [7, "7", "a" * tasks.MAX_ID])
def test_the_id_of_a_task(given: int | str) -> None:
    assert Task.parse({"id": given}).id == given


@pytest.mark.parametrize("task", [{}, {"id": None}, {"id": True}, {"id": [7]}, {"id": "a" * 101}, 7, None])
def test_what_label_studio_would_not_give_is_no_id(task: Any) -> None:
    """Keys, addresses and the log repeat an id, so it must be short."""
    assert Task.parse(task).id is None


def test_what_is_left_out_of_a_long_list_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    items = [{"id": f"r{number}"} for number in range(tasks.MAX_REGIONS + 2)]
    with caplog.at_level(logging.WARNING):
        assert Entry.parse({"result": items[2:]}).ids == {item["id"] for item in items[2:]}
        assert not caplog.records
        assert Entry.parse({"result": items}).ids == {item["id"] for item in items[2:]}
        assert len(tasks.entries([{}] * (tasks.MAX_ENTRIES + 1))) == tasks.MAX_ENTRIES
    assert [record.getMessage() for record in caplog.records] == [
        "Of 1002 results only the last 1000 are looked at.",
        "Of 1001 drafts, annotations or predictions only the last 1000 are looked at.",
    ]
