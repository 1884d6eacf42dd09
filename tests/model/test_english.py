import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.english import singular

PLURALS = """cats: cat, buses: bus, wine glasses: wine glass, dresses: dress, lenses: lens, octopuses:
octopus, cacti: cactus, mice: mouse, leaves: leaf, knives: knife, shelves: shelf, gloves: glove,
olives: olive, tomatoes: tomato, shoes: shoe, canoes: canoe, photos: photo, butterflies:
butterfly, cookies: cookie, ties: tie, horses: horse, houses: house, vases: vase, boxes: box,
axes: axe, benches: bench, brushes: brush, tvs: tv, children: child, firemen: fireman, women:
woman, people: person, hot dogs: hot dog, t-shirts: t-shirt"""

NO_PLURALS = """bus, glass, glasses, grass, dress, lens, octopus, cactus, tennis, series, gas, chess,
scissors, pants, yoga pants, sunglasses, sheep, fish, ramen, maus, autobús, kürbis, 狗, x"""


@pytest.mark.parametrize("pair", PLURALS.replace("\n", " ").split(", "))
def test_the_singular_of_a_plural(pair: str) -> None:
    plural, expected = pair.split(": ")
    assert singular(plural) == expected


@pytest.mark.parametrize("name", NO_PLURALS.replace("\n", " ").split(", "))
def test_what_is_no_plural_stays(name: str) -> None:
    assert singular(name) == name


@given(st.text("abcdefghinorsuvxyz ", max_size=30))
def test_a_singular_has_no_other_singular(name: str) -> None:
    assert singular(singular(name)) == singular(name)
