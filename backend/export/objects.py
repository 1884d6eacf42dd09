"""Turn the result list of an annotation into labelled objects."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from backend.datasets.objects import Object
from backend.labelstudio import geometry, region_reading, results, tasks
from backend.labelstudio.labeling_config import SHAPES, LabelConfig
from backend.labelstudio.outlines import Ring
from backend.labelstudio.region_reading import ReadingBudget

Entry = Mapping[str, Any]

# Keys of `value` that hold a shape's geometry. A region that was accepted with labels of several lists has
# one entry for each list, with the list's type and the region's geometry.
_GEOMETRY = {
    "brush": ("rle", "maskDataURL", "touches"),
    "bitmask": ("imageDataURL",),
    "polygon": ("points",),
    "vector": ("vertices",),
    "ellipse": ("radiusX",),
    "rectangle": ("height",),  # which a keypoint lacks
}
_MARGIN = 1e-3  # percent of the image that a corner may be outside
MAX_NAME = 200  # characters
MAX_SIDE = 1e6  # pixels


@dataclass
class _Region:
    """The result entries that have the same region id."""

    shape: str = ""  # "" if no entry has a geometry
    geometry: Entry = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    kinds: set[str] = field(default_factory=set)  # types of the entries, such as "brush" for brushlabels


def size(items: Sequence[Any], config: LabelConfig) -> tuple[int, int] | None:
    """Return the image's (height, width) that most results contain; None if no result contains one."""
    sizes: Counter[tuple[int, int]] = Counter()
    for item in _entries(items):
        height, width = (_number(item.get(f"original_{side}")) for side in ("height", "width"))
        if height >= 1 and width >= 1 and item.get("to_name") == config.image_name:
            sizes[int(height), int(width)] += 1
    return max(sizes, key=lambda shape: sizes[shape], default=None)


def read(
    items: Sequence[Any],
    config: LabelConfig,
    shape: tuple[int, int],
    budget: ReadingBudget,
    left_out: Counter[str],
    *,
    scored: bool = False,
) -> Iterator[Object]:
    """Yield the objects of a result list, the topmost last. `shape` is the image's (height, width).

    Count the regions that are not objects in `left_out`, by reason. `scored` objects get their result's
    score. Raises TooMuch when `budget` is spent.
    """
    for region in _regions(items):
        if why := _reason(region, config):
            left_out[why] += 1
            continue
        entry, names = region.geometry, _names(region, config)
        before = len(budget.unread)
        drawn = region_reading.read(entry, shape, budget)
        mask = None if drawn is None else drawn.patch.mask
        if mask is None or not mask.any():
            unread = [problem.partition(": ")[2] for problem in budget.unread[before:]]
            why = f"a {region.shape} that cannot be read: {unread[0]}" if unread else None
            left_out[why or f"a {region.shape} without pixels"] += 1
            continue
        ring = _ring(region, shape)
        score = results.unit(_number(entry.get("score"))) if scored else None
        for place, name in enumerate(names):
            if place:
                budget.spend(mask.size)  # a destination encodes the mask once more
            yield Object(name, mask, name, score, ring)


def names(items: Sequence[Any], config: LabelConfig) -> list[str]:
    """Return the labels of the objects in a result list, without decoding their masks."""
    regions = [region for region in _regions(items) if not _reason(region, config)]
    return [name for region in regions for name in _names(region, config)]


def _entries(items: Sequence[Any]) -> Iterator[Entry]:
    return (item for item in items if isinstance(item, Mapping))


def _regions(items: Sequence[Any]) -> Iterator[_Region]:
    """Yield the regions of a result list: first those with an id, in order, then those without."""
    regions: dict[str, _Region] = {}
    nameless: list[_Region] = []
    for item in _entries(items):
        number = tasks.region_id(item)
        region = _Region() if number is None else regions.setdefault(number, _Region())
        if number is None:
            nameless.append(region)
        region.entries.append(item)
        shape = str(item.get("type")).removesuffix("labels")
        region.kinds.add(shape)
        value = tasks.value_of(item)
        if not region.shape and any(value.get(key) is not None for key in _GEOMETRY.get(shape, ())):
            region.shape, region.geometry = shape, item
    for region in (*regions.values(), *nameless):
        if region.kinds & SHAPES.keys():  # no choice, text or relation
            yield region


def _reason(region: _Region, config: LabelConfig) -> str | None:
    """Return why a region is not an object; None if it is one."""
    if not region.shape:
        if "keypoint" not in region.kinds:
            return f"a {min(region.kinds & SHAPES.keys())} without pixels"
        prompt = any("is_positive" in entry for entry in region.entries)
        return "a click of a smart tool" if prompt else "a keypoint, which has no pixels"
    if region.geometry.get("to_name") != config.image_name:
        return "a region of another image of the task"
    if region.shape == "rectangle" and tasks.control_of(region.geometry) in config.prompt_boxes:
        return "a box of a smart tool"
    return None if _names(region, config) else "a region without a label"


def _names(region: _Region, config: LabelConfig) -> tuple[str, ...]:
    """Return a region's labels, or the text of a `perRegion` control.

    Labels of the region's own entry come first, as in Label Studio's exports. A <Labels> list keeps the label
    that the region had when it was accepted, even if people rename the region.
    """
    own = tasks.labels_of(region.geometry)
    others = [tasks.labels_of(entry) for entry in region.entries if entry.get("type") == "labels"]
    ghosts = [tasks.labels_of(entry) for entry in region.entries]
    labels = next((labels for labels in (own, *others, *ghosts) if labels), ())
    return tuple(label for label in labels if label.strip()) or tuple(_words(region, config))


def _words(region: _Region, config: LabelConfig) -> Iterator[str]:
    """Yield at most one name of a region: its first text, or the path of its first choice."""
    for naming in config.namings:
        for entry in region.entries:
            if (entry.get("from_name"), entry.get("type")) != (naming.name, naming.type):
                continue
            value = tasks.value_of(entry).get(naming.key)
            for word in value if isinstance(value, list) else [value]:
                path = word if isinstance(word, list) else [word]
                texts = [part.strip() for part in path if isinstance(part, str) and part.strip()]
                if texts and len(texts) == len(path):
                    yield " / ".join(texts)[:MAX_NAME]
                    return


def _ring(region: _Region, shape: tuple[int, int]) -> Ring | None:
    """Return a polygon's or box's corners in pixels; None for other shapes, or outside the image."""
    value = tasks.value_of(region.geometry)
    height, width = shape
    match region.shape:
        case "polygon":
            percent = np.array(value["points"], np.float64)
        case "vector" if not any(vertex.get("isBezier") for vertex in value["vertices"]):
            percent = np.array([(vertex["x"], vertex["y"]) for vertex in value["vertices"]], np.float64)
        case "rectangle":
            sides = [float(value[key]) for key in ("x", "y", "width", "height")]
            turned = float(value.get("rotation") or 0)
            corners = geometry.corners(sides[0], sides[1], sides[2], sides[3], turned, shape)
            percent = 100 * corners / (width, height)
        case _:
            return None
    if (percent < -_MARGIN).any() or (percent > 100 + _MARGIN).any():
        return None
    return np.asarray(percent.clip(0, 100) * (width, height) / 100)


def _number(value: Any) -> float:
    return float(value) if type(value) in (int, float) and abs(value) <= MAX_SIDE else 0.0  # 0 for NaN, too
