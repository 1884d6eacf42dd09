"""Measure speed and quality on this machine.

All figures of a comparison come from one run, as ratios. Progress goes to stderr; with --json, the last line
of standard output is one JSON object.

example:
  vlsam bench click --json
"""

import argparse
import json
from collections.abc import Sequence
from itertools import starmap
from pathlib import Path
from typing import Any

from backend.commands.parser import Parser

SHAPE: dict[str, int | str] = {  # of model/bench/attention.py
    "tokens": 1536, "layers": 12, "heads": 12, "key_heads": 2, "width": 768, "dtype": "float32",
    "device": "cpu",
}  # fmt: skip


def add_arguments(parser: Parser) -> None:
    attention = parser.add_command("attention", _attention)
    for name, default in SHAPE.items():
        _add_value(attention, name.replace("_", "-"), default, "")
    _add_value(attention, "repeats", 3, "runs of each way")

    annotate = parser.add_command("annotate", _annotate)
    _add_value(annotate, "scenes", 20, "how many")
    _add_value(annotate, "seed", 1, "which ones")
    annotate.add_switches({"--switches": "every switch on its own in place of the paper's table"})

    click = parser.add_command("click", _click)
    click.add_argument(
        "--models", nargs="+", default=["builtin", "vit_b"], metavar="SAM",
        help="builtin, vit_b (random weights), or as VLSAM_SAM (default: builtin vit_b)",
    )  # fmt: skip
    click.add_argument(
        "--megapixels", nargs="+", type=float, default=[0.3, 2.0, 12.0], metavar="N",
        help="sizes of images (default: 0.3 2 12)",
    )  # fmt: skip
    _add_value(click, "cold", 3, "images of each size, 2 or more")
    _add_value(click, "repeats", 7, "decodes of 20 prompts")

    noc = parser.add_command("noc", _noc)
    noc.add_argument("folder", nargs="?", type=Path, metavar="FOLDER", help="default: drawn scenes")
    _add_value(noc, "scenes", 50, "without FOLDER: how many")
    _add_value(noc, "seed", 1, "without FOLDER: which ones")
    noc.add_switches({
        "--predictions": "without FOLDER: clicks that correct predictions, too",
        "--faults": "clicks that correct masks with deliberate faults",
    })  # fmt: skip

    prelabel = parser.add_command("prelabel", _prelabel)
    _add_value(prelabel, "images", 200, "how many")
    _add_value(prelabel, "seed", 1, "which ones")

    for subject in (attention, annotate, click, noc, prelabel):
        subject.add_switches({"--json": "print one JSON object as the last line"})


def _add_value(subject: Parser, name: str, default: int | str, about: str) -> None:
    about = f"{about} (default: %(default)s)" if about else "default: %(default)s"
    subject.add_argument(f"--{name}", type=type(default), default=default, help=about)


def _attention(args: argparse.Namespace) -> int:
    """Compare our attention maps with output_attentions=True: time, memory, difference.

    One random model gets one input: the forward pass alone, with our maps, and with every attention matrix
    kept and multiplied out; each in its own process, taking turns.

    example:
      vlsam bench attention --tokens 2048 --json
    """
    from model.bench.attention import Shape, compare

    return _print(compare(Shape(**{name: getattr(args, name) for name in SHAPE}), args.repeats), args)


def _annotate(args: argparse.Namespace) -> int:
    """Run the paper's ablations on drawn scenes, and compare the time of the naive way with ours.

    The models are the built-in ones. The scenes are drawn by other code than the training scenes.

    example:
      vlsam bench annotate --scenes 30 --switches
    """
    from backend.settings import Settings
    from model.bench.annotate import ablation, naive_over_ours, steps, switches, table
    from model.pipeline import VLSAM
    from model.profiles import choose

    if args.scenes < 1:
        raise ValueError("--scenes must be 1 or more")
    vlsam = VLSAM.load(choose(), Settings.from_env().models.device)
    rows = ablation(vlsam, switches() if args.switches else steps(), args.scenes, args.seed)
    figures = {
        "scenes": args.scenes,
        "seed": args.seed,
        **naive_over_ours(vlsam, min(args.scenes, 5), args.seed),
    }
    if not args.json:
        print(table(rows))
    return _print(figures | ({"rows": rows} if args.json else {}), args)


def _click(args: argparse.Namespace) -> int:
    """Compare a click over HTTP with the bare encoder and decoder, and split its time.

    A server, a client and a file server on this machine's loopback, in one process. Clicks over HTTP and bare
    calls of the same model take turns, in the same thread; every figure is a ratio of their medians.

      server_over_decoder  a click on an encoded image, from the request to the last byte of the answer, over
                           the decoder's own time for that click: its embedding to low-resolution logits
      cold_over_encoder    the first click on an image, fetched and decoded from a JPEG file, over the
                           encoder's own time for its pixels
      encodes_per_image    encodes per image, over the first click on each and 20 more on two of them in turn
      objects20_over_1     one decode call of 20 prompts over one of 1 prompt
      regions30_over_0     a click in a task with 30 predicted regions of its label, outlines like hair or
                           leaves, over one in a task without any, after a first click sent them

    For the built-in segmenter and for SAM ViT-B at its published size, with random weights, made here. The
    figures of the last model at 2 megapixels come first. `rows` has all others, with the milliseconds of the
    stages of a click (click_ms) and of a first click (first_click_ms). "rest" is the time outside all stages:
    HTTP, threads and the queue. VLSAM_DEVICE chooses the device.

    example:
      vlsam bench click --models builtin --megapixels 2
    """
    from backend.bench.click import measure, table
    from backend.settings import Settings

    if args.cold < 2 or args.repeats < 1 or not all(0.01 <= size <= 100 for size in args.megapixels):
        raise ValueError("--cold must be 2 or more, --repeats 1 or more, --megapixels from 0.01 to 100")
    device = Settings.from_env().models.device
    figures = measure(args.models, args.megapixels, cold=args.cold, repeats=args.repeats, device=device)
    if not args.json:
        print(table(figures.pop("rows")))
    return _print(figures, args)


