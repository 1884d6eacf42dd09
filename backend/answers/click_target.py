"""Choose the region that a click corrects, and make the prompt for the segmenter.

Label Studio does not say which region a click is meant for. The rules are in
docs/decisions/0014-whose-click-is-it.md.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from backend.answers import existing_regions
from backend.answers.recent_answers import Answer
from backend.labelstudio import click_gestures, region_matching, region_meta, region_reading, results, tasks
from backend.labelstudio.click_gestures import Gesture, Spot
from backend.labelstudio.labeling_config import Control
from backend.labelstudio.region_reading import Drawn, ReadingBudget
from backend.labelstudio.request import Interaction
from model.patches import Patch
from model.types import Detection, Mask, Prompt, box_of


class Unanswerable(Exception):
    """The click or text cannot be answered. The message is one sentence for the log and the person."""


@dataclass(frozen=True, eq=False)
class Target:
    """A region that a click may correct. It is in the task, or in a recent answer that is not saved yet."""

    region_id: str  # Label Studio's id
    control: Control
    labels: tuple[str, ...]
    drawn: Drawn
    meta: Any  # untrusted
    answer: Answer | None = None

    @cached_property
    def mask(self) -> Mask:
        """The mask of the region, bool (H, W) as the image. Raises TooMuch if the reading budget is spent."""
        return self.drawn.patch.mask

    @cached_property
    def state(self) -> str:
        """The region's id and the hash of its mask, "ID:HASH", to see whether it changed. Raises TooMuch."""
        return f"{self.region_id}:{results.mask_hash(self.mask)}"

    @cached_property
    def stored(self) -> region_meta.Stored | None:
        """The term and prompt stored in the region's `meta`; None if they are missing or invalid."""
        return region_meta.read(self.meta, self.drawn.shape)

    @cached_property
    def prompt(self) -> Prompt:
        """The prompt that made the region, with its mask, or with its box if `is_outline`. Raises TooMuch."""
        prompt = Prompt() if self.stored is None else region_meta.consistent(self.stored, self.mask)
        if self.is_outline:
            return replace(prompt, box=box_of(self.mask))
        return replace(prompt, mask=self.mask)

    @property
    def is_outline(self) -> bool:
        """Whether the region is a rectangle of the task, so that its mask is only the box of an object."""
        return self.control.shape == "rectangle" and self.answer is None


@dataclass(frozen=True, eq=False)
class Correction:
    """The prompt for the segmenter, and the region that the new mask replaces, if any."""

    interaction: Interaction
    prompt: Prompt
    clicks: Prompt  # of this request alone
    prompts: Mapping[str, Spot]  # of this request, by id
    same: tuple[Answer, ...]  # earlier answers to these prompts, the newest first
    labels: tuple[str, ...]  # none where regions have no labels
    control: Control
    in_place: bool  # any region can be replaced: none can be selected
    needs_target: bool  # its prompts have no label
    # Without a target yet: the mask of the prompt decides whether one of these is it. See `settle`.
    rivals: tuple[Target, ...]
    target: Target | None = None
    region_id: str | None = None  # None for a new one
    notes: tuple[str, ...] = ()  # for `meta.text`
    boxed: Prompt | None = None  # decode it first, for a mask that the clicks correct

    @property
    def term(self) -> str:
        """The term of the corrected region, "" for a new one."""
        return self.target.stored.term if self.target and self.target.stored else ""

    @property
    def lineage(self) -> Mapping[str, Spot]:
        """The prompts of this request and of the answers that it corrects, by id."""
        answer = self.target.answer if self.target else None
        return {**(answer.lineage if answer else {}), **self.prompts}


