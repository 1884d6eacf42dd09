"""A click and the task it was made in, to a prompt and the region that it corrects.

Which region a click is meant for, nobody says; the rules are in docs/decisions/0014-whose-click-is-it.md.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.answers import existing_regions
from backend.answers.recent_answers import Answer, Draft, Spot
from backend.labelstudio import geometry, prompt_controls, region_meta, results, tasks
from backend.labelstudio.labeling_config import Control, LabelConfig
from backend.labelstudio.reading_budget import Reading
from backend.labelstudio.results import Drawn
from backend.labelstudio.tasks import Region
from backend.telemetry.logs import printable
from model.types import Box, Detection, Mask, Prompt, box_of

MAX_CLICKS = 1000
MAX_ITEMS = 20_000  # of a context or a draft that are looked through for prompts, the newest
MAX_WORDS = 100  # that a control says of a region, each of so many characters at most:
MAX_TEXT = 10_000
# The mask of a click beside a region shows the region's object where it holds this share of the region,
HELD = 0.5
# and overlaps it by this IoU: less is a background, or a group of objects.
LEAST_SHARE = 0.25


class Unanswerable(Exception):
    """There is nothing to segment. The message is the reason, one sentence for the log."""


@dataclass(frozen=True, eq=False)
class Target:
    """A region that a click may correct: of the task, or of an answer that the task does not hold yet."""

    region_id: str  # as Label Studio knows it
    control: Control
    labels: tuple[str, ...]
    drawn: Drawn
    meta: Any  # untrusted
    answer: Answer | None = None

    @cached_property
    def mask(self) -> Mask:
        """Raises TooMuch."""
        return self.drawn.patch.mask

    @property
    def state(self) -> str:
        """Differs between two regions, and between two shapes of one."""
        return f"{self.region_id}:{results.mask_hash(self.mask)}"


@dataclass(frozen=True, eq=False)
class Correction:
    """What to segment, and where the answer goes."""

    prompt: Prompt
    labels: tuple[str, ...]  # none where regions have no labels
    control: Control
    target: Target | None
    term: str  # of the corrected region, "" for a new one
    region_id: str | None  # None for a new one
    notes: tuple[str, ...]  # for `meta.text`
    # Where there is no target yet: the prompt's mask decides whether one of these is. See `settle`.
    rivals: tuple[Target, ...]
    clicks: Prompt  # of this request alone
    seen: "_Seen"
    missing: str = ""  # why there is no answer where no target is found
    # Of a rectangle, which says where its object ends and not which pixels are the object's: what its mask is
    # decoded from, for the clicks to correct.
    boxed: Prompt | None = None


@dataclass(frozen=True, eq=False)
class _Seen:
    """What a request shows of the person who made it."""

    prompts: Mapping[str, Spot]  # by id
    draft: Draft | None
    related: frozenset[str]  # ids that a relation names
    in_place: bool  # whatever the region: none can be selected
    unlabelled: bool  # the newest prompt, so no region with a label is selected
    newest: NDArray[np.float32]  # (n, 2) xy of the point that was clicked last; none after a rectangle
    same: tuple[Answer, ...]  # earlier answers to these prompts, the newest first


@dataclass(frozen=True)
class _Gesture:
    """What a person drew, in percent of the image: a click or a rectangle."""

    labels: tuple[str, ...]
    point: tuple[float, float] | None = None
    positive: bool = True
    rectangle: tuple[float, float, float, float, float] | None = None  # x, y, width, height, rotation
    prompt_id: str | None = None
    bound: bool = True  # to a control of the config
    has_list: bool = True  # its tool has a list of labels of its own, as KeyPointLabels has
    image: str | None = None  # the name of the <Image> that it was drawn on, where the browser says it

    @property
    def spot(self) -> Spot:
        return (*(self.point or ()), self.positive, *(self.rectangle or ()))


def read(
    context: Mapping[str, Any],
    task: Mapping[str, Any],
    config: LabelConfig,
    shape: tuple[int, int],
    *,
    answers: Sequence[Answer] = (),
    now: float = 0.0,
    labels_in_place: bool = False,
    reading: Reading | None = None,
) -> Correction:
    """The correction that an interactive context asks for, on an image (height, width) = `shape`.

    Label Studio 1.23.2 sends the points or the rectangles of one label, all that were not accepted yet, the
    newest last, and nothing about the region that they are meant for. Prompts of the other kind come from
    the newest draft. `answers` are the remembered ones of this task, the newest first, and `now` is their
    clock's time. Whatever else a context holds is skipped.

    A click with several labels is about a region that has one of them, and a region that is corrected keeps
    all of its own. Clicks without a label are about the region that the newest of them is in, else the one
    whose mask they overlap, whatever its label; else they have the only label of the config. Those of them
    that are in other regions do not count.

    A correction with `rivals` is not settled: segment its prompt, then call `settle`. Only regions that the
    clicks may be about are read, and `reading` bounds that. Raises Unanswerable and TooMuch.
    """
    gestures = list(_gestures(context.get("result"), config))
    if not gestures:
        raise Unanswerable(_nothing(context, config))
    newest = gestures[-1]
    drawn = newest.labels
    control = config.control_of(drawn)
    if control is None and drawn:
        raise Unanswerable(f"No output control has the label {' or '.join(drawn)[:80]!r}.")
    missing, nameless = "", control is None
    if control is None:
        only = config.only_label
        control = config.label_control(only) or config.predicted[0]
        labels: tuple[str, ...] = () if only is None else (only,)
        missing = "" if labels else _missing(newest, config)
    else:
        # Of several labels those that the control knows: Label Studio refuses regions with others.
        labels = tuple(filter(control.knows, drawn)) if control.takes_labels else ()
    draft = tasks.newest(task.get("drafts"))
    gestures = [gesture for gesture in gestures if tasks.alike(gesture.labels, drawn)]
    drafted = [
        gesture
        for gesture in _gestures(tasks.result_of(draft), config, drafts=True)
        if tasks.alike(gesture.labels, drawn)
    ]
    gestures = _with_drafted(gestures, drafted, shape)
    prompts = {gesture.prompt_id: gesture.spot for gesture in gestures if gesture.prompt_id is not None}
    marker = None if draft is None else (str(draft.get("id")), tasks.changed(draft))
    drafted_ids = {item_id for item in tasks.result_of(draft) if (item_id := tasks.id_of(item)) is not None}
    sources = [*tasks.own(task), *tasks.predicted(task)]
    answers = [
        answer
        for answer in answers
        if (nameless or tasks.alike(answer.labels, labels))
        and answer.patch.shape == shape
        and not _arrived(answer, sources)
    ]
    same = [answer for answer in answers if answer.lineage.keys() & prompts.keys()]
    ancestors = {prompt_id for answer in same for prompt_id in answer.lineage}
    theirs = [
        answer
        for answer in answers
        if answer not in same
        and answer.is_of(prompts, marker, drafted_ids, now, continued=answer.prompts.keys() <= ancestors)
    ]
    seen = _Seen(
        prompts,
        marker,
        frozenset(related(sources)),
        # A selected region keeps tools with labels of their own from working, and lends others its label.
        labels_in_place or newest.has_list,
        not drawn,
        _pixels([newest] if newest.point else [], shape),
        tuple(same),
    )
    targets = partial(_targets, sources, theirs, config, shape, reading or Reading())
    meant, earlier, wanted = gestures, list[_Gesture](), None if nameless else labels
    if nameless:
        meant, earlier, about = _of_newest(gestures, _below(gestures, targets(None), shape))
        wanted = about.labels if about else None
    clicks = _prompt(meant, shape)
    foreign = clicks.box is not None if missing else None
    found, others = _search(targets(wanted), clicks, shape, foreign=foreign)
    before = {gesture.prompt_id for gesture in earlier}
    if found and any(answer.base == found.state and before & answer.lineage.keys() for answer in same):
        clicks = _prompt([*earlier, *meant], shape)
    positive = clicks.box is not None or bool(clicks.labels.any())
    if found is None and not positive:
        which = "no region" if nameless else "no region of their label"
        raise Unanswerable(f"There are negative clicks only, and {which} is below them.")
    asked = Correction(
        clicks, labels, control, None, "", None, (), others if positive else (), clicks, seen, missing
    )
    return asked if found is None and asked.rivals else _aimed(asked, found)


def bare(context: Mapping[str, Any], config: LabelConfig, shape: tuple[int, int]) -> Prompt | None:
    """The prompt of Label Studio's next protocol, which belongs to no control; None for any other context.

    There the browser keeps all prompts, and makes the region by itself. Raises Unanswerable.
    """
    gestures = list(_gestures(context.get("result"), config))
    if not gestures or any(gesture.bound for gesture in gestures):
        return None
    prompt = _prompt(gestures, shape)
    if prompt.box is None and not prompt.labels.any():
        raise Unanswerable("There are negative clicks only.")
    return prompt


def settle(asked: Correction, fresh: Mask) -> Correction:
    """The correction with its target, or without one: which rival shows the object of `fresh`.

    `fresh` is the mask of the clicks alone. It is a rival's object where it holds half of that rival, and is
    not many times as large; of several the one that it overlaps most. Where a rectangle has to be about some
    rival, it is also about one that it surrounds or is in. Raises TooMuch, and Unanswerable where there is no
    answer without a target.
    """
    patch = geometry.Patch.of(fresh)
    best, most = None, 0.0
    for rival in asked.rivals:
        if not rival.drawn.may_be(patch, LEAST_SHARE, HELD):
            continue
        overlap = rival.drawn.iou(patch)
        if overlap < LEAST_SHARE or overlap <= most:  # of equal ones the topmost, which comes first
            continue
        # From the IoU of two areas what they share.
        shared = overlap * (rival.drawn.patch.area + patch.area) / (1 + overlap)
        if round(shared) >= HELD * rival.drawn.patch.area:
            best, most = rival, overlap
    if best is None and asked.missing and asked.clicks.box:
        best = _overlapped(asked.rivals, asked.clicks.box)
    return _aimed(asked, best)


def remembered(asked: Correction, region: Mapping[str, Any], detection: Detection, now: float) -> Answer:
    """What the next click needs to know of the answer to this one."""
    target = asked.target
    return Answer(
        region_id=region["id"],
        control=region["from_name"],
        labels=asked.labels,
        meta=region["meta"],
        patch=geometry.Patch.of(detection.mask),
        logits=detection.logits,
        prompts=asked.seen.prompts,
        lineage={**_lineage(target), **asked.seen.prompts},
        base=target.state if target else "",
        draft=asked.seen.draft,
        at=now,
    )


def done(asked: Correction, region: Mapping[str, Any], mask: Mask) -> str:
    """What a settled correction did, one line for the log. Its answer is `region`, which has this mask."""
    click = _click_with(asked.labels)
    new, target = region["id"], asked.target
    if target is None:
        return f"{click}: new region {new}"
    if target.control.shape in ("rectangle", "ellipse"):  # as it is drawn
        drawn = results.decode(region, target.drawn.shape)
        mask = mask if drawn is None else drawn
    more = int(np.count_nonzero(mask)) - int(np.count_nonzero(target.mask))
    old = ascii(target.region_id)[1:-1]
    did = f"joined {more} pixels to" if more > 0 else f"took {-more} pixels from" if more else "corrected"
    instead = f", now region {new}" if new != target.region_id else ""
    return f"{click}: {did} region {old}{instead}"


def asked_by(context: Mapping[str, Any], config: LabelConfig) -> str:
    """What a context asks with, for the log: its newest click, or a text."""
    if not is_click(context, config) and prompt_controls.typed(context, config) is not None:
        return "text"
    *_, newest = ((), *(gesture.labels for gesture in _gestures(context.get("result"), config)))
    return _click_with(newest)


def _click_with(labels: Sequence[str]) -> str:
    return f"click with {printable(' and '.join(labels))[:80] or 'no label'}"


def is_click(context: Mapping[str, Any], config: LabelConfig) -> bool:
    """Whether a context holds a click or a rectangle."""
    return any(True for _ in _gestures(context.get("result"), config))


def said(task: Mapping[str, Any], region_id: str, config: LabelConfig) -> dict[str, list[Any]]:
    """What the `perRegion` controls say of a region where it was saved last, by control.

    Replacing a region takes its words away, and a person may have changed ours.
    """
    words: dict[str, list[Any]] = {}
    for source in (*tasks.own(task), *tasks.predicted(task)):
        mine = [item for item in source if isinstance(item, Mapping) and tasks.region_id(item) == region_id]
        mine = mine[-MAX_WORDS:]
        for naming in config.namings:
            for item in mine:
                held = tasks.value_of(item).get(naming.key)
                if item.get("from_name") == naming.name and item.get("type") == naming.type:
                    words[naming.name] = _words(held)
        if mine:
            break
    return words


def _words(held: Any) -> list[Any]:
    """The texts, or the paths of texts, of a value that came from outside."""
    found: list[Any] = []
    for word in (held if isinstance(held, list) else [held])[:MAX_WORDS]:
        path = word if isinstance(word, list) else [word]
        if path and len(path) <= MAX_WORDS and all(isinstance(t, str) and len(t) <= MAX_TEXT for t in path):
            found.append(word)
    return found


def _targets(
    sources: Sequence[list[Any]],
    answers: Sequence[Answer],
    config: LabelConfig,
    shape: tuple[int, int],
    reading: Reading,
    labels: tuple[str, ...] | None,
) -> Iterator[Target]:
    """The regions with one of `labels`, or with any, that a click may be about. Only they are read.

    The topmost first: the newest answer, then the last region of the first source. Of several output
    controls those of the first one come first, in the order of LabelConfig.turn; with any label only
    rectangles come last. Raises TooMuch.
    """

    def turn(region: Region) -> tuple[bool, int]:
        last, place = config.turn(region.control)
        return last, 0 if labels is None else place

    taken: set[str] = set()
    for answer in answers:
        control = config.output(answer.control)
        if control is None or answer.region_id in taken:
            continue
        taken.add(answer.region_id)
        drawn = results.painted(answer.patch)
        yield Target(answer.region_id, control, answer.labels, drawn, answer.meta, answer)
    known: set[str] = set()
    for source in sources:
        regions = list(tasks.regions(source, config))
        ids = tasks.ids(source)
        # What a newer source was made from says nothing: a region that only it has was deleted since.
        if ids & known:
            continue
        # Stable, so of one control the topmost comes first.
        for region in sorted(regions, key=turn):
            if region.id in taken or not (labels is None or tasks.alike(region.labels, labels)):
                continue
            reading.spend(existing_regions.PAIR)
            read = results.read(region.result, shape, reading)
            if read is not None:
                meta = region.result.get("meta")
                yield Target(region.id, region.control, region.labels, read, meta)
        known |= ids


def _search(
    targets: Iterable[Target], clicks: Prompt, shape: tuple[int, int], *, foreign: bool | None
) -> tuple[Target | None, tuple[Target, ...]]:
    """The first target that holds any of the clicks; else those that a click beside them may be about.

    Those are ours, and `foreign` ones too; None leaves out people's rectangles, for they say where one ends.
    """
    rivals: list[Target] = []
    for target in targets:
        if target.drawn.holds(clicks.points):
            return target, ()
        ours = target.answer is not None or region_meta.read(target.meta, shape) is not None
        if ours or (target.control.shape != "rectangle" if foreign is None else foreign):
            rivals.append(target)
    return None, tuple(rivals)


def _below(
    gestures: Sequence[_Gesture], targets: Iterable[Target], shape: tuple[int, int]
) -> list[Target | None]:
    """For each gesture the first of the targets that holds it: none for a rectangle."""
    points = _pixels([g if g.point else replace(g, point=(0.0, 0.0)) for g in gestures], shape)
    found: list[Target | None] = [None] * len(gestures)
    left = [index for index, gesture in enumerate(gestures) if gesture.point is not None]
    for target in targets:
        if target.drawn.holds(points[left]):
            target.drawn.reading.spend(existing_regions.PAIR * len(left))
            for index in left:
                if target.drawn.holds(points[[index]]):
                    found[index] = target
            left = [index for index in left if found[index] is None]
        if not left:
            break
    return found


def _of_newest(
    gestures: list[_Gesture], below: Sequence[Target | None]
) -> tuple[list[_Gesture], list[_Gesture], Target | None]:
    """The gestures about the region that the newest click is in, those before any region, and the region.

    A click outside all regions is about the one of the click before it, a rectangle about any. Where no
    click is in a region, all gestures are about the same.
    """
    about = next((target for target in reversed(below) if target is not None), None)
    if about is None:
        return gestures, [], None
    meant: list[_Gesture] = []
    earlier: list[_Gesture] = []
    current = None
    for gesture, target in zip(gestures, below, strict=True):
        current = target or current
        if gesture.point is None or current is about:
            meant.append(gesture)
        elif current is None:
            earlier.append(gesture)
    return meant, earlier, about


def _overlapped(rivals: Iterable[Target], box: Box) -> Target | None:
    """The rival whose own box is most like a box, by an IoU of a half or more; else the first it is in."""
    left, top, right, bottom = (round(side) for side in box)
    window = (left, top, max(right, left + 1), max(bottom, top + 1))
    best, most, holder = None, existing_regions.SAME_OBJECT, None
    for rival in rivals:
        common = geometry.area(geometry.common(rival.drawn.window, window))
        overlap = common / (geometry.area(rival.drawn.window) + geometry.area(window) - common)
        if overlap > most or (best is None and overlap == most):
            best, most = rival, overlap
        if holder is None and 2 * common >= geometry.area(window):
            holder = rival if 2 * rival.drawn.count(window) >= geometry.area(window) else None
    return best or holder


def _missing(gesture: _Gesture, config: LabelConfig) -> str:
    """What a prompt without a label lacks."""
    known = list(dict.fromkeys(label.value for control in config.predicted for label in control.labels))
    some = f": {', '.join(known[:5])[:200]}{' ...' if len(known) > 5 else ''}" if known else ""
    drawn = "click" if gesture.point is not None else "rectangle"
    return (
        f"The {drawn} has no label and no region is below it. Click inside a region to correct it, or choose "
        f"a label first{some}."
    )


def _aimed(asked: Correction, target: Target | None) -> Correction:
    """The correction of a region, or of none, with the prompt and the id that follow from it.

    Raises Unanswerable where it has to be of one.
    """
    if target is None and asked.missing:
        raise Unanswerable(asked.missing)
    seen = asked.seen
    prompt, term, state = asked.clicks, "", ""
    boxed = None
    if target is not None:
        prompt, term = _joined(target, asked.clicks)
        state = target.state
        if target.control.shape == "rectangle" and target.answer is None and asked.clicks.box is None:
            boxed = _before(target)[0]
    # The browser sent these prompts before, fewer of them: go on from that answer. Where one was moved or
    # deleted since, nothing of it may stay.
    drawn = {**_lineage(target), **seen.prompts}
    earlier = next((a for a in seen.same if a.base == state and a.lineage.items() < drawn.items()), None)
    if earlier is not None:
        prompt, boxed = replace(prompt, mask=earlier.patch.mask, logits=earlier.logits), None
    control = target.control if target else asked.control
    in_place = (
        seen.in_place
        or (seen.unlabelled and control.takes_labels)
        # In a selected region a click places no point.
        or (target is not None and target.drawn.holds(seen.newest))
    )
    region_id = target.region_id if target else earlier.region_id if earlier else None
    notes: tuple[str, ...] = ()
    if region_id is not None and (region_id in seen.related or not in_place):
        # Replacing it may break the editor.
        notes = (f"{region_meta.SUPERSEDES}{region_id}",) if target else ()
        region_id = None
    return replace(
        asked,
        prompt=prompt,
        labels=target.labels if target else asked.labels,
        control=control,
        target=target,
        term=term,
        region_id=region_id,
        notes=notes,
        rivals=(),
        boxed=boxed,
    )


def _lineage(target: Target | None) -> Mapping[str, Spot]:
    return target.answer.lineage if target is not None and target.answer is not None else {}


def _joined(target: Target, clicks: Prompt) -> tuple[Prompt, str]:
    """The prompt of a region and the clicks that correct it; the region's term."""
    before, term = _before(target)
    prompt = Prompt(
        points=np.concatenate([before.points, clicks.points]),
        labels=np.concatenate([before.labels, clicks.labels]),
        box=clicks.box or _widened(before.box, clicks),
        mask=before.mask,
        logits=target.answer.logits if target.answer else None,
        found=before.found,
    )
    return _newest_of_spots(prompt), term


