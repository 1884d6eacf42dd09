"""Run `vlsam prelabel`: annotate the images of a source, and write the results to a destination."""

import argparse
import base64
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from backend.datasets.batch_command import progress, say
from backend.datasets.items import Item, SourceError
from backend.datasets.project_tasks import ProjectTasks, TaskImages
from backend.datasets.run_state import SAME, Row, State, StateError, check_target, state_of, write, write_text
from backend.datasets.summary import Summary, finish
from backend.labelstudio import labeling_config
from backend.labelstudio.recommended_configs import label_config
from backend.labelstudio_api.client import StudioClient, project_number
from backend.prelabel import cluster, contact_sheet, sources
from backend.prelabel.annotator import PICTURE, Annotator
from backend.prelabel.destinations import Destination, ImportList, choose
from backend.prelabel.project_import import Importer
from backend.prelabel.run import run
from backend.prelabel.sources import Folder, Manifest
from backend.prelabel.tables import scheme_of
from backend.settings import Settings
from backend.telemetry.logs import printable, unsigned

SHEET, LABELS = "sheet.html", "labels.xml"


@dataclass(frozen=True)
class Request:
    """The images to label, the options, and the destination."""

    source: str
    project: int | None  # the number, if SOURCE is a project
    to: str
    imports: bool  # DEST is the project
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
        project, target = project_number(args.source), project_number(args.to)
        if target is None:
            if args.show:
                raise SourceError("--show goes with --to labelstudio://N")
        elif project != target:
            raise SourceError(
                f"predictions for {args.to} need its tasks as SOURCE; for images that are not tasks yet "
                "write a .json and import it"
            )
        elif args.coco_polygons or args.copy_images:
            raise SourceError("--coco-polygons and --copy-images go with files, not with a project")
        if project is not None and args.image_prefix is not None:
            raise SourceError("--image-prefix goes with a folder or URIs; tasks have their addresses")
        parsed = {
            "project": project,
            "imports": target is not None,
            "label_config": _read_config(args.label_config) if args.label_config else None,
            "shard": args.shard or (1, 1),
        }
        options = {name: value for name, value in vars(args).items() if name in cls.__dataclass_fields__}
        return cls(**{**options, **parsed})

    @property
    def target(self) -> Path:
        """Return the path of DEST. For a project, return a path beside which to keep the state."""
        return Path(f"labelstudio-{self.project}" if self.imports else self.to)


