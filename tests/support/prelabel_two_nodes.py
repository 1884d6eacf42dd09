"""Run by tests: a Ray cluster of two nodes on this machine, as processes that listen on the loopback alone.

    python -m tests.support.prelabel_two_nodes killed|poison|scale FOLDER

A process of its own, so that all that Ray starts ends with it. Prints what came of it as JSON.
"""

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# On Linux Ray resolves a loopback address to another one of the machine, unless told not to.
os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}

import psutil
import torch
from ray.cluster_utils import Cluster

from backend.answers.placement import Labelling
from backend.commands.cli import main
from backend.datasets.items import Item
from backend.datasets.run_state import Row
from backend.labelstudio import labeling_config
from backend.prelabel import cluster
from backend.prelabel.annotator import Annotator, Found, RemoteAnswers
from backend.prelabel.destinations import ImportList
from backend.prelabel.sources import Files
from backend.settings import ImageSettings, LabelStudioSettings, Settings
from model.pipeline import VLSAM
from model.types import Image


class Fragile(Annotator):
    """Finds nothing, and ends its process at one image."""

    def load(self) -> VLSAM:
        return None  # type: ignore[return-value]

    def annotate(self, model: VLSAM, item: Item, image: Image, said: RemoteAnswers) -> Found:
        if item.key == "poison":
            os.kill(os.getpid(), signal.SIGKILL)
        return Found([], Labelling(self.config))


def prelabel(folder: Path, to: str, *more: str) -> float:
    """Run prelabel and return its seconds."""
    begin = time.monotonic()
    assert main(["prelabel", str(folder / "photos"), "--to", str(folder / to), *more]) == 0
    return time.monotonic() - begin


def children() -> list[psutil.Process]:
    return [each for each in psutil.Process().children(recursive=True) if each.is_running()]


def kill_a_worker(rows: Path, killed: list[str]) -> None:
    """Kill a busy worker as soon as there is a row."""
    while not (rows.exists() and rows.read_bytes().count(b"\n")):
        time.sleep(0.02)
    while not killed:
        for each in children():
            title = each.cmdline()[:1]
            if title and title[0].startswith("ray::MapWorker(MapBatches(Actor)).submit"):
                each.kill()
                killed.extend(title)
                return


def listening() -> list[str]:
    """Return the addresses on which these processes listen, without loopback."""
    found: list[Any] = []
    for process in children():
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended since
            found += process.net_connections("tcp")
    return sorted(
        {c.laddr.ip for c in found if c.status == psutil.CONN_LISTEN} - {"127.0.0.1", "::ffff:127.0.0.1"}
    )


def killed(folder: Path, address: str) -> Any:
    """Compare a run whose worker is killed with one by this process alone."""
    dead: list[str] = []
    rows = folder / "ray.json.state" / "rows.jsonl"
    threading.Thread(target=kill_a_worker, args=(rows, dead), daemon=True).start()
    prelabel(folder, "ray.json", "--ray", address, "--workers", "2")
    there = listening()
    torch.set_num_threads(1)  # as many as a worker has
    prelabel(folder, "alone.json")
    return {"killed": dead, "listening": there}


def poison(folder: Path, address: str) -> Any:
    """Report a run with an image that ends each worker, and the refusal of a node with other weights."""
    items = [Item(name, str(next((folder / "photos").iterdir())), {}) for name in ("a", "b", "poison", "c")]
    fragile = Fragile(
        Settings(), Settings().models.select(), "v", labeling_config.OPEN, ImportList(folder / "x.json", "v")
    )
    told: dict[str, str] = {}

    def save(item: Item, row: Row) -> None:
        told[item.key] = str(row.get("reason", row["status"]))

    with cluster.workers(address, 2) as workers:
        workers.run(
            items,
            annotator=fragile,
            loader=Files(ImageSettings(), LabelStudioSettings()),
            sampled=(),
            save=save,
        )
        other = Annotator(**{**vars(fragile), "version": "of others"})
        try:
            workers.run(
                items,
                annotator=other,
                loader=Files(ImageSettings(), LabelStudioSettings()),
                sampled=(),
                save=save,
            )
        except cluster.ClusterError as error:
            return {"images": told, "weights": str(error)}


def scale(folder: Path, address: str) -> Any:
    """Return seconds by the number of workers, without the start, which a run of one image measures."""
    seconds: dict[str, float] = {}
    for count in ("1", "2"):
        more = ("--ray", address, "--workers", count)
        start = prelabel(folder, f"one-{count}.json", *more, "--limit", "1")
        seconds[count] = prelabel(folder, f"{count}.json", *more) - start
    return seconds


DO: dict[str, Callable[[Path, str], Any]] = {"killed": killed, "poison": poison, "scale": scale}

if __name__ == "__main__":
    nodes = Cluster()
    for _ in range(2):
        nodes.add_node(num_cpus=2, node_ip_address="127.0.0.1", include_dashboard=False)
    print(json.dumps(DO[sys.argv[1]](Path(sys.argv[2]), nodes.address)))
    nodes.shutdown()
