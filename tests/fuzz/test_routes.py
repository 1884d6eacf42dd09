"""Every route, by what the server itself says of it in /openapi.json."""

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import pytest
import schemathesis
from hypothesis import settings
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from backend.answers.resources import PROCESS
from backend.web.openapi import DESCRIPTION
from tests.support.detections import detection, disc
from tests.support.stand_in import StandIn
from tests.support.whole_server import STATUSES, WholeServer, counted, no_errors


@cache
def _server() -> WholeServer:
    return WholeServer(
        StandIn([detection("cat", disc(20, 30, 12))]), basic_auth_user="u", basic_auth_pass="p"
    )


def _app(environ: Any, start_response: Any) -> Iterable[bytes]:
    return _server().app(environ, start_response)


@pytest.fixture(scope="module", autouse=True)
def clean() -> Iterator[None]:
    yield
    PROCESS.install(None)


schema = schemathesis.openapi.from_dict(DESCRIPTION)
schema.app = _app


@schema.parametrize()
@settings(max_examples=settings().max_examples // 4)  # beside those that it lists, and slow to make
def test_every_route_answers_as_described(case: schemathesis.Case[Any]) -> None:
    """Less two of the checks.

    What is odd in a body is not refused: Label Studio would show nobody the refusal, so a bad task gets {}
    and a bad click a reason. And a text that is a labeling config cannot be described.
    """
    counted("routes")
    with no_errors():
        response = case.call_and_validate(
            excluded_checks=[negative_data_rejection, positive_data_acceptance],
            headers={"Authorization": "Basic dTpw"},
        )
    STATUSES[response.status_code] += 1
    assert "Traceback" not in response.text
