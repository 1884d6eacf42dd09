"""Count the clicks until a mask is good (NoC), by RITM's protocol (arXiv 2102.06583): `vlsam bench noc`."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image as PILImage
from tqdm import tqdm

from model.builtin.measure import corrective_click, paste_scene
from model.image_decoding import read_image
from model.pipeline import VLSAM
from model.segmentation.click_refinement import refine_by_clicks
from model.segmentation.non_maximum_suppression import iou
from model.segmentation.segmenter import Answer, Segmenter
from model.types import Detection, Image, ImageError, Mask, Prompt

CAP = 20  # clicks on an object before it counts as failed
GOALS = (0.85, 0.90)
SHOWN = (1, 3, 5)  # clicks after which the mean IoU is reported
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True, eq=False)
class Sample:
    image: Image
    objects: tuple[Mask, ...]  # (H, W) each, none empty
    names: tuple[str, ...] = ()  # of the objects, if known


def pairs(folder: Path) -> list[tuple[Path, Path]]:
    """Return the path of each image (images/NAME.jpg ...) and mask (masks/NAME.png). Raises ValueError."""
    masks = sorted((folder / "masks").glob("*.png"))
    if not masks:
        raise ValueError(f"{folder} holds no masks/*.png: see --help for what belongs in the folder")
    found = sorted((folder / "images").glob("*"))
    images = {path.stem: path for path in found if path.suffix.lower() in _SUFFIXES}
    for path in masks:
        if path.stem not in images:
            raise ValueError(f"{path} has no image of that name in {folder / 'images'}")
    return [(images[path.stem], path) for path in masks]


def drawn(scenes: int, seed: int) -> Iterator[Sample]:
    """Draw the model card's measurement scenes, with other code than the training scenes."""
    rng = np.random.default_rng(seed)
    for _ in range(scenes):
        scene = paste_scene(rng)
        seen = [thing for thing in scene.objects if thing.visible.any()]
        yield Sample(scene.image, tuple(t.visible for t in seen), tuple(t.name for t in seen))


def read(image_path: Path, mask_path: Path) -> Sample:
    """Read an image and its mask file. Each value in the mask except 0 is one object. Raises ValueError."""
    try:
        image = read_image(image_path)
        with PILImage.open(mask_path) as opened:
            values = np.asarray(opened)
    except (ImageError, OSError, SyntaxError, PILImage.DecompressionBombError) as error:
        raise ValueError(f"{mask_path} or its image cannot be read: {error}") from error
    if values.ndim != 2:
        raise ValueError(f"{mask_path} is a picture in colours: a mask has one number for each pixel")
    if values.shape != image.shape[:2]:
        raise ValueError(
            f"{mask_path} is {values.shape[1]} x {values.shape[0]} pixels, "
            f"its image {image.shape[1]} x {image.shape[0]}"
        )
    return Sample(image, tuple(values == value for value in np.unique(values) if value))


def simulate_clicks(
    refine: Callable[[Prompt], Answer | Detection], truth: Mask, start: Prompt | None = None
) -> list[float]:
    """Simulate clicks at the largest errors of `refine`'s masks. Return the IoU after each click.

    At least max(SHOWN) and at most CAP clicks are made, until the highest goal. If `start` is given, the
    prompt of a region with its mask, the clicks correct this region.
    """
    start = start or Prompt()
    mask = np.zeros_like(truth) if start.mask is None else start.mask
    made, reached = [corrective_click(mask, truth)], list[float]()
    prompt = _joined(start, made)
    while len(reached) < CAP and (len(reached) < max(SHOWN) or max(reached) < max(GOALS)):
        answer = refine(prompt)
        reached.append(iou(answer.mask, truth))
        made.append(corrective_click(answer.mask, truth))
        prompt = _joined(replace(start, mask=answer.mask, logits=answer.logits), made)
    return reached


