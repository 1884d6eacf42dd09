"""Answer text -> terms: the noun phrases that a VLM listed, with the characters that spell them."""

import re
from dataclasses import dataclass

MAX_TERMS = 50
MAX_LENGTH = 60
MAX_WORDS = 4

# What separates one thing from the next: list marks, commas of several scripts, line ends, "and".
_SEPARATOR = re.compile(r"[,;:.!?|/\n\r\t，、；。・()\[\]{}\"*`#<>]+|\b(?:and|und|et|y|with|as well as)\b")
_LEADING = re.compile(
    r"^(?:[\s\-–•']|\d+[).]?\s|(?:a|an|the|some|several|many|one|two|three|four|five|six|seven|eight|"
    r"nine|ten|there|is|are|i|see|image|picture|photo|scene|shows?|contains?|of|in|it|this|that)\b)+",
    re.IGNORECASE,
)
_EMPTY = {
    "nothing", "none", "no", "object", "objects", "image", "picture", "photo", "scene", "background",
    "foreground", "sorry", "yes",
}  # fmt: skip


@dataclass(frozen=True)
class Term:
    text: str  # lower case
    start: int  # characters [start, end) of the answer
    end: int


def parse(answer: str) -> list[Term]:
    """The terms of an answer in their order, each once, at most MAX_TERMS of MAX_LENGTH characters.

    Made for lists ("dog, cat.", bullets, numbers, quoted JSON) and plain sentences of them. Longer
    phrases are no names and are left out.
    """
    found: dict[str, Term] = {}
    start = 0
    for cut in [*_SEPARATOR.finditer(answer), None]:
        end = cut.start() if cut else len(answer)
        piece = answer[start:end]
        lead = _LEADING.match(piece)
        begin = start + (lead.end() if lead else 0)
        text = answer[begin:end].rstrip(" -–'_").lstrip(" _")
        begin = answer.index(text, begin)
        key = text.lower()
        short = len(text) <= MAX_LENGTH and len(text.split()) <= MAX_WORDS
        if short and key not in _EMPTY and any(c.isalpha() for c in text):
            found.setdefault(key, Term(key, begin, begin + len(text)))
        if len(found) == MAX_TERMS or cut is None:
            break
        start = cut.end()
    return list(found.values())
