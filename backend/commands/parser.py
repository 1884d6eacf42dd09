"""Define the base class of parsers, and the arguments that several commands share."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from model.profiles import PROFILES


class Parser(argparse.ArgumentParser):
    """A parser whose help keeps its line breaks. Its commands get parsers of this class."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)
        self._commands: Any = None

    def add_commands(self, metavar: str) -> Any:
        """Return the object whose `add_parser` adds a command. A command is required."""
        self._commands = self.add_subparsers(required=True, metavar=metavar)
        return self._commands

    def walk(self) -> Iterator["Parser"]:
        """Yield this parser, those of its commands, and those of their commands."""
        yield self
        for command in self._commands.choices.values() if self._commands else ():
            yield from command.walk()


def add_profile(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--profile", choices=PROFILES, help="models to use (default: $VLSAM_PROFILE or builtin)"
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON to standard output")


def add_overlay(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--overlay", type=Path, metavar="DIR", help="write pictures of the masks here")
