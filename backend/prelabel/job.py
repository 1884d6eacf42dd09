"""Run `vlsam prelabel`: a source, the models, a destination, and the state of the run."""

import argparse
import base64
import heapq
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from backend.datasets.batch_command import progress
from backend.datasets.items import Item, SourceError
from backend.datasets.project_tasks import ProjectTasks, TaskImages
from backend.datasets.run_state import SAME, Row, State, StateError, check_target, state_of, write
from backend.datasets.summary import Summary
from backend.labelstudio import labeling_config
from backend.labelstudio.labeling_config import LabelConfig
from backend.labelstudio.recommended_configs import label_config
from backend.labelstudio_api.client import StudioClient, project_number
from backend.prelabel import cluster, contact_sheet, destinations, sources
from backend.prelabel.annotator import PICTURE, Annotator
from backend.prelabel.destinations import Destination, ImportList
from backend.prelabel.project_import import Importer, show_predictions
from backend.prelabel.run import run
from backend.prelabel.sources import Folder, Manifest
from backend.prelabel.tables import scheme_of
from backend.settings import Settings
from backend.telemetry.logs import printable, unsigned

SHEET, LABELS, SUMMARY = "sheet.html", "labels.xml", "summary.json"


@dataclass(frozen=True)
class Request:
    """The images to label, the options, and the destination."""

    source: str
    source_project: int | None  # the number, if SOURCE is a project
    to: str
    target_project: int | None  # the number, if DEST is a project
    label_config: str | None  # XML
    image_prefix: str | None
    profile: str | None
    all: bool  # also tasks with a prediction of this model
    show: bool  # have the project show the predictions
    coco_polygons: bool
    copy_images: bool
    restart: bool
    limit: int | None
    shard: tuple[int, int]  # 1-based number, count
    merge: int | None  # the number of shards to merge
    ray: str | None  # address of a cluster
    workers: int | None
    max_failures: tuple[float, bool] | None  # a number, and whether it is a percentage

    @classmethod
    def parse(cls, args: argparse.Namespace) -> "Request":
        """Parse the command's arguments. Raises SourceError and ValueError."""
        if args.limit is not None and args.limit < 1:
            raise ValueError("--limit must be 1 or more")
        if args.workers is not None and (args.workers < 1 or not args.ray):
            raise ValueError("--workers must be 1 or more, and goes with --ray")
        source_project, target_project = project_number(args.source), project_number(args.to)
        if target_project is None:
            if args.show:
                raise SourceError("--show goes with --to labelstudio://N")
        elif source_project != target_project:
            raise SourceError(
                f"predictions for {args.to} need its tasks as SOURCE; for images that are not tasks yet "
                "write a .json and import it"
            )
        elif args.coco_polygons or args.copy_images:
            raise SourceError("--coco-polygons and --copy-images go with files, not with a project")
        if source_project is not None and args.image_prefix is not None:
            raise SourceError("--image-prefix goes with a folder or URIs; tasks have their addresses")
        xml = _read_config(args.label_config) if args.label_config else None
        options = {name: getattr(args, name) for name in cls.__dataclass_fields__ if hasattr(args, name)}
        parsed = {
            "source_project": source_project,
            "target_project": target_project,
            "label_config": xml,
            "shard": args.shard or (1, 1),
        }
        return cls(**{**options, **parsed})

    @property
    def target(self) -> Path:
        """Return DEST; for a project the path beside which its state is kept."""
        return Path(self.to if self.target_project is None else f"labelstudio-{self.target_project}")