def read(
    interaction: Interaction,
    shape: tuple[int, int],
    *,
    answers: Sequence[Answer] = (),
    now: float = 0.0,
    labels_in_place: bool = False,
    budget: ReadingBudget | None = None,
) -> Correction:
    """Return the region that clicks correct, and the prompt. `shape` is (height, width) of the image.

    Label Studio 1.23.2 sends the points or rectangles of one label that are not accepted yet, the newest
    last. It does not send their region. Prompts of the other kind are read from the newest draft.

    A click with several labels corrects a region that has one of them. The region keeps its labels. Clicks
    without a label correct the region around the newest click. If there is none, they correct a region that
    their mask overlaps, with any label. If there is none either, they get the only label of the config.
    Clicks in other regions are ignored.

    If the correction has `rivals`, segment its prompt, then call `settle` to choose one of them.

    `answers` are the recent answers for this task, the newest first. `now` is the time of their clock, in
    seconds. Raises Unanswerable and TooMuch.
    """
    task, config = interaction.task, interaction.config
    gestures = _inside(interaction)
    answers = [answer for answer in answers if answer.patch.shape == shape and not _arrived(answer, task)]
    newest = gestures[-1]
    control = config.control_for(newest.labels)
    nameless = control is None
    if control is None:
        if newest.labels:
            raise Unanswerable(f"No output control has the label {' or '.join(newest.labels)[:80]!r}.")
        only = config.only_label
        control = config.label_control(only) or config.predicted[0]
        labels: tuple[str, ...] = () if only is None else (only,)
    else:
        # Keep only labels of the control, since Label Studio refuses regions with others.
        labels = tuple(filter(control.has_label, newest.labels)) if control.takes_labels else ()
        answers = [answer for answer in answers if tasks.alike(answer.labels, labels)]
    gestures = [gesture for gesture in gestures if tasks.alike(gesture.labels, newest.labels)]
    drafted = [g for g in interaction.drafted if tasks.alike(g.labels, newest.labels) and not g.is_outside]
    gestures = click_gestures.with_drafted(gestures, drafted, shape)
    prompts = {gesture.prompt_id: gesture.spot for gesture in gestures if gesture.prompt_id is not None}
    same = tuple(answer for answer in answers if answer.lineage.keys() & prompts.keys())
    others = [answer for answer in answers if answer not in same]
    ancestors = {prompt_id for answer in same for prompt_id in answer.lineage}
    theirs = [answer for answer in others if answer.is_of(task, prompts, now, ancestors)]
    targets = partial(_targets, interaction, theirs, shape, budget or ReadingBudget())
    meant, earlier, wanted = gestures, list[Gesture](), None if nameless else labels
    if nameless:
        meant, earlier, about = _of_newest(gestures, _below(gestures, targets(None), shape))
        wanted = about.labels if about else None
    needs_target = nameless and not labels
    clicks = _prompt(meant, shape)
    foreign = clicks.box is not None if needs_target else None
    target, rivals = _search(targets(wanted), clicks, foreign=foreign)
    before = {gesture.prompt_id for gesture in earlier}
    if target and any(answer.base == target.state and before & answer.lineage.keys() for answer in same):
        clicks = _prompt([*earlier, *meant], shape)
    positive = clicks.box is not None or bool(clicks.labels.any())
    if target is None and not positive:
        which = "no region" if nameless else "no region of their label"
        raise Unanswerable(f"There are negative clicks only, and {which} is below them.")
    # While a region is selected, tools with their own labels do not work. Others use the region's label.
    correction = Correction(
        interaction,
        clicks,
        clicks,
        prompts,
        same,
        labels,
        control,
        in_place=labels_in_place or newest.has_list,
        needs_target=needs_target,
        rivals=rivals if positive else (),
    )
    return correction if target is None and correction.rivals else _aimed(correction, target)


def _inside(interaction: Interaction) -> list[Gesture]:
    """Return the gestures inside the image. Raises Unanswerable if there are none, or the last is outside."""
    if not interaction.gestures:
        raise Unanswerable(_nothing(interaction))
    if interaction.gestures[-1].is_outside:
        raise Unanswerable("The click is outside of the image.")
    return [gesture for gesture in interaction.gestures if not gesture.is_outside]


def bare(interaction: Interaction, shape: tuple[int, int]) -> Prompt | None:
    """Return the prompt of a request in Label Studio's next protocol; None for the present protocol.

    In the next protocol prompts have no control, and the browser makes the region. Raises Unanswerable.
    """
    if not interaction.gestures or any(gesture.bound for gesture in interaction.gestures):
        return None
    prompt = _prompt(_inside(interaction), shape)
    if prompt.box is None and not prompt.labels.any():
        raise Unanswerable("There are negative clicks only.")
    return prompt


def settle(correction: Correction, mask: Mask) -> Correction:
    """Set the target of a correction: the rival that shows the same object as `mask`, or none.

    `mask`, bool (H, W), is segmented from the clicks alone. If the prompt is a rectangle without a label, the
    target may also be a rival around or inside it. Raises TooMuch. Raises Unanswerable if no rival fits and
    the clicks have no label.
    """
    drawn = [rival.drawn for rival in correction.rivals]
    number = region_matching.matching(drawn, mask, correction.clicks.box if correction.needs_target else None)
    return _aimed(correction, None if number is None else correction.rivals[number])


