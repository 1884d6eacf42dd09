"""Parse the JSON of a request body within limits, since small values take far more memory than their text.

Most of a large body are the run lengths of brushes. They stay text until their region is read. As a list of
Python integers they would take six times the memory, and too much time for a click.
"""

import json
import re
import secrets
from typing import Any

import numpy as np

MAX_VALUES = 1_500_000  # besides run lengths: a point of a polygon is three
MAX_REST = 64_000_000  # bytes besides run lengths: texts may take six times as much memory
MIN_TEXT = 256  # bytes of run lengths that stay text
MAX_TEXTS = 100_000  # lists of run lengths
_RUN_LENGTHS = re.compile(rb'"rle"[ \t\r\n]*:[ \t\r\n]*\[')
_BLOCK = 1 << 20


class TooLarge(Exception):
    """The request body exceeds a limit. The message is one sentence for the client."""


def loads(body: bytes) -> Any:
    """Parse a JSON body. Long lists of numbers under the key "rle" become memoryviews of their text.

    Raises TooLarge before parsing if the body exceeds a limit. Raises ValueError for invalid JSON and
    RecursionError for too deep nesting.
    """
    rest, texts = _without_run_lengths(body)
    if len(rest) > MAX_REST:
        raise TooLarge(f"The body has more than {MAX_REST // 10**6} MB besides the run lengths of brushes.")
    if values(rest) > MAX_VALUES:
        raise TooLarge(f"The body has more than {MAX_VALUES} values besides the run lengths of brushes.")

    def restored(item: dict[str, Any]) -> dict[str, Any]:
        named = item.get("rle")
        if isinstance(named, str) and named in texts:
            item["rle"] = texts[named]
        return item

    return json.loads(rest, object_hook=restored if texts else None)


def values(body: bytes) -> int:
    """Return an upper bound of the number of values in JSON, from its commas and opening brackets."""
    count = 1
    for at in range(0, len(body), _BLOCK):
        block = np.frombuffer(body, np.uint8, min(_BLOCK, len(body) - at), at)
        count += sum(int(np.count_nonzero(block == ord(mark))) for mark in ",[{")
    return count


def _without_run_lengths(body: bytes) -> tuple[bytes, dict[str, memoryview]]:
    """Replace each long list of run lengths by a name. Return the new body and the lists' texts by name."""
    secret = secrets.token_hex(16)  # no text of the body is one of the names
    parts, texts, done, at = list[bytes](), dict[str, memoryview](), 0, 0
    view = memoryview(body)
    for number in range(MAX_TEXTS):
        at = body.find(b'"rle"', at)
        if at < 0:
            break
        key = _RUN_LENGTHS.match(body, at)
        if key is None or body[at - 1 : at] == b"\\":  # a quote within a text
            at += 5
            continue
        # Search no farther than the next text, so that no byte is read twice.
        start, text = key.end(), body.find(b'"', key.end())
        end = body.find(b"]", start, len(body) if text < 0 else text)
        at = start
        if end - start >= MIN_TEXT and all(body.find(mark, start, end) < 0 for mark in (b"[", b"{", b"}")):
            name = f"{secret}{number}"
            texts[name] = view[start:end]
            parts += [body[done : start - 1], b'"', name.encode(), b'"']
            done = at = end + 1
    return b"".join([*parts, body[done:]]) if parts else body, texts
