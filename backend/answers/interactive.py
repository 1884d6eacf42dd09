"""Answer the request of an editor: clicks, a phrase, and the status that tells why there is no answer."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from backend.answers import click_target, existing_regions, task_image
from backend.answers.click_target import Correction, Unanswerable
from backend.answers.placement import Prediction, describe, not_empty, prediction
from backend.answers.recent_answers import Key
from backend.answers.superseded_clicks import Click
from backend.answers.task_image import UNEXPECTED, Access, name_of
from backend.labelstudio import next_protocol, prompt_controls, results, tasks
from backend.labelstudio.labeling_config import LabelConfig, TaskError
from backend.labelstudio.next_protocol import UnknownEvent
from backend.labelstudio.prompt_controls import Wishes
from backend.labelstudio.reading_budget import OutOfTime, TooMuch
from backend.labelstudio.tasks import Region
from backend.runtime.job_queue import CLICK, Late, Superseded, Unavailable
from backend.runtime.oom_retry import RetryingModel
from model.deadline import Deadline
from model.pipeline import VLSAM
from model.segmentation.embedding import Embedding
from model.types import Detection, ImageError, Level, Prompt, VLSAMError

log = logging.getLogger(f"vlsam.{__name__}")

NOTHING_THERE = "The mask is empty: the model finds nothing there."


def event(access: Access, context: Mapping[str, Any]) -> Prediction:
    try:
        return prediction(next_protocol.answer(context, access.resources.version), access.resources.version)
    except UnknownEvent as unknown:
        log.warning("%s", unknown)
        return prediction([], access.resources.version, reason=str(unknown))


def interact(
    access: Access, task: Any, context: Mapping[str, Any], config: LabelConfig, deadline: Deadline
) -> Prediction:
    """The answer to a click, whose failure the editor shows where the config has a place for it."""
    try:
        with access.resources.queue.admitted():
            answer = _answer(access, task, context, config, deadline)
    except Unavailable as error:
        if config.status_of is None:
            raise
        access.count(type(error).__name__)
        asked_by = click_target.asked_by(context, config)
        log.warning("Task %s: no answer to the %s: %s", name_of(task), asked_by, error)
        answer = prediction([], access.resources.version, reason=str(error))
    # Label Studio 1.23.2 asks about no prompts when a task opens after one that was submitted with a
    # click left in it: there is nothing to tell.
    if config.status_of is not None and context.get("result") != []:
        told = results.status(answer.get("reason", ""), config.status_of)
        answer["result"] = [*answer["result"], told]
    return answer


def _answer(
    access: Access, task: Any, context: Mapping[str, Any], config: LabelConfig, deadline: Deadline
) -> Prediction:
    started, level = access.resources.clock(), logging.WARNING

    def taken() -> int:
        return round(1000 * (access.resources.clock() - started))

    try:
        phrase = None if click_target.is_click(context, config) else prompt_controls.typed(context, config)
        if phrase is None:
            regions, done = _correct(access, task, context, config, deadline)
        else:
            regions = _find(access, task, phrase, context, config, deadline)
            done = f"text: {len({region['id'] for region in regions})} new or renewed regions"
        log.info("Task %s: %s, %d ms", name_of(task), done, taken())
        return prediction(regions, access.resources.version)
    except Late:
        access.count("Late")
        reason = "The click could not be answered in time."
    except OutOfTime as error:
        access.count("Late")
        reason = str(error)
    except Superseded:
        access.count("Superseded")
        # The editor shows the answer to its newest request only.
        reason = "A newer click came before its turn."
        level = logging.INFO
    except (Unanswerable, TooMuch, TaskError, ImageError, VLSAMError) as error:
        access.count(type(error).__name__)
        reason = str(error)
    except Unavailable:
        raise
    except Exception:
        access.count(UNEXPECTED)
        asked_by = click_target.asked_by(context, config)
        log.exception("Task %s: no answer to the %s (%d ms).", name_of(task), asked_by, taken())
        return prediction([], access.resources.version, reason="The server failed; its log says why.")
    asked_by = click_target.asked_by(context, config)
    log.log(
        level,
        "Task %s: no answer to the %s: %s (%d ms)",
        name_of(task),
        asked_by,
        reason,
        taken(),
    )
    return prediction([], access.resources.version, reason=reason)


def _correct(
    access: Access, task: Any, context: Mapping[str, Any], config: LabelConfig, deadline: Deadline
) -> tuple[list[results.Result], str]:
    """The results of the region that clicks made or corrected, and what was done, for the log.

    Raises Unanswerable.
    """
    config = config.of(task.get("data") if isinstance(task, Mapping) else None)
    click = click_of(access, task, context)
    seen = task_image.see(access, task, config, deadline)
    run = partial(access.resources.queue.run, priority=CLICK, deadline=deadline, topic=click)
    bare = click_target.bare(context, config, seen.known.size)
    if bare is not None:
        detection = run(lambda model: _refine(model, seen.embedding(model), bare))
        if not detection.mask.any():
            raise Unanswerable(NOTHING_THERE)
        return next_protocol.mask(detection.mask, detection.score), "click of no control: a mask"
    recent, clock = access.resources.recent_answers, access.resources.clock
    key = _memory_key(access, task, seen.known.content)
    reading = access.reading(deadline)
    asked = click_target.read(
        context,
        task,
        config,
        seen.known.size,
        answers=recent.recall(key) if key else (),
        now=clock(),
        labels_in_place=access.resources.settings.answers.labels_in_place,
        reading=reading,
    )
    task_image.log_unread(task, reading, "a click cannot be about them")
    wishes = prompt_controls.wishes(context, task, config)
    asked, detection = run(lambda model: _segment(model, seen.embedding(model), asked, wishes.level))
    if not detection.mask.any():
        raise Unanswerable(NOTHING_THERE)
    _good_enough([detection], wishes)
    with access.resources.metrics.stage("results"):
        region = describe(
            replace(detection, term=asked.term),
            control=asked.control,
            labels=asked.labels,
            region_id=asked.region_id or results.new_id(),
            old_meta=asked.target.meta if asked.target else None,
            notes=asked.notes,
            compact=True,
        )
    if not region:
        raise Unanswerable(f"The mask is nothing that <{asked.control.tag}> can draw.")
    if key:
        recent.remember(key, click_target.remembered(asked, region[0], detection, clock()))
    said = click_target.said(task, asked.target.region_id, config) if asked.target else {}
    words = [
        results.naming(region[0], naming, said[naming.name])
        for naming in config.namings
        if said.get(naming.name)
    ]
    return region + words, click_target.done(asked, region[0], detection.mask)


def _find(
    access: Access,
    task: Any,
    phrase: str,
    context: Mapping[str, Any],
    config: LabelConfig,
    deadline: Deadline,
) -> list[results.Result]:
    """Regions of what a person typed, less what there are regions of. Raises Unanswerable."""
    config = config.of(task.get("data") if isinstance(task, Mapping) else None)
    image, known = task_image.load(access, task, *task_image.find(access, task, config), deadline)
    wishes = prompt_controls.wishes(context, task, config)
    handle = access.resources.embeddings.handle(known.content)

    def work(model: RetryingModel[VLSAM]) -> list[Detection]:
        embedding = handle.get(model, image)
        return model.run(
            "find", lambda vlsam: vlsam.find(image, phrase, embedding=embedding, level=wishes.level)
        )

    run = partial(
        access.resources.queue.run, priority=CLICK, deadline=deadline, topic=click_of(access, task, context)
    )
    found, said = not_empty(run(work)), ascii(phrase[:80])
    if not found:
        raise Unanswerable(f"The model does not find {said} in this image.")
    found = _good_enough(found, wishes)
    labelled = [(d, prompt_controls.label_of(phrase, d.term, context, config)) for d in found]
    if not any(config.label_control(label) for _, label in labelled):
        raise Unanswerable(f"No label means {said}: add it to the predicted_values of one.")
    own = next(tasks.own(task), None)
    shown = next(tasks.predicted(task), []) if own is None else []
    regions: list[results.Result] = []
    reading = access.reading(deadline)
    for detection, label in labelled:
        control = config.label_control(label)
        if control is None or existing_regions.of(
            detection, label, tasks.regions(own or [], config), reading
        ):
            continue
        # A prediction may be on screen, and may be not: with its id, ours is there once in both cases.
        alike = [region for region in tasks.regions(shown, config) if region.control == control]
        old = existing_regions.of(detection, label, alike, reading)
        if old and not _replaceable(access, old, shown):
            continue
        region = describe(
            detection,
            control=control,
            labels=old.labels if old else () if label is None else (label,),
            region_id=old.id if old else results.new_id(),
            old_meta=old.result.get("meta") if old else None,
            compact=True,
        )
        regions += region
        regions += [
            results.naming(region[0], naming, words)
            for naming in config.namings
            if region and (naming.tag == "Taxonomy" or label is None)
            if (words := naming.words(detection.term))
        ]
    task_image.log_unread(task, reading, "they may be found again")
    if not regions:
        raise Unanswerable(f"There is a region of {said} already.")
    return regions


def _replaceable(access: Access, region: Region, items: list[Any]) -> bool:
    """Whether the editor stands a region in the place of this one."""
    in_place = region.control.labels_name is None or access.resources.settings.answers.labels_in_place
    return in_place and region.id not in click_target.related([items])


def _memory_key(access: Access, task: Any, image: str) -> Key | None:
    """Whose answers may help; None where the task has no id."""
    task_id = tasks.number(task)
    if task_id is None:
        return None
    server = access.server.url if access.server else ""
    return (server, str(access.project or task.get("project")), str(task_id), image)


def click_of(access: Access, task: Any, context: Mapping[str, Any]) -> Click | None:
    """What the click is about; None where the request does not say so of the task and every prompt."""
    given = context.get("result")
    items = [item for item in (given if isinstance(given, list) else []) if isinstance(item, Mapping)]
    names: list[Any] = [item.get("id") for item in items]
    names.append(items[-1].get("from_name") if items else None)
    number = tasks.number(task)
    if not all(isinstance(name, str) and name for name in names) or number is None:
        return None
    *prompts, control = names
    server = access.server.url if access.server else ""
    return Click((server, access.project, repr(number), control), frozenset(prompts))


def _good_enough(found: list[Detection], wishes: Wishes) -> list[Detection]:
    """The detections whose score the person wants to see. Raises Unanswerable where there is none."""
    good = [detection for detection in found if detection.score >= wishes.score]
    if not good:
        best = max(detection.score for detection in found)
        raise Unanswerable(
            f"The score {best:.2f} is below the {wishes.score:.2f} of {prompt_controls.SCORE}."
        )
    return good


def _segment(
    model: RetryingModel[VLSAM], embedding: Embedding, asked: Correction, level: Level
) -> tuple[Correction, Detection]:
    """The settled correction and its mask."""
    if asked.rivals:
        fresh = _refine(model, embedding, asked.prompt, level)
        asked = click_target.settle(asked, fresh.mask)
        if asked.target is None and asked.prompt.mask is None:
            return asked, fresh
    if asked.boxed is not None:
        mask = _refine(model, embedding, asked.boxed).mask
        asked = replace(asked, prompt=replace(asked.prompt, mask=mask if mask.any() else None))
    return asked, _refine(model, embedding, asked.prompt, level)


def _refine(
    model: RetryingModel[VLSAM], embedding: Embedding, prompt: Prompt, level: Level = "auto"
) -> Detection:
    return model.run("refine", lambda vlsam: vlsam.refine(embedding, prompt, level))
