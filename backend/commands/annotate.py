"""The command `vlsam annotate`: find, name and mask the objects of images."""

import argparse
import sys
from operator import methodcaller
from pathlib import Path
from typing import Any

from backend.commands.parser import add_json, add_overlay, add_profile

ABOUT = """\
Names and masks all objects of images. A folder stands for all images in it and in its folders, linked ones
too, each once; whatever is left out is counted by reason. If an image fails, the reason is printed and the
others go on.

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


def add_to(commands: Any) -> None:
    parser = commands.add_parser(
        "annotate", help="find, name and mask the objects of images", description=ABOUT
    )
    parser.add_argument(
        "images", nargs="+", type=Path, metavar="IMAGE", help="a file, a folder, or a pattern in quotes"
    )
    parser.add_argument(
        "--maps", type=Path, metavar="DIR", help="write each term's attention map over the image here"
    )
    parser.add_argument("--layers", action="store_true", help="with --maps: beside it the map of every layer")
    add_json(parser)
    add_overlay(parser)
    add_profile(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from backend.answers.failure_reason import why
    from backend.commands import image_files
    from backend.commands.image_files import as_line
    from backend.images.local_files import text
    from backend.images.output_files import Pictures
    from backend.settings import Settings
    from model.weights.out_of_memory import with_less_memory

    if args.layers and not args.maps:
        raise ValueError("--layers goes with --maps DIR")
    paths, skipped = image_files.listed(args.images)
    pictures = Pictures(paths)
    overlays = image_files.name_pictures(pictures, args.overlay, paths)
    sheets = image_files.name_pictures(pictures, args.maps, paths)
    settings = Settings.from_env()
    vlsam = image_files.load_models(args.profile, settings)
    items, failed, reduced = [], 0, 0
    bar = tqdm(paths, desc="annotate", unit="image", file=sys.stderr, disable=None)
    for path, overlay, sheet in zip(bar, overlays, sheets, strict=True):
        try:
            image = image_files.read(path, settings.images)
            detections, smaller = with_less_memory(vlsam, methodcaller("annotate", image))
            item = image_files.item_of(path, image, detections, overlay)
            if not args.json:
                image_files.print_names(path, detections)
            if sheet:
                maps, _ = with_less_memory(vlsam, methodcaller("maps", image, layers=args.layers))
                image_files.write_maps(pictures, sheet, image, maps, layers=args.layers)
            items.append({**item, "reduced": True} if smaller else item)
            reduced += smaller
        except Exception as error:  # the other images go on
            failed += 1
            reason = text(why(error, str(path)))
            print(f"vlsam: {as_line(path)}: {as_line(reason)}", file=sys.stderr)
            items.append({"image": text(str(path)), "error": reason, "detections": []})
    if len(items) > 1:
        print(
            f"vlsam: {len(items)} images: {len(items) - failed} annotated, {failed} failed", file=sys.stderr
        )
    for reason, count in skipped.most_common():
        print(f"vlsam: skipped: {count} x {as_line(reason)}", file=sys.stderr)
    if reduced:
        print(
            f"vlsam: {reduced} of {len(items)} images were reduced to half their size to save memory: "
            "small objects may be missing",
            file=sys.stderr,
        )
    if args.json:
        image_files.print_json(items)
    return 1 if failed else 0
