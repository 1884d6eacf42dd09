"""The command `vlsam bench`: speed and quality on this machine."""

import argparse
import json
from dataclasses import asdict, fields
from typing import Any

from backend.settings import Settings
from model.bench.attention import Shape, compare
from model.pipeline import VLSAM
from model.profiles import choose

ABOUT = """\
Measures on this machine. Every figure of a comparison comes from one run, as a ratio. Progress goes to
stderr; with --json, the last line of standard output is one JSON object.
"""


def add_to(commands: Any) -> None:
    """Put `bench` and its subjects under the main parser's commands."""
    bench = commands.add_parser("bench", help="measure speed and quality on this machine", description=ABOUT)
    subjects = bench.add_subparsers(required=True, metavar="WHAT")
    attention = subjects.add_parser(
        "attention",
        help="our attention maps against output_attentions=True: time, memory, difference",
        description="One random model, one input: the forward pass alone, with our maps, and with every "
        "attention matrix kept and multiplied out; each in its own process, taking turns.",
    )
    for field in fields(Shape):
        attention.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=type(field.default),
            default=field.default,
            help="default: %(default)s",
        )
    attention.add_argument("--repeats", type=int, default=3, help="runs of each way (default: 3)")
    attention.set_defaults(run=_attention)
    annotate = subjects.add_parser(
        "annotate",
        help="the paper's ablations on drawn scenes, and the hands-on way's time over ours",
        description="With the built-in models, on scenes drawn by other code than they were trained on.",
    )
    annotate.add_argument("--scenes", type=int, default=20, help="how many (default: 20)")
    annotate.add_argument("--seed", type=int, default=1, help="which ones (default: 1)")
    annotate.add_argument(
        "--switches", action="store_true", help="every switch on its own in place of the paper's table"
    )
    annotate.set_defaults(run=_annotate)
    for subject in (attention, annotate):
        subject.add_argument("--json", action="store_true", help="print one JSON object as the last line")


def _attention(args: argparse.Namespace) -> int:
    shape = Shape(**{field.name: getattr(args, field.name) for field in fields(Shape)})
    figures = compare(shape, args.repeats)
    _print(args, figures)
    return 0


def _annotate(args: argparse.Namespace) -> int:
    from model.bench.annotate import ablation, hands_on, steps, switches, table

    if args.scenes < 1:
        raise ValueError("--scenes must be 1 or more")
    vlsam = VLSAM.load(choose(), Settings.from_env().device)
    rows = ablation(vlsam, switches() if args.switches else steps(), args.scenes, args.seed)
    ratios = asdict(hands_on(vlsam, min(args.scenes, 5), args.seed))
    if not args.json:
        print(table(rows))
    figures = {"scenes": args.scenes, "seed": args.seed, **ratios}
    _print(args, figures | ({"rows": [asdict(row) for row in rows]} if args.json else {}))
    return 0


def _print(args: argparse.Namespace, figures: dict[str, Any]) -> None:
    if args.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:24} {value}")
