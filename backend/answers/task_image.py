"""Fetch the image of a task, or find its embedding if the image was seen lately."""

from collections.abc import Callable
from dataclasses import dataclass

from backend.answers.resources import Resources
from backend.images.image_cache import CachedImage, cache_key
from backend.images.studio_urls import Server
from backend.labelstudio.labeling_config import LabelConfig
from backend.labelstudio.region_reading import ReadingBudget
from backend.labelstudio.tasks import Task
from backend.runtime.embedding_cache import EmbeddingHandle
from backend.runtime.job_queue import Late
from backend.runtime.oom_retry import RetryingModel
from model.deadline import Deadline
from model.pipeline import VLSAM
from model.segmentation.embedding import Embedding
from model.types import Image

UNEXPECTED = "unexpected"  # the kind of errors that are ours, in /metrics


@dataclass(frozen=True, eq=False)
class Access:
    """What a request may use: the resources of the process, and its own Label Studio."""

    resources: Resources
    server: Server | None = None
    project: str = ""
    gone: Callable[[], bool] = lambda: False  # returns whether the client has hung up

    def budget(self, deadline: Deadline) -> ReadingBudget:
        return ReadingBudget(deadline=deadline, cache=self.resources.regions)

    def count(self, error: str) -> None:
        """Count an error in /metrics."""
        self.resources.metrics.errors.labels(error).inc()


@dataclass(frozen=True, eq=False)
class TaskImage:
    """An image and a handle to its embedding."""

    handle: EmbeddingHandle
    cached: CachedImage
    pixels: Image | None = None  # uint8 (H, W, 3); None if they were not needed

    def embedding(self, model: RetryingModel[VLSAM]) -> Embedding:
        return self.handle.get(model, self.pixels)


def find(access: Access, task: Task, config: LabelConfig, deadline: Deadline) -> TaskImage:
    """Return a task's image for a click. If its embedding is cached, load neither file nor pixels.

    Raises TaskError, ImageError and Late.
    """
    resources = access.resources
    key = cache_key(access.server, access.project, task.id, config.source(task.data))
    cached = resources.image_cache.find(key)
    if cached is not None:
        handle = resources.embeddings.handle(cached.content)
        if handle.ready:
            return TaskImage(handle, cached)
    pixels, cached = load(access, task, config, deadline)
    return TaskImage(resources.embeddings.handle(cached.content), cached, pixels)


def load(access: Access, task: Task, config: LabelConfig, deadline: Deadline) -> tuple[Image, CachedImage]:
    """Return a task's image as uint8 (H, W, 3), with its hash and size.

    Raises TaskError, ImageError and Late.
    """
    resources, source = access.resources, config.source(task.data)
    key = cache_key(access.server, access.project, task.id, source)

    def fetch() -> Image:
        with resources.metrics.stage("image"):
            return resources.images.load(source, access.server, task=task.id, deadline=deadline)

    try:
        return resources.image_cache.load(key, fetch, deadline)
    except TimeoutError:
        raise Late from None
