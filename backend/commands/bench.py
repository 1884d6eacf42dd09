"""The command `vlsam bench`: measure speed and quality on this machine."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from backend.commands.parser import Parser
from model.bench.shape import Shape

ABOUT = """\
Measures on this machine. All figures of a comparison come from one run, as ratios. Progress goes to stderr;
with --json, the last line of standard output is one JSON object.

example:
  vlsam bench click --json
"""

ABOUT_ATTENTION = """\
Our attention maps against output_attentions=True, on one random model and one input: the forward pass alone,
with our maps, and with every attention matrix kept and multiplied out; each in its own process, taking turns.

example:
  vlsam bench attention --tokens 2048 --json
"""

ABOUT_ANNOTATE = """\
The paper's ablations with the built-in models, on scenes drawn by other code than the training scenes.

example:
  vlsam bench annotate --scenes 30 --switches
"""

ABOUT_CLICK = """\
A server, a client and a file server on this machine's loopback, in one process. Clicks over HTTP and bare
calls of the same model take turns, in the same thread; every figure is a ratio of their medians.

  server_over_decoder  a click on an encoded image, from the request to the last byte of the answer, over the
                       decoder's own time for that click: its embedding to low-resolution logits
  cold_over_encoder    the first click on an image, fetched and decoded from a JPEG file, over the encoder's
                       own time for its pixels
  encodes_per_image    encodes per image, over the first click on each and 20 more on two of them in turn
  objects20_over_1     one decode call of 20 prompts over one of 1 prompt
  regions30_over_0     a click in a task with 30 predicted regions of its label, outlines like hair or leaves,
                       over one in a task without any, after a first click sent them

For the built-in segmenter and for SAM ViT-B at its published size, with random weights, made here. The
figures of the last model at 2 megapixels come first. `rows` has all others, with the milliseconds of the
stages of a click (click_ms) and of a first click (first_click_ms). "rest" is the time outside all stages:
HTTP, threads and the queue. VLSAM_DEVICE chooses the device.

example:
  vlsam bench click --models builtin --megapixels 2
"""

ABOUT_NOC = """\
Number of clicks (NoC) until the mask of an object is good, by RITM's protocol: the first click is at the
middle of the object, each further one at the middle of the largest error, at most 20 on an object. The
figures are the mean number until IoU 0.85 and until 0.90 (an object that fails counts 20), the share of
objects that failed, and the mean IoU after 1, 3 and 5 clicks. VLSAM_PROFILE or VLSAM_SAM chooses the
segmenter.

FOLDER holds pictures and masks of the same names:
  FOLDER/images/street.jpg    or .jpeg .png .webp .bmp .tif
  FOLDER/masks/street.png     one number for each pixel (grey, palette, 1 or 16 bit): 0 is no object, each
                              other value is one object; a binary mask is thus one object
Images without a mask are left out. Write 0 for pixels to be ignored (often 255).

With --predictions the models of the profile annotate the drawn scenes first, and the clicks correct their
predictions, as in the editor. The figures are the clicks until every object of a scene has IoU 0.90 (the
median of the scenes) and those of an object (the mean), from its prediction and from nothing; an object that
fails counts 20. A prediction of something that is not there has to be deleted, which is not counted.

With --faults the clicks correct masks with deliberate faults: they cover two objects, miss a part, lie on a
neighbour or reach into it, have a bite or a spill. Each click is at the middle of the largest error, and is
answered as the server answers Label Studio: half of the masks are predictions with their evidence, half a
person's brush; half of the games accept and save each answer, half send all clicks again. A mask is corrected
from IoU 0.85 on; at most 10 clicks. The figures are, for each kind, the clicks (median; 90 % need no more),
the shares corrected within 1, 2 and 5 clicks, touched (an answer newly covers a tenth of a further object)
and strayed (an answer was another region than the click meant). "another object" is the reverse: a first
click on an object beside a good region of its label must leave that region alone.

