"""Run the command `vlsam` and its subcommands. Turn errors into one line and an exit status."""

import os
import re
import signal
import sys
from collections.abc import Sequence
from importlib import import_module

from backend.commands.parser import Parser
from backend.telemetry import logs
from model.types import VLSAMError

COMMANDS = (  # each a module of this folder
    "serve", "download", "annotate", "warm", "prelabel", "export", "bench", "doctor", "config", "segment",
    "terms",
)  # fmt: skip
RESUMABLE = ("download", "warm", "prelabel", "export")

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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    The status is 2 for an invalid argument or setting, 130 after Ctrl+C, and 141 if the reader closed the
    output, as in `vlsam ... | head`. Modules of commands import heavy libraries inside `run`, so that
    `--help` is fast.
    """
    try:
        try:
            return _run(sys.argv[1:] if arguments is None else arguments)
        finally:
            if sys.stdout is not None:  # None where it is closed
                sys.stdout.flush()
    except BrokenPipeError:
        # Otherwise Python writes the rest at exit, and reports the error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _run(arguments: Sequence[str]) -> int:
    """Run a command and return its exit status. Print an error as one line on stderr."""
    logs.of_command()
    args = parser().parse_args(_joined(arguments))
    from model import connections  # imports requests and the hub's library

    connections.advise_other_libraries()
    try:
        return int(args.run(args))
    except BrokenPipeError:
        raise
    except (VLSAMError, ValueError, OSError) as error:  # an argument, a setting, a full disk
        logs.remark(logs.redacted(str(error)))
        return 2
    except KeyboardInterrupt:
        continues = "; the same command goes on from here" if args.resumable else ""
        logs.remark(f"stopped{continues}")
        return 130


def parser() -> Parser:
    """Return the parser of all commands. The parsed arguments include the function `run` and `resumable`."""
    root = Parser(
        prog="vlsam",
        description="Named masks for images, found zero-shot by VL-SAM, for Label Studio or by hand.",
        epilog=EXAMPLES,
    )
    for name in COMMANDS:
        module = import_module(f"backend.commands.{name}")
        command = root.add_command(name, getattr(module, "run", None), module.__doc__)
        command.epilog = getattr(module, "EXAMPLES", None)
        command.set_defaults(resumable=name in RESUMABLE)
        module.add_arguments(command)
    return root


def _joined(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with "--point -3,5" as "--point=-3,5". argparse would take -3,5 for an option."""
    joined: list[str] = []
    for argument in arguments:
        value = re.fullmatch(r"-[^-,][^,]*,.*", argument, re.DOTALL)
        if value and joined and re.fullmatch(r"--\w[\w-]*", joined[-1]):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


if __name__ == "__main__":
    sys.exit(main())
