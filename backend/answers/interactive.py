"""Answer a click or a typed text of the editor, and show failures in the status control."""

import logging
from dataclasses import replace
from functools import partial
from typing import Any

from backend.answers import click_target, existing_regions, task_image
from backend.answers.click_target import Correction, Unanswerable
from backend.answers.placement import Place, Prediction, describe, describe_and_name, not_empty, prediction
from backend.answers.superseded_clicks import Click
from backend.answers.task_image import UNEXPECTED, Access
from backend.labelstudio import next_protocol, prompt_controls, results
from backend.labelstudio.labeling_config import TaskError
from backend.labelstudio.region_reading import OutOfTime, ReadingBudget, TooMuch
from backend.labelstudio.request import Interaction
from backend.labelstudio.status_control import status
from backend.labelstudio.tasks import NO_ENTRY, Task
from backend.runtime.job_queue import CLICK, Late, Superseded, Unavailable
from backend.runtime.retrying_model import RetryingModel
from model.deadline import Deadline
from model.pipeline import VLSAM
from model.segmentation.embedding import Embedding
from model.types import Detection, ImageError, Level, Prompt, VLSAMError

log = logging.getLogger(f"vlsam.{__name__}")

NOTHING_THERE = "The mask is empty: the model finds nothing there."


def event(name: Any, version: str) -> Prediction:
    """Return the answer to an event of Label Studio's next protocol. It is empty for an unknown event."""
    answer, reason = next_protocol.answer(name, version), ""
    if answer is None:
        answer, reason = [], f"This model has no answer to the event {ascii(name)[:80]}."
        log.warning("%s", reason)
    return prediction(answer, version, reason=reason)


def interact(access: Access, interaction: Interaction, deadline: Deadline) -> Prediction:
    """Return the prediction for a click or a text. After an error it has no regions and a "reason".

    The reason is also shown in the status control. Raises Unavailable, but only without such a control.
    """
    task, status_of, resources = interaction.task, interaction.config.status_of, access.resources
    started, budget, level = resources.clock(), access.budget(deadline), logging.WARNING
    unexpected: Exception | None = None
    regions: list[results.Result] = []
    error_name = reason = ""
    try:
        with resources.queue.admitted():
            if interaction.phrase is None:
                regions, outcome = _correct(access, interaction, deadline, budget)
            else:
                regions = _find(access, interaction, deadline, budget)
                outcome = f"text: {len({region['id'] for region in regions})} new or renewed regions"
    except (Late, OutOfTime) as error:
        error_name, reason = "Late", str(error) or "The click could not be answered in time."
    except Superseded:
        # The editor shows the answer to its newest request only.
        error_name, reason, level = "Superseded", "A newer click came before its turn.", logging.INFO
    except (Unanswerable, TooMuch, TaskError, ImageError, VLSAMError, Unavailable) as error:
        if isinstance(error, Unavailable) and status_of is None:
            raise
        error_name, reason = type(error).__name__, str(error)
    except Exception as error:
        error_name, reason, level = UNEXPECTED, "The server failed; see its log.", logging.ERROR
        unexpected = error
    finally:
        budget.log_unread(task.name, "the answer does not consider them")
    taken = round(1000 * (resources.clock() - started))
    if error_name:
        access.count(error_name)
        what = (task.name, interaction.kind, reason, taken)
        log.log(level, "Task %s: no answer to the %s: %s (%d ms)", *what, exc_info=unexpected)
    else:
        log.info("Task %s: %s, %d ms", task.name, outcome, taken)
    # Label Studio 1.23.2 sends no prompts when a task opens after one that was submitted with a click left in
    # it: there is nothing to tell.
    tells = status_of is not None and not interaction.empty
    told = [status(reason, status_of or "", results.new_id())] if tells else []
    return prediction(regions, resources.version, told, reason=reason)


def _correct(
    access: Access, interaction: Interaction, deadline: Deadline, budget: ReadingBudget
) -> tuple[list[results.Result], str]:
    """Return the results of the region that clicks made or corrected, and one line for the log."""
    task, config, resources = interaction.task, interaction.config, access.resources
    recent, wishes = resources.recent_answers, interaction.wishes
    image = task_image.load(access, task, config, deadline, pixels=False)
    run = partial(resources.queue.run, priority=CLICK, deadline=deadline, topic=click_of(access, interaction))
    key = _answers_key(access, task, image.cached.content)
    bare = click_target.bare(interaction, image.cached.size)
    if bare is not None:
        detection = run(lambda model: _refine(model, image.embedding(model), bare))
        if not detection.mask.any():
            raise Unanswerable(NOTHING_THERE)
        return next_protocol.mask(detection.mask, detection.score), "click of no control: a mask"
    correction = click_target.read(
        interaction,
        image.cached.size,
        answers=recent.recall(key) if key else (),
        now=resources.clock(),
        labels_in_place=resources.settings.answers.labels_in_place,
        budget=budget,
    )
    correction, detection = run(
        lambda model: _segment(model, image.embedding(model), correction, wishes.level)
    )
    if not detection.mask.any():
        raise Unanswerable(NOTHING_THERE)
    _good_enough([detection], wishes)
    target = correction.target
    with resources.metrics.stage("results"):
        place = Place(
            correction.control,
            correction.labels,
            correction.region_id or results.new_id(),
            correction.notes,
            target.meta if target else None,
        )
        region = describe(replace(detection, term=correction.term), place, compact=True)
    if not region:
        raise Unanswerable(f"The mask is nothing that <{correction.control.tag}> can draw.")
    if key:
        recent.remember(key, click_target.remembered(correction, region[0], detection, resources.clock()))
    outcome = click_target.done(correction, region[0], detection.mask)
    words = task.words_of(target.region_id, config.namings) if target else {}
    named = [
        results.naming(region[0], naming, words[naming.name])
        for naming in config.namings
        if words.get(naming.name)
    ]
    return region + named, outcome


