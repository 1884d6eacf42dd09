"""Superseded clicks: which request of an editor makes an older one pointless."""

import time
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Click:
    """What a click is about. Made when its request arrives: the order of arrival decides."""

    place: tuple[str, ...]  # server, project, task and control
    prompts: frozenset[str]  # the ids of its points or rectangles, which the editor draws at random
    arrived: float = field(default_factory=time.monotonic)

    def supersedes(self, older: "Click") -> bool:
        """Return whether the editor that sent this click no longer waits for the answer to `older`.

        It sends the prompts that are not accepted yet with each new one, and shows the answer to its newest
        request only. Two people's prompts have different ids, so neither drops the other's click.
        """
        known = bool(older.prompts) and self.place == older.place and self.arrived > older.arrived
        return known and older.prompts < self.prompts