def _joined(start: Prompt, made: Sequence[tuple[float, float, int]]) -> Prompt:
    """Add clicks to a region's prompt. Remove its box if a positive click is outside, as in the editor."""
    clicks = Prompt.of(*made)
    inside = clicks.points[clicks.labels == 1]
    box = start.box
    if box is not None and not ((inside >= box[:2]).all() and (inside <= box[2:]).all()):
        box = None
    points = np.concatenate([start.points, clicks.points])
    return replace(start, points=points, labels=np.concatenate([start.labels, clicks.labels]), box=box)


def needed(session: Sequence[float], goal: float) -> int:
    """Return the number of clicks until IoU `goal`, or CAP. `session` holds the IoU after each click."""
    return next((k for k, value in enumerate(session, 1) if value >= goal), CAP)


def helped(vlsam: VLSAM, samples: Iterable[Sample], total: int) -> dict[str, float]:
    """Count the clicks for the objects of `total` samples, from their predictions and from nothing.

    An object's prediction is the one of its name that overlaps it most. An object without a prediction starts
    from nothing. A prediction of IoU 0.90 needs no click. The figures are clicks until IoU 0.90, or CAP. Show
    progress on stderr.
    """
    goal, predicted = max(GOALS), 0
    scenes: list[list[tuple[int, int]]] = []  # clicks of each object, from the prediction and from nothing
    for sample in tqdm(samples, "bench noc", total, unit="image", file=sys.stderr, disable=None):
        refine = partial(vlsam.refine, vlsam.encode(sample.image))
        found = _predictions(sample, vlsam.annotate(sample.image))
        predicted += len(found)
        scenes.append([])
        for number, truth in enumerate(sample.objects):
            clicks = from_nothing = needed(simulate_clicks(refine, truth), goal)
            if number in found:
                mask = found[number].mask
                start = replace(found[number].evidence.prompt, mask=mask, logits=None)
                if iou(mask, truth) >= goal:
                    clicks = 0
                else:
                    clicks = needed(simulate_clicks(refine, truth, start), goal)
            scenes[-1].append((clicks, from_nothing))
    medians = np.median([np.sum(rows, axis=0) for rows in scenes], axis=0).round(4).tolist()
    means = np.mean([row for rows in scenes for row in rows], axis=0).round(4).tolist()
    return {
        "images": total,
        "objects": sum(map(len, scenes)),
        "predicted": predicted,
        "median_scene_from_prediction": medians[0],
        "median_scene_from_nothing": medians[1],
        "mean_object_from_prediction": means[0],
        "mean_object_from_nothing": means[1],
    }


def _predictions(sample: Sample, found: Iterable[Detection]) -> dict[int, Detection]:
    """Match predictions with objects of the same name by IoU. Return the best for each object index."""
    best: dict[int, tuple[float, Detection]] = {}
    for detection in found:
        numbers = [i for i, name in enumerate(sample.names) if name == detection.term]
        overlaps = [(iou(detection.mask, sample.objects[i]), i) for i in numbers]
        shared, number = max(overlaps, default=(0.0, -1))
        if shared > best.get(number, (0.0,))[0]:
            best[number] = (shared, detection)
    return {number: detection for number, (_, detection) in best.items()}


def noc(segmenter: Segmenter, samples: Iterable[Sample], total: int) -> dict[str, float]:
    """Simulate clicks on all objects of `total` samples. Return mean figures. Raises ValueError."""
    sessions: list[list[float]] = []
    for sample in tqdm(samples, "bench noc", total, unit="image", file=sys.stderr, disable=None):
        embedding = segmenter.encode(sample.image)
        sessions += [
            simulate_clicks(partial(refine_by_clicks, segmenter, embedding), truth)
            for truth in sample.objects
        ]
    if not sessions:
        raise ValueError("the masks hold no object: every pixel is 0")
    of_sessions: dict[str, list[float]] = {
        **{f"noc{goal * 100:.0f}": [needed(session, goal) for session in sessions] for goal in GOALS},
        **{f"failed{goal * 100:.0f}": [max(session) < goal for session in sessions] for goal in GOALS},
        **{f"iou{clicks}": [session[clicks - 1] for session in sessions] for clicks in SHOWN},
    }
    means = {name: round(float(np.mean(values)), 4) for name, values in of_sessions.items()}
    return {"images": total, "objects": len(sessions), **means}
