"""Parse the clicks and rectangles that a person drew with Label Studio's smart tools.

A click with `Alt` is negative: Label Studio 1.23.2 sends it with `is_positive` 0. Results that are neither
clicks nor rectangles are skipped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.labelstudio import geometry, tasks
from backend.labelstudio.labeling_config import LabelConfig
from model.types import Box, Prompt

MAX_CLICKS = 1000
EDGE = 1.0  # percent of the image: a click outside by less counts at the edge
MAX_ITEMS = 20_000  # of a context or a draft that are looked through, the newest

Spot = tuple[float | bool, ...]  # the place of a gesture, and its sign
Rectangle = tuple[float, float, float, float, float]  # x, y, width, height, rotation


@dataclass(frozen=True)
class Gesture:
    """A click or a rectangle, in percent of the image."""

    labels: tuple[str, ...]
    point: tuple[float, float] | None = None
    positive: bool = True
    rectangle: Rectangle | None = None
    prompt_id: str | None = None
    bound: bool = True  # to a control of the config
    has_list: bool = True  # its tool has a list of labels of its own, as KeyPointLabels has
    image: str | None = None  # the name of the <Image> that it was drawn on, if the browser sends it

    @property
    def is_outside(self) -> bool:
        """Whether the gesture is a click more than EDGE percent outside the image."""
        return self.point is not None and not all(-EDGE <= side <= 100 + EDGE for side in self.point)

    @property
    def spot(self) -> Spot:
        return (*(self.point or ()), self.positive, *(self.rectangle or ()))


def gestures_of(items: Sequence[Mapping[str, Any]], image: str) -> list[Gesture]:
    """Return the clicks and rectangles on the <Image> named `image`, in drawing order, one for each id."""
    items = tasks.latest(items, MAX_ITEMS, "items of a context or draft")
    # A point of a tool without a list brings the chosen label in a result of that label's list.
    lent = {tasks.id_of(item): labels for item in items if (labels := tasks.labels_of(item))}
    merged: dict[Any, Gesture] = {}
    for number, item in enumerate(items):
        gesture = _gesture(item)
        if gesture is None or gesture.image not in (None, image):
            continue
        # With <Labels> each prompt comes as two results of one id, and the label may be in either.
        key = gesture.prompt_id or number
        merged.pop(key, None)
        if not gesture.labels and gesture.prompt_id is not None:
            gesture = replace(gesture, labels=lent.get(gesture.prompt_id, ()))
        merged[key] = gesture
    return list(merged.values())


def drafted_gestures(draft: tasks.Entry, config: LabelConfig) -> list[Gesture]:
    """Return the prompts in a draft: results with `is_positive`, and rectangles of prompt tools."""
    items = tasks.latest(draft.items, MAX_ITEMS, "items of a context or draft")
    boxes = config.prompt_boxes
    ids = {tasks.id_of(i) for i in items if "is_positive" in i or tasks.control_of(i) in boxes} - {None}
    return gestures_of([item for item in items if tasks.id_of(item) in ids], config.image_name)


def other_image(items: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the <Image> name of the first gesture that has one; None if there is none."""
    gestures = (_gesture(item) for item in tasks.latest(items, tasks.MAX_ENTRIES, "items of a context"))
    return next((gesture.image for gesture in gestures if gesture is not None and gesture.image), None)


def click_with(labels: Sequence[str]) -> str:
    """Return "click with LABELS" for the log. Characters that are not printable are escaped."""
    name = " and ".join(labels)[:80]
    return f"click with {''.join(c if c.isprintable() else ascii(c)[1:-1] for c in name) or 'no label'}"


def _gesture(item: Mapping[str, Any]) -> Gesture | None:
    value = tasks.value_of(item)
    x, y, width, height = (_number(value.get(key)) for key in ("x", "y", "width", "height"))
    if x is None or y is None:
        return None
    kind, to_name = str(item.get("type")).lower(), item.get("to_name")
    labels, prompt_id = tasks.labels_of(item), tasks.id_of(item)
    gesture = Gesture(
        labels,
        prompt_id=prompt_id,
        # Label Studio's next protocol sends prompts that belong to no control; the label is the browser's.
        bound=prompt_id is not None or "from_name" in item or bool(labels),
        has_list=kind in ("keypointlabels", "rectanglelabels"),
        image=to_name if isinstance(to_name, str) else None,
    )
    if kind in ("keypoint", "keypointlabels") or (kind == "labels" and (width is None or height is None)):
        positive = item.get("is_positive", value.get("positive", True))
        return replace(gesture, point=(x, y), positive=positive is not False and positive != 0)
    if kind in ("rectangle", "rectanglelabels", "labels") and width is not None and height is not None:
        rotation = _number(value.get("rotation")) or 0.0
        return replace(gesture, rectangle=(x, y, width, height, rotation))
    return None


