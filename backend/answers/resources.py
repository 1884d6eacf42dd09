"""Hold everything that the requests of one server process share, in one explicit container."""

import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

from backend.answers.recent_answers import RecentAnswers
from backend.answers.unmatched_terms import UnmatchedTerms
from backend.images.fetch import Fetcher
from backend.images.image_cache import ImageCache
from backend.labelstudio.region_reading import RegionCache
from backend.runtime.background_tasks import BackgroundTasks
from backend.runtime.embedding_cache import EmbeddingCache
from backend.runtime.embedding_files import EmbeddingFiles
from backend.runtime.job_queue import JobQueue
from backend.runtime.retrying_model import RetryingModel
from backend.runtime.single_flight import SingleFlight
from backend.settings import Settings
from backend.telemetry.metrics import Metrics
from model.deadline import Deadline
from model.pipeline import VLSAM
from model.types import Detection, ModelLoadError
from model.versions import segmenter_version_of

log = logging.getLogger(f"vlsam.{__name__}")


class Resources:
    """The objects that all requests of a process share. Each consumer takes the parts that it needs."""

    def __init__(
        self,
        load: Callable[[], Any],
        settings: Settings,
        *,
        version: str,
        segmenter: str | None = None,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare for the model that `load` will return; nothing is loaded yet.

        `segmenter` names what makes embeddings, by default `version`. `clock`, in seconds, decides deadlines
        and how long anything is cached.
        """
        cache, capacity = settings.cache, settings.server.admitted
        self.settings, self.clock = settings, clock
        self.version = version  # of the models, known before they are loaded
        self.metrics = metrics = metrics or Metrics()
        self.background = BackgroundTasks(capacity)
        self.images = Fetcher(settings.images, settings.label_studio)
        self.image_cache = ImageCache(clock)
        files = EmbeddingFiles(cache.dir, cache.disk_mb * 1e6, metrics) if cache.dir else None
        self.embedding_files = files  # None without VLSAM_CACHE_DIR
        self.embeddings = EmbeddingCache(segmenter or version, cache.mb * 1e6, metrics, files)
        # In progress, by image hash and vocabulary.
        self.annotating: SingleFlight[list[Detection]] = SingleFlight()
        self.recent_answers = RecentAnswers(clock)
        self.regions = RegionCache()  # read from run lengths
        self.unmatched_terms = UnmatchedTerms()

        def load_retrying() -> RetryingModel[VLSAM]:
            started = time.monotonic()
            model = RetryingModel(load(), metrics, self.embeddings.leave_device)
            log.info("Loaded %s in %.1f s.", version, time.monotonic() - started)
            return model

        self.queue: JobQueue[RetryingModel[VLSAM]] = JobQueue(
            load_retrying, capacity=capacity, seconds=settings.answers.deadline, metrics=metrics, clock=clock
        )

    @classmethod
    def of(cls, settings: Settings) -> "Resources":
        """Return the resources for the settings' profile; nothing is loaded yet.

        The version of weights that are not on this machine comes from the hub. If the hub does not answer,
        the queue's state is "failed", with the reason. Raises ModelLoadError for an unknown profile.
        """
        profile, options, metrics = settings.models.select(), settings.detection.options, Metrics()
        try:
            version, segmenter = settings.version(profile), segmenter_version_of(profile, options)
        except ModelLoadError as error:
            version = f"vlsam-{profile.name}-not-loaded"
            return cls(partial(_fail, error), settings, version=version, metrics=metrics)
        device, on_cut = settings.models.device, metrics.cut_answers.inc
        load = partial(VLSAM.load, profile, device, options, version, on_cut=on_cut)
        return cls(load, settings, version=version, segmenter=segmenter, metrics=metrics)

    def start(self) -> "Resources":
        """Start to load the models in the background, once."""
        self.queue.start()
        return self

    def deadline(self) -> Deadline:
        """Return the deadline of a request that arrives now."""
        return Deadline.after(self.settings.answers.deadline, self.clock)

    def readiness(self) -> dict[str, str]:
        """Return the state of each part that a prediction needs: "ready" for the models, else "ok"."""
        disk = self.embedding_files.problem() if self.embedding_files else ""
        return {
            "models": self.queue.state,
            "device": self.queue.probe(RetryingModel.computes) or "ok",
            "disk": disk or "ok",
        }


def _fail(error: Exception) -> NoReturn:
    raise error


class _Process:
    """The resources of this process, made on first use.

    A global, since two callers cannot pass them along: label-studio-ml makes VLSAMBackend itself, and
    gunicorn ends a worker by a signal.
    """

    def __init__(self) -> None:
        self._resources: Resources | None = None
        self._lock = threading.Lock()

    def install(self, resources: Resources | None) -> None:
        """Share `resources` from now on; None to make new ones on next use."""
        with self._lock:
            self._resources = resources

    def resources(self) -> Resources:
        """Return the installed resources, or new ones. Raises SettingsError and ModelLoadError."""
        with self._lock:
            if self._resources is None:
                self._resources = Resources.of(Settings.from_env())
        return self._resources.start()


PROCESS = _Process()
