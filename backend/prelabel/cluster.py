"""Run the pipeline on a Ray cluster: CPUs fetch, actors with the models annotate, this process saves.

Ray Data applies backpressure to blocks of a few images. Only this process keeps state.
"""

import importlib
import json
import logging
import os
import re
import socket
import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from backend.datasets.batch_command import FETCHERS, failed
from backend.datasets.items import Item, Loader
from backend.datasets.run_state import Row
from backend.prelabel.run import run
from model.types import Image, ImageError, VLSAMError

if TYPE_CHECKING:  # processes that fetch load no torch: a twelfth of the memory
    from backend.prelabel.annotator import Annotator

# Images of a block. When a worker dies, its block is annotated again.
BLOCK = 8
# Images of a Ray dataset. Ray keeps metadata of each block as long as the dataset exists.
ROUND = 20_000
# How often workers may die of a block, and then of a single image.
TRIES = 2
DIED = VLSAMError(f"{TRIES} workers died over this image.")


class ClusterError(ValueError):
    """The cluster cannot be used. The message is for the person who named it."""


@dataclass(frozen=True)
class Workers:
    """The actors of a Ray cluster that load the models: their number, and the GPUs of each."""

    ray: Any
    count: int
    gpus: int  # of each

    def run(
        self,
        items: Iterable[Item],
        *,
        annotator: "Annotator",
        loader: Loader,
        sampled: Container[str],
        save: Callable[[Item, Row], None],
    ) -> None:
        """Annotate all items, and call `save` with a row of each, in any order. Raises ClusterError."""
        if self.gpus:
            models = replace(annotator.settings.models, device="cuda")
            annotator = replace(annotator, settings=replace(annotator.settings, models=models))
        items = iter(items)
        while unsaved := {item.key: item for item in islice(items, ROUND)}:
            # Items that kill workers are tried again alone, with no other item at the same worker.
            for block in (BLOCK, 1):
                for row in self._rows(list(unsaved.values()), block, loader, (annotator, sampled)):
                    if item := unsaved.pop(row["key"], None):
                        save(item, row)
            for item in unsaved.values():
                save(item, failed(item, DIED))

    def _rows(
        self, items: Sequence[Item], block: int, loader: Loader, arguments: tuple[Any, ...]
    ) -> Iterator[Row]:
        """Annotate items in blocks on actors `Actor(*arguments)`. Yield their rows. Raises ClusterError."""
        if not items:
            return
        data, arrow = self.ray.data, importlib.import_module("pyarrow")
        texts = [json.dumps(asdict(item)) for item in items]
        starts = range(0, len(texts), block)
        blocks = [arrow.table({"item": texts[start : start + block]}) for start in starts]
        # Ray 2.64 will retry for ever, so pyproject.toml excludes it.
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated", DeprecationWarning)
        batches: dict[str, Any] = {"batch_size": block, "batch_format": "pyarrow"}
        fetched = data.from_arrow(blocks).map_batches(partial(fetch, loader=loader), **batches)
        count, in_flight = min(self.count, len(blocks)), min(2, block)
        pool = data.ActorPoolStrategy(size=count, max_tasks_in_flight_per_actor=in_flight)
        needs = {"num_cpus": 1, "num_gpus": self.gpus, "max_task_retries": TRIES - 1}
        rows = fetched.map_batches(Actor, fn_constructor_args=arguments, compute=pool, **needs, **batches)
        try:
            for row in rows.iter_rows():
                yield json.loads(row["row"])
        except self.ray.exceptions.RayError as error:
            raise ClusterError(f"{_message(error)}; the same command goes on from here") from None


