import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.vlm.english import SYNONYMS, singular, synonyms

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


def test_synonyms_are_names_of_one_thing_both_ways() -> None:
    assert "automobile" in synonyms("car")
    assert synonyms("couch") == synonyms("sofa") >= {"sofa", "couch"}
    assert {"tv", "television"} <= synonyms("tvmonitor")
    assert synonyms("dog") == {"dog"}


def test_no_name_has_two_meanings() -> None:
    groups = set(SYNONYMS.values())
    assert sum(len(group) for group in groups) == len(SYNONYMS)
    assert all(len(group) > 1 for group in groups)


@pytest.mark.parametrize("name", sorted(SYNONYMS))
def test_every_synonym_is_written_as_terms_are(name: str) -> None:
    assert singular(name) == name