def _aimed(correction: Correction, target: Target | None) -> Correction:
    """Set a correction's target, prompt and region id. Raises Unanswerable if a needed target is None."""
    interaction, clicks = correction.interaction, correction.clicks
    if target is None and correction.needs_target:
        raise Unanswerable(_missing(interaction))
    prompt, boxed, state = clicks, None, ""
    if target is not None:
        correction = replace(correction, target=target, control=target.control, labels=target.labels)
        prompt, state = _joined(target, clicks), target.state
        boxed = target.prompt if target.is_outline and clicks.box is None else None
    # The browser sent these prompts before, fewer of them: go on from that answer. If one was moved or
    # deleted since, nothing of it may stay.
    lineage = correction.lineage
    earlier = next(
        (a for a in correction.same if a.base == state and a.lineage.items() < lineage.items()), None
    )
    if earlier is not None:
        prompt, boxed = replace(prompt, mask=earlier.patch.mask, logits=earlier.logits), None
    newest = interaction.gestures[-1]
    in_place = (
        correction.in_place
        # No region with a label is selected.
        or (not newest.labels and correction.control.takes_labels)
        # In a selected region a click places no point.
        or (target is not None and newest.point is not None and target.drawn.holds(clicks.points[-1:]))
    )
    region_id = target.region_id if target else earlier.region_id if earlier else None
    notes: tuple[str, ...] = ()
    if region_id is not None and (region_id in interaction.task.related or not in_place):
        # Replacing it may break the editor.
        notes = (f"{region_meta.SUPERSEDES}{region_id}",) if target else ()
        region_id = None
    return replace(correction, prompt=prompt, region_id=region_id, notes=notes, rivals=(), boxed=boxed)


def _joined(target: Target, clicks: Prompt) -> Prompt:
    """Add new clicks to the prompt of a region. Drop its box if a positive click is outside of the box."""
    before = target.prompt
    box, positive = before.box, clicks.points[clicks.labels == 1]
    if box is not None and not click_gestures.holds(box, positive):
        box = None
    prompt = Prompt(
        points=np.concatenate([before.points, clicks.points]),
        labels=np.concatenate([before.labels, clicks.labels]),
        box=clicks.box or box,
        mask=before.mask,
        logits=target.answer.logits if target.answer else None,
        model_points=before.model_points,
    )
    return prompt.of_points(click_gestures.newest_of_spots(prompt.points))


def remembered(correction: Correction, region: results.Result, detection: Detection, now: float) -> Answer:
    """Return the record of an answered click that RecentAnswers stores, made at time `now`."""
    return Answer(
        region_id=region["id"],
        control=region["from_name"],
        labels=correction.labels,
        meta=region["meta"],
        patch=Patch.of(detection.mask),
        logits=detection.logits,
        prompts=correction.prompts,
        lineage=correction.lineage,
        base=correction.target.state if correction.target else "",
        draft=correction.interaction.task.draft_state,
        at=now,
    )


def done(correction: Correction, region: results.Result, mask: Mask) -> str:
    """Return one line for the log about the region that was made or corrected."""
    new, target, change = region["id"], correction.target, f"new region {region['id']}"
    if target is not None:
        if target.control.shape in ("rectangle", "ellipse"):  # as it is drawn
            drawn = region_reading.decode(region, target.drawn.shape)
            mask = mask if drawn is None else drawn
        more = int(np.count_nonzero(mask)) - int(np.count_nonzero(target.mask))
        change = f"joined {more} pixels to" if more > 0 else f"took {-more} pixels from"
        change = f"{change if more else 'corrected'} region {ascii(target.region_id)[1:-1]}"
        change += f", now region {new}" if new != target.region_id else ""
    return f"{click_gestures.click_with(correction.labels)}: {change}"


def _targets(
    interaction: Interaction,
    answers: Sequence[Answer],
    shape: tuple[int, int],
    budget: ReadingBudget,
    labels: tuple[str, ...] | None,
) -> Iterator[Target]:
    """Yield the regions with one of `labels` (None for any) that a click may correct, the topmost first.

    Recent answers come first, the newest at the front. Then come the regions of each list of the task, the
    last at the front. In each list, rectangles come after all other regions. Raises TooMuch.
    """

    config = interaction.config

    def turn(region: tasks.Region) -> tuple[bool, int]:
        last, place = config.turn(region.control)
        return last, 0 if labels is None else place

    taken: set[str] = set()
    for answer in answers:
        control = config.output(answer.control)
        if control is None or answer.region_id in taken:
            continue
        taken.add(answer.region_id)
        painted = region_reading.painted(answer.patch)
        yield Target(answer.region_id, control, answer.labels, painted, answer.meta, answer)
    newer: set[str] = set()
    for source in interaction.task.lists:
        # A newer source was made from this one: a region that only this one has was deleted since.
        if source.ids & newer:
            continue
        # Stable, so of one control the topmost comes first.
        for region in sorted(source.regions(config), key=turn):
            if region.id in taken or not (labels is None or tasks.alike(region.labels, labels)):
                continue
            budget.spend(existing_regions.PAIR)
            if (read := region_reading.read(region.result, shape, budget)) is not None:
                yield Target(region.id, region.control, region.labels, read, region.result.get("meta"))
        newer |= source.ids


