"""Parser of a command, and the arguments that several commands share."""

import argparse
from pathlib import Path
from typing import Any

from model.profiles import PROFILES


class Parser(argparse.ArgumentParser):
    """A parser whose help keeps its line breaks. Subcommands get parsers of this class."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, **options})


def add_profile(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--profile", choices=PROFILES, help="models to use (default: $VLSAM_PROFILE or builtin)"
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON to standard output")


def add_overlay(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--overlay", type=Path, metavar="DIR", help="write pictures of the masks here")