def _before(target: Target) -> tuple[Prompt, str]:
    """What is known of a region without the clicks, and its term."""
    stored = region_meta.read(target.meta, target.drawn.shape)
    before = Prompt() if stored is None else region_meta.consistent(stored, target.mask)
    if target.control.shape == "rectangle" and target.answer is None:
        before = replace(before, box=box_of(target.mask))
    else:
        before = replace(before, mask=target.mask)
    return before, stored.term if stored else ""


def _newest_of_spots(prompt: Prompt) -> Prompt:
    """Of points on the same spot the last one: a click is sent again with each later one."""
    last: dict[tuple[float, float], int] = {}
    for index, (x, y) in enumerate(prompt.points):
        spot = (round(float(x), 1), round(float(y), 1))
        last.pop(spot, None)
        last[spot] = index
    return prompt.of_points(np.isin(np.arange(len(prompt.points)), list(last.values())))


def _widened(box: Box | None, clicks: Prompt) -> Box | None:
    """The box a region was found with, unless a person now points outside it."""
    return box if box is not None and _holds(box, clicks.points[clicks.labels == 1]) else None


def _holds(box: Box, points: NDArray[np.float32]) -> bool:
    return bool((points >= box[:2]).all() and (points <= box[2:]).all())


def _prompt(gestures: Sequence[_Gesture], shape: tuple[int, int]) -> Prompt:
    """Raises Unanswerable."""
    clicks = [gesture for gesture in gestures if gesture.point is not None][-MAX_CLICKS:]
    labels = np.array([int(click.positive) for click in clicks], np.int64)
    rectangles = [gesture.rectangle for gesture in gestures if gesture.rectangle is not None]
    box = _box(rectangles[-1], shape) if rectangles else None
    if box is None and not clicks:
        raise Unanswerable("The rectangle is empty.")
    return _newest_of_spots(Prompt(points=_pixels(clicks, shape), labels=labels, box=box))


