"""Encode a project's images ahead, so that every first click is as fast as the second.

The encoded images go into $VLSAM_CACHE_DIR. A server with the same VLSAM_CACHE_DIR and the same segmenter
uses them at once, also while it runs. Images that are there already are not encoded again; an interrupted run
continues where it stopped. If an image fails, the reason is printed, the others go on, and the exit status is
1.

LABEL_STUDIO_API_KEY is sent to Label Studio to read the project and its images.

examples:
  VLSAM_CACHE_DIR=/data/vlsam vlsam warm --project 7
  vlsam warm --project 7 --label-studio-url http://studio:8080 --profile gpu-24g
"""

import argparse

from backend.commands.parser import Parser, add_profile


def add_arguments(parser: Parser) -> None:
    parser.add_argument("--project", type=int, required=True, metavar="N", help="its number in Label Studio")
    parser.add_argument("--label-studio-url", metavar="URL", help="default: $LABEL_STUDIO_URL")
    add_profile(parser)


def run(args: argparse.Namespace) -> int:
    from backend.prelabel import warm

    return warm.run(args)