def _read_config(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--label-config {path} cannot be read: {error}") from None


def main(request: Request) -> int:
    """Run or merge a job. Return 1 if every image failed, or more than --max-failures."""
    job = Job.of(request, Settings.from_env())
    summary = _run(job) if request.merge is None else _merge(job, request.merge)
    return _status(summary, request.max_failures)


Source = Folder | Manifest | ProjectTasks


@dataclass(frozen=True)
class Job:
    """A run that is ready to start: the request, source, annotator and importer."""

    request: Request
    identity: dict[str, Any]  # what must be equal for a run to go on from a state
    source: Source
    annotator: Annotator
    importer: Importer | None  # None for a file as DEST

    @classmethod
    def of(cls, request: Request, settings: Settings) -> "Job":
        """Make the job of a request. If SOURCE is a project, read its labeling config from Label Studio."""
        profile = settings.models.select(request.profile)
        version = settings.version(profile)
        client, xml, project, prefix = None, request.label_config, request.project, request.image_prefix
        if project is not None:
            client = StudioClient.connect(settings.images, settings.label_studio)
            xml = client.label_config(project) if xml is None else xml
        config = labeling_config.OPEN if xml is None else labeling_config.parse(xml)
        source: Source
        importer = None
        if client is None or project is None:
            source = sources.choose(request.source, settings, image_key=config.image_key, prefix=prefix)
        else:
            loader = TaskImages(settings.images, settings.label_studio, config)
            # A project would get a second prediction of this version; a file gets all tasks.
            without = version if request.imports and not request.all else None
            source = ProjectTasks(client, project, loader, config, without=without)
            if request.imports:
                importer = Importer(client, project, version, replace=request.all)
        destination: Destination
        if importer:  # a project gets the predictions of the list for an import
            destination = ImportList(request.target, version)
        else:
            polygons, copy = request.coco_polygons, request.copy_images
            destination = choose(request.target, version, source.loader, as_polygons=polygons, copy=copy)
        identity = {
            # Without secrets, since others may read the state.
            "source": unsigned(request.source),
            "to": request.to,
            "label config": xml,
            "image prefix": unsigned(prefix) if prefix else prefix,
            "all": request.all,
            "Label Studio": unsigned(settings.label_studio.url or "") if client else None,
            "model version": version,
        }
        annotator = Annotator(settings, profile, version, config, destination)
        return cls(request, identity, source, annotator, importer)

    def state(self, shard: tuple[int, int] = (1, 1)) -> State:
        part = "" if shard[1] == 1 else f".{shard[0]}-of-{shard[1]}"
        return State(state_of(self.request.target, part))

    def identity_of(self, shard: tuple[int, int]) -> dict[str, Any]:
        return {**self.identity, "shard": f"{shard[0]}/{shard[1]}"}


def _run(job: Job) -> Summary:
    request, importer = job.request, job.importer
    state = job.state(request.shard)
    if importer is None:
        _check_target(request, known=state.exists)
    with state.open(job.identity_of(request.shard), restart=request.restart):
        source, samples = job.source, contact_sheet.SAMPLES
        total, done, sampled = state.plan(
            source.items(), shard=request.shard, limit=request.limit, samples=samples, skipped=source.skipped
        )
        if total == request.limit:
            say(f"the first {total} images alone (--limit)")
        if done:
            say(f"{done} of {total} images are done already")
        if done < total:
            if job.annotator.profile.demo:
                say("demo weights, which know 40 drawn objects only (see --profile)")
            with progress("prelabel", "image", total=total, done=done) as bar:
                _label(job, state, sampled, bar.update)
        if importer:
            importer.finish(state)
        summary = _finish(job, [state], write_destination=request.shard[1] == 1 and importer is None)
        for line in importer.show(anyway=request.show) if importer else ():
            say(line)
    return summary


def _check_target(request: Request, *, known: bool) -> None:
    """Raise StateError if writing DEST would replace SOURCE, or files that no run has written."""
    source, target = sources.without_file_scheme(request.source), request.target
    if scheme_of(source) is None and Path(os.path.realpath(source)).is_relative_to(os.path.realpath(target)):
        raise StateError(f"{target} contains SOURCE, which would be replaced; give another --to")
    is_folder = target.name.lower().endswith(".yolo")
    check_target(target, is_folder=is_folder, known=known, restart=request.restart)


def _status(summary: Summary, allowed: tuple[float, bool] | None) -> int:
    """Return 1 if all images failed, or more than `allowed` (number, whether it is a percentage); else 0."""
    failed, images = summary.failed, summary.images
    if failed and failed == images:
        say("every image failed")
        return 1
    most, is_percentage = allowed or (images, False)
    if failed <= (most * images / 100 if is_percentage else most):
        return 0
    percent = "%" if is_percentage else ""
    say(f"{failed} of {images} images failed, more than --max-failures {most:g}{percent}")
    return 1


def _label(job: Job, state: State, sampled: frozenset[str], update: Callable[[], object]) -> None:
    """Annotate, save and import all pending items, in this process or on Ray. Call `update` after each."""
    annotator, loader, importer, ray = job.annotator, job.source.loader, job.importer, job.request.ray

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
    """Write DEST, the summary and the contact sheet. If labels are open, write a labeling config of them."""
    annotator, target = job.annotator, job.request.target
    folder = job.state().folder if len(states) > 1 else states[0].folder
    controls = annotator.config.predicted
    write_rows = annotator.destination.write if write_destination else None
    summary = finish(states, folder, controls, write_rows)
    page = contact_sheet.page(f"Samples of {target.name}", summary, _samples(states))
    write_text(folder / SHEET, page)
    print(printable(f"samples to look at: {folder / SHEET}"), file=sys.stderr)
    if any(control.open for control in controls):
        write_text(folder / LABELS, label_config([label for label, _ in summary.labels.most_common()]))
        print(printable(f"a labeling config with these labels: {folder / LABELS}"), file=sys.stderr)
    if write_destination:
        print(printable(f"written: {target}"), file=sys.stderr)
    return summary


def _samples(states: Iterable[State]) -> Iterator[tuple[str, Path]]:
    samples = [
        (index, item.key, row, state.sample(item.key))
        for state in states
        for index, item, row in state.rows()
        if state.sample(item.key).exists()
    ]
    for _, key, row, path in sorted(samples, key=lambda sample: sample[0])[: contact_sheet.SAMPLES]:
        found = [f"{label or f'({term})'} {score:.2f}" for term, label, score in row.get("found", ())]
        yield f"{key}: {', '.join(found) or 'nothing found'}", path


def _merge(job: Job, count: int) -> Summary:
    if job.importer:
        raise StateError("shards that go to a project have nothing to merge: each imports its own")
    if not 1 < count <= 100_000:
        raise ValueError("--merge must be the number of shards, 2 or more")
    shards = [(number, count) for number in range(1, count + 1)]
    states = [job.state(shard) for shard in shards]
    if missing := [state.folder.name for state in states if not state.exists]:
        raise StateError(f"{len(missing)} of {count} shards were not run here: {', '.join(missing[:5])}")
    with ExitStack() as stack:
        for shard, state in zip(shards, states, strict=True):
            stack.enter_context(state.open(job.identity_of(shard)))
        if incomplete := [state.folder.name for state in states if not state.complete]:
            raise StateError(f"these shards are not done yet: {', '.join(incomplete[:5])}")
        return _finish(job, states, write_destination=True)