def _search(
    targets: Iterable[Target], clicks: Prompt, *, foreign: bool | None
) -> tuple[Target | None, tuple[Target, ...]]:
    """Return (the first target that contains a click, ()), or (None, rivals) if no target does.

    Rivals are the regions of the model. If `foreign` is true, they include all regions that people drew. If
    `foreign` is None, they include those except rectangles.
    """
    rivals: list[Target] = []
    for target in targets:
        if target.drawn.holds(clicks.points):
            return target, ()
        ours = target.answer is not None or target.stored is not None
        if ours or (target.control.shape != "rectangle" if foreign is None else foreign):
            rivals.append(target)
    return None, tuple(rivals)


def _below(
    gestures: Sequence[Gesture], targets: Iterable[Target], shape: tuple[int, int]
) -> list[Target | None]:
    """Return for each click the first target that contains it, or None. Return None for a rectangle."""
    clicks = [gesture if gesture.point else replace(gesture, point=(0.0, 0.0)) for gesture in gestures]
    points = click_gestures.pixels_of(clicks, shape)
    below: list[Target | None] = [None] * len(gestures)
    unassigned = [index for index, gesture in enumerate(gestures) if gesture.point is not None]
    for target in targets:
        if target.drawn.holds(points[unassigned]):
            target.drawn.budget.spend(existing_regions.PAIR * len(unassigned))
            for index in unassigned:
                if target.drawn.holds(points[[index]]):
                    below[index] = target
            unassigned = [index for index in unassigned if below[index] is None]
        if not unassigned:
            break
    return below


def _of_newest(
    gestures: list[Gesture], below: Sequence[Target | None]
) -> tuple[list[Gesture], list[Gesture], Target | None]:
    """Return (gestures of the region of the newest click, those before a click in a region, the region).

    `below` has the region below each gesture. A click outside all regions belongs to the region of the click
    before it. A rectangle belongs to every region. If no click is in a region, return (`gestures`, [], None).
    """
    about = next((target for target in reversed(below) if target is not None), None)
    if about is None:
        return gestures, [], None
    targeted: list[Gesture] = []
    earlier: list[Gesture] = []
    current = None
    for gesture, target in zip(gestures, below, strict=True):
        current = target or current
        if gesture.point is None or current is about:
            targeted.append(gesture)
        elif current is None:
            earlier.append(gesture)
    return targeted, earlier, about


def _prompt(gestures: Sequence[Gesture], shape: tuple[int, int]) -> Prompt:
    prompt = click_gestures.prompt_of(gestures, shape)
    if prompt is None:
        raise Unanswerable("The rectangle is empty or outside of the image.")
    return prompt


def _missing(interaction: Interaction) -> str:
    controls, newest = interaction.config.predicted, interaction.gestures[-1]
    labels = list(dict.fromkeys(label.value for control in controls for label in control.labels))
    some = f": {', '.join(labels[:5])[:200]}{' ...' if len(labels) > 5 else ''}" if labels else ""
    kind = "click" if newest.point is not None else "rectangle"
    return (
        f"The {kind} has no label and no region is below it. Click inside a region to correct it, or choose "
        f"a label first{some}."
    )


def _nothing(interaction: Interaction) -> str:
    if interaction.other_image is None:
        return "The context holds no click and no rectangle, and no text for the model."
    return (
        f"The prompt is on {interaction.other_image[:80]!r}, and regions are made on "
        f"<Image name={interaction.config.image_name!r}> alone, the one whose controls have labels."
    )


def _arrived(answer: Answer, task: tasks.Task) -> bool:
    """Return whether the task contains the region of an answer, even if a person has changed it since."""
    return any(
        region_meta.same(item.get("meta"), answer.meta)
        for entry in task.lists
        for item in entry.items
        if tasks.region_id(item) == answer.region_id
    )
