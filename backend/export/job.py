"""What `vlsam export` does: the tasks of a project, what is taken of each, and a destination."""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from backend.datasets.batch_command import FETCHERS, failed, prefetch, progress
from backend.datasets.coco_file import Coco, exact_polygons, images_of, run_lengths
from backend.datasets.image_copies import size_text
from backend.datasets.items import Item, SourceError, need
from backend.datasets.objects import Files, Finished, Object, Objects, done, written
from backend.datasets.parquet_file import Parquet
from backend.datasets.project_tasks import ProjectTasks
from backend.datasets.run_state import DONE, SKIPPED, Row, State, StateError, check_target, state_of, write
from backend.datasets.summary import Summary
from backend.datasets.yolo_folder import Yolo
from backend.export import objects
from backend.export.masks import Masks
from backend.labelstudio import bounded_json, labeling_config, tasks
from backend.labelstudio.labeling_config import LabelConfig, TaskError
from backend.labelstudio.region_reading import UNITS, ReadingBudget, TooMuch
from backend.labelstudio_api.client import StudioClient, StudioError
from backend.settings import Settings
from backend.telemetry.logs import printable, unsigned

SUMMARY = "summary.json"
TASK_UNITS = 20 * UNITS  # of work to read one task's regions: about a minute


def main(args: argparse.Namespace) -> int:
    settings = Settings.from_env()
    return _run(args, settings, StudioClient.connect(settings.images, settings.label_studio))


@dataclass(frozen=True)
class Wanted:
    """What is taken of each task."""

    client: StudioClient
    what: str  # annotations, drafts or predictions
    version: str | None = None  # of predictions; None for the newest

    @classmethod
    def of(
        cls, client: StudioClient, settings: Mapping[str, Any], what: str, version: str | None
    ) -> "Wanted":
        """For a project with these settings in Label Studio; `version` where one was asked for."""
        if what == "predictions" and version is None and (shown := settings.get("model_version")):
            # A project that shows what a backend answers has its title in place of a version.
            titles = [backend.get("title") for backend in client.backends(int(settings["id"]))]
            version = None if shown in titles else str(shown)
        return cls(client, what, version)

    def read(self, item: Item) -> bytes | None:
        """All there is of a task's annotations, drafts or predictions; None where the task is gone."""
        try:
            match self.what:
                case "annotations":
                    return self.client.read(f"/api/tasks/{item.task}/annotations/").body
                case "drafts":  # a list of tasks has those of the token's owner alone
                    return self.client.read(f"/api/tasks/{item.task}/drafts").body
            return self.client.read("/api/predictions/", task=item.task).body
        except StudioError as error:
            if error.status == 404:
                return None
            raise

    def mark(self, task: Mapping[str, Any]) -> str:
        """Changes when what is taken of a task may have."""
        if self.what == "drafts":  # of which a task says nothing
            return str(time.time_ns())
        counts = ("updated_at", "total_annotations", "cancelled_annotations", "total_predictions")
        return " ".join([str(self.version), *(str(task.get(name, "")) for name in counts)])

    def choose(self, given: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any] | None, str, int]:
        """The entry to take, else why there is none, and of how many it was chosen."""
        why = f"without {'an annotation' if self.what == 'annotations' else f'a {self.what[:-1]}'}"
        if self.what == "annotations":  # Label Studio 1.23.2 lists none of these
            given = [entry for entry in given if entry.get("was_cancelled") is not True]
        if self.version is not None:
            why += f" of {self.version}"
            given = [entry for entry in given if entry.get("model_version") == self.version]
        return max(given, key=_rank, default=None), why, len(given)


def _rank(entry: Mapping[str, Any]) -> tuple[bool, str, int]:
    number = entry.get("id")
    return entry.get("ground_truth") is True, tasks.changed(entry), number if type(number) is int else 0


class TaskList:
    """A list of tasks as Label Studio imports it, each with what was taken of it."""

    def __init__(self, path: Path, key: str) -> None:
        self._path, self._key = path, key

    def keep(self, entry: Mapping[str, Any]) -> Row:
        names = ("result", "ground_truth", "lead_time", "score", "model_version")
        return {"taken": {name: entry[name] for name in names if entry.get(name) is not None}}

    def write(self, rows: Finished, names: Sequence[str]) -> Files:
        def fill(file: BinaryIO) -> None:
            file.write(b"[")
            written(file, ({"data": item.data, self._key: [row["taken"]]} for item, row in done(rows)))
            file.write(b"\n]\n")

        write(self._path, fill)
        return Counter()


