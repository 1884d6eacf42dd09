"""Run by a test: `vlsam prelabel` on 12 images in child processes, killed at random again and again.

    python -m tests.support.prelabel_killed FOLDER

A process of its own, for a child is a fork and the tests' process has threads. Prints figures as JSON.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from backend.commands.cli import main
from model.pipeline import VLSAM
from model.types import Detection, Image
from model.vlm.questions import RemoteAnswer
from tests.support.colour_model import Model, save_image

COUNT = 12


class Slow(Model):
    """Takes 4 ms an image and logs the process that saw it."""

    def __init__(self, log: Path) -> None:
        super().__init__()
        self._log = log

    def annotate(
        self,
        image: Image,
        vocabulary: Sequence[str] = (),
        remote_answers: Sequence[Sequence[RemoteAnswer]] | None = None,
    ) -> list[Detection]:
        time.sleep(0.004)
        with self._log.open("a") as file:
            file.write(f"{os.getpid()} {int(image[0, 0, 0])}\n")
        return super().annotate(image)


def child(arguments: list[str], log: Path) -> int:
    """Run the command in a forked process and return its id."""
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
    """Return the keys of complete rows."""
    path = folder / "rows.jsonl"
    text = path.read_bytes() if path.exists() else b""
    return [json.loads(line)["key"] for line in text.splitlines(keepends=True) if line.endswith(b"\n")]


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def seen(log: Path, pid: int) -> set[str]:
    lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    return {f"{int(red):02}.png" for who, red in lines if int(who) == pid}


def run(folder: Path, kill_after: float | None, rows_first: int = 0) -> bool:
    """Run the command; kill it after so many rows and then seconds. Return whether it ended before."""
    log, state = folder / "seen.txt", folder / "out.json.state"
    before, rows = set(done(state)), state / "rows.jsonl"
    count = min(lines(rows) + rows_first, COUNT)
    pid = child([str(folder / "photos"), "--to", str(folder / "out.json")], log)
    if kill_after is None:
        _, status = os.waitpid(pid, 0)
    else:
        while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0 and lines(rows) < count:
            time.sleep(0.001)
        if ended[0] == 0:
            time.sleep(kill_after)
            os.kill(pid, signal.SIGKILL)  # does nothing to one that has ended but was not waited for
            ended = os.waitpid(pid, 0)
        status = ended[1]
    assert not before & seen(log, pid), "done twice"
    if (folder / "out.json").exists():
        assert len(json.loads((folder / "out.json").read_bytes())) == COUNT, "DEST is there, but not whole"
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0, log.with_suffix(".err").read_text()
    return os.WIFEXITED(status)


if __name__ == "__main__":
    folder, choose = Path(sys.argv[1]), random.Random()
    state = folder / "out.json.state"
    for red in range(COUNT):
        save_image(folder / "photos" / f"{red:02}.png", red)
    run(folder, None)
    whole = (folder / "out.json").read_bytes()
    kills = {"in the start": 0, "after a row": 0, "after the last row": 0}
    for _ in range(3):
        shutil.rmtree(state)
        (folder / "out.json").unlink()
        (folder / "seen.txt").unlink()
        for _ in range(6):
            rows = choose.choice([0, 1, 3])
            if not run(folder, choose.uniform(0, 0.02), rows):
                now = len(done(state))
                kills[
                    "in the start" if not now else "after a row" if now < COUNT else "after the last row"
                ] += 1
        assert run(folder, None)
        assert sorted(done(state)) == [f"{red:02}.png" for red in range(COUNT)], "lost, or done twice"
        assert (folder / "out.json").read_bytes() == whole, "not what an undisturbed run writes"
    print(json.dumps(kills))
