"""Remember the last answers to clicks for 30 seconds, until Label Studio saves their regions.

The browser saves a draft up to 5 s late, and with Auto-Accept it sends only the newest click. Until then the
task does not contain the region that was just drawn.
"""

import threading
import time
from collections.abc import Callable, Collection, Mapping, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from cachetools import TTLCache
from numpy.typing import NDArray

from backend.labelstudio import tasks
from backend.labelstudio.click_gestures import Spot
from model.patches import Patch

SECONDS = 30.0
MAX_BYTES = 64_000_000
# A draft is saved 5 s after the first change at the latest; one more second for its transfer.
DRAFT_SECONDS = 6.0

Key = tuple[str, ...]  # server, project, task, image


@dataclass(frozen=True, eq=False)
class Answer:
    """An answer to a click: the region, and the prompts and the draft that belong to it."""

    region_id: str
    control: str
    labels: tuple[str, ...]
    meta: Mapping[str, Any]  # as answered; the prompt is in it
    patch: Patch
    logits: NDArray[np.float32] | None
    prompts: Mapping[str, Spot]  # by id: those that the browser showed at that time
    lineage: Mapping[str, Spot]  # these and the ones of the answer that was corrected
    base: str  # which region was corrected, in which shape; "" for a new one
    draft: tuple[str, str] | None  # the state of the newest draft at that time
    at: float  # time.monotonic()

    @cached_property
    def nbytes(self) -> int:
        """The approximate size in memory, in bytes."""
        arrays = self.patch.pixels.nbytes + (0 if self.logits is None else self.logits.nbytes)
        texts = sum(100 + 4 * len(text) for text in (*self.labels, *self.meta.get("text", ())))
        return arrays + 8_000 + 500 * len(self.lineage) + texts

    def is_of(self, task: tasks.Task, prompts: Collection[str], now: float, continued: Set[str]) -> bool:
        """Return whether this answer was sent to the person who sent `task`, and may still be on screen.

        `prompts` are the ids in the request, `continued` those in later answers. Label Studio does not
        send the person's name, but a request contains only the person's own drafts. True if the newest draft
        contains a prompt of the answer, or no draft was saved since the answer. Before the first draft, true
        if a later answer has all its prompts, or if the answer and the request have one prompt each, as with
        Auto-Accept, and the answer is younger than DRAFT_SECONDS.
        """
        if task.draft and self.prompts.keys() & {tasks.id_of(item) for item in task.draft.items}:
            return True
        if task.draft is None and self.draft is None and not self.prompts.keys() <= continued:
            return len(self.prompts) == len(prompts) == 1 and now - self.at <= DRAFT_SECONDS
        return self.draft == task.draft_state


class RecentAnswers:
    """A cache of the answers of the last 30 seconds, of at most 64 MB. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._answers: TTLCache[Key, list[Answer]] = TTLCache(MAX_BYTES, SECONDS, clock, _size)
        self._lock = threading.Lock()

    def recall(self, key: Key) -> list[Answer]:
        """Return the answers under a key, the newest first."""
        with self._lock:
            return self._recent(key)[::-1]

    def remember(self, key: Key, answer: Answer) -> None:
        """Store an answer, and drop older ones to its prompts. Ignore it if one with more is stored."""
        if not answer.prompts:
            return
        ids = answer.prompts.keys()
        with self._lock:
            answers = self._recent(key)
            if not any(ids < other.prompts.keys() for other in answers):
                answers = [other for other in answers if not ids & other.prompts.keys()] + [answer]
            while _size(answers) > MAX_BYTES:
                answers.pop(0)
            self._answers[key] = answers

    def _recent(self, key: Key) -> list[Answer]:
        oldest = self._clock() - SECONDS
        return [answer for answer in self._answers.get(key, ()) if answer.at >= oldest]


def _size(answers: list[Answer]) -> int:
    return sum(answer.nbytes for answer in answers)
