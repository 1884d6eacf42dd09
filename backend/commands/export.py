"""Write a project's annotations: COCO, YOLO, masks, parquet; resumable.

It writes the final annotations, or the drafts or predictions. It can be killed at any time: the same command
continues where it stopped. A later run reads the changed tasks and writes DEST anew. Skipped tasks and
regions are counted by reason.

DEST, by its ending
  out.coco.json   COCO instances: polygons to the pixel, holes and parts with them
  out.yolo        a folder to train YOLO's segmentation (or detection) with
  masks/          a folder of PNGs: NAME.png has the number of a class in each pixel, and
                  objects/NAME/1.png ... have each object whole; classes.txt, index.json
  out.parquet     a row per image, with run lengths
  out.json        tasks to import into Label Studio again

Regions of a task
  annotations     the ground truth, else the submitted annotation that was changed last. Skipped tasks and
                  tasks without a submitted annotation are left out. An annotation without regions is an
                  image without objects, and stays.
  drafts          the draft that was changed last, of all people; drafts are read anew each time
  predictions     those of the model version that the project shows, or of --model-version; the newest if
                  it shows none, or a backend's

Objects
  Each region of a brush, bitmask, polygon, closed vector, rectangle or ellipse is an object, whole even if
  another one covers it. Its name is its label as in results: the alias if it has one. A region with several
  labels is an object of each; a region without a label takes its text or choice (perRegion) as its name.
  Classes are numbered in the order of the labeling config; others follow, by name.
  Left out, counted and named: regions without a name or without pixels (keypoints, open lines), clicks and
  boxes for a smart tool, and regions that cannot be read, such as run lengths of another image's size.

Beside DEST lies DEST.state, with the finished rows (rows.jsonl) and summary.json.
"""

import argparse

from backend.commands.parser import Parser

EXAMPLES = """\
exit status:
  0    done; single tasks may have failed
  1    every task that was to be written failed
  2    nothing was done, or the run had to end: an argument, a setting, DEST, Label Studio
  130  stopped by Ctrl-C

examples:
  vlsam export --project 7 --to out.coco.json                 for pycocotools, supervision, detectron2 ...
  vlsam export --project 7 --to out.coco.json --copy-images   and the images in out.images/
  vlsam export --project 7 --to out.yolo --copy-images        then: yolo segment train data=out.yolo/data.yaml
  vlsam export --project 7 --to masks/                        semantic masks and one for each object
  vlsam export --project 7 --to found.coco.json --what predictions --model-version yolo-11
"""


def add_arguments(parser: Parser) -> None:
    parser.add_argument("--project", type=int, required=True, metavar="N", help="its number in Label Studio")
    parser.add_argument("--to", required=True, metavar="DEST", help="a file or folder, by its ending")
    parser.add_argument(
        "--what", choices=("annotations", "drafts", "predictions"), default="annotations",
        help="(default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--model-version", metavar="V", help="with --what predictions: the model's version")
    parser.add_switches({
        "--copy-images": "copy the images, too, and convert those that trainers would not read as labelled: "
        "into out.images/, out.yolo/images/ or masks/images/",
        "--coco-rle": "write run lengths into .coco.json, not polygons: smaller",
        "--restart": "discard the finished rows and begin again",
    })  # fmt: skip


def run(args: argparse.Namespace) -> int:
    from backend.export.job import Request, main

    return main(Request.parse(args))
