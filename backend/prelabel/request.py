"""The arguments of `vlsam prelabel`, parsed and checked against each other."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from backend.datasets.items import SourceError
from backend.labelstudio_api.client import project_number


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
                f"predictions for {args.to} need its tasks as SOURCE; for images that are no tasks yet "
                "write a .json and import it"
            )
        elif args.coco_polygons or args.copy_images:
            raise SourceError("--coco-polygons and --copy-images go with files, not with a project")
        if source_project is not None and args.image_prefix is not None:
            raise SourceError("--image-prefix goes with a folder or URIs; tasks have their addresses")
        xml = _read(args.label_config) if args.label_config else None
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


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--label-config {path} cannot be read: {error}") from None
