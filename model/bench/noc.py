"""Count the clicks until a mask is good (NoC), by RITM's protocol (arXiv 2102.06583): `vlsam bench noc`.

The first click goes to the middle of the object, each further one to the middle of the largest error.
`helped` counts the clicks that remain after a prediction.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image as PILImage
from PIL import ImageOps
from tqdm import tqdm

from model.builtin.measure import corrective_click, paste_scene
from model.pipeline import VLSAM
from model.segmentation.click_refinement import refine_by_clicks
from model.segmentation.non_maximum_suppression import iou
from model.segmentation.segmenter import Answer, Segmenter
from model.types import Detection, Image, Mask, Prompt

CAP = 20  # clicks on an object before it counts as failed
GOALS = (0.85, 0.90)
SHOWN = (1, 3, 5)  # clicks after which the mean IoU is reported
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True, eq=False)
class Sample:
    image: Image
    objects: tuple[Mask, ...]  # (H, W) each, none empty
    names: tuple[str, ...] = ()  # of the objects, if known


@dataclass(frozen=True)
class Figures:
    images: int
    objects: int
    noc85: float  # mean clicks until IoU 0.85; CAP for those that failed
    noc90: float
    failed85: float  # share of the objects that did not reach it in CAP clicks
    failed90: float
    iou1: float  # mean IoU after 1, 3 and 5 clicks
    iou3: float
    iou5: float


@dataclass(frozen=True)
class Help:
    """Clicks until IoU 0.90, per scene and per object. An object that fails counts CAP."""

    images: int
    objects: int
    predicted: int  # objects with a prediction of their name
    median_scene_from_prediction: float
    median_scene_from_nothing: float
    mean_object_from_prediction: float
    mean_object_from_nothing: float


class Folder:
    """images/NAME.jpg (or .png ...) with masks/NAME.png, where each value but 0 is one object."""

    def __init__(self, folder: Path) -> None:
        """Raises ValueError if there is no mask, or one without an image."""
        self._masks = sorted((folder / "masks").glob("*.png"))
        if not self._masks:
            raise ValueError(f"{folder} holds no masks/*.png: see --help for what belongs in the folder")
        found = sorted((folder / "images").glob("*"))
        self._images = {path.stem: path for path in found if path.suffix.lower() in _SUFFIXES}
        for path in self._masks:
            if path.stem not in self._images:
                raise ValueError(f"{path} has no image of that name in {folder / 'images'}")

    def __len__(self) -> int:
        return len(self._masks)

    def __iter__(self) -> Iterator[Sample]:
        """Raises ValueError for files that cannot be read or do not fit together."""
        for path in self._masks:
            yield read(self._images[path.stem], path)


def drawn(scenes: int, seed: int) -> Iterator[Sample]:
    """Yield scenes as in the model card's measurements, drawn by other code than the training scenes."""
    rng = np.random.default_rng(seed)
    for _ in range(scenes):
        scene = paste_scene(rng)
        seen = [thing for thing in scene.objects if thing.visible.any()]
        yield Sample(scene.image, tuple(t.visible for t in seen), tuple(t.name for t in seen))


def read(image_path: Path, mask_path: Path) -> Sample:
    """Read an image and its objects. Raises ValueError."""
    try:
        with PILImage.open(image_path) as opened:
            image = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
        with PILImage.open(mask_path) as opened:
            values = np.asarray(opened)
    except (OSError, SyntaxError, PILImage.DecompressionBombError) as error:
        raise ValueError(f"{mask_path} or its image cannot be read: {error}") from error
    if values.ndim != 2:
        raise ValueError(f"{mask_path} is a picture in colours: a mask has one number for each pixel")
    if values.shape != image.shape[:2]:
        raise ValueError(
            f"{mask_path} is {values.shape[1]} x {values.shape[0]} pixels, "
            f"its image {image.shape[1]} x {image.shape[0]}"
        )
    return Sample(image, tuple(values == value for value in np.unique(values) if value))


