"""The arguments of `vlsam export`, parsed and checked against each other."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from backend.datasets.items import SourceError


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
        if args.copy_images and (
            name.endswith(".parquet") or (name.endswith(".json") and ".coco." not in name)
        ):
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
