"""Count the terms that a project has no label for, for the report of /terms."""

import hashlib
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from cachetools import FIFOCache

from backend.labelstudio.labeling_config import LabelConfig

MAX_PROJECTS = 100
MAX_TERMS = 1000  # of a project
MAX_SIGHTINGS = 100_000  # pairs of term and image that are remembered, so that none counts twice


class UnknownProject(LookupError):
    """No project or several match. The message is one sentence."""


@dataclass
class _Project:
    config: LabelConfig
    images: Counter[str] = field(default_factory=Counter)  # by term


class UnmatchedTerms:
    """Terms without a label since the server started, with the number of images of each, by project.

    An image counts once per term. The memory is bounded: first the least recently annotated project is
    dropped, then the rarest term of a project, then the oldest image. So an image that is annotated again
    after 100,000 others counts twice. Thread-safe.
    """

    def __init__(self) -> None:
        self._projects: FIFOCache[str, _Project] = FIFOCache(MAX_PROJECTS)
        self._sightings: FIFOCache[bytes, None] = FIFOCache(MAX_SIGHTINGS)
        self._lock = threading.Lock()

    def add(self, project: str, config: LabelConfig, image: str, terms: Iterable[str]) -> None:
        """Record an annotated image, by the hash of its pixels, and its terms without a label."""
        with self._lock:
            entry = self._projects.get(project) or _Project(config)
            self._projects[project] = entry  # now the last to be dropped
            entry.config = config
            for term in set(terms):
                if self._is_new(project, image, term):
                    if term not in entry.images and len(entry.images) >= MAX_TERMS:
                        del entry.images[min(entry.images, key=entry.images.__getitem__)]
                    entry.images[term] += 1

    def configure(self, project: str, config: LabelConfig) -> None:
        """Replace the labeling config of a known project."""
        with self._lock:
            if project in self._projects:
                self._projects[project].config = config

    def report(self, project: str = "") -> tuple[str, list[tuple[str, int]]]:
        """Return a project and its (term, images), most images first, without terms that have a label now.

        `project` is the name from Label Studio, "7.1699999999", or the number before the dot; "" if only
        one is known. Raises UnknownProject.
        """
        with self._lock:
            fits = [name for name in self._projects if project in ("", name, name.partition(".")[0])]
            name = project if project in fits else fits[0] if len(fits) == 1 else None
            if name is None:
                raise UnknownProject(_why(project, fits))
            rows, config = self._projects[name].images.most_common(), self._projects[name].config
        return name, [(term, images) for term, images in rows if not config.named(term)]

    def _is_new(self, project: str, image: str, term: str) -> bool:
        key = "\0".join((project, image, term)).encode("utf-8", "replace")
        digest = hashlib.blake2b(key, digest_size=10).digest()
        new = digest not in self._sightings
        self._sightings[digest] = None
        return new


def _why(project: str, fits: list[str]) -> str:
    if fits:
        return f"Several projects were annotated: say which by project=, one of {', '.join(sorted(fits))}."
    which = f"project {ascii(project)[1:-1][:100]}" if project else "any project"
    return f"No image of {which} was annotated since this server started."
