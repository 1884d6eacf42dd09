"""Count the detected terms for which a project has no label. The route /terms reports them."""

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
    """The project of a report is unknown, or several match. The message is one sentence."""


@dataclass
class _Project:
    config: LabelConfig
    images: Counter[str] = field(default_factory=Counter)  # by term


class UnmatchedTerms:
    """The terms without a label in each project, and the number of images of each term. Thread-safe.

    It counts from the start of the server, and an image once per term. The numbers of projects, of terms of a
    project and of images are limited. Over a limit, the least recently annotated project, the rarest term or
    the oldest image is dropped. A dropped image counts again when it is annotated again.
    """

    def __init__(self) -> None:
        self._projects: FIFOCache[str, _Project] = FIFOCache(MAX_PROJECTS)
        self._sightings: FIFOCache[bytes, None] = FIFOCache(MAX_SIGHTINGS)
        self._lock = threading.Lock()

    def add(self, project: str, config: LabelConfig, image: str, terms: Iterable[str]) -> None:
        """Count the terms without a label of an annotated image. `image` is the hash of its pixels."""
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
        """Replace the labeling config of a project. Do nothing if the project is unknown."""
        with self._lock:
            if project in self._projects:
                self._projects[project].config = config

    def report(self, project: str = "") -> tuple[str, list[tuple[str, int]]]:
        """Return the name of a project, and (term, number of images) pairs, most images first.

        Terms that have a label by now are left out. `project` is a name from Label Studio, "7.1699999999", or
        the number before the dot. It may be "" if only one is known. Raises UnknownProject.
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