def _find(
    access: Access, interaction: Interaction, deadline: Deadline, budget: ReadingBudget
) -> list[results.Result]:
    """Detect the objects of a typed phrase. Return results of those without a region. Raises Unanswerable."""
    task, config, wishes = interaction.task, interaction.config, interaction.wishes
    phrase = interaction.phrase or ""
    image = task_image.load(access, task, config, deadline)

    def work(model: RetryingModel[VLSAM]) -> list[Detection]:
        embedding = image.embedding(model)
        return model.run(
            "find", lambda vlsam: vlsam.find(image.pixels, phrase, embedding=embedding, level=wishes.level)
        )

    click, quoted = click_of(access, interaction), ascii(phrase[:80])
    detections = not_empty(access.resources.queue.run(work, priority=CLICK, deadline=deadline, topic=click))
    if not detections:
        raise Unanswerable(f"The model does not find {quoted} in this image.")
    labelled = [
        (detection, prompt_controls.label_of(phrase, detection.term, interaction.selected, config))
        for detection in _good_enough(detections, wishes)
    ]
    if not any(config.label_control(label) for _, label in labelled):
        raise Unanswerable(f"No label means {quoted}: add it to the predicted_values of one.")
    own = next(iter(task.own), NO_ENTRY)
    # The editor may show the prediction or not. A region with its id appears once in both cases.
    shown = NO_ENTRY if task.own else next(iter(task.predicted), NO_ENTRY)
    regions: list[results.Result] = []
    for detection, label in labelled:
        control = config.label_control(label)
        if control is None or existing_regions.of(detection, label, own.regions(config), budget):
            continue
        same_control = [region for region in shown.regions(config) if region.control == control]
        old = existing_regions.of(detection, label, same_control, budget)
        place = Place(control, () if label is None else (label,), results.new_id())
        if old:
            in_place = control.labels_name is None or access.resources.settings.answers.labels_in_place
            if not in_place or old.id in shown.related:
                continue
            place = Place(control, old.labels, old.id, old_meta=old.result.get("meta"))
        regions += describe_and_name(detection, place, config, has_label=label is not None, compact=True)
    if not regions:
        raise Unanswerable(f"There is a region of {quoted} already.")
    return regions


def _answers_key(access: Access, task: Task, image: str) -> tuple[str, ...] | None:
    """Return the key of the recent answers for a task; None if the task has no id."""
    return None if task.id is None else (access.url, access.project or task.project, str(task.id), image)


def click_of(access: Access, interaction: Interaction) -> Click | None:
    """Return the identity of a click or text for the job queue; None if the task or a prompt has no id."""
    if not interaction.prompt_ids or interaction.task.id is None:
        return None
    place = (access.url, access.project, repr(interaction.task.id), interaction.control)
    return Click(place, interaction.prompt_ids)


def _good_enough(detections: list[Detection], wishes: prompt_controls.Wishes) -> list[Detection]:
    """Drop detections below the score that the person chose. Raises Unanswerable if none is left."""
    good = [detection for detection in detections if detection.score >= wishes.score]
    if not good:
        best = max(detection.score for detection in detections)
        raise Unanswerable(
            f"The score {best:.2f} is below the {wishes.score:.2f} of {prompt_controls.SCORE}."
        )
    return good


def _segment(
    model: RetryingModel[VLSAM], embedding: Embedding, correction: Correction, level: Level
) -> tuple[Correction, Detection]:
    """Segment the prompt of a correction. Return the correction with its final target, and the new mask."""
    if correction.rivals:
        fresh = _refine(model, embedding, correction.prompt, level)
        correction = click_target.settle(correction, fresh.mask)
        if correction.target is None and correction.prompt.mask is None:
            return correction, fresh
    if correction.boxed is not None:
        mask = _refine(model, embedding, correction.boxed).mask
        prompt = replace(correction.prompt, mask=mask if mask.any() else None)
        correction = replace(correction, prompt=prompt)
    return correction, _refine(model, embedding, correction.prompt, level)


def _refine(
    model: RetryingModel[VLSAM], embedding: Embedding, prompt: Prompt, level: Level = "auto"
) -> Detection:
    return model.run("refine", lambda vlsam: vlsam.refine(embedding, prompt, level))
