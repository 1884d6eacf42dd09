"""Segment one object of an image, from points inside and outside it, a box around it, or both.

examples:
  vlsam segment photo.jpg --point 120,80 --json          the object at x 120, y 80, as JSON
  vlsam segment photo.jpg --point 120,80 --point 150,90,0 --overlay out/
                                                         not what is at x 150, y 90
  vlsam segment photo.jpg --box 100,60,180,140 --json    the object in a box
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from backend.commands.parser import Parser, add_json, add_overlay, add_profile
from model.types import LEVELS, Prompt, PromptError

_LARGEST = 1e9  # coordinate; no image has as many pixels, and float32 holds it


def add_arguments(parser: Parser) -> None:
    parser.add_argument("image", type=Path, metavar="IMAGE")
    parser.add_argument(
        "--point", action="append", default=[], metavar="X,Y[,0|1]",
        help="pixel inside the object, or with ,0 outside it; may be given several times",
    )  # fmt: skip
    parser.add_argument("--box", metavar="X0,Y0,X1,Y1", help="box around the object, in pixels")
    parser.add_argument(
        "--level", choices=LEVELS, default="auto",
        help="the whole, a part, or a part of that, where a point may mean each (default: auto, the surest)",
    )  # fmt: skip
    add_json(parser)
    add_overlay(parser)
    add_profile(parser)


def run(args: argparse.Namespace) -> int:
    from backend.answers.failure_reason import why
    from backend.commands import image_files
    from backend.images.local_files import text
    from backend.images.output_files import Pictures
    from backend.settings import Settings
    from backend.telemetry.logs import remark
    from model.weights.out_of_memory import with_less_memory

    prompt = _prompt(args.point, args.box)
    (overlay,) = image_files.name_pictures(Pictures([args.image]), args.overlay, [args.image])
    settings = Settings.from_env()
    vlsam = image_files.load_models(args.profile, settings)
    try:
        image = image_files.read(args.image, settings.images)
        prompt = _inside(prompt, width=image.shape[1], height=image.shape[0])
        detection, _ = with_less_memory(
            vlsam, lambda model: model.refine(model.encode(image), prompt, args.level)
        )
        if not detection.mask.any():
            remark("the mask is empty: the model found no object at your points")
        detections = [detection] if detection.mask.any() else []
        item = image_files.item_of(args.image, image, detections, overlay)
    except Exception as error:
        raise ValueError(text(f"{args.image}: {why(error, str(args.image))}")) from error
    if args.json:
        print(json.dumps([item]))
    else:
        image_files.print_names(args.image, detections)
    return 0


def _prompt(points: Sequence[str], box: str | None) -> Prompt:
    """Parse the values "X,Y[,0 or 1]" of --point and "X0,Y0,X1,Y1" of --box, in pixels. Raises ValueError."""
    parsed = [_numbers(text, "--point", (2, 3)) for text in points]
    labels = [int(p[2]) if len(p) == 3 else 1 for p in parsed]
    corners = _numbers(box, "--box", (4,)) if box else None
    if not points and corners is None:
        raise ValueError("give at least one --point or a --box")
    if any(p[2:] not in ([], [0.0], [1.0]) for p in parsed):
        raise ValueError("the third number of --point is 1 (inside) or 0 (outside)")
    if corners is not None and not (corners[0] < corners[2] and corners[1] < corners[3]):
        raise ValueError("--box needs x0 < x1 and y0 < y1")
    clicks = ((x, y, label) for (x, y, *_), label in zip(parsed, labels, strict=True))
    return Prompt.of(*clicks, box=(corners[0], corners[1], corners[2], corners[3]) if corners else None)


def _numbers(text: str, option: str, counts: tuple[int, ...]) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in counts or not all(abs(value) < _LARGEST for value in values):
        raise ValueError(f"{option} {text!r} is not {' or '.join(map(str, counts))} numbers with commas")
    return values


def _inside(prompt: Prompt, *, width: int, height: int) -> Prompt:
    """Clip the prompt's box to the image. Raises PromptError if a point or the whole box lies outside."""
    xs, ys = prompt.points[:, 0], prompt.points[:, 1]
    if ((xs < 0) | (ys < 0) | (xs > width) | (ys > height)).any():
        raise PromptError(f"a point lies outside the image of {width} x {height} pixels")
    if prompt.box is None:
        return prompt
    x0, y0, x1, y1 = prompt.box
    box = (max(x0, 0), max(y0, 0), min(x1, width), min(y1, height))
    if box[0] >= box[2] or box[1] >= box[3]:
        raise PromptError(f"the box lies outside the image of {width} x {height} pixels")
    return replace(prompt, box=box)
