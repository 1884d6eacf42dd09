"""The command `vlsam warm`: encode a project's images ahead. backend/prelabel/warm.py does the work."""

import argparse
from typing import Any

from backend.commands.parser import add_profile

ABOUT = """\
Encodes the images of a Label Studio project into $VLSAM_CACHE_DIR, so that every first click is as fast as
the second. A server with the same VLSAM_CACHE_DIR and the same segmenter uses them at once, also while it
runs. Images that are there already are not encoded again; an interrupted run continues where it stopped. If
an image fails, the reason is printed, the others go on, and the exit status is 1.

LABEL_STUDIO_API_KEY is sent to Label Studio to read the project and its images.

examples:
  VLSAM_CACHE_DIR=/data/vlsam vlsam warm --project 7
  vlsam warm --project 7 --label-studio-url http://studio:8080 --profile gpu-24g
"""


def add_to(commands: Any) -> None:
    parser = commands.add_parser(
        "warm", help="encode a project's images ahead, so that every first click is fast", description=ABOUT
    )
    parser.add_argument("--project", type=int, required=True, metavar="N", help="its number in Label Studio")
    parser.add_argument("--label-studio-url", metavar="URL", help="default: $LABEL_STUDIO_URL")
    add_profile(parser)
    parser.set_defaults(run=run, resumable=True)


def run(args: argparse.Namespace) -> int:
    from backend.prelabel import warm

    return warm.run(args)
