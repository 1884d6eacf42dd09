"""Number of clicks (NoC) that a segmenter needs until its mask is good: RITM's protocol (arXiv 2102.06583).

The first click goes to the middle of the object, each further one to the middle of the largest error.
"""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image as PILImage
from PIL import ImageOps
from tqdm import tqdm

from model.builtin.measure import corrective_click, paste_scene
from model.clicks import obey
from model.merge import iou
from model.segmenter import Embedding, Segmenter
from model.types import Image, Mask, Prompt

CAP = 20  # clicks on an object, then it has failed
GOALS = (0.85, 0.90)
SHOWN = (1, 3, 5)  # clicks after which the mean IoU is told
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True, eq=False)
class Sample:
    image: Image
    objects: tuple[Mask, ...]  # (H, W) each, none empty


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


class Folder:
    """images/NAME.jpg (or .png ...) with masks/NAME.png, where each value but 0 is one object."""

    def __init__(self, folder: Path) -> None:
        """Raises ValueError where there is no mask, or one without its image."""
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
        """Raises ValueError for what cannot be read or does not fit."""
        for path in self._masks:
            yield read(self._images[path.stem], path)


def drawn(scenes: int, seed: int) -> Iterator[Sample]:
    """Scenes as in the model card's measurements, drawn by other code than the models were trained on."""
    rng = np.random.default_rng(seed)
    for _ in range(scenes):
        scene = paste_scene(rng)
        yield Sample(scene.image, tuple(thing.visible for thing in scene.objects if thing.visible.any()))


def read(image_path: Path, mask_path: Path) -> Sample:
    """Raises ValueError."""
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


def play(segmenter: Segmenter, embedding: Embedding, truth: Mask) -> list[float]:
    """IoU after each click, until the highest goal is reached and all that is shown was played, or CAP."""
    made, reached = [corrective_click(np.zeros_like(truth), truth)], list[float]()
    prompt = Prompt.of(*made)
    while len(reached) < CAP and (len(reached) < max(SHOWN) or max(reached) < max(GOALS)):
        answer = obey(segmenter, embedding, prompt)
        reached.append(iou(answer.mask, truth))
        made.append(corrective_click(answer.mask, truth))
        prompt = replace(Prompt.of(*made, mask=answer.mask), logits=answer.logits)
    return reached


def noc(segmenter: Segmenter, samples: Iterable[Sample], total: int) -> Figures:
    """Play all objects of `total` samples. A bar goes to stderr."""
    games: list[list[float]] = []
    for sample in tqdm(samples, "bench noc", total, unit="image", file=sys.stderr, disable=None):
        embedding = segmenter.encode(sample.image)
        games += [play(segmenter, embedding, truth) for truth in sample.objects]
    if not games:
        raise ValueError("the masks hold no object: every pixel is 0")
    needed = {
        goal: [next((k for k, reached in enumerate(game, 1) if reached >= goal), None) for game in games]
        for goal in GOALS
    }
    figures = [float(np.mean([k or CAP for k in needed[goal]])) for goal in GOALS]
    figures += [float(np.mean([k is None for k in needed[goal]])) for goal in GOALS]
    figures += [float(np.mean([game[k - 1] for game in games])) for k in SHOWN]
    return Figures(total, len(games), *(round(value, 4) for value in figures))
