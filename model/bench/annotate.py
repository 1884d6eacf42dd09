"""Run the paper's ablations on held-out built-in scenes, and time a naive implementation.

The code in model/builtin/measure.py that generates the scenes did not generate the training scenes. The VLM
is so small that the table tests the code, not the method.
"""

import contextlib
import io
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tqdm import tqdm

from model import coco
from model.attention.capture import implementations
from model.builtin.measure import paste_scene
from model.builtin.scenes import NAMES, Scene
from model.options import Options
from model.pipeline import VLSAM
from model.recipes import RECIPES, Recipe
from model.segmentation.non_maximum_suppression import iou
from model.types import Detection, Image, box_of
from model.vlm.terms import parse
from model.vlm.vlm import VLM

# The paper has the VLM propose ten questions, which the built-in one cannot.
QUESTIONS = (
    "List all objects in the image.",
    "What objects are in the image?",
    "Which things can you see?",
    "Name every item in this picture.",
    "What is shown in the image?",
    "List the animals in the image.",
    "List the vehicles in the image.",
    "List the food in the image.",
    "What small objects are there?",
    "What is in the background?",
)

Row = dict[str, Any]  # the step and its figures

_NAIVE = RECIPES["naive"]
_FLOW = replace(_NAIVE, source="flow", head_weights="none", regularise="none")


def steps() -> list[tuple[str, Options]]:
    """Return each row's name and options. A row adds one switch to the row before; the last is `best`."""
    regular = replace(_FLOW, regularise="before")
    weighted = replace(regular, head_weights="max")
    pair = replace(weighted, points="pair")
    plain = Options(recipe=RECIPES["paper"])
    return [
        ("naive", Options(recipe=_NAIVE)),
        ("+ flow without regularisation", Options(recipe=_FLOW)),
        ("+ regularisation", Options(recipe=regular)),
        ("+ head weights", Options(recipe=weighted)),
        ("+ point pair", Options(recipe=pair)),
        ("+ refinement (paper)", plain),
        ("+ views", replace(plain, views="corners")),
        ("+ questions", replace(plain, views="corners", questions=QUESTIONS)),
        ("best", Options(recipe=RECIPES["best"])),
    ]


def switches(base: Recipe = RECIPES["paper"]) -> list[tuple[str, Options]]:
    """Return a row for each change of a base recipe. The recipe `best` was chosen by these rows."""
    changes: list[dict[str, Any]] = [
        {"head_weights": "none"}, {"head_weights": "vmax"}, {"start_layer": 0.5}, {"residual": "half"},
        {"residual": "half", "start_layer": 0.5}, {"regularise": "none"}, {"regularise": "end"},
        {"row": "asking"}, {"subtokens": "max"}, {"subtokens": "last"}, {"contrast": "background"},
        {"contrast": "terms"}, {"sinks": True}, {"cosine": True}, {"smooth": 1.0}, {"points": "peak"},
        {"points": "maxima"}, {"points": "kmeans"}, {"components": 3}, {"box": True}, {"logits": True},
        {"refine": False}, {"consistency": False}, {"source": "last-layer"}, {"source": "decoder-mean"},
        {"source": "vision"}, {"source": "cosine"},
    ]  # fmt: skip
    rows = [("base", Options(recipe=base))]
    for change in changes:
        name = ", ".join(f"{key} {value}" for key, value in change.items())
        rows.append((name, Options(recipe=replace(base, **change))))
    return rows


def ablation(vlsam: VLSAM, rows: Sequence[tuple[str, Options]], scenes: int, seed: int) -> list[Row]:
    """Measure each (name, options) on the same scenes. The last row is an oracle: SAM with the true boxes.

    The rows take turns on each scene, so that a busy machine slows all of them. Show progress on stderr.
    """
    rng = np.random.default_rng(seed)
    drawn = [paste_scene(rng) for _ in range(scenes)]
    ways = {name: partial(_annotated, vlsam.with_options(options)) for name, options in rows}
    ways["oracle (true boxes)"] = partial(_oracle, vlsam)
    found: dict[str, list[list[Detection]]] = {name: [] for name in ways}
    seconds = dict.fromkeys(ways, 0.0)
    turns = [(scene, name) for scene in drawn for name in ways]
    for scene, name in tqdm(turns, desc="bench annotate", unit="image", file=sys.stderr, disable=None):
        since = time.perf_counter()
        found[name].append(ways[name](scene))
        seconds[name] += time.perf_counter() - since
    return [_row(name, drawn, found[name], seconds[name] / scenes) for name in ways]


def _annotated(vlsam: VLSAM, scene: Scene) -> list[Detection]:
    return vlsam.annotate(scene.image)


def _oracle(vlsam: VLSAM, scene: Scene) -> list[Detection]:
    things = [thing for thing in scene.objects if thing.visible.any()]
    return vlsam.in_boxes(scene.image, [(thing.name, box_of(thing.visible)) for thing in things])


