"""The command `vlsam`."""

import argparse
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Any

import numpy as np
import requests
from tqdm import tqdm

from backend.answers.failure_reason import why
from backend.commands import bench, config, doctor, export, prelabel
from backend.images import local_files
from backend.images.load import decode
from backend.images.local_files import text
from backend.images.output_files import Pictures, is_ours, save
from backend.settings import Settings
from backend.telemetry import logs
from backend.telemetry.logs import printable, redacted
from model import connections
from model.attention.maps import normalised
from model.attention.token_grids import check_config
from model.overlay import draw, heat, tiled
from model.pipeline import VLSAM
from model.profiles import PROFILES
from model.segmentation import sam_families
from model.types import LEVELS, Detection, Image, ImageError, ModelLoadError, Prompt, VLSAMError
from model.vlm_stage import TermMap
from model.weights.download import fetch_hub, fetch_sam, is_remote_sam, looks_local, revision
from model.weights.out_of_memory import with_less

EXAMPLES = """\
examples:
  vlsam annotate photo.jpg --overlay out/        name and mask everything, look at out/photo.png
  vlsam annotate *.jpg --json > found.json       the same as data: one JSON array, an item per image
  vlsam annotate photos/ --json > found.json     all images of a folder
  vlsam segment photo.jpg --point 120,80 --json  one mask, from a click at x 120, y 80
  vlsam prelabel photos/ --to labelled.json      a whole folder, for an import into Label Studio
  vlsam export --project 7 --to out.yolo         what people made of it, to train with
  vlsam download --profile gpu-8g                fetch large models' weights ahead
  vlsam config --labels "Dog,Car"                a labeling config for Label Studio, ready to paste
  vlsam warm --project 7                         encode a project's images before the team comes
  vlsam serve --port 9090                        the Label Studio backend; then connect its URL
  vlsam terms --project 7                        what a running server saw and project 7 has no label for
  vlsam doctor --project 3                       why does nothing happen in Label Studio?
"""

ABOUT_ANNOTATE = """\
Names and masks all objects of images. Of a folder all images are taken, also in folders in it and in linked
ones, each once; what is left out is counted by reason. An image that fails is named with the reason, and
stops nothing.

With --overlay DIR and --maps DIR the picture of photo.jpg is DIR/photo.png. Where that is another file, or
the picture of another image of the same name, it is DIR/photo-2.png and so on, and the command says so: no
file but pictures of earlier runs is ever overwritten, and these are no images of a folder.

exit status:
  0    done
  1    at least one image failed; the others are done
  2    nothing was done: an argument, a setting, the models
"""

ABOUT_DOWNLOAD = """\
Fetches the weights of a profile, so that nothing is fetched when the models load, and compares every file
with its published checksum. Stopped half-way, it goes on from there. With VLSAM_VLM or VLSAM_SAM set, these
are fetched in place of the profile's own; what is a file or folder of this machine stays as it is.

Everything is kept as plain files in $MODEL_DIR (default: ~/.cache/vlsam), and may be copied there by hand:
  $MODEL_DIR/sam_vit_b_01ec64.pth                SAM checkpoints
  $MODEL_DIR/Qwen/Qwen2.5-VL-3B-Instruct/        models of the hub, each under its id

A model of the hub stays at one revision, which is part of the model version: a profile's at the commit that
it names, another one at that which was fetched first. VLSAM_VLM=OWNER/NAME@REVISION (or VLSAM_SAM) names one:
a commit, a tag, or main for the newest.

examples:
  vlsam download                                 for $VLSAM_PROFILE
  vlsam download --profile gpu-24g               for another profile
  HF_TOKEN=... vlsam download                    a VLM whose licence you have accepted on the hub
"""


ABOUT_WARM = """\
Encodes the images of a Label Studio project into $VLSAM_CACHE_DIR, for every first click to be as fast as
the second. A server with the same VLSAM_CACHE_DIR and the same segmenter has them at once, also while it
runs. What is there already is not encoded again; stopped half-way, the same command goes on. An image that
fails is named with the reason, and the exit status is 1.

LABEL_STUDIO_API_KEY is sent to Label Studio to see the project and its images.

examples:
  VLSAM_CACHE_DIR=/data/vlsam vlsam warm --project 7
  vlsam warm --project 7 --label-studio-url http://studio:8080 --profile gpu-24g
"""

_LARGEST = 1e9  # coordinate; no image has as many pixels, and float32 holds it


def main(arguments: Sequence[str] | None = None) -> int:
    logs.of_command()
    args = _parser().parse_args(_joined(sys.argv[1:] if arguments is None else arguments))
    connections.advise_other_libraries()
    try:
        return int(args.run(args))
    except (VLSAMError, ValueError) as error:  # an argument or a setting says what is wrong
        print(f"vlsam: {printable(redacted(str(error)))}", file=sys.stderr)
        return 2


