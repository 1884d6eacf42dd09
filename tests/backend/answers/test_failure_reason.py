import logging

import pytest
import torch

from backend.answers.failure_reason import MAX_REASON, why
from backend.labelstudio.labeling_config import TaskError
from model.types import ImageError, ImageRefused, VLSAMError


@pytest.mark.parametrize("kind", [ImageError, TaskError, VLSAMError, ImageRefused])
def test_what_we_raise_ourselves_is_told_as_it_is(
    kind: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    assert why(kind("The file\n is  empty."), "a.png") == "The file is empty."
    assert not caplog.records


def test_f35_a_surprise_is_one_line_with_its_kind_and_the_log_has_the_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.ERROR):
        assert why(RuntimeError("odd\nsizes"), "a.png\x1b") == "RuntimeError: odd sizes"
        assert why(KeyError(), "b.png") == "KeyError"
    assert [record.getMessage() for record in caplog.records] == [
        "'a.png\\x1b' failed.",
        "'b.png' failed.",
    ]
    assert all(record.exc_info for record in caplog.records)


def test_memory_that_ran_out_is_said_and_nothing_is_endless() -> None:
    reason = why(torch.OutOfMemoryError("CUDA out of memory. " + "x" * 5000), "a.png")
    assert reason.startswith(
        "There is too little memory for this image (OutOfMemoryError: CUDA out of memory."
    )
    assert len(reason) == MAX_REASON


def test_secrets_of_addresses_are_left_out() -> None:
    assert "s3cr3t" not in why(ImageError("https://host/a.png?token=s3cr3t is not there."), "a.png")