def _row(name: str, scenes: Sequence[Scene], found: Sequence[list[Detection]], seconds: float) -> Row:
    """Return the figures of a row. `seconds` is the mean per image.

    Recall counts the objects with a mask of their name at IoU 0.5 or more. The mean IoU is that of the best
    mask with the object's name, 0 if there is none. mAP and mAR are COCO's, of masks, at IoU 0.5 to 0.95.
    """
    best = [
        max((iou(d.mask, thing.visible) for d in detections if d.term == thing.name), default=0.0)
        for scene, detections in zip(scenes, found, strict=True)
        for thing in scene.objects
    ]
    precision, recall = coco_figures(scenes, found)
    return {
        "step": name,
        "recall": round(float(np.mean([value >= 0.5 for value in best])), 4),
        "mean_iou": round(float(np.mean(best)), 4),
        "map": round(precision, 4),
        "mar": round(recall, 4),
        "seconds": round(seconds, 3),
    }


def coco_figures(scenes: Sequence[Scene], found: Sequence[list[Detection]]) -> tuple[float, float]:
    """Return COCO's mAP and mAR of masks, with at most 100 detections per image, over the 40 names."""
    categories = {name: index for index, name in enumerate(NAMES, 1)}
    annotations: list[dict[str, Any]] = []
    for image, scene in enumerate(scenes):
        for thing in scene.objects:
            mask, ids = thing.visible, {"image_id": image, "category_id": categories[thing.name]}
            annotation = coco.annotation(coco.encode(mask), box_of(mask), None, **ids)
            annotations.append({"id": len(annotations) + 1, **annotation})
    truth = {
        "info": {},
        "images": [
            {"id": i, "height": s.image.shape[0], "width": s.image.shape[1]} for i, s in enumerate(scenes)
        ],
        "categories": [{"id": index, "name": name} for name, index in categories.items()],
        "annotations": annotations,
    }
    guesses = [
        d.to_coco(image_id=i, category_id=categories[d.term])
        for i, detections in enumerate(found)
        for d in detections
        if d.term in categories
    ]
    if not guesses:
        return 0.0, 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        right = COCO()
        right.dataset = truth
        right.createIndex()
        judge = COCOeval(right, right.loadRes(guesses), "segm")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return max(0.0, float(judge.stats[0])), max(0.0, float(judge.stats[8]))


def naive_over_ours(vlsam: VLSAM, scenes: int, seed: int) -> dict[str, float]:
    """Return the median ratio of the naive way's time to ours, for the names and maps of an image's objects.

    The naive way lists the objects, then generates up to 30 tokens again for each. It uses no KV cache and
    keeps every attention matrix. A VLM that describes places fills the 30 tokens. The built-in one stops
    after about 10, so both lengths are measured.
    """
    vlm, question, recipe = vlsam.vlm, Options().questions[0], RECIPES["paper"]
    rng = np.random.default_rng(seed)
    ratios: list[tuple[float, ...]] = []
    for _ in tqdm(range(scenes), desc="bench naive", unit="image", file=sys.stderr, disable=None):
        image = paste_scene(rng).image
        since = time.perf_counter()
        answer = vlm.answer(image, question)
        terms = parse(answer.text)
        vlm.attention_maps(answer, [(term.start, term.end) for term in terms], recipe)
        ours = time.perf_counter() - since
        if not terms:
            continue
        took = []
        for least in (30, 0):
            since = time.perf_counter()
            vlm.answer(image, question)
            with _eager(vlm):
                for term in terms:
                    _generate_again(vlm, image, term.text, least)
            took.append((time.perf_counter() - since) / ours)
        ratios.append(tuple(took))
    full, stopping = np.median(ratios, 0).round(2).tolist()
    return {"naive_over_ours": full, "naive_over_ours_stopping": stopping}


@contextlib.contextmanager
def _eager(vlm: VLM) -> Iterator[None]:
    vlm.model.set_attn_implementation("eager")
    try:
        yield
    finally:
        vlm.model.set_attn_implementation(implementations(vlm.model.config))


@torch.inference_mode()
def _generate_again(vlm: VLM, image: Image, name: str, least: int) -> torch.Tensor:
    said = vlm.model.generate(
        **vlm.inputs(image, f"Where is the {name} in the image?"),
        max_new_tokens=30, min_new_tokens=least, do_sample=False, use_cache=False,
        output_attentions=True, return_dict_in_generate=True,
    )  # fmt: skip
    kept: torch.Tensor = said.attentions[-1][-1][0].mean(0)[-1]  # the last layer's mean, of the last token
    return kept


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = ["| step | recall at 0.5 | mean IoU | mAP | mAR | s / image |", "|---|---|---|---|---|---|"]
    lines += [
        "| {step} | {recall:.3f} | {mean_iou:.3f} | {map:.3f} | {mar:.3f} | {seconds:.2f} |".format(**row)
        for row in rows
    ]
    return "\n".join(lines)