def fetch(batch: Any, *, loader: Loader) -> Iterator[Any]:
    """Load the images of a table of items. Yield a table of each, with pixels or the failure's reason."""
    arrow = importlib.import_module("pyarrow")
    text, whole = arrow.string(), arrow.int32()
    columns = {"item": text, "pixels": arrow.large_binary(), "height": whole, "width": whole, "reason": text}
    schema = arrow.schema(list(columns.items()))

    def load(described: str) -> Any:
        item = Item(**json.loads(described))
        row: dict[str, Any] = {"item": described}
        try:
            image = loader.read(item)[1]
        except Exception as error:
            row["reason"] = failed(item, error)["reason"]
        else:
            row |= {"pixels": image.tobytes(), "height": image.shape[0], "width": image.shape[1]}
        return arrow.Table.from_pylist([row], schema)

    with ThreadPoolExecutor(FETCHERS, "fetch") as fetchers:
        yield from fetchers.map(load, batch.column("item").to_pylist())


class Actor:
    """A Ray actor that loads the models and annotates images."""

    def __init__(self, annotator: "Annotator", sampled: Container[str]) -> None:
        self._fetch = annotator.fetch
        self._annotate = partial(annotator.annotate, annotator.load())
        self._describe = partial(annotator.describe, sampled=sampled)

    def __call__(self, batch: Any) -> Any:
        """Annotate the images of a table from `fetch`. Return a table of their rows as JSON."""
        fetched = {(item := Item(**json.loads(row["item"]))).key: (item, row) for row in batch.to_pylist()}

        def load(item: Item) -> Image:
            row = fetched.pop(item.key)[1]
            if row["reason"] is not None:
                raise ImageError(row["reason"])
            return np.frombuffer(row["pixels"], np.uint8).reshape(row["height"], row["width"], 3).copy()

        rows: list[str] = []
        run(
            [item for item, _ in fetched.values()],
            load=partial(self._fetch, load),
            annotate=self._annotate,
            describe=self._describe,
            save=lambda item, row: rows.append(json.dumps(row)),
        )
        return importlib.import_module("pyarrow").table({"row": rows})


@contextmanager
def workers(address: str, count: int | None) -> Iterator[Workers]:
    """Connect to a Ray cluster, or start one for "local". Yield its workers. Raises ClusterError."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    own: dict[str, Any] = {}
    if address == "local":
        # As Ray does on macOS: listen on loopback.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        own = {"num_cpus": max(os.cpu_count() or 1, (count or 1) + 1), "include_dashboard": False}
    try:
        ray = importlib.import_module("ray")
        importlib.import_module("ray.data")
    except ImportError:
        need = "pip install 'ray[data]>=2.52,<2.64'"
        raise ClusterError(f"for --ray one more library is needed: {need}") from None
    host, _, port = address.rpartition(":")
    if port.isdecimal():
        try:  # Ray itself would try for minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except OSError as error:
            raise ClusterError(f"--ray {address}: no cluster answers there ({error})") from None
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.WARNING, **own)
    except (ConnectionError, ValueError, ray.exceptions.RayError) as error:
        raise ClusterError(f"--ray {address}: {_message(error)}") from None
    try:
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # failures are in rows, and in files of Ray
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        context.max_errored_blocks = -1  # items of failed blocks have no row
        context.max_consecutive_actor_init_deaths = TRIES  # as when a node stops while models load
        yield workers_that_fit(ray, count)
    finally:
        ray.shutdown()


def workers_that_fit(ray: Any, count: int | None) -> Workers:
    """Return `count` workers, or one for each GPU. Raises ClusterError if the cluster is too small."""
    resources = ray.cluster_resources()
    cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    count = count or gpus or 1
    if gpus and count > gpus:
        raise ClusterError(f"{count} workers want a GPU each; the cluster has {gpus}")
    if cpus <= count:
        raise ClusterError(f"{count} workers want a CPU each, and fetching one; the cluster has {cpus}")
    return Workers(ray, count, gpus=1 if gpus else 0)


def _message(error: Exception) -> str:
    """Return the last line of Ray's message, which has the cause, without the error's name."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return re.sub(r"^[\w.]+Error: ", "", lines[-1] if lines else type(error).__name__)[:500]
