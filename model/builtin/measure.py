"""Measure the built-in models on scenes drawn by other code than they were trained on.

    python -m model.builtin.measure --scenes 200

Prints one JSON object: the figures of the model card.
"""

import argparse
import json
import math
import time
from dataclasses import replace

import numpy as np
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFilter
from tqdm import tqdm

from model.builtin.scenes import NAMES, Scene, SceneObject, sprites
from model.pipeline import VLSAM
from model.profiles import choose
from model.segmentation.mask_cleanup import innermost_pixel
from model.segmentation.non_maximum_suppression import iou
from model.types import Mask, Prompt, box_of
from model.vlm.terms import parse


def paste_scene(rng: np.random.Generator) -> Scene:
    """Compose a scene with Pillow: 280 to 800 px a side, 1 to 6 objects of 15 to 50 % of the short side."""
    width, height = (int(n) for n in rng.integers(280, 801, 2))
    canvas = _backdrop(rng, width, height).convert("RGBA")
    placed: list[tuple[str, Mask]] = []
    for name in rng.choice(NAMES, int(rng.integers(1, 7))):
        size = rng.uniform(0.15, 0.5) * min(width, height)
        sprite = PILImage.fromarray(sprites()[str(name)])
        zoom = size / max(sprite.size)
        wide, high = (max(8, round(side * zoom)) for side in sprite.size)
        sprite = sprite.resize((wide, high), PILImage.Resampling.LANCZOS)
        if rng.random() < 0.5:
            sprite = sprite.transpose(PILImage.Transpose.FLIP_LEFT_RIGHT)
        angle = float(rng.uniform(-45, 45))
        sprite = sprite.rotate(angle, PILImage.Resampling.BICUBIC, expand=True)
        x = int(rng.integers(0, max(1, width - sprite.width)))
        y = int(rng.integers(0, max(1, height - sprite.height)))
        layer = PILImage.new("RGBA", canvas.size)
        layer.paste(sprite, (x, y))
        whole = np.asarray(layer)[..., 3] > 127
        hidden = [(n, m & ~whole) for n, m in placed]
        if any(new.sum() < 0.5 * old.sum() for (_, new), (_, old) in zip(hidden, placed, strict=True)):
            continue
        canvas.alpha_composite(layer)
        placed = [*hidden, (str(name), whole)]
    image = np.asarray(canvas.convert("RGB"))
    return Scene(image, tuple(SceneObject(name, mask, mask) for name, mask in placed))


def _backdrop(rng: np.random.Generator, width: int, height: int) -> PILImage.Image:
    colours = [tuple(int(c) for c in rng.integers(60, 256, 3)) for _ in range(3)]
    kind = int(rng.integers(4))
    if kind == 0:
        return PILImage.new("RGB", (width, height), colours[0])
    if kind == 1:
        ramp = PILImage.linear_gradient("L").rotate(int(rng.integers(0, 4)) * 90).resize((width, height))
        one, other = (PILImage.new("RGB", (width, height), c) for c in colours[:2])
        return PILImage.composite(one, other, ramp)
    if kind == 2:
        noise = rng.integers(60, 256, (int(rng.integers(3, 9)), int(rng.integers(3, 9)), 3))
        return PILImage.fromarray(noise.astype(np.uint8)).resize((width, height), PILImage.Resampling.BICUBIC)
    flat = PILImage.new("RGB", (width, height), colours[0])
    pen = ImageDraw.Draw(flat)
    for _ in range(12):
        x, y, r = (int(rng.integers(low, high)) for low, high in ((0, width), (0, height), (10, 80)))
        pen.ellipse((x - r, y - r, x + r, y + r), fill=colours[1 + int(rng.integers(2))])
    return flat.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 6))))


def middle(mask: Mask) -> tuple[float, float]:
    """Return x and y, in pixels, of the mask's pixel nearest to its centre of mass."""
    rows, columns = np.nonzero(mask)
    nearest = np.hypot(rows - rows.mean(), columns - columns.mean()).argmin()
    return float(columns[nearest]) + 0.5, float(rows[nearest]) + 0.5


def corrective_click(mask: Mask, truth: Mask) -> tuple[float, float, int]:
    """Return x, y and label (1 or 0) of a click at the innermost pixel of the errors (RITM's protocol)."""
    missing, deep = innermost_pixel(truth & ~mask)
    excess, deeper = innermost_pixel(mask & ~truth)
    (row, column), label = (excess, 0) if deeper > deep else (missing, 1)
    return column + 0.5, row + 0.5, label


def clicks(vlsam: VLSAM, scene: Scene, thing: SceneObject, count: int) -> list[float]:
    """Return the IoU after a first click at the middle, and after each of `count` corrective clicks."""
    made, reached = [(*middle(thing.visible), 1)], []
    prompt, embedding = Prompt.of(*made), vlsam.encode(scene.image)
    for _ in range(count + 1):
        answer = vlsam.refine(embedding, prompt)
        reached.append(iou(answer.mask, thing.visible))
        made.append(corrective_click(answer.mask, thing.visible))
        prompt = replace(Prompt.of(*made, mask=answer.mask), logits=answer.logits)
    return reached


def measure(vlsam: VLSAM, scenes: int, seed: int) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    names, seconds = {"right": 0, "said": 0, "there": 0}, 0.0
    found = list[float | None]()  # of each object, the best IoU of the detections with its name
    first, after_five, boxed = list[float](), list[float](), list[float]()
    for _ in tqdm(range(scenes), desc="scenes"):
        scene = paste_scene(rng)
        there = {thing.name for thing in scene.objects}
        since = time.perf_counter()
        detections = vlsam.annotate(scene.image)
        seconds += time.perf_counter() - since
        said = {term.text for term in parse(vlsam.answer_text(scene.image))}
        names["right"] += len(said & there)
        names["said"] += len(said)
        names["there"] += len(there)
        for thing in scene.objects:
            ious = [iou(d.mask, thing.visible) for d in detections if d.term == thing.name]
            found.append(max(ious, default=None))
        thing = scene.objects[int(rng.integers(len(scene.objects)))]
        reached = clicks(vlsam, scene, thing, 5)
        first.append(reached[0])
        after_five.append(reached[5])
        tight = vlsam.refine(vlsam.encode(scene.image), Prompt.of(box=box_of(thing.visible)))
        boxed.append(iou(tight.mask, thing.visible))
    named = [value for value in found if value is not None]
    hits = sum(value is not None and value >= 0.5 for value in found)
    figures = {
        "name_recall": names["right"] / names["there"],
        "name_precision": names["right"] / max(names["said"], 1),
        "iou_one_click": float(np.mean(first)),
        "iou_five_more_clicks": float(np.mean(after_five)),
        "iou_tight_box": float(np.mean(boxed)),
        "iou_of_named": float(np.mean(named)) if named else math.nan,
        "found_at_half": hits / len(found),
        "seconds_per_image": seconds / scenes,
    }
    return {key: round(value, 4) for key, value in figures.items()} | {"scenes": scenes, "seed": seed}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the built-in models on held-out scenes.")
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    print(json.dumps(measure(VLSAM.load(choose()), args.scenes, args.seed)))


if __name__ == "__main__":
    main()
