import pytest

from backend.answers.superseded_clicks import Click

PLACE = ("http://studio", "1.1", "7", "kp")


def of(*prompts: str, place: tuple[str, ...] = PLACE, arrived: float = 1.0) -> Click:
    return Click(place, frozenset(prompts), arrived)


@pytest.mark.parametrize(
    ("older", "newer", "superseded"),
    [
        (of("a"), of("a", "b", arrived=2), True),
        (of("a", "b"), of("a", "b", "c", "d", arrived=2), True),
        (of("a"), of("a", arrived=2), False),  # sent again: the first answer is as good
        (of("a"), of("b", arrived=2), False),  # somebody else's
        (of("a", "b"), of("b", "c", arrived=2), False),
        (of("a", "b"), of("a", arrived=2), False),  # a prompt was deleted
        (of("a"), of("a", "b", arrived=0), False),  # b was deleted, and it is `older` that is newer
        (of(), of("a", arrived=2), False),
        (of("a"), of(arrived=2), False),
        *[
            (of("a"), of("a", "b", place=(*PLACE[:n], "another", *PLACE[n + 1 :]), arrived=2), False)
            for n in range(4)
        ],
    ],
)
def test_which_click_supersedes_another(older: Click, newer: Click, superseded: bool) -> None:
    assert newer.supersedes(older) == superseded
