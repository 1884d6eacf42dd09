from collections.abc import Iterator

import pytest

from tests.support.doctor_studio import Studio, running


@pytest.fixture
def studio() -> Iterator[Studio]:
    with running() as studio:
        yield studio
