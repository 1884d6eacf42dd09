"""Create the objects that all requests of one server process share, such as the models and caches."""

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
    """The objects that all requests of a process share: settings, job queue, caches and metrics."""

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
        """Create the objects; `start` then calls `load`, which returns the model.

        `version` is the model version. `segmenter` is the version of the model part that makes embeddings, by
        default `version`. `clock` returns seconds, for deadlines and caches.
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
        """Return the resources for the profile in the settings; `start` loads its models.

        The version of weights that are not on this machine is requested from the hub. If the hub does not
        answer, the job queue's state is "failed". Raises ModelLoadError for an unknown profile.
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
        """Load the models in the background, unless that has begun. Return this object."""
        self.queue.start()
        return self

    def deadline(self) -> Deadline:
        """Return the deadline of a request that arrives now."""
        return Deadline.after(self.settings.answers.deadline, self.clock)

    def readiness(self) -> dict[str, str]:
        """Return the states of "models", "device" and "disk": "ready" for models, else "ok", or an error."""
        disk = self.embedding_files.problem() if self.embedding_files else ""
        return {
            "models": self.queue.state,
            "device": self.queue.probe(RetryingModel.computes) or "ok",
            "disk": disk or "ok",
        }


def _fail(error: Exception) -> NoReturn:
    raise error


class _Process:
    """The holder of this process's Resources, which are made on first use.

    It is a global, since two callers cannot be given them as an argument: VLSAMBackend, which label-studio-ml
    creates, and the signal handler of a gunicorn worker.
    """

    def __init__(self) -> None:
        self._resources: Resources | None = None
        self._lock = threading.Lock()

    def install(self, resources: Resources | None) -> None:
        """Set the resources of this process. With None, the next call of `resources` makes new ones."""
        with self._lock:
            self._resources = resources

    def resources(self) -> Resources:
        """Return the resources of this process, and load their models.

        Raises SettingsError and ModelLoadError.
        """
        with self._lock:
            if self._resources is None:
                self._resources = Resources.of(Settings.from_env())
        return self._resources.start()


PROCESS = _Process()
