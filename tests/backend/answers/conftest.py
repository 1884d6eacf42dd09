import pytest

from tests.support.detections import detection, disc
from tests.support.stand_in import StandIn


@pytest.fixture
def with_unicorn(stand_in: StandIn) -> StandIn:
    stand_in.found = [detection("cat", disc(20, 30, 12)), detection("unicorn", disc(40, 30, 5))]
    return stand_in
