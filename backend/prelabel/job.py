"""What `vlsam prelabel` does: a source, the models and a destination, and the state between them."""

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
from backend.datasets.items import Item, Source, SourceError
from backend.datasets.project_tasks import ProjectTasks
from backend.datasets.run_state import SAME, Row, State, StateError, check_target, state_of, write
from backend.datasets.summary import Summary
from backend.labelstudio import labeling_config
from backend.labelstudio.recommended_configs import label_config
from backend.labelstudio_api.client import StudioClient, project_number
from backend.prelabel import cluster, contact_sheet, destinations, sources
from backend.prelabel.annotator import PICTURE, Annotator
from backend.prelabel.project_import import Importer, show_predictions
from backend.prelabel.run import run
from backend.prelabel.tables import scheme_of
from backend.settings import Settings
from backend.telemetry.logs import printable, unsigned

SHEET, LABELS, SUMMARY = "sheet.html", "labels.xml", "summary.json"


def main(args: argparse.Namespace) -> int:
    settings = Settings.from_env()
    job = Job.of(args, settings)
    return _merge(args, job) if args.merge is not None else _run(args, job)


@dataclass(frozen=True)
class Job:
    """What a command means."""

    source: Source
    annotator: Annotator
    identity: dict[str, Any]  # what must be the same for a state to be gone on from
    target: Path  # DEST, or for a project a name like one
    importer: Importer | None  # where DEST is a project
    show: Callable[[], Iterator[str]]  # has that project show what it got, and tells about it

    @classmethod
    def of(cls, args: argparse.Namespace, settings: Settings) -> "Job":
        """What `args` mean.

        Raises SourceError, ConfigError, SettingsError, ModelLoadError and StudioError.
        """
        profile = settings.models.select(args.profile)
        version = settings.version(profile)
        given, wanted = project_number(args.source), project_number(args.to)
        number = given if given is not None else wanted
        client = None if number is None else StudioClient.connect(settings.images, settings.label_studio)
        xml = _read(args.label_config) if args.label_config else None
        if client is not None and number is not None and xml is None:
            xml = client.label_config(number)
        config = labeling_config.OPEN if xml is None else labeling_config.parse(xml)
        if wanted is not None and given != wanted:
            raise SourceError(
                f"predictions for {args.to} need its tasks as SOURCE; for images that are no tasks yet "
                "write a .json and import it"
            )
        source: Source
        if client is not None and given is not None:
            if args.image_prefix is not None:
                raise SourceError("--image-prefix goes with a folder or URIs; tasks have their addresses")
            source = ProjectTasks(
                client,
                given,
                settings,
                config,
                # What is there already is skipped where it would be doubled: a file gets all tasks.
                without=None if args.all or wanted is None else version,
            )
        else:
            source = sources.choose(
                args.source, settings, image_key=config.image_key, prefix=args.image_prefix
            )
        importer, show = None, partial(iter, ())
        if client is not None and wanted is not None:
            importer = Importer(client, wanted, version, replace=args.all)
            show = partial(show_predictions, client, wanted, version, anyway=args.show)
        elif args.show:
            raise SourceError("--show goes with --to labelstudio://N")
        target = Path(f"labelstudio-{wanted}" if wanted is not None else args.to)
        destination: destinations.Destination
        if importer:  # what a project gets is what the list for an import holds
            if args.coco_polygons or args.copy_images:
                raise SourceError("--coco-polygons and --copy-images go with files, not with a project")
            destination = destinations.ImportList(target, version)
        else:
            destination = destinations.choose(
                target, version, source.loader, as_polygons=args.coco_polygons, copy=args.copy_images
            )
        return cls(
            source=source,
            annotator=Annotator(settings, profile, version, config, destination),
            identity={
                # Where secrets are in these, they are no business of whoever reads the state.
                "source": unsigned(args.source),
                "to": args.to,
                "label config": xml,
                "image prefix": unsigned(args.image_prefix) if args.image_prefix else args.image_prefix,
                "all": args.all,
                "Label Studio": unsigned(settings.label_studio.url or "") if client else None,
                "model version": version,
            },
            target=target,
            importer=importer,
            show=show,
        )

    def state(self, shard: tuple[int, int] = (1, 1)) -> State:
        part = "" if shard[1] == 1 else f".{shard[0]}-of-{shard[1]}"
        return State(state_of(self.target, part))


def _run(args: argparse.Namespace, job: Job) -> int:
    shard = args.shard or (1, 1)
    state = job.state(shard)
    known = (state.folder / "run.json").exists()
    if not job.importer:
        _check_target(args.source, job.target, known=known)
    if not known and not args.restart and not job.importer and job.target.exists():
        raise StateError(f"{job.target} is there already; move it, or overwrite it with --restart")
    with state.open({**job.identity, "shard": f"{shard[0]}/{shard[1]}"}, restart=args.restart):
        total, done, sampled = state.plan(
            job.source.items(),
            shard=shard,
            limit=args.limit,
            samples=contact_sheet.SAMPLES,
            skipped=job.source.skipped,
        )
        if total == args.limit:
            print(f"vlsam: the first {total} images alone (--limit)", file=sys.stderr)
        if done:
            print(f"vlsam: {done} of {total} images are done already", file=sys.stderr)
        if done < total:
            if job.annotator.profile.demo:
                print(
                    "vlsam: demo weights, which know 40 drawn objects only (see --profile)", file=sys.stderr
                )
            with cluster.workers(args.ray, args.workers) if args.ray else nullcontext() as workers:
                label(job, state, workers, total=total, done=done, sampled=sampled)
        if job.importer:
            job.importer.finish(state)
        summary = finish(job, [state], write_destination=shard == (1, 1) and not job.importer)
        for line in job.show():
            print(f"vlsam: {printable(line)}", file=sys.stderr)
    return _status(summary, args.max_failures)


