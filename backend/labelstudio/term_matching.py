"""Match the terms of the model with the names of labels: by spelling, case, number, then synonym."""

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Generic, TypeVar

from model.vlm.english import singulars, synonyms

T = TypeVar("T")
Forms = Callable[[str], set[str]]  # all forms of a name: names that share a form match


class NameIndex(Generic[T]):
    """An index of values by their names, for fast lookup among thousands of names."""

    def __init__(self, named: Iterable[tuple[T, tuple[str, ...]]], *rules: Forms) -> None:
        self._named = list(named)
        self._rules = [(forms_of, self._places(forms_of)) for forms_of in rules]

    def _places(self, forms_of: Forms) -> dict[str, int]:
        """Map each form of a name to the index of the first value with it."""
        places: dict[str, int] = {}
        for place, (_, names) in enumerate(self._named):
            for name in names:
                for form in forms_of(name):
                    places.setdefault(form, place)
        return places

    def find(self, term: str) -> T | None:
        """Return the first value with a name that a term matches, by the first rule that matches, or None."""
        for forms_of, places in self._rules:
            matches = [places[form] for form in forms_of(term) if form in places]
            if matches:
                return self._named[min(matches)][0]
        return None


def exact(name: str) -> set[str]:
    return {name.strip()}


def fold(name: str) -> set[str]:
    return {" ".join(re.split(r"[\s_-]+", name.strip().casefold()))}


@lru_cache(maxsize=8192)
def singular_forms(name: str) -> set[str]:
    """Return a name and its possible singulars, all normalized by `fold`."""
    (folded,) = fold(name)
    return {form.strip() for form in (folded, *singulars(folded))}


@lru_cache(maxsize=8192)
def synonym_forms(name: str) -> set[str]:
    return {synonym for form in singular_forms(name) for synonym in synonyms(form)}
