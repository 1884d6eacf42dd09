"""The image of a task: fetch it, or find its embedding where it was seen lately."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from backend.answers.resources import Resources
from backend.images.image_cache import CachedImage, cache_key
from backend.images.studio_urls import Server
from backend.labelstudio import tasks
from backend.labelstudio.labeling_config import LabelConfig
from backend.labelstudio.reading_budget import Reading
from backend.runtime.embedding_cache import EmbeddingHandle
from backend.runtime.job_queue import Late
from backend.runtime.oom_retry import RetryingModel
from model.deadline import Deadline
from model.pipeline import VLSAM
from model.segmentation.embedding import Embedding
from model.types import Image

log = logging.getLogger(f"vlsam.{__name__}")

UNEXPECTED = "unexpected"  # the kind of errors that are ours, in /metrics


@dataclass(frozen=True, eq=False)
class Access:
    """What a request may use: the resources of the process, and its own Label Studio."""

    resources: Resources
    server: Server | None = None
    project: str = ""
    gone: Callable[[], bool] = lambda: False  # whether nobody waits for the answer any longer

    def reading(self, deadline: Deadline) -> Reading:
        return Reading(deadline=deadline, cache=self.resources.regions)

    def count(self, error: str) -> None:
        """Count an error in /metrics."""
        self.resources.metrics.errors.labels(error).inc()


@dataclass(frozen=True, eq=False)
class Seen:
    """An image as a click needs it."""

    held: EmbeddingHandle
    known: CachedImage
    image: Image | None = None  # None where its embedding is at hand

    def embedding(self, model: RetryingModel[VLSAM]) -> Embedding:
        return self.held.get(model, self.image)


def see(access: Access, task: Any, config: LabelConfig, deadline: Deadline) -> Seen:
    """A task's image for a click: where its embedding is kept, neither file nor pixels are asked for."""
    resources = access.resources
    source, key = find(access, task, config)
    known = resources.image_cache.find(key)
    if known is not None:
        held = resources.embeddings.handle(known.content)
        if held.ready:
            return Seen(held, known)
    image, known = load(access, task, source, key, deadline)
    return Seen(resources.embeddings.handle(known.content), known, image)


def load(
    access: Access, task: Mapping[str, Any], source: Any, key: bytes | None, deadline: Deadline
) -> tuple[Image, CachedImage]:
    resources, number = access.resources, tasks.number(task)

    def fetch() -> Image:
        with resources.metrics.stage("image"):
            return resources.images.load(source, access.server, task=number, deadline=deadline)

    try:
        return resources.image_cache.load(key, fetch, deadline)
    except TimeoutError:
        raise Late from None


def find(access: Access, task: Any, config: LabelConfig) -> tuple[Any, bytes | None]:
    """The value of the task's image field, and its key among the sources."""
    source = config.source(task)
    return source, cache_key(access.server, access.project, tasks.number(task), source)


def log_unread(task: Any, reading: Reading, so: str) -> None:
    """Logs the regions of a task that could not be read, once."""
    if reading.unread:
        first, count = reading.unread[0], len(reading.unread)
        log.warning(
            "Task %s: %d regions cannot be read, so %s; the first is %s", name_of(task), count, so, first
        )
        reading.unread.clear()


def name_of(task: Any) -> str:
    """A task's id for the log; as ASCII, so that no task writes lines of its own."""
    return ascii(task.get("id"))[:40] if isinstance(task, Mapping) else "?"
