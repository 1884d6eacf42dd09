"""A click and the task it was made in, to a prompt and the region that it corrects."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from backend import evidence, results
from backend.labels import Control, LabelConfig
from model.types import Box, Mask, Prompt, box_of

MAX_CLICKS = 1000
MAX_REGIONS = 1000  # of a task that are looked at


class Unanswerable(Exception):
    """There is nothing to segment. The message is the reason, one sentence for the log."""


@dataclass(frozen=True, eq=False)
class Target:
    """A region of the task that a click corrects."""

    region_id: str  # as Label Studio knows it
    control: Control
    mask: Mask
    meta: Any  # untrusted


@dataclass(frozen=True, eq=False)
class Correction:
    """What to segment, and where the answer goes."""

    prompt: Prompt
    label: str
    control: Control
    target: Target | None
    term: str  # of the corrected region, "" for a new one


@dataclass(frozen=True)
class _Gesture:
    """What a person drew, in percent of the image: a click or a rectangle."""

    label: str | None
    point: tuple[float, float] | None = None
    positive: bool = True
    rectangle: tuple[float, float, float, float, float] | None = None  # x, y, width, height, rotation


def read(
    context: Mapping[str, Any], task: Mapping[str, Any], config: LabelConfig, shape: tuple[int, int]
) -> Correction:
    """The correction that an interactive context asks for, on an image (height, width) = `shape`.

    Label Studio 1.23.2 sends the points or the rectangles of one label, all that were not accepted yet, the
    newest last, and nothing about the region that they are meant for. So: the region of that label that holds
    a positive click, or with negative clicks alone one of these, in the newest draft, else annotation, else
    prediction. Its own prompt and mask start the answer. Whatever else a context holds is skipped.

    Raises Unanswerable.
    """
    gestures = list(_gestures(context))
    if not gestures:
        raise Unanswerable("The context holds no click and no rectangle.")
    label = gestures[-1].label
    if label is None:
        raise Unanswerable("The click has no label.")
    gestures = [gesture for gesture in gestures if gesture.label == label]
    control = config.label_control(label)
    if control is None:
        raise Unanswerable(f"No output control has the label {label[:80]!r}.")
    prompt = _prompt(gestures, shape)
    if not (len(prompt.points) or prompt.box):
        raise Unanswerable("The rectangle is empty.")
    target = find_target(task, label, prompt, config, shape)
    if target is not None:
        return _corrected(prompt, label, target, shape)
    if prompt.box is None and not prompt.labels.any():
        raise Unanswerable("There are negative clicks only, and no region of their label is below them.")
    return Correction(prompt, label, control, None, "")


def find_target(
    task: Mapping[str, Any], label: str, prompt: Prompt, config: LabelConfig, shape: tuple[int, int]
) -> Target | None:
    """The region of `label` below a positive click, or below a negative one where all are.

    Only clicks choose a region, rectangles never do. Among regions of one source the first output control
    wins, rectangles come last, for they hold much that is not theirs, and the topmost is the latest.
    """
    positive = prompt.labels == 1
    clicks = prompt.points[positive] if positive.any() else prompt.points
    if prompt.box is not None or not len(clicks):
        return None
    controls = sorted(config.outputs, key=lambda control: control.tag == "RectangleLabels")
    seen: set[str] = set()
    for source in _sources(task):
        regions = [item for item in reversed(source) if isinstance(item, Mapping)][:MAX_REGIONS]
        for control in controls:
            for item in regions:
                if item.get("from_name") != control.name or item.get("type") != control.type:
                    continue
                region_id = _region_id(item)
                if region_id is None or region_id in seen or _label(item) != label:
                    continue
                mask = results.decode(item, shape)
                if mask is not None and evidence.contains(mask, clicks).any():
                    return Target(region_id, control, mask, item.get("meta"))
        # An older version of a region says nothing about where it is now.
        seen |= {region_id for item in regions if (region_id := _region_id(item)) is not None}
    return None


def _corrected(clicks: Prompt, label: str, target: Target, shape: tuple[int, int]) -> Correction:
    stored = evidence.read(target.meta, shape)
    before = Prompt() if stored is None else evidence.consistent(stored, target.mask)
    box = before.box
    mask: Mask | None = target.mask
    if target.control.tag == "RectangleLabels":
        # A rectangle says where its object ends, not which pixels are the object's.
        mask = None
        box = box_of(target.mask)
    prompt = Prompt(
        points=np.concatenate([before.points, clicks.points]),
        labels=np.concatenate([before.labels, clicks.labels]),
        box=_widened(box, clicks),
        mask=mask,
    )
    return Correction(_newest(prompt), label, target.control, target, stored.term if stored else "")


def _newest(prompt: Prompt) -> Prompt:
    """Of points on the same spot the last one: a click is sent again with each later one."""
    last: dict[tuple[float, float], int] = {}
    for index, (x, y) in enumerate(prompt.points):
        spot = (round(float(x), 1), round(float(y), 1))
        last.pop(spot, None)
        last[spot] = index
    keep = sorted(last.values())
    return Prompt(prompt.points[keep], prompt.labels[keep], prompt.box, prompt.mask)


def _widened(box: Box | None, clicks: Prompt) -> Box | None:
    """The box a region was found with, unless a person now points outside it."""
    if box is None:
        return None
    wanted = clicks.points[clicks.labels == 1]
    inside = (wanted >= box[:2]).all() and (wanted <= box[2:]).all()
    return box if inside else None


def _prompt(gestures: list[_Gesture], shape: tuple[int, int]) -> Prompt:
    height, width = shape
    scale = np.array([width / 100, height / 100])
    clicks = [gesture for gesture in gestures if gesture.point is not None][-MAX_CLICKS:]
    points = np.array([click.point for click in clicks], float).reshape(-1, 2) * scale
    # 100 % is the far edge of the last pixel, and a click there is meant for that pixel.
    last = np.nextafter(np.array([width, height], np.float32), np.float32(0))
    points = np.clip(points.astype(np.float32), 0, last)
    labels = np.array([int(click.positive) for click in clicks], np.int64)
    rectangles = [gesture.rectangle for gesture in gestures if gesture.rectangle is not None]
    box = _box(rectangles[-1], shape) if rectangles else None
    return _newest(Prompt(points=points, labels=labels, box=box))


def _box(rectangle: tuple[float, float, float, float, float], shape: tuple[int, int]) -> Box | None:
    """The upright box in pixels around a rectangle, however it was drawn; None for less than a pixel."""
    height, width = shape
    corners = results.corners(*rectangle, shape)
    (x0, y0), (x1, y1) = (np.clip(edge(axis=0), 0, (width, height)) for edge in (corners.min, corners.max))
    return (float(x0), float(y0), float(x1), float(y1)) if x1 - x0 >= 1 and y1 - y0 >= 1 else None


def _gestures(context: Mapping[str, Any]) -> Iterator[_Gesture]:
    """Clicks and rectangles in the order they were drawn; of those with one id the last counts."""
    items = context.get("result")
    merged: dict[Any, _Gesture] = {}
    for number, item in enumerate(items if isinstance(items, list) else []):
        gesture = _gesture(item)
        if gesture is None:
            continue
        # With <Labels> each prompt comes as two results of one id, and the label may be in either.
        key = item["id"] if isinstance(item.get("id"), str) else number
        before = merged.pop(key, None)
        if before is not None and gesture.label is None:
            gesture = replace(gesture, label=before.label)
        merged[key] = gesture
    yield from merged.values()


def _gesture(item: Any) -> _Gesture | None:
    value = item.get("value") if isinstance(item, Mapping) else None
    if not isinstance(value, Mapping):
        return None
    x, y, width, height = (_number(value.get(key)) for key in ("x", "y", "width", "height"))
    if x is None or y is None:
        return None
    kind = str(item.get("type")).lower()
    if width is not None and height is not None and kind not in ("keypoint", "keypointlabels"):
        if kind not in ("rectangle", "rectanglelabels", "labels"):
            return None
        rotation = _number(value.get("rotation")) or 0.0
        return _Gesture(_label(item), rectangle=(x, y, width, height, rotation))
    if kind not in ("keypoint", "keypointlabels", "labels"):
        return None
    positive = item.get("is_positive", value.get("positive", True))
    return _Gesture(_label(item), point=(x, y), positive=positive is not False and positive != 0)


def _label(item: Mapping[str, Any]) -> str | None:
    value = item.get("value")
    if not isinstance(value, Mapping):
        return None
    for key in (item.get("type"), "labels"):
        labels = value.get(key) if isinstance(key, str) else None
        if isinstance(labels, list) and labels and isinstance(labels[0], str):
            return labels[0]
    return None


def _number(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and abs(value) <= 1e6 else None


def _region_id(item: Mapping[str, Any]) -> str | None:
    """The id without the suffix '#...' that the editor adds to its own copies."""
    region_id = item.get("id")
    return (region_id.partition("#")[0] or None) if isinstance(region_id, str) else None


def _sources(task: Mapping[str, Any]) -> Iterator[list[Any]]:
    """The result lists of a task: drafts, annotations, predictions, each the newest first."""
    for name in ("drafts", "annotations", "predictions"):
        sets = task.get(name)
        known = [entry for entry in (sets if isinstance(sets, list) else []) if isinstance(entry, Mapping)]
        known = [entry for entry in known if entry.get("was_cancelled") is not True]
        known.sort(key=lambda entry: str(entry.get("updated_at") or entry.get("created_at") or ""))
        for entry in reversed(known):
            if isinstance(entry.get("result"), list):
                yield entry["result"]