@dataclass(frozen=True)
class Job:
    """What a command means."""

    settings: Settings
    config: LabelConfig
    wanted: Wanted
    source: ProjectTasks
    destination: Objects | TaskList
    target: Path

    def row(self, item: Item, body: bytes | None) -> Row:
        """The row of a task. Raises what may go wrong with what Label Studio says of it."""
        if body is None:
            return {"key": item.key, "status": SKIPPED, "reason": "deleted since the tasks were listed"}
        given = self._parsed(body)
        entry, why, of = self.wanted.choose([each for each in given if isinstance(each, Mapping)])
        if entry is None:
            if self.wanted.what == "annotations" and item.task in self.source.cancelled:
                why = "skipped by the annotator"
            return {"key": item.key, "status": SKIPPED, "reason": why}
        row: Row = {"key": item.key, "status": DONE, "several": self.wanted.what == "annotations" and of > 1}
        if self.wanted.what == "predictions":
            row["model_version"] = str(entry.get("model_version") or "")
        result = tasks.result_of(entry)
        if isinstance(self.destination, TaskList):
            names = objects.names(result, self.config)
            return {**row, "found": [[name, name, None] for name in names], **self.destination.keep(entry)}
        return {**row, **self._objects(item, result, self.destination)}

    def _seen(self, item: Item) -> tuple[int, int]:
        height, width, _ = self.source.loader.load(item).shape
        return height, width

    def _parsed(self, body: bytes) -> list[Any]:
        loads = json.loads if isinstance(self.destination, TaskList) else bounded_json.loads
        try:
            given = loads(body)
        except bounded_json.TooLarge as error:
            raise TaskError(str(error)) from None
        except (ValueError, RecursionError):
            raise TaskError("What Label Studio says of the task is no JSON.") from None
        return given if isinstance(given, list) else []

    def _objects(self, item: Item, result: list[Any], destination: Objects) -> Row:
        # Where no region says how large the image is, it must be seen.
        height, width = shape = objects.size(result, self.config) or self._seen(item)
        most = self.settings.images.max_image_pixels
        if height * width > most:
            raise TaskError(
                f"The image has more than {most} pixels (VLSAM_MAX_IMAGE_PIXELS): {width} x {height}."
            )
        left_out, found = Counter[str](), list[list[Any]]()

        def objects_of() -> Iterator[Object]:
            scored = self.wanted.what == "predictions"
            budget = ReadingBudget(TASK_UNITS)
            for each in objects.read(result, self.config, shape, budget, left_out, scored=scored):
                found.append([each.term, each.label, each.score])
                yield each

        try:
            kept = destination.keep(objects_of())
        except TooMuch as error:
            raise TaskError(str(error)) from None
        size = {"width": width, "height": height, "content": size_text(shape)}
        return {**size, "found": found, "left_out": dict(left_out), **kept}


