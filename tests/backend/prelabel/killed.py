"""Run by a test: `vlsam prelabel` on 12 images in child processes, killed at random until one comes through.

    python tests/backend/prelabel/killed.py FOLDER

A process of its own, for a child is a fork and the tests' process has threads. Prints figures as JSON.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from backend.cli import main
from model.pipeline import VLSAM
from model.types import Detection, Image
from tests.backend.prelabel.conftest import Model, save_image

COUNT, MOST_KILLS = 12, 400


class Slow(Model):
    """Takes 4 ms an image, and writes down who saw it."""

    def __init__(self, log: Path) -> None:
        super().__init__()
        self._log = log

    def annotate(self, image: Image) -> list[Detection]:
        time.sleep(0.004)
        with self._log.open("a") as file:
            file.write(f"{os.getpid()} {int(image[0, 0, 0])}\n")
        return super().annotate(image)


def child(arguments: list[str], log: Path) -> int:
    """The id of a process that runs the command."""
    pid = os.fork()
    if pid:
        return pid
    try:
        model = Slow(log)
        VLSAM.load = lambda *args: model  # type: ignore[assignment, method-assign]
        sys.stderr = log.with_suffix(".err").open("w")
        os._exit(main(["prelabel", *arguments]))
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
        os._exit(99)


def done(folder: Path) -> list[str]:
    """The keys of whole rows."""
    path = folder / "rows.jsonl"
    text = path.read_bytes() if path.exists() else b""
    return [json.loads(line)["key"] for line in text.splitlines(keepends=True) if line.endswith(b"\n")]


def seen(log: Path, pid: int) -> set[str]:
    lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    return {f"{int(red):02}.png" for who, red in lines if int(who) == pid}


def kill_until_done(folder: Path, choose: random.Random) -> dict[str, Any]:
    log, out = folder / "seen.txt", folder / "out.json"
    state = folder / "out.json.state"
    kills = productive = 0
    while True:
        before = set(done(state))
        pid = child([str(folder / "photos"), "--to", str(out)], log)
        # Somewhere in the start, or after some images: in whatever it does then, until long after the last.
        count = choose.choice([0, choose.randint(1, COUNT)])
        while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0 and len(seen(log, pid)) < count:
            time.sleep(0.001)
        time.sleep(choose.uniform(0, 0.03))
        if ended[0] == 0 and (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
            os.kill(pid, signal.SIGKILL)
            ended = os.waitpid(pid, 0)
        assert not before & seen(log, pid), "done twice"
        if out.exists():
            assert len(json.loads(out.read_bytes())) == COUNT, "DEST is there, but not whole"
        if os.WIFEXITED(ended[1]):
            assert os.WEXITSTATUS(ended[1]) == 0, log.with_suffix(".err").read_text()
            return {"kills": kills, "kills with work done": productive}
        kills += 1
        productive += set(done(state)) > before
        assert kills < MOST_KILLS, "it does not get on"


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for red in range(COUNT):
        save_image(folder / "photos" / f"{red:02}.png", red)
    whole = folder / "whole.json"
    _, status = os.waitpid(child([str(folder / "photos"), "--to", str(whole)], folder / "other.txt"), 0)
    assert status == 0, status
    total = {"kills": 0, "kills with work done": 0}
    choose = random.Random(7)
    while total["kills"] < 20:
        figures = kill_until_done(folder, choose)
        total = {name: total[name] + value for name, value in figures.items()}
        keys = done(folder / "out.json.state")
        assert sorted(keys) == [f"{red:02}.png" for red in range(COUNT)], "lost, or done twice"
        assert (folder / "out.json").read_bytes() == whole.read_bytes(), "not what an undisturbed run writes"
        for path in sorted((folder / "out.json.state").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        (folder / "out.json.state").rmdir()
        (folder / "out.json").unlink()
        (folder / "seen.txt").unlink()
    print(json.dumps(total))
