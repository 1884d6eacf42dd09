"""Fetch the image of a task, or only find its embedding if that is cached."""

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
from backend.runtime.retrying_model import RetryingModel
from model.deadline import Deadline
from model.pipeline import VLSAM
from model.segmentation.embedding import Embedding
from model.types import Image

UNEXPECTED = "unexpected"  # the kind of errors that are ours, in /metrics


@dataclass(frozen=True, eq=False)
class Access:
    """What one request may use: the resources of the process, and its Label Studio."""

    resources: Resources
    server: Server | None = None
    project: str = ""
    gone: Callable[[], bool] = lambda: False  # returns whether the client has hung up

    @property
    def url(self) -> str:
        """The address of the request's Label Studio; "" if it is unknown."""
        return self.server.url if self.server else ""

    def budget(self, deadline: Deadline) -> ReadingBudget:
        return ReadingBudget(deadline=deadline, cache=self.resources.regions)

    def count(self, error: str) -> None:
        """Count an error of the kind `error` in /metrics."""
        self.resources.metrics.errors.labels(error).inc()


@dataclass(frozen=True, eq=False)
class TaskImage:
    """The image of a task, and a handle to its embedding."""

    handle: EmbeddingHandle
    cached: CachedImage
    loaded: Image | None = None  # uint8 (H, W, 3); None if the embedding is at hand

    @property
    def pixels(self) -> Image:
        """The pixels, uint8 (H, W, 3). Raises ValueError if they were not loaded."""
        if self.loaded is None:
            raise ValueError("the image was loaded without its pixels")
        return self.loaded

    def embedding(self, model: RetryingModel[VLSAM]) -> Embedding:
        return self.handle.get(model, self.loaded)


def load(
    access: Access, task: Task, config: LabelConfig, deadline: Deadline, *, pixels: bool = True
) -> TaskImage:
    """Return a task's image, fetched if necessary. Raises TaskError, ImageError and Late.

    If `pixels` is false, as for a click, and the embedding is cached, the image itself is not loaded.
    """
    resources, server = access.resources, access.server
    key = cache_key(server, access.project, task.id, config.source(task.data))
    cached = None if pixels else resources.image_cache.find(key)
    if cached is not None:
        handle = resources.embeddings.handle(cached.content)
        if handle.ready:
            return TaskImage(handle, cached)

    def fetch() -> Image:
        with resources.metrics.stage("image"):
            source = config.source(task.data)
            return resources.images.load(source, server, task=task.id, deadline=deadline)

    try:
        image, cached = resources.image_cache.load(key, fetch, deadline)
    except TimeoutError:
        raise Late from None
    return TaskImage(resources.embeddings.handle(cached.content), cached, image)