def _read_config(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--label-config {path} cannot be read: {error}") from None


def main(request: Request) -> int:
    """Run or merge a job. Return 1 if every image failed, or more than --max-failures.

    Raises SourceError, ConfigError, SettingsError, ModelLoadError, StateError, StudioError and OSError.
    """
    job = Job.of(request, Settings.from_env())
    summary = _merge(job) if request.merge is not None else _run(job)
    return _status(summary, request.max_failures)


Source = Folder | Manifest | ProjectTasks


@dataclass(frozen=True)
class Job:
    """A request with its connection, labels and destination, ready to run."""

    request: Request
    identity: dict[str, Any]  # what must be equal for a run to go on from a state
    source: Source
    annotator: Annotator
    client: StudioClient | None  # for a project as SOURCE

    @classmethod
    def of(cls, request: Request, settings: Settings) -> "Job":
        """Connect to Label Studio if SOURCE is a project, and read its labeling config."""
        profile = settings.models.select(request.profile)
        version = settings.version(profile)
        client, xml = None, request.label_config
        if request.source_project is not None:
            client = StudioClient.connect(settings.images, settings.label_studio)
            xml = xml if xml is not None else client.label_config(request.source_project)
        config = labeling_config.OPEN if xml is None else labeling_config.parse(xml)
        source = _source(request, settings, client, config, version)
        identity = {
            # Without secrets, since others may read the state.
            "source": unsigned(request.source),
            "to": request.to,
            "label config": xml,
            "image prefix": unsigned(request.image_prefix) if request.image_prefix else request.image_prefix,
            "all": request.all,
            "Label Studio": unsigned(settings.label_studio.url or "") if client else None,
            "model version": version,
        }
        destination = _destination(request, source, version)
        return cls(
            request, identity, source, Annotator(settings, profile, version, config, destination), client
        )

    @property
    def has_file(self) -> bool:
        """Return whether DEST is a file or folder, not a project."""
        return self.request.target_project is None

    def importer(self) -> Importer | None:
        """Return the importer of predictions into DEST, None for a file."""
        if self.client is None or self.request.target_project is None:
            return None
        version = self.annotator.version
        return Importer(self.client, self.request.target_project, version, replace=self.request.all)

    def show(self) -> Iterator[str]:
        """Have the project at DEST show its new predictions. Yield lines to report."""
        if self.client is not None and self.request.target_project is not None:
            yield from show_predictions(
                self.client, self.request.target_project, self.annotator.version, anyway=self.request.show
            )

    def state(self, shard: tuple[int, int] = (1, 1)) -> State:
        part = "" if shard[1] == 1 else f".{shard[0]}-of-{shard[1]}"
        return State(state_of(self.request.target, part))


def _source(
    request: Request, settings: Settings, client: StudioClient | None, config: LabelConfig, version: str
) -> Source:
    if client is None or request.source_project is None:
        return sources.choose(
            request.source, settings, image_key=config.image_key, prefix=request.image_prefix
        )
    # A project would get a second prediction of this version; a file gets all tasks.
    replaces = request.all or request.target_project is None
    loader = TaskImages(settings.images, settings.label_studio, config)
    return ProjectTasks(client, request.source_project, loader, config, without=None if replaces else version)


def _destination(request: Request, source: Source, version: str) -> Destination:
    if request.target_project is not None:  # a project gets the predictions of the list for an import
        return ImportList(request.target, version)
    return destinations.choose(
        request.target,
        version,
        source.loader,
        as_polygons=request.coco_polygons,
        copy=request.copy_images,
    )


def _run(job: Job) -> Summary:
    request, target = job.request, job.request.target
    state = job.state(request.shard)
    known = (state.folder / "run.json").exists()
    if job.has_file:
        _check_target(request.source, target, known=known)
        if target.exists() and not known and not request.restart:
            raise StateError(f"{target} is there already; move it, or overwrite it with --restart")
    number, count = request.shard
    with state.open({**job.identity, "shard": f"{number}/{count}"}, restart=request.restart):
        total, done, sampled = state.plan(
            job.source.items(),
            shard=request.shard,
            limit=request.limit,
            samples=contact_sheet.SAMPLES,
            skipped=job.source.skipped,
        )
        if total == request.limit:
            print(f"vlsam: the first {total} images alone (--limit)", file=sys.stderr)
        if done:
            print(f"vlsam: {done} of {total} images are done already", file=sys.stderr)
        importer = job.importer()
        if done < total:
            if job.annotator.profile.demo:
                print(
                    "vlsam: demo weights, which know 40 drawn objects only (see --profile)", file=sys.stderr
                )
            with progress("prelabel", "image", total=total, done=done) as bar:
                _label(job, state, importer, sampled, bar.update)
        if importer:
            importer.finish(state)
        summary = _finish(job, [state], write_destination=count == 1 and job.has_file)
        for line in job.show():
            print(f"vlsam: {printable(line)}", file=sys.stderr)
    return summary


def _check_target(source: str, target: Path, *, known: bool) -> None:
    """Raise StateError if writing `target` would replace SOURCE, or a folder not written by a run.

    `known`: `target` has a state, so it was written by a run.
    """
    path = source[len("file://") :] if source.lower().startswith("file://") else source
    if scheme_of(path) is None and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(target)):
        raise StateError(f"{target} contains SOURCE, which would be replaced; give another --to")
    check_target(target, is_folder=target.name.lower().endswith(".yolo"), known=known)


def _status(summary: Summary, allowed: tuple[float, bool] | None) -> int:
    """Return 1 if all images failed, or more than `allowed`: a number, and whether it is a percentage."""
    failed, images = summary.failed, summary.images
    if failed and failed == images:
        print("vlsam: every image failed", file=sys.stderr)
        return 1
    if allowed is not None:
        most, is_percentage = allowed
        if failed > (most * images / 100 if is_percentage else most):
            limit = f"{most:g}%" if is_percentage else f"{most:g}"
            print(
                f"vlsam: {failed} of {images} images failed, more than --max-failures {limit}",
                file=sys.stderr,
            )
            return 1
    return 0