examples:
  vlsam bench noc                       the built-in model's own drawn scenes
  vlsam bench noc --predictions --scenes 30
  vlsam bench noc --faults --scenes 30
  vlsam bench noc photos/ --json        your pictures
  VLSAM_SAM=sam_vit_h_4b8939.pth vlsam bench noc photos/
"""

ABOUT_PRELABEL = """\
`vlsam prelabel` with the built-in models on drawn scenes, JPEG files in a folder, to a list for Label Studio.
The first 200 take turns in ten legs: the models alone on images in memory, then the command, which continues
from its own state. Further images measure the memory.

  overhead                wall time of the command, all but loading the models, over the models' own time: the
                          seconds inside the VLM and the segmenter when nothing else is done
  overhead_over_pipeline  the same over all of VLSAM.annotate: also maps, points and merging
  rss_mb_per_1000_images  growth of the process's memory, a line through all rows but the first quarter;
                          null for the first 200 alone, in which it fills

example:
  vlsam bench prelabel --images 400
"""


def add_to(commands: Any) -> None:
    bench = commands.add_parser("bench", help="measure speed and quality on this machine", description=ABOUT)
    subjects = bench.add_commands("WHAT")

    attention = subjects.add_parser(
        "attention",
        help="our attention maps against output_attentions=True: time, memory, difference",
        description=ABOUT_ATTENTION,
    )
    for field in fields(Shape):
        attention.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=type(field.default),
            default=field.default,
            help="default: %(default)s",
        )
    attention.add_argument("--repeats", type=int, default=3, help="runs of each way (default: 3)")
    _finish(attention, _attention)

    annotate = subjects.add_parser(
        "annotate",
        help="the paper's ablations on drawn scenes, and the hands-on way's time over ours",
        description=ABOUT_ANNOTATE,
    )
    annotate.add_argument("--scenes", type=int, default=20, help="how many (default: 20)")
    annotate.add_argument("--seed", type=int, default=1, help="which ones (default: 1)")
    annotate.add_argument(
        "--switches", action="store_true", help="every switch on its own in place of the paper's table"
    )
    _finish(annotate, _annotate)

    click = subjects.add_parser(
        "click",
        help="a click over HTTP against the bare encoder and decoder, and where its time goes",
        description=ABOUT_CLICK,
    )
    click.add_argument(
        "--models", nargs="+", default=["builtin", "vit_b"], metavar="SAM",
        help="builtin, vit_b (random weights), or as VLSAM_SAM (default: builtin vit_b)",
    )  # fmt: skip
    click.add_argument(
        "--megapixels", nargs="+", type=float, default=[0.3, 2.0, 12.0], metavar="N",
        help="sizes of images (default: 0.3 2 12)",
    )  # fmt: skip
    click.add_argument("--cold", type=int, default=3, help="images of each size, 2 or more (default: 3)")
    click.add_argument("--repeats", type=int, default=7, help="decodes of 20 prompts (default: 7)")
    _finish(click, _click)

    noc = subjects.add_parser(
        "noc", help="clicks until a mask is good, on any folder of images with masks", description=ABOUT_NOC
    )
    noc.add_argument("folder", nargs="?", type=Path, metavar="FOLDER", help="default: drawn scenes")
    noc.add_argument("--scenes", type=int, default=50, help="without FOLDER: how many (default: 50)")
    noc.add_argument("--seed", type=int, default=1, help="without FOLDER: which ones (default: 1)")
    noc.add_argument(
        "--predictions", action="store_true", help="without FOLDER: clicks that correct predictions, too"
    )
    noc.add_argument("--faults", action="store_true", help="clicks that correct masks with deliberate faults")
    _finish(noc, _noc)

    prelabel = subjects.add_parser(
        "prelabel",
        help="a run of `vlsam prelabel` against the bare models, and its memory",
        description=ABOUT_PRELABEL,
    )
    prelabel.add_argument("--images", type=int, default=200, help="how many (default: 200)")
    prelabel.add_argument("--seed", type=int, default=1, help="which ones (default: 1)")
    _finish(prelabel, _prelabel)


def _finish(subject: Parser, run: Any) -> None:
    subject.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    subject.set_defaults(run=run)


def _attention(args: argparse.Namespace) -> int:
    from model.bench.attention import compare

    shape = Shape(**{field.name: getattr(args, field.name) for field in fields(Shape)})
    return _print(compare(shape, args.repeats), args)


def _annotate(args: argparse.Namespace) -> int:
    from backend.settings import Settings
    from model.bench.annotate import ablation, hands_on, steps, switches, table
    from model.pipeline import VLSAM
    from model.profiles import choose

    if args.scenes < 1:
        raise ValueError("--scenes must be 1 or more")
    vlsam = VLSAM.load(choose(), Settings.from_env().models.device)
    rows = ablation(vlsam, switches() if args.switches else steps(), args.scenes, args.seed)
    ratios = asdict(hands_on(vlsam, min(args.scenes, 5), args.seed))
    if not args.json:
        print(table(rows))
    figures = {"scenes": args.scenes, "seed": args.seed, **ratios}
    return _print(figures | ({"rows": [asdict(row) for row in rows]} if args.json else {}), args)


def _click(args: argparse.Namespace) -> int:
    from backend.bench.click import measure, table
    from backend.settings import Settings

    if args.cold < 2 or args.repeats < 1 or not all(0.01 <= size <= 100 for size in args.megapixels):
        raise ValueError("--cold must be 2 or more, --repeats 1 or more, --megapixels from 0.01 to 100")
    figures = measure(
        args.models,
        args.megapixels,
        cold=args.cold,
        repeats=args.repeats,
        device=Settings.from_env().models.device,
    )
    if not args.json:
        print(table(figures.pop("rows")))
    return _print(figures, args)


def _noc(args: argparse.Namespace) -> int:
    from backend.bench import faults
    from backend.settings import Settings
    from model.bench.noc import Folder, drawn, helped, noc
    from model.pipeline import VLSAM
    from model.segmentation.segmenter import Segmenter

    if args.scenes < 1:
        raise ValueError("--scenes must be 1 or more")
    if args.predictions and args.folder:
        raise ValueError("--predictions needs objects with names, and those of a FOLDER have none")
    if args.predictions and args.faults:
        raise ValueError("--predictions and --faults are two measurements: ask for one")
    folder = Folder(args.folder) if args.folder else None  # checked before any weights are read
    samples, total = (folder, len(folder)) if folder else (drawn(args.scenes, args.seed), args.scenes)
    settings = Settings.from_env()
    profile, device = settings.models.select(), settings.models.device
    if args.predictions:
        vlsam = VLSAM.load(profile, device, settings.detection.options)
        figures = asdict(helped(vlsam, samples, total))
    else:
        segmenter = Segmenter.load(profile.sam, device=device, folder=profile.folder)
        if args.faults:
            figures = faults.measure(segmenter, samples, total, args.seed)
            if not args.json:
                print(faults.table(figures.pop("kinds")))
        else:
            figures = asdict(noc(segmenter, samples, total))
    return _print({"data": str(args.folder or f"drawn, seed {args.seed}"), **figures}, args)


def _prelabel(args: argparse.Namespace) -> int:
    from backend.bench.prelabel import measure
    from backend.commands import prelabel
    from backend.settings import Settings

    def command(arguments: Sequence[str]) -> int:
        parser = Parser()
        prelabel.add_to(parser.add_commands("COMMAND"))
        return prelabel.run(parser.parse_args(["prelabel", *arguments]))

    if args.images < 8:
        raise ValueError("--images must be 8 or more")
    return _print(measure(args.images, args.seed, Settings.from_env().models.device, command), args)


def _print(figures: dict[str, Any], args: argparse.Namespace) -> int:
    if args.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:24} {value}")
    return 0