def _pixels(clicks: Sequence[_Gesture], shape: tuple[int, int]) -> NDArray[np.float32]:
    """(n, 2) xy of clicks."""
    height, width = shape
    points = np.array([click.point for click in clicks], float).reshape(-1, 2)
    points = (points * np.array([width / 100, height / 100])).astype(np.float32)
    # 100 % is the far edge of the last pixel, and a click there is meant for that pixel.
    last = np.nextafter(np.array([width, height], np.float32), np.float32(0))
    return np.asarray(np.clip(points, 0, last))


def _box(rectangle: tuple[float, float, float, float, float], shape: tuple[int, int]) -> Box | None:
    """The upright box in pixels around a rectangle, however it was drawn; None for less than a pixel."""
    height, width = shape
    corners = results.corners(*rectangle, shape)
    (x0, y0), (x1, y1) = (np.clip(edge(axis=0), 0, (width, height)) for edge in (corners.min, corners.max))
    return (float(x0), float(y0), float(x1), float(y1)) if x1 - x0 >= 1 and y1 - y0 >= 1 else None


def _with_drafted(
    gestures: list[_Gesture], drafted: Sequence[_Gesture], shape: tuple[int, int]
) -> list[_Gesture]:
    """The context's clicks with the draft's box around them, or its boxes with the draft's clicks inside.

    Of its own kind the context holds every prompt there is. So where a draft shows others of this kind
    and none of these, it is older than the last accept, and its prompts are gone.
    """
    clicks = [gesture for gesture in gestures if gesture.point is not None]
    if 0 < len(clicks) < len(gestures):
        return gestures
    own = {gesture.prompt_id for gesture in gestures}
    same_kind = {g.prompt_id for g in drafted if (g.point is None) == (not clicks)}
    if same_kind and not own & same_kind:
        return gestures
    drafted = drafted[-MAX_CLICKS:]
    if clicks:
        meant = _pixels([click for click in clicks if click.positive] or clicks, shape)
        meant = np.stack([meant.min(axis=0), meant.max(axis=0)])  # what holds these holds all of them
        around = [
            gesture
            for gesture in drafted
            if gesture.rectangle and (box := _box(gesture.rectangle, shape)) and _holds(box, meant)
        ]
        return [*around[-1:], *gestures]
    drawn = gestures[-1].rectangle
    box = _box(drawn, shape) if drawn else None
    inside = [g for g in drafted if g.point and box and _holds(box, _pixels([g], shape))]
    return [*inside, *gestures]


