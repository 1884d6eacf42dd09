"""Colours of labels that stay apart."""

import numpy as np
import pytest
from PIL import ImageColor

from backend.labelstudio.label_colours import ciede2000, colours, lab_of

# Sharma, Wu, Dalal 2005, table 1: the pairs that other implementations got wrong.
PUBLISHED = [
    ((50.0, 2.6772, -79.7751), (50.0, 0.0, -82.7485), 2.0425),
    ((50.0, -1.3802, -84.2814), (50.0, 0.0, -82.7485), 1.0),
    ((50.0, 0.0, 0.0), (50.0, -1.0, 2.0), 2.3669),
    ((50.0, 2.49, -0.001), (50.0, -2.49, 0.0011), 7.2195),
    ((50.0, 2.5, 0.0), (73.0, 25.0, -18.0), 27.1492),
    ((50.0, 2.5, 0.0), (58.0, 24.0, 15.0), 19.4535),
    ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
    ((22.7233, 20.0904, -46.694), (23.0331, 14.973, -42.5619), 2.0373),
    ((90.8027, -2.0831, 1.441), (91.1528, -1.6435, 0.0447), 1.4441),
    ((2.0776, 0.0795, -1.135), (0.9033, -0.0636, -0.5514), 0.9082),
]


@pytest.mark.parametrize(("one", "other", "published"), PUBLISHED)
def test_the_distance_is_the_published_one(
    one: tuple[float, ...], other: tuple[float, ...], published: float
) -> None:
    first, second = np.array(one), np.array(other)
    assert ciede2000(first, second) == pytest.approx(published, abs=1e-4)
    assert ciede2000(second, first) == pytest.approx(published, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "least"), [(2, 60), (5, 44), (10, 28), (20, 19), (40, 14), (80, 10), (200, 6)]
)
def test_colours_stay_apart(count: int, least: float) -> None:
    found = colours(count)
    rgb = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in found])
    lab = lab_of(rgb)
    apart = ciede2000(lab[:, None], lab[None, :])
    assert apart[np.triu_indices(count, 1)].min() > least


def test_a_label_more_changes_no_colour() -> None:
    assert colours(41)[:40] == colours(40) == colours(300)[:40]
    assert colours(0) == ()


def test_what_is_taken_is_kept_away_from() -> None:
    first, second, third = colours(3)
    taken = (first, third, "orange", "rgb(0, 0, 255)", "no colour")
    assert first not in colours(5, taken)
    assert third not in colours(5, taken)
    given = np.array([ImageColor.getrgb(colour) for colour in [*taken[:4], *colours(5, taken)]])
    apart = ciede2000(lab_of(given)[:, None], lab_of(given)[None, :])
    assert apart[4:][apart[4:] > 0].min() > 20
    assert colours(3, ("no colour", "")) == (first, second, third)
