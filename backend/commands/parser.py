"""Define the base class of parsers, and the arguments that several commands share."""

import argparse
from collections.abc import Callable, Iterator, Mapping
from inspect import cleandoc
from pathlib import Path
from typing import Any

from model.profiles import PROFILES


class Parser(argparse.ArgumentParser):
    """An argument parser whose help keeps its line breaks. Its subcommands get parsers of this class."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)
        self._commands: Any = None

    def add_command(
        self, name: str, run: Callable[[argparse.Namespace], int] | None, doc: str | None = None
    ) -> "Parser":
        """Add a subcommand and return its parser. Its description is `doc` or the docstring of `run`."""
        if self._commands is None:
            self._commands = self.add_subparsers(required=True, metavar="COMMAND")
        description = cleandoc(doc or run.__doc__ or "")
        about = description.partition("\n")[0].rstrip(".")
        about = about[:1].lower() + about[1:]
        parser: Parser = self._commands.add_parser(name, help=about, description=description)
        parser.set_defaults(run=run)
        return parser

    def add_switches(self, abouts: Mapping[str, str]) -> None:
        """Add boolean options. `abouts` maps the name of each option to its help."""
        for name, about in abouts.items():
            self.add_argument(name, action="store_true", help=about)

    def walk(self) -> Iterator["Parser"]:
        """Yield this parser and the parsers of all its subcommands, at any depth."""
        yield self
        for command in self._commands.choices.values() if self._commands else ():
            yield from command.walk()


def add_profile(parser: Parser) -> None:
    parser.add_argument(
        "--profile", choices=PROFILES, help="models to use (default: $VLSAM_PROFILE or builtin)"
    )


def add_json(parser: Parser) -> None:
    parser.add_switches({"--json": "print JSON to standard output"})


def add_overlay(parser: Parser) -> None:
    parser.add_argument("--overlay", type=Path, metavar="DIR", help="write pictures of the masks here")
