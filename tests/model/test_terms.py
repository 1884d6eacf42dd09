import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.terms import MAX_LENGTH, MAX_TERMS, parse


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (" dog, cat, tree.", ["dog", "cat", "tree"]),
        ("A dog and two cats", ["dog", "cats"]),
        ("- dog\n- pickup truck\n- cat", ["dog", "pickup truck", "cat"]),
        ("1. Dog\n2. Cat\n10) Bus", ["dog", "cat", "bus"]),
        ('["dog", "traffic cone"]', ["dog", "traffic cone"]),
        ("**Dog**, `cat`; <b>", ["dog", "cat", "b"]),
        ("dog, Dog, DOG", ["dog"]),
        ("狗、猫，树", ["狗", "猫", "树"]),
        ("nothing.", []),
        ("", []),
    ],
)
def test_terms_of_an_answer(answer: str, expected: list[str]) -> None:
    assert [term.text for term in parse(answer)] == expected


def test_a_term_knows_the_characters_that_spell_it() -> None:
    answer = "There is a Red Car, and a dog."
    assert [answer[t.start : t.end] for t in parse(answer)] == ["Red Car", "dog"]


def test_an_endless_answer_is_cut() -> None:
    assert len(parse(", ".join(f"thing{i}" for i in range(10_000)))) == MAX_TERMS


@given(st.text(max_size=300))
def test_any_text_gives_terms_within_the_limits(answer: str) -> None:
    for term in parse(answer):
        assert 0 < len(term.text) <= MAX_LENGTH + 10  # lower-casing may lengthen
        assert answer[term.start : term.end].lower() == term.text