def _gestures(items: Any, config: LabelConfig, *, drafts: bool = False) -> Iterator[_Gesture]:
    """Clicks and rectangles in the order they were drawn; of those with one id the last counts.

    A draft also holds regions: there a prompt is a keypoint that says whether it is positive, or a
    rectangle of a control that is a prompt tool.
    """
    items = tasks.latest(items, MAX_ITEMS, "items of a context or draft") if isinstance(items, list) else []
    items = [item for item in items if isinstance(item, Mapping)]
    if drafts:
        ids = {
            tasks.id_of(item)
            for item in items
            if "is_positive" in item or tasks.control_of(item) in config.prompt_boxes
        }
        items = [item for item in items if (item_id := tasks.id_of(item)) is not None and item_id in ids]
    # A point of a tool without a list brings the chosen label in a result of that label's list.
    lent = {tasks.id_of(item): names for item in items if (names := tasks.labels_of(item))}
    merged: dict[Any, _Gesture] = {}
    for number, item in enumerate(items):
        gesture = _gesture(item)
        if gesture is None or gesture.image not in (None, config.image_name):
            continue
        # With <Labels> each prompt comes as two results of one id, and the label may be in either.
        key = gesture.prompt_id or number
        merged.pop(key, None)
        if not gesture.labels and gesture.prompt_id is not None:
            gesture = replace(gesture, labels=lent.get(gesture.prompt_id, ()))
        merged[key] = gesture
    yield from merged.values()