def _number(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and abs(value) <= 1e6 else None


def prompt_of(gestures: Sequence[Gesture], shape: tuple[int, int]) -> Prompt | None:
    """Return a prompt of the last click on each spot and the last rectangle. None if there are neither."""
    clicks = [gesture for gesture in gestures if gesture.point is not None][-MAX_CLICKS:]
    rectangles = [gesture.rectangle for gesture in gestures if gesture.rectangle is not None]
    box = _box(rectangles[-1] if rectangles else None, shape)
    if box is None and not clicks:
        return None
    points = pixels_of(clicks, shape)
    newest = newest_of_spots(points)
    labels = np.array([int(click.positive) for click in clicks], np.int64)
    return Prompt(points=points[newest], labels=labels[newest], box=box)


def newest_of_spots(points: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return a mask (n,) of the points (n, 2) that no later point equals, rounded to 0.1 pixels."""
    spots = [(round(float(x), 1), round(float(y), 1)) for x, y in points]
    last = {spot: index for index, spot in enumerate(spots)}
    return np.isin(np.arange(len(points)), list(last.values()))


def pixels_of(clicks: Sequence[Gesture], shape: tuple[int, int]) -> NDArray[np.float32]:
    """Convert clicks to xy pixels (n, 2) of an image (height, width) = `shape`."""
    percent = np.array([click.point for click in clicks], float).reshape(-1, 2)
    # 100 % is the far edge of the last pixel. A click there counts for that pixel.
    last = np.nextafter(np.array(shape[::-1], np.float32), np.float32(0))
    return np.clip(geometry.pixels_of(percent, shape).astype(np.float32), 0, last)


def _box(rectangle: Rectangle | None, shape: tuple[int, int]) -> Box | None:
    """Return the bounding box of a rectangle in pixels, cut to the image. None if a side is below 1 pixel."""
    if rectangle is None:
        return None
    corners = np.clip(geometry.corners(*rectangle, shape), 0, shape[::-1])
    (x0, y0), (x1, y1) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    return (x0, y0, x1, y1) if x1 - x0 >= 1 and y1 - y0 >= 1 else None


def with_drafted(
    gestures: Sequence[Gesture], drafted: Sequence[Gesture], shape: tuple[int, int]
) -> list[Gesture]:
    """Return the draft's matching prompts of the other kind, followed by the prompts of the context.

    The kinds are clicks and boxes. Clicks match the last drafted box around the positive ones. A box matches
    the drafted clicks inside it. A context of both kinds is returned unchanged. A draft is outdated, and
    ignored, if it has prompts of the context's kind but none with an id from the context.
    """
    clicks = [gesture for gesture in gestures if gesture.point is not None]
    if 0 < len(clicks) < len(gestures):
        return [*gestures]
    own = {gesture.prompt_id for gesture in gestures}
    same_kind = {g.prompt_id for g in drafted if (g.point is None) == (not clicks)}
    if same_kind and not own & same_kind:
        return [*gestures]
    drafted = drafted[-MAX_CLICKS:]
    if clicks:
        positive = pixels_of([click for click in clicks if click.positive] or clicks, shape)
        extremes = np.stack([positive.min(axis=0), positive.max(axis=0)])
        around = [g for g in drafted if (box := _box(g.rectangle, shape)) and holds(box, extremes)]
        return [*around[-1:], *gestures]
    box = _box(gestures[-1].rectangle, shape)
    inside = [g for g in drafted if g.point and box and holds(box, pixels_of([g], shape))]
    return [*inside, *gestures]


def holds(box: Box, points: NDArray[np.float32]) -> bool:
    """Return whether all points (n, 2) are in a box."""
    return bool((points >= box[:2]).all() and (points <= box[2:]).all())
