"""Decide which click supersedes an older one of the same editor."""

import time
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Click:
    """The identity of a click. Create it when the request arrives, since the order of arrival counts."""

    place: tuple[str, ...]  # server, project, task and control
    prompts: frozenset[str]  # the ids of its points or rectangles, which the editor draws at random
    arrived: float = field(default_factory=time.monotonic)

    def supersedes(self, older: "Click") -> bool:
        """Return whether this click makes the answer to `older` useless.

        An editor sends all unaccepted prompts with each new one, and shows only the answer to its newest
        request. Prompts of two people have different ids, so their clicks never supersede each other.
        """
        comparable = bool(older.prompts) and self.place == older.place and self.arrived > older.arrived
        return comparable and older.prompts < self.prompts
