"""Annotate the tasks of a request in order, or encode the image of a task before it is needed."""

import logging
from collections.abc import Sequence

from backend.answers import placement, task_image
from backend.answers.placement import Labelling, Prediction, prediction
from backend.answers.resources import Resources
from backend.answers.task_image import UNEXPECTED, Access, TaskImage
from backend.labelstudio.labeling_config import LabelConfig, TaskError
from backend.labelstudio.region_reading import ReadingBudget
from backend.labelstudio.request import Batch, Trial
from backend.labelstudio.tasks import Task
from backend.runtime.job_queue import AHEAD, BATCH, Late, Unavailable
from backend.runtime.retrying_model import RetryingModel
from backend.telemetry import logs
from model.deadline import Deadline
from model.pipeline import VLSAM, prefetch_answers
from model.types import Detection, ImageError, VLSAMError

log = logging.getLogger(f"vlsam.{__name__}")


def annotate_all(access: Access, batch: Batch, deadline: Deadline) -> list[Prediction]:
    """Return each task's prediction, in order; {} if it failed or ran out of time. Raises Unavailable."""
    predictions, longest, budget = list[Prediction](), 0.0, access.budget(deadline)
    for task in batch.tasks:
        started = access.resources.clock()
        try:
            if deadline.passed or deadline.left() < longest:
                raise Late
            if access.gone():
                log.warning(
                    "The client hung up: %d of %d tasks are not annotated.", *_left(batch, predictions)
                )
                break
            predictions.append(annotate(access, task, batch.config, deadline, budget)[0])
        except Late:
            access.count("Late")
            log.warning("Out of time: %d of %d tasks are not annotated.", *_left(batch, predictions))
            break
        except (TaskError, ImageError, VLSAMError) as error:
            access.count(type(error).__name__)
            log.warning("Task %s failed: %s", task.name, error)
            predictions.append({})
        except Unavailable:
            raise
        except Exception:
            access.count(UNEXPECTED)
            log.exception("Task %s failed.", task.name)
            predictions.append({})
        longest = max(longest, access.resources.clock() - started)
    return predictions + [{} for _ in range(len(batch.tasks) - len(predictions))]


def _left(batch: Batch, predictions: Sequence[Prediction]) -> tuple[int, int]:
    return len(batch.tasks) - len(predictions), len(batch.tasks)


def prewarm(access: Access, task: Task, config: LabelConfig, deadline: Deadline) -> None:
    """Fetch and encode a task's image in a background thread. Errors are logged."""

    def encode() -> None:
        try:
            image = task_image.load(access, task, config, deadline, pixels=False)
            access.resources.queue.run(image.embedding, priority=AHEAD, deadline=deadline)
        except Late:
            log.warning("Task %s: its image could not be encoded ahead in time.", task.name)
        except (TaskError, ImageError, VLSAMError, Unavailable) as error:
            access.count(type(error).__name__)
            log.warning("Task %s: its image is not encoded ahead: %s", task.name, error)
        except Exception:
            access.count(UNEXPECTED)
            log.exception("Task %s: its image is not encoded ahead.", task.name)

    identified = access.project and task.id is not None
    access.resources.background.start((access.project, task.id) if identified else object(), encode)


def trial(access: Access, request: Trial, deadline: Deadline) -> Prediction:
    """Return a task's prediction with its terms. After an error, it is empty and has a "reason"."""
    task, version = request.task, access.resources.version
    try:
        with access.resources.queue.admitted():
            predicted, seen = annotate(access, task, request.config, deadline, access.budget(deadline))
    except Late:
        answer = prediction([], version, reason="The task could not be annotated in time.")
    except (TaskError, ImageError, VLSAMError, Unavailable) as error:
        answer = prediction([], version, reason=str(error))
    except Exception:
        access.count(UNEXPECTED)
        log.exception("Task %s failed.", task.name)
        answer = prediction([], version, reason="The server failed; see its log.")
    else:
        answer = {**predicted, **seen}
    return {**answer, "on_open": access.resources.settings.answers.on_open, "log": logs.place()}


def annotate(
    access: Access, task: Task, project_config: LabelConfig, deadline: Deadline, budget: ReadingBudget
) -> tuple[Prediction, dict[str, list[str]]]:
    """Return a task's prediction, and its terms: all under "seen", those without a label under "unlabelled".

    Raises TaskError, ImageError, VLSAMError, Late and Unavailable.
    """
    resources, config = access.resources, project_config.of(task.data)
    settings, version = resources.settings.answers, resources.version
    image = task_image.load(access, task, config, deadline)
    content = image.cached.content
    vocabulary = placement.vocabulary(config, resources.settings.detection.options)
    detections = placement.not_empty(_detect(resources, image, vocabulary, deadline))
    labelling = Labelling(config, settings.leftover)
    if unnamed := labelling.unnamed(detections, settings.similarity):
        likenesses = resources.queue.run(
            lambda model: model.run(
                "similarity",
                lambda vlsam: placement.alike(vlsam.similarity, unnamed, config.names, settings.similarity),
            ),
            priority=BATCH,
            deadline=deadline,
        )
        labelling = Labelling(config, settings.leftover, likenesses)
    with resources.metrics.stage("results"):
        regions, unmatched = placement.annotation(
            detections, labelling, content, version, made=task.made(config), budget=budget
        )
    budget.log_unread(task.name, "they may be predicted again")
    dropped = unmatched.total() if settings.leftover == "drop" else 0
    resources.metrics.terms.labels("dropped").inc(dropped)
    resources.metrics.terms.labels("labelled").inc(len(detections) - unmatched.total())
    resources.unmatched_terms.add(access.project, project_config, content, unmatched)
    log.info(
        "Task %s: %d detections, %d regions, %d terms without a label%s",
        task.name,
        len(detections),
        len(regions),
        unmatched.total(),
        f": {', '.join(repr(term[:40]) for term in list(unmatched)[:10])}" if unmatched else "",
    )
    terms = list(dict.fromkeys(detection.term for detection in detections))
    status_result = placement.explained(regions, terms, unmatched, config, content, version)
    return prediction(regions, version, status_result), {"seen": terms, "unlabelled": list(unmatched)}


def _detect(
    resources: Resources, image: TaskImage, vocabulary: tuple[str, ...], deadline: Deadline
) -> list[Detection]:
    """Return the detections of an image. Concurrent requests for the same image share one run.

    Label Studio sends two requests when a task is opened. Sharing is safe, since the result depends only on
    the pixels and the vocabulary, and all callers have the same. The embedding of the image is cached for
    later clicks. Raises Late and Unavailable, and the errors of the model.
    """
    pixels = image.pixels

    def find() -> list[Detection]:
        # Before the job's turn: clicks must not wait for another machine.
        answers = prefetch_answers(pixels, resources.settings.detection.options, vocabulary, deadline)

        def work(model: RetryingModel[VLSAM]) -> list[Detection]:
            embedding = image.embedding(model)
            return model.run(
                "annotate",
                lambda vlsam: vlsam.annotate(
                    pixels, embedding=embedding, vocabulary=vocabulary, remote_answers=answers
                ),
            )

        return resources.queue.run(work, priority=BATCH, deadline=deadline)

    try:
        return resources.annotating.flight((image.cached.content, vocabulary)).run(find, deadline)
    except TimeoutError:
        raise Late from None