def _gesture(item: Mapping[str, Any]) -> _Gesture | None:
    value = tasks.value_of(item)
    x, y, width, height = (_number(value.get(key)) for key in ("x", "y", "width", "height"))
    if x is None or y is None:
        return None
    kind, to_name = str(item.get("type")).lower(), item.get("to_name")
    image = to_name if isinstance(to_name, str) else None
    labels, prompt_id = tasks.labels_of(item), tasks.id_of(item)
    # Label Studio's next protocol sends prompts that belong to no control; the label is the browser's.
    bound = prompt_id is not None or "from_name" in item or bool(labels)
    has_list = kind in ("keypointlabels", "rectanglelabels")
    if width is not None and height is not None and kind not in ("keypoint", "keypointlabels"):
        if kind not in ("rectangle", "rectanglelabels", "labels"):
            return None
        rotation = _number(value.get("rotation")) or 0.0
        rectangle = (x, y, width, height, rotation)
        return _Gesture(
            labels, rectangle=rectangle, prompt_id=prompt_id, bound=bound, has_list=has_list, image=image
        )
    if kind not in ("keypoint", "keypointlabels", "labels"):
        return None
    positive = item.get("is_positive", value.get("positive", True))
    positive = positive is not False and positive != 0
    return _Gesture(
        labels, (x, y), positive, prompt_id=prompt_id, bound=bound, has_list=has_list, image=image
    )


