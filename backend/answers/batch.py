"""Annotate the tasks of a request, one after the other, and encode opened tasks ahead."""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backend.answers import existing_regions, task_image
from backend.answers.placement import (
    Prediction,
    alike,
    annotation,
    explained,
    not_empty,
    prediction,
    unnamed_terms,
    vocabulary,
)
from backend.answers.resources import Resources
from backend.answers.task_image import UNEXPECTED, Access, name_of
from backend.labelstudio.labeling_config import LabelConfig, TaskError
from backend.labelstudio.reading_budget import Reading
from backend.runtime.job_queue import AHEAD, BATCH, Late, Unavailable
from backend.runtime.oom_retry import RetryingModel
from backend.telemetry import logs
from model.deadline import Deadline
from model.pipeline import VLSAM, prefetch_answers
from model.types import Detection, Image, ImageError, VLSAMError

log = logging.getLogger(f"vlsam.{__name__}")


@dataclass(frozen=True, eq=False)
class Annotated:
    """A task's prediction, and what the model saw."""

    prediction: Prediction
    found: Sequence[Detection]
    unmatched: Collection[str]  # the terms that no label fits


def annotate_all(
    access: Access, tasks: list[Any], config: LabelConfig, deadline: Deadline
) -> list[Prediction]:
    predictions: list[Prediction] = []
    longest = 0.0
    reading = access.reading(deadline)

    def left() -> tuple[int, int]:
        return len(tasks) - len(predictions), len(tasks)

    for task in tasks:
        started = access.resources.clock()
        try:
            if deadline.passed or deadline.left() < longest:
                raise Late
            if access.gone():
                log.warning("Nobody waits any longer: %d of %d tasks are left.", *left())
                break
            predictions.append(annotate(access, task, config, deadline, reading).prediction)
        except Late:
            access.count("Late")
            log.warning("Out of time: %d of %d tasks are left.", *left())
            break
        except (TaskError, ImageError, VLSAMError) as error:
            access.count(type(error).__name__)
            log.warning("Task %s failed: %s", name_of(task), error)
            predictions.append({})
        except Unavailable:
            raise
        except Exception:
            access.count(UNEXPECTED)
            log.exception("Task %s failed.", name_of(task))
            predictions.append({})
        longest = max(longest, access.resources.clock() - started)
    return predictions + [{} for _ in range(len(tasks) - len(predictions))]


def prewarm(access: Access, task: Any, config: LabelConfig, deadline: Deadline) -> None:
    """Begins to fetch and encode a task's image, for nobody yet."""
    name = name_of(task)

    def work() -> None:
        try:
            seen = task_image.see(access, task, config, deadline)
            access.resources.queue.run(seen.embedding, priority=AHEAD, deadline=deadline)
        except Late:
            log.warning("Task %s: its image could not be encoded ahead in time.", name)
        except (ImageError, VLSAMError, Unavailable) as error:
            access.count(type(error).__name__)
            log.warning("Task %s: its image is not encoded ahead: %s", name, error)
        except Exception:
            access.count(UNEXPECTED)
            log.exception("Task %s: its image is not encoded ahead.", name)

    try:
        _, key = task_image.find(access, task, config)
    except TaskError as error:
        log.warning("Task %s: %s", name, error)
    else:
        access.resources.background.start(key or object(), work)


def annotate(
    access: Access, task: Any, project_config: LabelConfig, deadline: Deadline, reading: Reading
) -> Annotated:
    config = project_config.of(task.get("data") if isinstance(task, Mapping) else None)
    image, known = task_image.load(access, task, *task_image.find(access, task, config), deadline)
    settings = access.resources.settings
    found = not_empty(_detect(access.resources, image, known.content, vocabulary(config, settings), deadline))
    likenesses: dict[str, str] = {}
    if unnamed := unnamed_terms(found, config, settings):
        likenesses = access.resources.queue.run(
            lambda model: model.run(
                "similarity",
                lambda vlsam: alike(vlsam, unnamed, config.names, settings.answers.similarity),
            ),
            priority=BATCH,
            deadline=deadline,
        )
    metrics = access.resources.metrics
    with metrics.stage("results"):
        regions, unmatched = annotation(
            found,
            config,
            known.content,
            access.resources.version,
            names=likenesses,
            leftover=settings.answers.leftover,
            made=existing_regions.made(task, config),
            reading=reading,
        )
    task_image.log_unread(task, reading, "they may be predicted again")
    dropped = unmatched.total() if settings.answers.leftover == "drop" else 0
    metrics.terms.labels("dropped").inc(dropped)
    metrics.terms.labels("labelled").inc(len(found) - unmatched.total())
    access.resources.unmatched_terms.add(access.project, project_config, known.content, unmatched)
    log.info(
        "Task %s: %d detections, %d regions, %d terms without a label%s",
        name_of(task),
        len(found),
        len(regions),
        unmatched.total(),
        f": {', '.join(repr(term[:40]) for term in list(unmatched)[:10])}" if unmatched else "",
    )
    told = explained(regions, found, unmatched, config, known.content, access.resources.version)
    return Annotated(prediction(regions, access.resources.version, told), found, unmatched)


def trial(access: Access, task: Any, config: LabelConfig, deadline: Deadline) -> Prediction:
    """What a batch would have for a task; what the model saw or why it failed; where the log is."""
    try:
        with access.resources.queue.admitted():
            made = annotate(access, task, config, deadline, access.reading(deadline))
    except Late:
        answer = prediction([], access.resources.version, reason="The task could not be annotated in time.")
    except (TaskError, ImageError, VLSAMError, Unavailable) as error:
        answer = prediction([], access.resources.version, reason=str(error))
    except Exception:
        access.count(UNEXPECTED)
        log.exception("Task %s failed.", name_of(task))
        answer = prediction([], access.resources.version, reason="The server failed; its log says why.")
    else:
        seen = list(dict.fromkeys(detection.term for detection in made.found))
        answer = {**made.prediction, "seen": seen, "unlabelled": list(made.unmatched)}
    return {**answer, "on_open": access.resources.settings.answers.on_open, "log": logs.place()}


def _detect(
    resources: Resources, image: Image, content: str, vocabulary: tuple[str, ...], deadline: Deadline
) -> list[Detection]:
    """Return what the models find, once for concurrent callers: Label Studio opens a task with two requests.

    The result depends on pixels and vocabulary alone, and every caller has shown both. The embedding of the
    whole image is cached for the clicks to come, also if nothing is found. Raises Late.
    """
    handle = resources.embeddings.handle(content)

    def find() -> list[Detection]:
        # Before the job's turn: clicks must not wait for another machine.
        answers = prefetch_answers(image, resources.settings.detection.options, vocabulary, deadline)

        def work(model: RetryingModel[VLSAM]) -> list[Detection]:
            embedding = handle.get(model, image)
            return model.run(
                "annotate",
                lambda vlsam: vlsam.annotate(
                    image, embedding=embedding, vocabulary=vocabulary, remote_answers=answers
                ),
            )

        return resources.queue.run(work, priority=BATCH, deadline=deadline)

    try:
        return resources.annotating.flight((content, vocabulary)).run(find, deadline)
    except TimeoutError:
        raise Late from None
