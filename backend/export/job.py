"""Run `vlsam export`: read the tasks of a project, choose one entry of each, and write DEST."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backend.datasets.batch_command import failed, prefetch, progress, say
from backend.datasets.coco_file import Coco, exact_polygons, images_of, run_lengths
from backend.datasets.image_copies import size_text
from backend.datasets.items import Item, Loader, SourceError
from backend.datasets.objects import Files, Finished, Object, Objects, done, write_list
from backend.datasets.parquet_file import Parquet
from backend.datasets.project_tasks import ProjectTasks, TaskImages
from backend.datasets.run_state import DONE, SKIPPED, Row, State, check_target, state_of
from backend.datasets.summary import finish
from backend.datasets.yolo_folder import Yolo
from backend.export import objects
from backend.export.masks import Masks
from backend.export.selection import Selection
from backend.labelstudio import bounded_json, labeling_config, tasks
from backend.labelstudio.labeling_config import LabelConfig, TaskError
from backend.labelstudio.region_reading import UNITS, ReadingBudget, TooMuch
from backend.labelstudio_api.client import StudioClient
from backend.settings import Settings
from backend.telemetry.logs import printable, unsigned

TASK_UNITS = 20 * UNITS  # work for the regions of one task: about a minute


@dataclass(frozen=True)
class Request:
    """The project to export, the options, and the destination."""

    project: int
    to: str
    what: str  # annotations, drafts or predictions
    model_version: str | None  # of predictions
    copy_images: bool
    coco_rle: bool
    restart: bool

    @classmethod
    def parse(cls, args: argparse.Namespace) -> "Request":
        """Parse the command's arguments. Raises SourceError and ValueError."""
        request = cls(**{name: getattr(args, name) for name in cls.__dataclass_fields__})
        name = request.name
        if args.model_version is not None and args.what != "predictions":
            raise ValueError("--model-version goes with --what predictions")
        if args.coco_rle and not name.endswith(".coco.json"):
            raise SourceError("--coco-rle goes with --to NAME.coco.json")
        if args.copy_images and name.endswith((".parquet", ".json")) and not name.endswith(".coco.json"):
            raise SourceError("--copy-images goes with .coco.json, .yolo and a folder of masks")
        if args.to.startswith("labelstudio://"):
            raise SourceError(
                f"--to {args.to}: export writes files; write a .json, and import that into a project"
            )
        if not name.strip("."):
            raise SourceError(f"--to {args.to}: give the name of a file or a folder")
        return request

    @property
    def target(self) -> Path:
        return Path(self.to)

    @property
    def name(self) -> str:
        """The name of DEST in lower case, whose suffix chooses the format."""
        return self.target.name.lower()


class TaskList:
    """A JSON list of tasks to import into Label Studio. Each task has its exported entry under `key`."""

    def __init__(self, path: Path, key: str) -> None:
        self._path, self._key = path, key

    def keep(self, entry: Mapping[str, Any]) -> Row:
        names = ("result", "ground_truth", "lead_time", "score", "model_version")
        return {"taken": {name: entry[name] for name in names if entry.get(name) is not None}}

    def write(self, rows: Finished, names: Sequence[str]) -> Files:
        write_list(self._path, ({"data": item.data, self._key: [row["taken"]]} for item, row in done(rows)))
        return Counter()


