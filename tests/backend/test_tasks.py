from typing import Any

import pytest

from backend import tasks


@pytest.mark.parametrize("given", [7, "7", "a" * tasks.MAX_ID])
def test_the_id_of_a_task(given: int | str) -> None:
    assert tasks.number({"id": given}) == given


@pytest.mark.parametrize("task", [{}, {"id": None}, {"id": True}, {"id": [7]}, {"id": "a" * 101}, 7, None])
def test_what_label_studio_would_not_give_is_no_id(task: Any) -> None:
    """An id is in keys, addresses and the log, several times over."""
    assert tasks.number(task) is None