def play(
    refine: Callable[[Prompt], Answer | Detection], truth: Mask, start: Prompt | None = None
) -> list[float]:
    """Return the IoU of `refine`'s mask after each click, until the highest goal and SHOWN, or CAP.

    With a `start`, the prompt of a region and its mask, the clicks correct that region.
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
    """Add clicks to a region's prompt as in the editor: a click outside the box removes it."""
    clicks = Prompt.of(*made)
    inside = clicks.points[clicks.labels == 1]
    box = start.box
    if box is not None and not ((inside >= box[:2]).all() and (inside <= box[2:]).all()):
        box = None
    points = np.concatenate([start.points, clicks.points])
    return replace(start, points=points, labels=np.concatenate([start.labels, clicks.labels]), box=box)


def needed(game: Sequence[float], goal: float) -> int:
    """Return the clicks of a game until the goal, or CAP."""
    return next((k for k, value in enumerate(game, 1) if value >= goal), CAP)


def helped(vlsam: VLSAM, samples: Iterable[Sample], total: int) -> Help:
    """Play the objects of `total` named samples twice, from their predictions and from nothing.

    An object's prediction is the one of its name that overlaps it most. An object without a prediction starts
    from nothing; one that is predicted well needs no click. Show progress on stderr.
    """
    goal, predicted = max(GOALS), 0
    scenes: list[list[tuple[int, int]]] = []  # clicks of each object, from the prediction and from nothing
    for sample in tqdm(samples, "bench noc", total, unit="image", file=sys.stderr, disable=None):
        refine = partial(vlsam.refine, vlsam.encode(sample.image))
        found = _predictions(sample, vlsam.annotate(sample.image))
        predicted += len(found)
        scenes.append([])
        for number, truth in enumerate(sample.objects):
            clicks = from_nothing = needed(play(refine, truth), goal)
            if number in found:
                mask = found[number].mask
                start = replace(found[number].evidence.prompt, mask=mask, logits=None)
                clicks = 0 if iou(mask, truth) >= goal else needed(play(refine, truth, start), goal)
            scenes[-1].append((clicks, from_nothing))
    medians = np.median([np.sum(rows, axis=0) for rows in scenes], axis=0)
    means = np.mean([row for rows in scenes for row in rows], axis=0)
    objects = sum(map(len, scenes))
    return Help(total, objects, predicted, *(round(float(value), 4) for value in (*medians, *means)))


def _predictions(sample: Sample, found: Iterable[Detection]) -> dict[int, Detection]:
    """Return the prediction of each object that has one, by the object's number."""
    best: dict[int, tuple[float, Detection]] = {}
    for detection in found:
        shared, number = max(
            (
                (iou(detection.mask, truth), i)
                for i, truth in enumerate(sample.objects)
                if sample.names[i] == detection.term
            ),
            default=(0.0, -1),
        )
        if shared > best.get(number, (0.0,))[0]:
            best[number] = (shared, detection)
    return {number: detection for number, (_, detection) in best.items()}


def noc(segmenter: Segmenter, samples: Iterable[Sample], total: int) -> Figures:
    """Play all objects of `total` samples. Show progress on stderr."""
    games: list[list[float]] = []
    for sample in tqdm(samples, "bench noc", total, unit="image", file=sys.stderr, disable=None):
        embedding = segmenter.encode(sample.image)
        games += [play(partial(refine_by_clicks, segmenter, embedding), truth) for truth in sample.objects]
    if not games:
        raise ValueError("the masks hold no object: every pixel is 0")
    figures = [float(np.mean([needed(game, goal) for game in games])) for goal in GOALS]
    figures += [float(np.mean([max(game) < goal for game in games])) for goal in GOALS]
    figures += [float(np.mean([game[k - 1] for game in games])) for k in SHOWN]
    return Figures(total, len(games), *(round(value, 4) for value in figures))