def _noc(args: argparse.Namespace) -> int:
    """Count the clicks until a mask is good (NoC), on any folder of images with masks.

    By RITM's protocol the first click is at the middle of the object, each further one at the middle of the
    largest error, at most 20 on an object. The figures are the mean number until IoU 0.85 and until 0.90 (an
    object that fails counts 20), the share of objects that failed, and the mean IoU after 1, 3 and 5 clicks.
    VLSAM_PROFILE or VLSAM_SAM chooses the segmenter.

    FOLDER holds pictures and masks of the same names:
      FOLDER/images/street.jpg    or .jpeg .png .webp .bmp .tif
      FOLDER/masks/street.png     one number for each pixel (grey, palette, 1 or 16 bit): 0 is no object, each
                                  other value is one object; a binary mask is thus one object
    Images without a mask are left out. Write 0 for pixels to be ignored (often 255).

    With --predictions the models of the profile annotate the drawn scenes first, and the clicks correct their
    predictions, as in the editor. The figures are the clicks until every object of a scene has IoU 0.90 (the
    median of the scenes) and those of an object (the mean), from its prediction and from nothing; an object
    that fails counts 20. A prediction of something that is not there has to be deleted, which is not counted.

    With --faults the clicks correct masks with deliberate faults: they cover two objects, miss a part, lie on
    a neighbour or reach into it, have a bite or a spill. Each click is at the middle of the largest error,
    and is answered as the server answers Label Studio: half of the masks are predictions with their evidence,
    half a person's brush. Half of the sessions save each answer, half send all clicks again. A mask is
    corrected from IoU 0.85 on; at most 10 clicks. The figures are, for each kind, the clicks (median; 90 %
    need no more), the shares corrected within 1, 2 and 5 clicks, touched (an answer newly covers a tenth of a
    further object) and strayed (an answer was another region than the click meant). "another object" is the
    reverse: a first click on an object beside a good region of its label must leave that region alone.

    examples:
      vlsam bench noc                       the built-in model's own drawn scenes
      vlsam bench noc --predictions --scenes 30
      vlsam bench noc --faults --scenes 30
      vlsam bench noc photos/ --json        your pictures
      VLSAM_SAM=sam_vit_h_4b8939.pth vlsam bench noc photos/
    """
    from backend.bench import faults
    from backend.settings import Settings
    from model.bench.noc import drawn, helped, noc, pairs, read
    from model.pipeline import VLSAM
    from model.segmentation.segmenter import Segmenter

    if args.scenes < 1:
        raise ValueError("--scenes must be 1 or more")
    if args.predictions and args.folder:
        raise ValueError("--predictions needs objects with names, and those of a FOLDER have none")
    if args.predictions and args.faults:
        raise ValueError("--predictions and --faults are two measurements: ask for one")
    samples, total = drawn(args.scenes, args.seed), args.scenes
    if args.folder:
        paths = pairs(args.folder)  # checked before any weights are read
        samples, total = starmap(read, paths), len(paths)
    figures: dict[str, Any]
    settings = Settings.from_env()
    profile, device = settings.models.select(), settings.models.device
    if args.predictions:
        vlsam = VLSAM.load(profile, device, settings.detection.options)
        figures = helped(vlsam, samples, total)
    else:
        segmenter = Segmenter.load(profile.sam, device=device, folder=profile.folder)
        if args.faults:
            figures = faults.measure(segmenter, samples, total, args.seed)
            if not args.json:
                print(faults.table(figures.pop("kinds")))
        else:
            figures = noc(segmenter, samples, total)
    return _print({"data": str(args.folder or f"drawn, seed {args.seed}"), **figures}, args)


def _prelabel(args: argparse.Namespace) -> int:
    """Compare a run of `vlsam prelabel` with the bare models, and measure its memory.

    The built-in models label drawn scenes, JPEG files in a folder, for a list for Label Studio. The first 200
    take turns in ten legs: the models alone on images in memory, then the command, which continues from its
    own state. Further images measure the memory.

      overhead                wall time of the command, all but loading the models, over the models' own time:
                              the seconds inside the VLM and the segmenter when nothing else is done
      overhead_over_pipeline  the same over all of VLSAM.annotate: also maps, points and merging
      rss_mb_per_1000_images  growth of the process's memory, a line through all rows but the first quarter;
                              null for the first 200 alone, in which it fills

    example:
      vlsam bench prelabel --images 400
    """
    from backend.bench.prelabel import measure
    from backend.commands import prelabel
    from backend.settings import Settings

    def command(arguments: Sequence[str]) -> int:
        parser = Parser()
        prelabel.add_arguments(parser)
        return prelabel.run(parser.parse_args(arguments))

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
