"""Find, name and mask the objects of images.

A folder stands for all images in it and in its folders, linked ones too, each once; whatever is left out is
counted by reason. If an image fails, the reason is printed and the others go on.

With --overlay DIR and --maps DIR the picture of photo.jpg is DIR/photo.png. If that is another file, or the
picture of another image of the same name, it is DIR/photo-2.png and so on, and the command says so. Only
pictures of earlier runs are ever overwritten, and these do not count as images of a folder.

exit status:
  0    done
  1    at least one image failed; the others are done
  2    nothing was done: an argument, a setting, the models

examples:
  vlsam annotate photo.jpg --overlay out/        look at out/photo.png
  vlsam annotate photos/ --json > found.json     all images of a folder
"""

import argparse
import json
import sys
from operator import methodcaller
from pathlib import Path
from typing import Any

from backend.commands.parser import Parser, add_json, add_overlay, add_profile


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "images", nargs="+", type=Path, metavar="IMAGE", help="a file, a folder, or a pattern in quotes"
    )
    parser.add_argument(
        "--maps", type=Path, metavar="DIR", help="write each term's attention map over the image here"
    )
    parser.add_switches({"--layers": "with --maps: beside it the map of every layer"})
    add_json(parser)
    add_overlay(parser)
    add_profile(parser)


def run(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from backend.answers.failure_reason import why
    from backend.commands import image_files
    from backend.images.local_files import text
    from backend.images.output_files import Pictures
    from backend.settings import Settings
    from backend.telemetry.logs import remark
    from model.weights.out_of_memory import with_less_memory

    if args.layers and not args.maps:
        raise ValueError("--layers goes with --maps DIR")
    paths, skipped = image_files.listed(args.images)
    pictures = Pictures(paths)
    overlays = image_files.name_pictures(pictures, args.overlay, paths)
    sheets = image_files.name_pictures(pictures, args.maps, paths)
    settings = Settings.from_env()
    vlsam = image_files.load_models(args.profile, settings)
    items: list[dict[str, Any]] = []
    failed = reduced = 0
    bar = tqdm(paths, desc="annotate", unit="image", file=sys.stderr, disable=None)
    for path, overlay, sheet in zip(bar, overlays, sheets, strict=True):
        try:
            image = image_files.read(path, settings.images)
            detections, smaller = with_less_memory(vlsam, methodcaller("annotate", image))
            item = image_files.item_of(path, image, detections, overlay)
            if sheet:
                maps, _ = with_less_memory(vlsam, methodcaller("maps", image, layers=args.layers))
                image_files.write_maps(pictures, sheet, image, maps, layers=args.layers)
        except Exception as error:  # the other images go on
            failed += 1
            reason = text(why(error, str(path)))
            remark(f"{text(str(path))}: {reason}")
            items.append({"image": text(str(path)), "error": reason, "detections": []})
            continue
        items.append({**item, "reduced": True} if smaller else item)
        reduced += smaller
        if not args.json:
            image_files.print_names(path, detections)
    if len(items) > 1:
        remark(f"{len(items)} images: {len(items) - failed} annotated, {failed} failed")
    for reason, count in skipped.most_common():
        remark(text(f"skipped: {count} x {reason}"))
    if reduced:
        reduced_images = f"{reduced} of {len(items)} images were reduced to half their size to save memory"
        remark(f"{reduced_images}: small objects may be missing")
    if args.json:
        print(json.dumps(items))
    return 1 if failed else 0