def _check_target(source: str, target: Path, *, known: bool) -> None:
    """Raise StateError where writing `target` would take away images, the list, or somebody's folder.

    `known`: there is a state beside it, so what is there comes from a run.
    """
    place = Path(os.path.realpath(target))
    path = source[len("file://") :] if source.lower().startswith("file://") else source
    if scheme_of(path) is None and Path(os.path.realpath(path)).is_relative_to(place):
        raise StateError(f"{target} holds SOURCE, which it would replace; give another --to")
    check_target(target, is_folder=target.name.lower().endswith(".yolo"), known=known)


def _status(summary: Summary, allowed: tuple[float, bool] | None) -> int:
    """1 where all images failed, or more than are allowed: so many, or such a share in percent."""
    failed, images = summary.failed, summary.images
    if failed and failed == images:
        print("vlsam: every image failed", file=sys.stderr)
        return 1
    if allowed is not None:
        most, is_share = allowed
        if failed > (most * images / 100 if is_share else most):
            limit = f"{most:g}%" if is_share else f"{most:g}"
            print(
                f"vlsam: {failed} of {images} images failed, more than --max-failures {limit}",
                file=sys.stderr,
            )
            return 1
    return 0


def label(
    job: Job, state: State, workers: cluster.Workers | None, *, total: int, done: int, sampled: frozenset[str]
) -> None:
    """Annotate all that is pending in a state, by this process or a cluster's, with a bar on stderr."""
    annotator, loader = job.annotator, job.source.loader
    with progress("prelabel", "image", total=total, done=done) as bar:

        def save(item: Item, row: Row) -> None:
            if picture := row.pop(PICTURE, None):
                write(state.sample(item.key), lambda file: file.write(base64.b64decode(picture)))
            if row["status"] == SAME:
                state.renew(item)
                bar.update()
                return
            state.save({**row, "stamp": item.stamp})
            if job.importer:
                job.importer.add(item, row, state)
            bar.update()

        if job.importer:
            job.importer.resume(state)
        if workers:
            workers.run(state.pending(), annotator=annotator, loader=loader, sampled=sampled, save=save)
        else:
            run(
                state.pending(),
                load=partial(annotator.fetch, loader.load),
                annotate=partial(annotator.annotate, annotator.load()),
                describe=partial(annotator.describe, sampled=sampled),
                save=save,
            )


def finish(job: Job, states: Sequence[State], *, write_destination: bool) -> Summary:
    """Write DEST, the summary, the sheet and, without a config, one with all labels."""

    def rows() -> Iterator[tuple[Item, Row]]:
        merged = heapq.merge(*(state.rows() for state in states), key=lambda each: each[0])
        return ((item, row) for _, item, row in merged)

    # Each shard lists the whole source, and leaves out the same.
    summary = Summary.of(rows(), states[0].skipped)
    folder = job.state().folder if len(states) > 1 else states[0].folder
    folder.mkdir(parents=True, exist_ok=True)
    is_open = any(control.open for control in job.annotator.config.predicted)
    if write_destination:
        known = [each.value for control in job.annotator.config.predicted for each in control.labels]
        # Further ones are from the data of tasks, or are terms.
        names = list(dict.fromkeys([*known, *sorted(summary.labels)]))
        summary.files = job.annotator.destination.write(rows, names)
    _save(folder / SUMMARY, json.dumps(summary.as_json(), indent=1))
    _save(folder / SHEET, contact_sheet.page(f"Samples of {job.target.name}", summary, _samples(states)))
    if is_open:
        _save(folder / LABELS, label_config([label for label, _ in summary.labels.most_common()]))
    print(summary.as_text(), file=sys.stderr)
    print(printable(f"samples to look at: {folder / SHEET}"), file=sys.stderr)
    if is_open:
        print(printable(f"a labeling config with these labels: {folder / LABELS}"), file=sys.stderr)
    if write_destination:
        print(printable(f"written: {job.target}"), file=sys.stderr)
    return summary


def _samples(states: Iterable[State]) -> Iterator[tuple[str, Path]]:
    found = [
        (index, item.key, row, state.sample(item.key))
        for state in states
        for index, item, row in state.rows()
        if state.sample(item.key).exists()
    ]
    for _, key, row, path in sorted(found, key=lambda each: each[0])[: contact_sheet.SAMPLES]:
        terms = ", ".join(
            f"{label or f'({term})'} {score:.2f}" for term, label, score in row.get("found", ())
        )
        yield f"{key}: {terms or 'nothing found'}", path


def _merge(args: argparse.Namespace, job: Job) -> int:
    count = args.merge
    if job.importer:
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
        if open_ones := [state.folder.name for state in states if not state.complete]:
            raise StateError(f"these shards are not done yet: {', '.join(open_ones[:5])}")
        summary = finish(job, states, write_destination=True)
    return _status(summary, args.max_failures)


def _save(path: Path, text: str) -> None:
    write(path, lambda file: file.write(text.encode("utf-8", "replace")))


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--label-config {path} cannot be read: {error}") from None