def _job(args: argparse.Namespace, settings: Settings, client: StudioClient) -> Job:
    """What `args` mean. Raises SourceError, ConfigError and StudioError."""
    target, name = Path(args.to), Path(args.to).name.lower()
    if args.coco_rle and not name.endswith(".coco.json"):
        raise SourceError("--coco-rle goes with --to NAME.coco.json")
    if args.copy_images and (name.endswith(".parquet") or (name.endswith(".json") and ".coco." not in name)):
        raise SourceError("--copy-images goes with .coco.json, .yolo and a folder of masks")
    if args.to.startswith("labelstudio://"):
        raise SourceError(
            f"--to {args.to}: export writes files; write a .json, and import that into a project"
        )
    if not name.strip("."):
        raise SourceError(f"--to {args.to}: give the name of a file or a folder")
    shown = client.project(args.project)
    xml = str(shown.get("label_config") or "")
    config = labeling_config.parse(xml)
    wanted = Wanted.of(client, shown, args.what, args.model_version)
    source = ProjectTasks(
        client, args.project, settings, config, without=None, mark=lambda task: f"{wanted.mark(task)} {xml}"
    )
    loader = source.loader
    copies = loader if args.copy_images else None
    destination: Objects | TaskList
    if name.endswith(".coco.json"):
        info = {"description": f"{args.what.capitalize()} of project {args.project} in Label Studio"}
        destination = Coco(target, info, run_lengths if args.coco_rle else exact_polygons, copies)
    elif name.endswith(".json"):
        destination = TaskList(target, "predictions" if args.what == "predictions" else "annotations")
    elif name.endswith(".yolo"):
        destination = Yolo(target, loader, copy=args.copy_images)
    elif name.endswith(".parquet"):
        need("pyarrow.parquet", "parquet files")  # now, not after the work
        destination = Parquet(target, None)
    elif not target.suffix or args.to.endswith("/"):
        destination = Masks(target, copies)
    else:
        raise SourceError(
            f"--to {args.to}: the name must end in .coco.json, .yolo (a folder), .parquet or .json (Label "
            "Studio), or be that of a folder for masks, as masks/"
        )
    return Job(settings, config, wanted, source, destination, target)


def _run(args: argparse.Namespace, settings: Settings, client: StudioClient) -> int:
    job = _job(args, settings, client)
    state = State(state_of(job.target))
    known = (state.folder / "run.json").exists()
    check_target(job.target, is_folder=isinstance(job.destination, Yolo | Masks), known=known)
    if args.copy_images and isinstance(job.destination, Coco):
        copied = known and (state.folder / "images").is_dir()
        check_target(images_of(job.target), is_folder=True, known=copied)
    if job.target.is_file() and not known and not args.restart:
        raise StateError(f"{job.target} is there already; move it, or overwrite it with --restart")
    identity = {
        "export of project": args.project,
        "to": str(job.target),
        "what": args.what,
        "model version": args.model_version,
        "Label Studio": unsigned(settings.label_studio.url or ""),
    }
    with state.open(identity, restart=args.restart):
        total, read, _ = state.plan(job.source.items(), shard=(1, 1), limit=None, samples=0)
        if read:
            print(f"vlsam: {read} of {total} tasks are read already", file=sys.stderr)
        with progress("export", "task", total=total, done=read) as bar:
            _read(job, state, bar.update)
        summary = _finish(job, state)
    if not summary.images:
        others = [what for what in ("annotations", "drafts", "predictions") if what != args.what]
        print(
            f"vlsam: project {args.project} has no {args.what} to write (--what {' or '.join(others)}?)",
            file=sys.stderr,
        )
    if summary.failed and summary.failed == summary.images:
        print("vlsam: every task failed", file=sys.stderr)
        return 1
    return 0


def _read(job: Job, state: State, update: Callable[[], object]) -> None:
    """Put a row of every task that is pending into the state. Raises StudioError."""
    with ThreadPoolExecutor(FETCHERS, "fetch") as fetchers:
        try:
            for item, fetched in prefetch(state.pending(), job.wanted.read, fetchers):
                body = fetched.result()
                try:
                    row = job.row(item, body)
                except Exception as error:
                    row = failed(item, error)
                state.save({**row, "stamp": item.stamp})
                update()
        finally:
            fetchers.shutdown(wait=False, cancel_futures=True)


def _finish(job: Job, state: State) -> Summary:
    """Write DEST and the summary."""

    def rows() -> Iterator[tuple[Item, Row]]:
        return ((item, row) for _, item, row in state.rows() if row["status"] != SKIPPED)

    summary = Summary.of((item, row) for _, item, row in state.rows())
    controls = (*job.config.predicted, *job.config.outputs)
    known = [label.value for control in controls for label in control.labels]
    # Others are from the data of tasks, of an earlier config, or are words.
    names = list(dict.fromkeys([*known, *sorted(summary.labels)]))
    summary.files = job.destination.write(rows, names)
    told = json.dumps(summary.as_json(), indent=1).encode("utf-8", "replace")
    write(state.folder / SUMMARY, lambda file: file.write(told))
    print(summary.as_text(), file=sys.stderr)
    print(printable(f"written: {job.target}"), file=sys.stderr)
    return summary