def _joined(arguments: Sequence[str]) -> list[str]:
    """The arguments with "--point -3,5" as "--point=-3,5": argparse would take the value for an option."""
    joined: list[str] = []
    for argument in arguments:
        value = re.fullmatch(r"-[^-,][^,]*,.*", argument, re.DOTALL)
        if value and joined and re.fullmatch(r"--\w[\w-]*", joined[-1]):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vlsam",
        description="Named masks for images, found zero-shot by VL-SAM, for Label Studio or by hand.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="run the Label Studio ML backend")
    serve.add_argument("--host", default="0.0.0.0", help="address to listen on (default: all)")  # noqa: S104
    serve.add_argument("--port", type=int, help="default: $PORT or 9090")
    serve.set_defaults(run=_serve)

    download = commands.add_parser(
        "download",
        help="fetch a profile's weights ahead",
        description=ABOUT_DOWNLOAD,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    download.set_defaults(run=_download)

    annotate = commands.add_parser(
        "annotate",
        help="find, name and mask the objects of images",
        description=ABOUT_ANNOTATE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    annotate.add_argument(
        "images", nargs="+", type=Path, metavar="IMAGE", help="a file, a folder, or a pattern in quotes"
    )
    annotate.add_argument(
        "--maps", type=Path, metavar="DIR", help="write each term's attention map over the image here"
    )
    annotate.add_argument(
        "--layers", action="store_true", help="with --maps: beside it the map of every layer"
    )
    annotate.set_defaults(run=_annotate)

    warm = commands.add_parser(
        "warm",
        help="encode a project's images ahead, so that every first click is fast",
        description=ABOUT_WARM,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    warm.add_argument("--project", type=int, required=True, metavar="N", help="its number in Label Studio")
    warm.add_argument("--label-studio-url", metavar="URL", help="default: $LABEL_STUDIO_URL")
    warm.set_defaults(run=_warm)

    prelabel.add_to(commands)
    export.add_to(commands)
    bench.add_to(commands)
    doctor.add_to(commands)
    config.add_to(commands)

    segment = commands.add_parser("segment", help="one mask of an image, from points and a box")
    segment.add_argument("image", type=Path, metavar="IMAGE")
    segment.add_argument(
        "--point", action="append", default=[], metavar="X,Y[,0|1]",
        help="pixel inside the object, or with ,0 outside it; may be given several times",
    )  # fmt: skip
    segment.add_argument("--box", metavar="X0,Y0,X1,Y1", help="box around the object, in pixels")
    segment.add_argument(
        "--level", choices=LEVELS, default="auto",
        help="the whole, a part, or a part of that, where a point may mean each (default: auto, the surest)",
    )  # fmt: skip
    segment.set_defaults(run=_segment)

    terms = commands.add_parser(
        "terms",
        help="what a running server saw that a project has no label for",
        description="Prints what the model named since the server started and the project's labeling config "
        "has no label for, with the number of images. Add it as a label, or as predicted_values of one. "
        "BASIC_AUTH_USER and BASIC_AUTH_PASS are used where they are set.",
    )
    terms.add_argument("--url", default="http://localhost:9090", help="of the server (default: %(default)s)")
    terms.add_argument(
        "--project", default="", metavar="N", help="its id in Label Studio; not needed for one"
    )
    terms.add_argument("--json", action="store_true", help="print JSON to standard output")
    terms.set_defaults(run=_terms)

    for command in (annotate, segment):
        command.add_argument("--json", action="store_true", help="print JSON to standard output")
        command.add_argument("--overlay", type=Path, metavar="DIR", help="write pictures of the masks here")
    for command in (download, annotate, segment, warm):
        command.add_argument(
            "--profile", choices=PROFILES, help="models to use (default: $VLSAM_PROFILE or builtin)"
        )
    return parser


def _serve(args: argparse.Namespace) -> int:
    from backend._wsgi import serve  # Flask and gunicorn are not needed by the other commands

    settings = Settings.from_env()
    serve(args.host, args.port or settings.server.port, settings)
    return 0


def _download(args: argparse.Namespace) -> int:
    settings = Settings.from_env()
    profile = settings.models.select(args.profile)
    concepts = settings.detection.localizer == "concept"
    accept_sam = partial(sam_families.check, name=profile.sam, concepts=concepts)
    try:
        for name, remote, fetch, accept in (
            (profile.vlm, not looks_local(profile.vlm), fetch_hub, check_config),
            (profile.sam, is_remote_sam(profile.sam), fetch_sam, accept_sam),
        ):
            if remote:
                path = fetch(name, profile.folder, accept)
                commit = "" if path.is_file() else f"revision {revision(name, profile.folder)}, "
                print(f"{name.partition('@')[0]}: {commit}complete, checksums agree, in {path}")
            elif Path(name).expanduser().exists():
                print(f"{name}: on this machine, nothing to fetch")
            else:
                raise ModelLoadError(f"{name} does not exist, and is no name by which weights are fetched")
    except KeyboardInterrupt:
        print("vlsam: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def _warm(args: argparse.Namespace) -> int:
    from backend.commands import warm  # Label Studio's SDK takes seconds to import

    return warm.run(args)


def _annotate(args: argparse.Namespace) -> int:
    if args.layers and not args.maps:
        raise ValueError("--layers goes with --maps DIR")
    paths, skipped = _images(args.images)
    pictures = Pictures(paths)
    overlays = _pictures(pictures, args.overlay, paths)
    sheets = _pictures(pictures, args.maps, paths)
    settings = Settings.from_env()
    vlsam = _load(args, settings)
    items, failed, reduced = [], 0, 0
    shown = tqdm(paths, desc="annotate", unit="image", file=sys.stderr, disable=None)
    for path, overlay, sheet in zip(shown, overlays, sheets, strict=True):
        try:
            image = _read(path, settings)
            found, smaller = with_less(vlsam, methodcaller("annotate", image))
            item = _show(args, path, image, found, overlay)
            if sheet:
                maps, _ = with_less(vlsam, methodcaller("maps", image, layers=args.layers))
                _write_maps(args, pictures, sheet, image, maps)
            items.append({**item, "reduced": True} if smaller else item)
            reduced += smaller
        except Exception as error:  # the other images go on
            failed += 1
            reason = text(why(error, str(path)))
            print(f"vlsam: {_printable(path)}: {_printable(reason)}", file=sys.stderr)
            items.append({"image": text(str(path)), "error": reason, "detections": []})
    if len(items) > 1:
        print(
            f"vlsam: {len(items)} images: {len(items) - failed} annotated, {failed} failed", file=sys.stderr
        )
    for reason, count in skipped.most_common():
        print(f"vlsam: skipped: {count} x {_printable(reason)}", file=sys.stderr)
    if reduced:
        print(
            f"vlsam: {reduced} of {len(items)} images were seen in half their size, for want of memory: "
            "small objects may be missing",
            file=sys.stderr,
        )
    _print(args, items)
    return 1 if failed else 0


def _images(given: Sequence[Path]) -> tuple[list[Path], Counter[str]]:
    """The images that arguments name, and what was left out of folders and patterns, by reason."""
    found: dict[Path, None] = {}
    named, skipped = [], Counter[str]()
    for path in given:
        name = str(path)
        listing = None
        if os.path.isdir(name) or (local_files.is_pattern(name) and not os.path.lexists(name)):
            listing = local_files.listed(name)
            skipped.update(listing.skipped)
        if listing is None or not (listing.names or os.path.isdir(name)):
            named.append(path)  # also what is not there, which then fails with that reason
            found[path] = None
            continue
        if not listing.names:
            skipped[f"folder without images: {name}"] += 1
        for each in listing.names:
            image = Path(listing.root + each)
            if image in found:
                skipped["image that is named already"] += 1
            elif is_ours(image):
                skipped["picture of an earlier run"] += 1
            else:
                found[image] = None
                named.append(image)
    if not named:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in skipped.most_common(8))
        raise ValueError(f"there are no images: {reasons}")
    return named, skipped


def _pictures(pictures: Pictures, folder: Path | None, paths: Sequence[Path]) -> list[Path | None]:
    """Where the picture of each image goes, chosen before any is made, so that failures change no names."""
    if folder is None:
        return [None] * len(paths)
    found: list[Path | None] = []
    for path in paths:
        found.append(picture := pictures.name(folder, path.stem))
        if picture.stem != path.stem:
            print(f"vlsam: {_printable(path)}: its picture is {_printable(picture)}", file=sys.stderr)
    return found


def _segment(args: argparse.Namespace) -> int:
    prompt = _prompt(args.point, args.box)
    (overlay,) = _pictures(Pictures([args.image]), args.overlay, [args.image])
    settings = Settings.from_env()
    vlsam = _load(args, settings)
    try:
        image = _read(args.image, settings)
    except ImageError as error:
        raise ValueError(f"{_printable(args.image)}: {error}") from error
    height, width = image.shape[:2]
    xs, ys = prompt.points[:, 0], prompt.points[:, 1]
    if ((xs < 0) | (ys < 0) | (xs > width) | (ys > height)).any():
        raise ValueError(f"a point lies outside the image of {width} x {height} pixels")
    if prompt.box is not None:
        x0, y0, x1, y1 = np.clip(prompt.box, 0, (width, height) * 2).tolist()
        if x0 == x1 or y0 == y1:
            raise ValueError(f"the box lies outside the image of {width} x {height} pixels")
        prompt = replace(prompt, box=(x0, y0, x1, y1))
    try:
        found, _ = with_less(vlsam, lambda model: model.refine(model.encode(image), prompt, args.level))
        if not found.mask.any():
            print("vlsam: the mask is empty: the model finds nothing where you point", file=sys.stderr)
        detections = [found] if found.mask.any() else []
        item = _show(args, args.image, image, detections, overlay)
    except Exception as error:
        raise ValueError(f"{_printable(args.image)}: {_printable(why(error, str(args.image)))}") from error
    _print(args, [item])
    return 0


def _terms(args: argparse.Namespace) -> int:
    settings = Settings.from_env()
    user, password = settings.server.basic_auth_user, settings.server.basic_auth_pass
    auth = (user, password) if user is not None and password is not None else None
    url = args.url.rstrip("/") + "/terms"
    try:
        answer = connections.request("GET", url, params={"project": args.project}, auth=auth, timeout=10)
    except requests.RequestException as error:
        why = connections.distrust(error)
        raise ValueError(
            f"{url} {why}" if why else f"no server answers at {url}: {_printable(str(error))[:200]}"
        ) from error
    try:
        said = answer.json()
        reason = said.get("error")
        rows = [] if reason else [(str(row["term"]), int(row["images"])) for row in said["terms"]]
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ValueError(f"{url} is no vlsam server's: it answers with {answer.status_code}") from None
    if reason:
        raise ValueError(printable(str(reason)))
    if args.json:
        print(json.dumps(said))
    elif rows:
        listed = (f"{printable(term)} ({n} image{'s' if n != 1 else ''})" for term, n in rows)
        print(f"seen but not in your config: {', '.join(listed)}")
    else:
        print("everything that was seen has a label in your config")
    return 0


def _printable(said: str | Path) -> str:
    """Without the control characters that a terminal would refine_by_clicks, or bytes that are no text."""
    return printable(text(str(said)))


def _load(args: argparse.Namespace, settings: Settings) -> VLSAM:
    profile = settings.models.select(args.profile)
    if profile.demo:
        print("vlsam: demo weights, which know 40 drawn objects only (see --profile)", file=sys.stderr)
    return VLSAM.load(profile, settings.models.device, settings.detection.options)


def _read(path: Path, settings: Settings) -> Image:
    try:
        data = local_files.read(str(path), settings.images.max_image_bytes + 1)
    except OSError as error:
        raise ImageError(error.strerror or str(error)) from error
    if len(data) > settings.images.max_image_bytes:
        raise ImageError(
            f"The file has more than {settings.images.max_image_bytes} bytes (VLSAM_MAX_IMAGE_BYTES)."
        )
    return decode(data, max_pixels=settings.images.max_image_pixels)


def _prompt(points: Sequence[str], box: str | None) -> Prompt:
    """Parse --point and --box. Raises ValueError that names the argument."""
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


def _show(
    args: argparse.Namespace,
    path: Path,
    image: Image,
    detections: Sequence[Detection],
    overlay: Path | None,
) -> dict[str, Any]:
    """Write the overlay, if one is wanted, and return the image's item."""
    if overlay:
        save(draw(image, detections), overlay)
    if not args.json:
        names = ", ".join(f"{d.term} {d.score:.2f}".strip() for d in detections) or "nothing found"
        tqdm.write(f"{_printable(path)}: {_printable(names)}", file=sys.stdout)
    height, width = image.shape[:2]
    return {
        "image": text(str(path)),
        "width": width,
        "height": height,
        "detections": [detection.to_json() for detection in detections],
    }


def _write_maps(
    args: argparse.Namespace, pictures: Pictures, sheet: Path, image: Image, looks: Sequence[TermMap]
) -> None:
    """One sheet per image: each term's map; with --layers a sheet per term as well, a picture per layer."""
    if not looks:
        return
    save(tiled([image, *(heat(image, look.attention, look.term) for look in looks)], columns=3), sheet)
    for number, look in enumerate(looks if args.layers else (), 1):
        maps = [
            heat(image, normalised(each[None])[0], f"{look.term}: layer {layer}")
            for layer, each in enumerate(look.layers if look.layers is not None else (), 1)
        ]
        # Terms are the model's words and no file names, so the files are numbered.
        save(tiled(maps, columns=4), pictures.name(args.maps, f"{sheet.stem}-{number}-layers"))


def _print(args: argparse.Namespace, items: list[dict[str, Any]]) -> None:
    if args.json:
        json.dump(items, sys.stdout)
        sys.stdout.write("\n")


if __name__ == "__main__":
    sys.exit(main())
