"""Decide which click supersedes an older one of the same editor."""

import time
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Click:
    """The identity of a click, with its time of arrival. Create it when the request arrives."""

    place: tuple[str, ...]  # server, project, task and control
    prompts: frozenset[str]  # the ids of its points or rectangles, which the editor draws at random
    arrived: float = field(default_factory=time.monotonic)

    def supersedes(self, older: "Click") -> bool:
        """Return whether the answer to `older` is not needed any more, since this click came later.

        An editor sends all unaccepted prompts with each new one, and shows only the answer to its newest
        request. Prompts of two people have different ids, so their clicks never supersede each other.
        """
        comparable = bool(older.prompts) and self.place == older.place and self.arrived > older.arrived
        return comparable and older.prompts < self.prompts
