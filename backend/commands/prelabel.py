"""Label whole projects, folders and lists; resumable.

It finds, names and masks all objects. It can be killed at any time: the same command continues where it
stopped, and retries images that failed or were replaced since. If an image fails, the reason is listed and
the others go on. Skipped files are listed by reason, too.

SOURCE                            DEST, by its ending
  photos/           a folder        out.json          tasks with predictions, to import into Label Studio
  's3://b/**.jpg'   files, URIs     out.coco.json     COCO instances
  list.csv          or .jsonl,      out.yolo          a folder for YOLO's segmentation
                    .parquet        out.parquet       a row per image
  labelstudio://7   a project       labelstudio://7   predictions of that project's tasks

A list has a column `image` (or the field that the labeling config names) with a path or address, and may
have a column `id`; its other columns go into the task. A project is given by its number. It is read from
LABEL_STUDIO_URL with LABEL_STUDIO_API_KEY, and its own labeling config is used. Without a labeling config
each term is a label, and a labeling config with all of them is written beside the results.

Folders are read with all folders in them, also linked ones, each once. A parquet file may hold the images
themselves, as bytes or as Hugging Face's {"bytes", "path"}. SOURCE and DEST may be on any file system of
fsspec; an address in a list is a path of a file, http(s), data, s3, gs or az.

Beside DEST lies DEST.state, with the finished rows (rows.jsonl), the summary, and sheet.html with samples to
look at before you import anything.
"""

import argparse
import re
from pathlib import Path

from backend.commands.parser import Parser, add_profile

EXAMPLES = """\
exit status:
  0    done; single images may have failed
  1    every image failed, or more than --max-failures
  2    nothing was done, or the run had to end: an argument, a setting, SOURCE, DEST, Label Studio
  130  stopped by Ctrl-C

examples:
  vlsam prelabel photos/ --to out.json                         then import out.json into Label Studio
  vlsam prelabel photos/ --to out.json --image-prefix '/data/local-files/?d=photos/'
                                                               as Label Studio's local storage serves them
  vlsam prelabel photos/ --to out.json --label-config ui.xml   the labels of a project
  vlsam prelabel labelstudio://7 --to trial.json --limit 50    a trial: look at trial.json.state/sheet.html
  vlsam prelabel labelstudio://7 --to labelstudio://7          all tasks that this model has not labelled yet
  vlsam prelabel labelstudio://7 --to out.yolo --copy-images   a folder to train YOLO with, images and all
  vlsam prelabel photos/ --to out.coco.json                    `file_name` is the path below photos/
  vlsam prelabel list.parquet --to out.json --shard 3/8        one of 8 machines (Slurm, Kubernetes arrays)
  vlsam prelabel list.parquet --to out.json --merge 8          when all 8 are done
"""


def add_arguments(parser: Parser) -> None:
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("--to", required=True, metavar="DEST")
    parser.add_argument(
        "--label-config", type=Path, metavar="XML", help="file with the labeling config of the project"
    )
    parser.add_argument(
        "--image-prefix", metavar="TEXT",
        help="what Label Studio finds the images under: stands in DEST in place of the folder or URI",
    )  # fmt: skip
    parser.add_argument(
        "--max-failures", type=_failures, metavar="N|N%",
        help="exit with 1 when more images failed; the run goes on to its end (default: when all failed)",
    )  # fmt: skip
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images, as a trial")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--shard", type=_shard, metavar="I/N", help="only part I of N, from 1 to N")
    part.add_argument(
        "--merge", type=int, metavar="N", help="write DEST from the N shards that were run with this command"
    )
    parser.add_argument(
        "--ray", nargs="?", const="local", metavar="ADDRESS",
        help="by the workers of the Ray cluster at HOST:PORT; without an address by those of this machine",
    )  # fmt: skip
    parser.add_argument(
        "--workers", type=int, metavar="N",
        help="with --ray: how many load the models (default: one for each GPU, or 1)",
    )  # fmt: skip
    parser.add_switches({
        "--all": "into a project also the tasks that this model has labelled already, in place of what is "
        "there",
        "--coco-polygons": "into .coco.json polygons instead of run lengths, within a pixel of the mask's "
        "outline, for programs that read no run lengths (Label Studio's own converter is one)",
        "--copy-images": "into .yolo copies of the images, fetched where they are elsewhere and converted "
        "where trainers would not see what was labelled; without it links to those of this machine",
        "--show": "have the project show these predictions, even if it shows another model's, or none",
        "--restart": "throw away what is done, and begin again",
    })  # fmt: skip
    add_profile(parser)


def run(args: argparse.Namespace) -> int:
    from backend.prelabel.job import Request, main

    return main(Request.parse(args))


def _failures(text: str) -> tuple[float, bool]:
    """Parse "20" or "5%". Return the number, and whether it is a percentage. Raises ArgumentTypeError."""
    match = re.fullmatch(r"(\d{1,12}(?:\.\d{1,6})?)%|(\d{1,12})", text, re.ASCII)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not like 20 or 5%")
    return float(match[1] or match[2]), match[1] is not None


def _shard(text: str) -> tuple[int, int]:
    part, _, count = text.partition("/")
    if not (part.isdecimal() and count.isdecimal() and 1 <= int(part) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is not like 3/8, from 1/8 to 8/8")
    return int(part), int(count)