def _nothing(context: Mapping[str, Any], config: LabelConfig) -> str:
    """Why a context has nothing to segment."""
    drawn = [_gesture(item) for item in tasks.entries(context.get("result"))]
    other = next((gesture.image for gesture in drawn if gesture is not None and gesture.image), None)
    if other is None:
        return "The context holds no click and no rectangle, and no text for the model."
    return (
        f"The prompt is on {other[:80]!r}, and regions are made on <Image name={config.image_name!r}> alone, "
        "the one whose controls have labels."
    )


def _number(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and abs(value) <= 1e6 else None


def related(sources: Iterable[list[Any]]) -> Iterator[str]:
    """The ids of regions that a relation names."""
    for source in sources:
        for item in source:
            if isinstance(item, Mapping) and item.get("type") == "relation":
                for end in ("from_id", "to_id"):
                    if (region_id := tasks.region_id({"id": item.get(end)})) is not None:
                        yield region_id


def _arrived(answer: Answer, sources: Iterable[list[Any]]) -> bool:
    """Whether the task holds the region as we answered it, or as it was changed by hand since."""
    return any(
        region_meta.same(item.get("meta"), answer.meta)
        for source in sources
        for item in source
        if isinstance(item, Mapping) and tasks.region_id(item) == answer.region_id
    )