@dataclass(frozen=True)
class Job:
    """An export that is ready to run: the request, labeling config, source and destination."""

    request: Request
    max_pixels: int
    config: LabelConfig
    selection: Selection
    source: ProjectTasks
    destination: Objects | TaskList

    @classmethod
    def of(cls, request: Request, settings: Settings, client: StudioClient) -> "Job":
        """Make the job from the project's settings. Raises SourceError, ConfigError and StudioError."""
        project = client.project(request.project)
        xml = str(project.get("label_config") or "")
        config = labeling_config.parse(xml)
        selection = Selection.of(client, project, request.what, request.model_version)
        loader = TaskImages(settings.images, settings.label_studio, config)
        source = ProjectTasks(
            client, request.project, loader, config, mark=lambda task: f"{selection.mark(task)} {xml}"
        )
        destination = _destination(request, source.loader)
        return cls(request, settings.images.max_image_pixels, config, selection, source, destination)

    def row(self, item: Item, body: bytes | None) -> Row:
        """Return a task's row. `body`: the task's entries as JSON, or None if the task was deleted."""
        if body is None:
            return {"key": item.key, "status": SKIPPED, "reason": "deleted since the tasks were listed"}
        entries = [entry for entry in self._entries(body) if isinstance(entry, Mapping)]
        entry, reason, candidates = self.selection.choose(entries)
        is_annotation = self.request.what == "annotations"
        if entry is None:
            if is_annotation and item.task in self.source.cancelled:
                reason = "skipped by the annotator"
            return {"key": item.key, "status": SKIPPED, "reason": reason}
        row: Row = {"key": item.key, "status": DONE, "several": is_annotation and candidates > 1}
        if self.request.what == "predictions":
            row["model_version"] = str(entry.get("model_version") or "")
        result = tasks.result_of(entry)
        if isinstance(self.destination, TaskList):
            names = objects.names(result, self.config)
            return {**row, "found": [[name, name, None] for name in names], **self.destination.keep(entry)}
        return {**row, **self._objects(item, result, self.destination)}

    def _entries(self, body: bytes) -> list[Any]:
        loads = json.loads if isinstance(self.destination, TaskList) else bounded_json.loads
        try:
            entries = loads(body)
        except bounded_json.TooLarge as error:
            raise TaskError(str(error)) from None
        except (ValueError, RecursionError):
            raise TaskError("Label Studio's answer for the task is not JSON.") from None
        return entries if isinstance(entries, list) else []

    def _objects(self, item: Item, result: list[Any], destination: Objects) -> Row:
        # If no region contains the image's size, the image is loaded.
        height, width = objects.size(result, self.config) or self.source.loader.read(item)[1].shape[:2]
        shape = (height, width)
        if height * width > self.max_pixels:
            most = f"{self.max_pixels} pixels (VLSAM_MAX_IMAGE_PIXELS)"
            raise TaskError(f"The image has more than {most}: {width} x {height}.")
        left_out, labelled = Counter[str](), list[list[Any]]()

        def labelled_objects() -> Iterator[Object]:
            scored = self.request.what == "predictions"
            budget = ReadingBudget(TASK_UNITS)
            for object_ in objects.read(result, self.config, shape, budget, left_out, scored=scored):
                labelled.append([object_.term, object_.label, object_.score])
                yield object_

        try:
            kept = destination.keep(labelled_objects())
        except TooMuch as error:
            raise TaskError(str(error)) from None
        row = {"width": width, "height": height, "content": size_text(shape)}
        return {**row, "found": labelled, "left_out": dict(left_out), **kept}


def _destination(request: Request, loader: Loader) -> Objects | TaskList:
    """Return the destination for the suffix of DEST. Raises SourceError."""
    target, name, copies = request.target, request.name, loader if request.copy_images else None
    if name.endswith(".coco.json"):
        info = {"description": f"{request.what.capitalize()} of project {request.project} in Label Studio"}
        return Coco(target, info, run_lengths if request.coco_rle else exact_polygons, copies)
    if name.endswith(".json"):
        return TaskList(target, "predictions" if request.what == "predictions" else "annotations")
    if name.endswith(".yolo"):
        return Yolo(target, loader, copy=request.copy_images)
    if name.endswith(".parquet"):
        return Parquet(target, None)
    if not target.suffix or request.to.endswith("/"):
        return Masks(target, copies)
    raise SourceError(
        f"--to {request.to}: the name must end in .coco.json, .yolo (a folder), .parquet or .json (Label "
        "Studio), or be that of a folder for masks, as masks/"
    )


def main(request: Request) -> int:
    """Export a project. Return 1 if every task failed."""
    settings = Settings.from_env()
    job = Job.of(request, settings, StudioClient.connect(settings.images, settings.label_studio))
    target, state = request.target, State(state_of(request.target))
    is_folder = isinstance(job.destination, Yolo | Masks)
    check_target(target, is_folder=is_folder, known=state.exists, restart=request.restart or is_folder)
    if request.copy_images and isinstance(job.destination, Coco):
        copied = state.exists and (state.folder / "images").is_dir()
        check_target(images_of(target), is_folder=True, known=copied)
    identity = {
        "export of project": request.project,
        "to": str(target),
        "what": request.what,
        "model version": request.model_version,
        "Label Studio": unsigned(settings.label_studio.url or ""),
    }
    with state.open(identity, restart=request.restart):
        total, read, _ = state.plan(job.source.items(), shard=(1, 1), limit=None, samples=0)
        if read:
            say(f"{read} of {total} tasks are read already")
        with progress("export", "task", total=total, done=read) as bar:
            _read(job, state, bar.update)
        controls = (*job.config.predicted, *job.config.outputs)
        summary = finish([state], state.folder, controls, job.destination.write)
        print(printable(f"written: {target}"), file=sys.stderr)
    if not summary.images:
        others = [what for what in ("annotations", "drafts", "predictions") if what != request.what]
        say(f"project {request.project} has no {request.what} to write (--what {' or '.join(others)}?)")
    if summary.failed and summary.failed == summary.images:
        say("every task failed")
        return 1
    return 0


def _read(job: Job, state: State, update: Callable[[], object]) -> None:
    """Save a row of every pending task. Raises StudioError."""
    for item, fetched in prefetch(state.pending(), job.selection.read):
        body = fetched.result()
        try:
            row = job.row(item, body)
        except Exception as error:
            row = failed(item, error)
        state.save({**row, "stamp": item.stamp})
        update()