def _label(
    job: Job,
    state: State,
    importer: Importer | None,
    sampled: frozenset[str],
    update: Callable[[], object],
) -> None:
    """Annotate all pending items of a state, in this process or on a cluster."""
    annotator, loader, ray = job.annotator, job.source.loader, job.request.ray

    def save(item: Item, row: Row) -> None:
        if picture := row.pop(PICTURE, None):
            write(state.sample(item.key), lambda file: file.write(base64.b64decode(picture)))
        if row["status"] == SAME:
            state.renew(item)
        else:
            state.save({**row, "stamp": item.stamp})
            if importer:
                importer.add(item, row, state)
        update()

    with cluster.workers(ray, job.request.workers) if ray else nullcontext() as workers:
        if importer:
            importer.resume(state)
        if workers:
            workers.run(state.pending(), annotator=annotator, loader=loader, sampled=sampled, save=save)
        else:
            run(
                state.pending(),
                load=partial(annotator.fetch, lambda item: loader.read(item)[1]),
                annotate=partial(annotator.annotate, annotator.load()),
                describe=partial(annotator.describe, sampled=sampled),
                save=save,
            )


def _finish(job: Job, states: Sequence[State], *, write_destination: bool) -> Summary:
    """Write DEST, the summary, the contact sheet and, without a labeling config, one with all labels."""

    def rows() -> Iterator[tuple[Item, Row]]:
        merged = heapq.merge(*(state.rows() for state in states), key=lambda entry: entry[0])
        return ((item, row) for _, item, row in merged)

    # Each shard lists the whole source, and skips the same files.
    summary = Summary.of(rows(), states[0].skipped)
    folder = job.state().folder if len(states) > 1 else states[0].folder
    folder.mkdir(parents=True, exist_ok=True)
    is_open = any(control.open for control in job.annotator.config.predicted)
    if write_destination:
        configured = [label.value for control in job.annotator.config.predicted for label in control.labels]
        # Other labels come from the data of tasks, or are terms.
        names = list(dict.fromkeys([*configured, *sorted(summary.labels)]))
        summary.files = job.annotator.destination.write(rows, names)
    _save(folder / SUMMARY, json.dumps(summary.as_json(), indent=1))
    _save(
        folder / SHEET, contact_sheet.page(f"Samples of {job.request.target.name}", summary, _samples(states))
    )
    if is_open:
        _save(folder / LABELS, label_config([label for label, _ in summary.labels.most_common()]))
    print(summary.as_text(), file=sys.stderr)
    print(printable(f"samples to look at: {folder / SHEET}"), file=sys.stderr)
    if is_open:
        print(printable(f"a labeling config with these labels: {folder / LABELS}"), file=sys.stderr)
    if write_destination:
        print(printable(f"written: {job.request.target}"), file=sys.stderr)
    return summary


def _samples(states: Iterable[State]) -> Iterator[tuple[str, Path]]:
    samples = [
        (index, item.key, row, state.sample(item.key))
        for state in states
        for index, item, row in state.rows()
        if state.sample(item.key).exists()
    ]
    for _, key, row, path in sorted(samples, key=lambda sample: sample[0])[: contact_sheet.SAMPLES]:
        terms = ", ".join(
            f"{label or f'({term})'} {score:.2f}" for term, label, score in row.get("found", ())
        )
        yield f"{key}: {terms or 'nothing found'}", path


def _merge(job: Job) -> Summary:
    count = job.request.merge or 0
    if not job.has_file:
        raise StateError("shards that go to a project have nothing to merge: each imports its own")
    if not 1 < count <= 100_000:
        raise ValueError("--merge must be the number of shards, 2 or more")
    states = [job.state((number, count)) for number in range(1, count + 1)]
    missing = [state.folder.name for state in states if not (state.folder / "run.json").exists()]
    if missing:
        raise StateError(f"{len(missing)} of {count} shards were not run here: {', '.join(missing[:5])}")
    with ExitStack() as stack:
        for number, state in enumerate(states, 1):
            stack.enter_context(state.open({**job.identity, "shard": f"{number}/{count}"}))
        if incomplete := [state.folder.name for state in states if not state.complete]:
            raise StateError(f"these shards are not done yet: {', '.join(incomplete[:5])}")
        return _finish(job, states, write_destination=True)


def _save(path: Path, text: str) -> None:
    write(path, lambda file: file.write(text.encode("utf-8", "replace")))
