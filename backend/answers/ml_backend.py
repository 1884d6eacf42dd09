"""Tasks in, predictions out: the ML backend class of the Label Studio ecosystem."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from label_studio_ml.model import LabelStudioMLBase

from backend.answers import click_target, existing_regions
from backend.answers.click_target import Correction, Unanswerable
from backend.answers.recent_answers import Key
from backend.images.http_url import HttpUrl
from backend.images.image_cache import CachedImage, cache_key
from backend.images.studio_urls import Server
from backend.labelstudio import labeling_config, next_protocol, prompt_controls, region_meta, results, tasks
from backend.labelstudio.labeling_config import STATUS, Control, LabelConfig, TaskError
from backend.labelstudio.next_protocol import UnknownEvent
from backend.labelstudio.prompt_controls import Wishes
from backend.labelstudio.reading_budget import OutOfTime, Reading, TooMuch
from backend.labelstudio.tasks import Region
from backend.runtime.embedding_cache import EmbeddingHandle
from backend.runtime.engine import AHEAD, BATCH, CLICK, PROCESS, Click, Engine, Late, Superseded, Unavailable
from backend.runtime.oom_retry import Model
from backend.settings import Settings
from backend.telemetry import logs
from backend.telemetry.logs import printable
from model.deadline import Deadline
from model.pipeline import prefetch_answers
from model.segmentation.embedding import Embedding
from model.types import Detection, Image, ImageError, Level, VLSAMError
from model.vlm_stage import RemoteAnswer

log = logging.getLogger(f"vlsam.{__name__}")

Prediction = dict[str, Any]

MAX_TOLD, MAX_TOLD_TERM = 10, 40  # terms that an empty prediction names, and characters of each
NOTHING_THERE = "The mask is empty: the model finds nothing there."
UNEXPECTED = "unexpected"  # the kind of errors that are ours, in /metrics


class VLSAMBackend(LabelStudioMLBase):  # type: ignore[misc]
    """The ML backend: one instance per project (label-studio-ml 1.0.9) or per request (our app).

    Instances hold a labeling config and the way to Label Studio; models and queue are the engine's.
    """

    def __init__(
        self,
        label_config: str | None = None,
        train_output: Mapping[str, Any] | None = None,
        *,
        engine: Engine | None = None,
        project: str = "",
        caller: str = "",
        gone: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
        **kwargs: Any,
    ) -> None:
        # The base class would parse the config with a parser that expands entities.
        super().__init__(None, train_output, **kwargs)
        self.label_config = label_config
        self.project = (
            project  # as Label Studio names it in its requests; label-studio-ml 1.0.9 does not tell
        )
        self.caller = caller  # the IP address that /setup came from
        self.gone = gone  # whether nobody waits for the answer any longer
        self._clock = clock
        self.engine = engine or PROCESS.engine()
        self.model_version = self.engine.version

    def predict(
        self, tasks: list[Any], context: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> list[Prediction]:
        """Predictions for `tasks`: one item per task in order, or with a `context` one for the click.

        An item is {"result": [...], "score": float, "model_version": str}, or {} for a task that failed or
        was not reached in time: Label Studio 1.23.2 skips such an item and asks again, while it stores an
        empty result and never asks again. With VLSAM_ON_OPEN=prewarm a batch of one task is answered with no
        item at all, and its image is encoded in the background. An empty answer to a click says why under
        "reason". Raises ConfigError and Unavailable.
        """
        event = context.get("event") if isinstance(context, Mapping) else None
        if context is not None and event is not None and event != next_protocol.TRIAL:
            return [self._event(context)]
        config = labeling_config.parse(self.label_config or "")
        deadline = self._clock() + self.engine.settings.answers.deadline
        if event is not None:
            return [self._try(tasks[0] if tasks else None, config, deadline)]
        # Label Studio 1.23.2 does not say why it asks: an opened task looks like a chosen one that is alone.
        if context is None and len(tasks) == 1 and self.engine.settings.answers.on_open == "prewarm":
            self._prewarm(tasks[0], config, deadline)
            return []
        if isinstance(context, Mapping):
            return [self._interact(tasks[0] if tasks else None, context, config, deadline)]
        with self.engine.admitted():
            return self._annotate_all(tasks, config, deadline)

    def _reading(self, deadline: float) -> Reading:
        return Reading(deadline=deadline, kept=self.engine.regions)

    @property
    def server(self) -> Server | None:
        """The Label Studio to fetch uploads from: LABEL_STUDIO_URL, else what /setup said.

        LABEL_STUDIO_API_KEY is not sent to an address from /setup, which anybody may have called, and a token
        from /setup to no other address than the one that came with it. What tasks have below the address of
        /setup is asked at LABEL_STUDIO_URL.
        """
        settings = self.engine.settings
        url, token = self.hostname.rstrip("/"), self.access_token or None
        if settings.label_studio.url:
            ours = settings.label_studio.url
            named = HttpUrl.parse(ours).has_origin_of(url)
            return Server(ours, settings.label_studio.api_key or (token if named else None), name=url)
        return Server(url, token, self.caller) if url else None

    def _annotate_all(self, tasks: list[Any], config: LabelConfig, deadline: float) -> list[Prediction]:
        predictions: list[Prediction] = []
        longest = 0.0
        reading = self._reading(deadline)

        def left() -> tuple[int, int]:
            return len(tasks) - len(predictions), len(tasks)

        for task in tasks:
            started = self._clock()
            try:
                if started + longest > deadline:
                    raise Late
                if self.gone():
                    log.warning("Nobody waits any longer: %d of %d tasks are left.", *left())
                    break
                predictions.append(self._annotate(task, config, deadline, reading).prediction)
            except Late:
                self._count("Late")
                log.warning("Out of time: %d of %d tasks are left.", *left())
                break
            except (TaskError, ImageError, VLSAMError) as error:
                self._count(type(error).__name__)
                log.warning("Task %s failed: %s", _name(task), error)
                predictions.append({})
            except Unavailable:
                raise
            except Exception:
                self._count(UNEXPECTED)
                log.exception("Task %s failed.", _name(task))
                predictions.append({})
            longest = max(longest, self._clock() - started)
        return predictions + [{} for _ in range(len(tasks) - len(predictions))]

    def _prewarm(self, task: Any, config: LabelConfig, deadline: float) -> None:
        """Begins to fetch and encode a task's image, for nobody yet."""
        name = _name(task)

        def work() -> None:
            try:
                seen = self._see(task, config, deadline)
                self.engine.run(seen.embedding, priority=AHEAD, deadline=deadline)
            except Late:
                log.warning("Task %s: its image could not be encoded ahead in time.", name)
            except (ImageError, VLSAMError, Unavailable) as error:
                self._count(type(error).__name__)
                log.warning("Task %s: its image is not encoded ahead: %s", name, error)
            except Exception:
                self._count(UNEXPECTED)
                log.exception("Task %s: its image is not encoded ahead.", name)

        try:
            _, key = self._source(task, config)
        except TaskError as error:
            log.warning("Task %s: %s", name, error)
        else:
            self.engine.ahead(key or object(), work)

    def _annotate(
        self, task: Any, project_config: LabelConfig, deadline: float, reading: Reading
    ) -> "Annotated":
        config = project_config.of(task.get("data") if isinstance(task, Mapping) else None)
        image, known = self._load(task, *self._source(task, config), deadline)
        settings = self.engine.settings
        found = not_empty(self._detect(image, known.content, vocabulary(config, settings), deadline))
        likenesses: dict[str, str] = {}
        if unnamed := unnamed_terms(found, config, settings):
            likenesses = self.engine.run(
                lambda model: alike(model, unnamed, config.names, settings.answers.similarity),
                priority=BATCH,
                deadline=deadline,
            )
        metrics = self.engine.metrics
        with metrics.stage("results"):
            regions, unmatched = annotation(
                found,
                config,
                known.content,
                self.model_version,
                names=likenesses,
                leftover=settings.answers.leftover,
                made=existing_regions.made(task, config),
                reading=reading,
            )
        _tell_unread(task, reading, "they may be predicted again")
        dropped = unmatched.total() if settings.answers.leftover == "drop" else 0
        metrics.terms.labels("dropped").inc(dropped)
        metrics.terms.labels("labelled").inc(len(found) - unmatched.total())
        self.engine.unlabelled.add(self.project, project_config, known.content, unmatched)
        log.info(
            "Task %s: %d detections, %d regions, %d terms without a label%s",
            _name(task),
            len(found),
            len(regions),
            unmatched.total(),
            f": {', '.join(repr(term[:40]) for term in list(unmatched)[:10])}" if unmatched else "",
        )
        told = explained(regions, found, unmatched, config, known.content, self.model_version)
        return Annotated(prediction(regions, self.model_version, told), found, unmatched)

    def _try(self, task: Any, config: LabelConfig, deadline: float) -> Prediction:
        """What a batch would have for a task; what the model saw or why it failed; where the log is."""
        try:
            with self.engine.admitted():
                made = self._annotate(task, config, deadline, self._reading(deadline))
        except Late:
            answer = self._prediction([], "The task could not be annotated in time.")
        except (TaskError, ImageError, VLSAMError, Unavailable) as error:
            answer = self._prediction([], str(error))
        except Exception:
            self._count(UNEXPECTED)
            log.exception("Task %s failed.", _name(task))
            answer = self._prediction([], "The server failed; its log says why.")
        else:
            seen = list(dict.fromkeys(detection.term for detection in made.found))
            answer = {**made.prediction, "seen": seen, "unlabelled": list(made.unmatched)}
        return {**answer, "on_open": self.engine.settings.answers.on_open, "log": logs.place()}

    def _event(self, context: Mapping[str, Any]) -> Prediction:
        try:
            return self._prediction(next_protocol.answer(context, self.model_version))
        except UnknownEvent as unknown:
            log.warning("%s", unknown)
            return self._prediction([], str(unknown))

    def _detect(
        self, image: Image, content: str, vocabulary: tuple[str, ...], deadline: float
    ) -> list[Detection]:
        """What the models find, once for all who ask meanwhile: Label Studio opens a task with two requests.

        Pixels and vocabulary alone decide it, no project, and whoever asks has shown us both.
        """
        engine = self.engine
        held = engine.embeddings.handle(content)

        def work(model: Model, said: list[list[RemoteAnswer]] | None) -> list[Detection]:
            def encode(view: Image) -> Embedding:
                # Clicks need the whole image's; a part's embedding would only take their room.
                return held.get(model, view) if view.shape == image.shape else model.encode(view)

            return model.annotate(image, encode=encode, vocabulary=vocabulary, remote_answers=said)

        def find() -> list[Detection]:
            # Before its turn, for clicks must not wait for another machine.
            said = prefetch_answers(image, engine.settings.detection.options, vocabulary, deadline)
            return engine.run(lambda model: work(model, said), priority=BATCH, deadline=deadline)

        try:
            return engine.annotating.flight((content, vocabulary)).run(find, Deadline(deadline))
        except TimeoutError:
            raise Late from None

    def _interact(
        self, task: Any, context: Mapping[str, Any], config: LabelConfig, deadline: float
    ) -> Prediction:
        """The answer to a click, whose failure the editor shows where the config has a place for it."""
        try:
            with self.engine.admitted():
                answer = self._answer(task, context, config, deadline)
        except Unavailable as error:
            if config.status_of is None:
                raise
            self._count(type(error).__name__)
            asked_by = click_target.asked_by(context, config)
            log.warning("Task %s: no answer to the %s: %s", _name(task), asked_by, error)
            answer = self._prediction([], str(error))
        # Label Studio 1.23.2 asks about no prompts when a task opens after one that was submitted with a
        # click left in it: there is nothing to tell.
        if config.status_of is not None and context.get("result") != []:
            told = results.status(answer.get("reason", ""), config.status_of)
            answer["result"] = [*answer["result"], told]
        return answer

    def _answer(
        self, task: Any, context: Mapping[str, Any], config: LabelConfig, deadline: float
    ) -> Prediction:
        started, level = self._clock(), logging.WARNING

        def taken() -> int:
            return round(1000 * (self._clock() - started))

        try:
            phrase = (
                None if click_target.is_click(context, config) else prompt_controls.typed(context, config)
            )
            if phrase is None:
                regions, done = self._correct(task, context, config, deadline)
            else:
                regions = self._find(task, phrase, context, config, deadline)
                done = f"text: {len({region['id'] for region in regions})} new or renewed regions"
            log.info("Task %s: %s, %d ms", _name(task), done, taken())
            return self._prediction(regions)
        except Late:
            self._count("Late")
            reason = "The click could not be answered in time."
        except OutOfTime as error:
            self._count("Late")
            reason = str(error)
        except Superseded:
            self._count("Superseded")
            # The editor shows the answer to its newest request only.
            reason = "A newer click came before its turn."
            level = logging.INFO
        except (Unanswerable, TooMuch, TaskError, ImageError, VLSAMError) as error:
            self._count(type(error).__name__)
            reason = str(error)
        except Unavailable:
            raise
        except Exception:
            self._count(UNEXPECTED)
            asked_by = click_target.asked_by(context, config)
            log.exception("Task %s: no answer to the %s (%d ms).", _name(task), asked_by, taken())
            return self._prediction([], "The server failed; its log says why.")
        asked_by = click_target.asked_by(context, config)
        log.log(level, "Task %s: no answer to the %s: %s (%d ms)", _name(task), asked_by, reason, taken())
        return self._prediction([], reason)

    def _correct(
        self, task: Any, context: Mapping[str, Any], config: LabelConfig, deadline: float
    ) -> tuple[list[results.Result], str]:
        """The results of the region that clicks made or corrected, and what was done, for the log.

        Raises Unanswerable.
        """
        config = config.of(task.get("data") if isinstance(task, Mapping) else None)
        click = self._click(task, context)
        seen = self._see(task, config, deadline)
        run = partial(self.engine.run, priority=CLICK, deadline=deadline, click=click)
        bare = click_target.bare(context, config, seen.known.size)
        if bare is not None:
            detection = run(lambda model: model.refine(seen.embedding(model), bare))
            if not detection.mask.any():
                raise Unanswerable(NOTHING_THERE)
            return next_protocol.mask(detection.mask, detection.score), "click of no control: a mask"
        memory = self.engine.memory
        key = self._memory_key(task, seen.known.content)
        reading = self._reading(deadline)
        asked = click_target.read(
            context,
            task,
            config,
            seen.known.size,
            answers=memory.recall(key) if key else (),
            now=memory.clock(),
            labels_in_place=self.engine.settings.answers.labels_in_place,
            reading=reading,
        )
        _tell_unread(task, reading, "a click cannot be about them")
        wishes = prompt_controls.wishes(context, task, config)
        asked, detection = run(lambda model: _segment(model, seen.embedding(model), asked, wishes.level))
        if not detection.mask.any():
            raise Unanswerable(NOTHING_THERE)
        _good_enough([detection], wishes)
        with self.engine.metrics.stage("results"):
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
            memory.remember(key, click_target.remembered(asked, region[0], detection, memory.clock()))
        said = click_target.said(task, asked.target.region_id, config) if asked.target else {}
        words = [
            results.naming(region[0], naming, said[naming.name])
            for naming in config.namings
            if said.get(naming.name)
        ]
        return region + words, click_target.done(asked, region[0], detection.mask)

    def _find(
        self, task: Any, phrase: str, context: Mapping[str, Any], config: LabelConfig, deadline: float
    ) -> list[results.Result]:
        """Regions of what a person typed, less what there are regions of. Raises Unanswerable."""
        config = config.of(task.get("data") if isinstance(task, Mapping) else None)
        image, known = self._load(task, *self._source(task, config), deadline)
        wishes, held = (
            prompt_controls.wishes(context, task, config),
            self.engine.embeddings.handle(known.content),
        )

        def work(model: Model) -> list[Detection]:
            return model.find(image, phrase, encode=lambda view: held.get(model, view), level=wishes.level)

        run = partial(self.engine.run, priority=CLICK, deadline=deadline, click=self._click(task, context))
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
        reading = self._reading(deadline)
        for detection, label in labelled:
            control = config.label_control(label)
            if control is None or existing_regions.of(
                detection, label, tasks.regions(own or [], config), reading
            ):
                continue
            # A prediction may be on screen, and may be not: with its id, ours is there once in both cases.
            alike = [region for region in tasks.regions(shown, config) if region.control == control]
            old = existing_regions.of(detection, label, alike, reading)
            if old and not self._replaceable(old, shown):
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
        _tell_unread(task, reading, "they may be found again")
        if not regions:
            raise Unanswerable(f"There is a region of {said} already.")
        return regions

    def _replaceable(self, region: Region, items: list[Any]) -> bool:
        """Whether the editor stands a region in the place of this one."""
        in_place = region.control.labels_name is None or self.engine.settings.answers.labels_in_place
        return in_place and region.id not in click_target.related([items])

    def _memory_key(self, task: Any, image: str) -> Key | None:
        """Whose answers may help; None where the task has no id."""
        task_id = tasks.number(task)
        if task_id is None:
            return None
        server = self.server.url if self.server else ""
        return (server, str(self.project or task.get("project")), str(task_id), image)

    def _click(self, task: Any, context: Mapping[str, Any]) -> Click | None:
        """What the click is about; None where the request does not say so of the task and every prompt."""
        given = context.get("result")
        items = [item for item in (given if isinstance(given, list) else []) if isinstance(item, Mapping)]
        names: list[Any] = [item.get("id") for item in items]
        names.append(items[-1].get("from_name") if items else None)
        number = tasks.number(task)
        if not all(isinstance(name, str) and name for name in names) or number is None:
            return None
        *prompts, control = names
        server = self.server.url if self.server else ""
        return Click((server, self.project, repr(number), control), frozenset(prompts))

    def _see(self, task: Any, config: LabelConfig, deadline: float) -> "Seen":
        """A task's image for a click: where its embedding is kept, neither file nor pixels are asked for."""
        engine = self.engine
        source, key = self._source(task, config)
        known = engine.image_cache.find(key)
        if known is not None:
            held = engine.embeddings.handle(known.content)
            if held.ready:
                return Seen(held, known)
        image, known = self._load(task, source, key, deadline)
        return Seen(engine.embeddings.handle(known.content), known, image)

    def _load(
        self, task: Mapping[str, Any], source: Any, key: bytes | None, deadline: float
    ) -> tuple[Image, CachedImage]:
        engine, number = self.engine, tasks.number(task)

        def fetch() -> Image:
            with engine.metrics.stage("image"):
                return engine.images.load(source, self.server, task=number, deadline=Deadline(deadline))

        try:
            return engine.image_cache.load(key, fetch, Deadline(deadline))
        except TimeoutError:
            raise Late from None

    def _source(self, task: Any, config: LabelConfig) -> tuple[Any, bytes | None]:
        """The value of the task's image field, and its key among the sources."""
        source = config.source(task)
        return source, cache_key(self.server, self.project, tasks.number(task), source)

    def _count(self, error: str) -> None:
        self.engine.metrics.errors.labels(error).inc()

    def _prediction(self, regions: list[results.Result], reason: str = "") -> Prediction:
        return {**prediction(regions, self.model_version), **({"reason": reason} if reason else {})}


@dataclass(frozen=True, eq=False)
class Annotated:
    """A task's prediction, and what the model saw."""

    prediction: Prediction
    found: Sequence[Detection]
    unmatched: Collection[str]  # the terms that no label fits


@dataclass(frozen=True, eq=False)
class Seen:
    """An image as a click needs it."""

    held: EmbeddingHandle
    known: CachedImage
    image: Image | None = None  # None where its embedding is at hand

    def embedding(self, model: Model) -> Embedding:
        return self.held.get(model, self.image)


def vocabulary(config: LabelConfig, settings: Settings) -> tuple[str, ...]:
    """The names that the VLM is told."""
    return config.names if settings.detection.vocabulary != "open" else ()


def unnamed_terms(found: Sequence[Detection], config: LabelConfig, settings: Settings) -> list[str]:
    """The terms for which `alike` is asked: those without a label, where the settings want it."""
    if not settings.answers.similarity or not config.names:
        return []
    return [term for term in dict.fromkeys(d.term for d in found) if not config.named(term)]


def alike(model: Model, terms: Sequence[str], names: Sequence[str], threshold: float) -> dict[str, str]:
    """For each term the name that is most alike, where it is as much as `threshold`."""
    likeness = model.similarity(terms, names)
    return {
        term: names[row.argmax()] for term, row in zip(terms, likeness, strict=True) if row.max() >= threshold
    }


def prediction(
    regions: list[results.Result], model_version: str, told: Sequence[results.Result] = ()
) -> Prediction:
    """The item that Label Studio stores; its score is the mean of its regions', 0 without any.

    `told` is what it says besides.
    """
    score = sum(region["score"] for region in regions) / len(regions) if regions else 0.0
    return {"result": [*regions, *told], "score": results.unit(score), "model_version": model_version}


def explained(
    regions: Sequence[results.Result],
    found: Sequence[Detection],
    unmatched: Collection[str],
    config: LabelConfig,
    image: str,
    model_version: str,
) -> list[results.Result]:
    """What the status control says of a prediction without regions; nothing where there are some.

    `unmatched` are the terms of `found` that have no label.
    """
    if regions or config.status_of is None:
        return []
    told = results.status(why_empty(found, unmatched), config.status_of)
    return [{**told, "id": results.prediction_id(image, model_version, STATUS, "", 0)}]


def why_empty(found: Sequence[Detection], unmatched: Collection[str]) -> str:
    """Why a prediction has no regions, for an annotator."""
    if not found:
        return "VL-SAM found no object in this image."
    terms = dict.fromkeys(detection.term for detection in found)
    reasons = (
        ([term for term in terms if term in unmatched], "No label of this project fits."),
        (
            [term for term in terms if term not in unmatched],
            "It is annotated already, or no control of this project can draw it.",
        ),
    )
    return " ".join(f"VL-SAM saw: {some_of(named)}. {reason}" for named, reason in reasons if named)


def some_of(terms: Sequence[str]) -> str:
    """The first of many terms, which models made, for a line that people read."""
    more = f" and {len(terms) - MAX_TOLD} more" if len(terms) > MAX_TOLD else ""
    return ", ".join(printable(term[:MAX_TOLD_TERM]) for term in terms[:MAX_TOLD]) + more


def label_of(term: str, config: LabelConfig, names: Mapping[str, str], leftover: str) -> str | None:
    """What an object is called where it can be called one thing only: its first label in `annotation`.

    The term itself where no control has labels.
    """
    if not any(control.takes_labels for control in config.predicted):
        return term
    named = config.named(term) or config.named(names.get(term, "")) or _left(config, leftover)
    return named[0][1] if named else None


def annotation(
    found: Sequence[Detection],
    config: LabelConfig,
    image: str,
    model_version: str,
    *,
    names: Mapping[str, str] | None = None,
    leftover: str = "drop",
    made: Iterable[Region] = (),
    reading: Reading | None = None,
) -> tuple[list[results.Result], Counter[str]]:
    """The results for detections in every control that takes predictions, and the terms without a label.

    `names` says for terms which name of a label stands for them. `leftover` says what becomes of objects
    whose term has no label: "drop"; "keep", without a label in the first control; "other:LABEL", in
    every control that has this one. A region that is kept says its term in `meta.text`. Where no control has
    labels, every object is a region of each. Objects of which people `made` a region get none, as far as
    `reading` these regions is possible; the ids of the others are the same as without.
    """
    regions: list[results.Result] = []
    numbers: Counter[tuple[str, str]] = Counter()
    unmatched: Counter[str] = Counter()
    plans: list[tuple[Detection, list[tuple[Control, str | None]], tuple[str, ...], bool]] = []
    for detection in found:
        term = detection.term
        named = config.named(term) or config.named((names or {}).get(term, ""))
        placed: list[tuple[Control, str | None]] = [*named]
        notes: tuple[str, ...] = ()
        if not any(control.takes_labels for control in config.predicted):
            placed = [(control, None) for control in config.predicted]
        elif not named:
            unmatched[term] += 1
            placed, notes = _left(config, leftover), (term[: region_meta.MAX_TEXT],)
        plans.append((detection, placed, notes, bool(named)))
    fresh = existing_regions.without(
        [(d, {label for _, label in places}) for d, places, _, _ in plans], made, reading or Reading()
    )
    for detection, placed, notes, has_label in plans:
        term = detection.term
        for control, label in placed:
            key = (control.name, term)
            region = describe(
                detection,
                control=control,
                labels=() if label is None else (label,),
                region_id=results.prediction_id(image, model_version, *key, numbers[key]),
                notes=notes,
            )
            numbers[key] += bool(region)
            if detection not in fresh:
                continue
            regions += region
            regions += [
                results.naming(region[0], naming, words)
                for naming in config.namings
                if region and (naming.tag == "Taxonomy" or not has_label) and (words := naming.words(term))
            ]
    return regions, unmatched


def _left(config: LabelConfig, leftover: str) -> list[tuple[Control, str | None]]:
    policy, _, other = leftover.partition(":")
    if policy == "keep":
        return [(config.predicted[0], None)]
    return [
        (control, label)
        for control in config.predicted
        if policy == "other" and (label := control.label_of(other)) is not None
    ]


def not_empty(found: Iterable[Detection]) -> list[Detection]:
    """The detections that there is something of: an empty mask is none, whatever its score."""
    return [detection for detection in found if detection.mask.any()]


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
    model: Model, embedding: Embedding, asked: Correction, level: Level
) -> tuple[Correction, Detection]:
    """The settled correction and its mask."""
    if asked.rivals:
        fresh = model.refine(embedding, asked.prompt, level)
        asked = click_target.settle(asked, fresh.mask)
        if asked.target is None and asked.prompt.mask is None:
            return asked, fresh
    if asked.boxed is not None:
        mask = model.refine(embedding, asked.boxed).mask
        asked = replace(asked, prompt=replace(asked.prompt, mask=mask if mask.any() else None))
    return asked, model.refine(embedding, asked.prompt, level)


def describe(
    detection: Detection,
    *,
    control: Control,
    labels: Sequence[str],
    region_id: str,
    old_meta: Any = None,
    notes: Sequence[str] = (),
    compact: bool = False,
) -> list[results.Result]:
    """The results of one region for a detection, the first with its evidence; none for an empty mask.

    A person's notes (`meta.text`) stay with a region that is replaced, and `notes` of ours join them.
    `compact` as in results.encode.
    """
    region = results.region(
        detection.mask,
        control=control,
        labels=labels,
        region_id=region_id,
        score=detection.score,
        compact=compact,
    )
    if not region:
        return []
    text = click_target.notes_with(old_meta, notes)
    meta = {**({"text": text} if text else {}), **region_meta.write(detection, region[0])}
    return [{**region[0], "meta": meta}, *region[1:]]


def _tell_unread(task: Any, reading: Reading, so: str) -> None:
    """Logs the regions of a task that could not be read, once."""
    if reading.unread:
        first, count = reading.unread[0], len(reading.unread)
        log.warning(
            "Task %s: %d regions cannot be read, so %s; the first is %s", _name(task), count, so, first
        )
        reading.unread.clear()


def _name(task: Any) -> str:
    """A task's id for the log; as ASCII, so that no task writes lines of its own."""
    return ascii(task.get("id"))[:40] if isinstance(task, Mapping) else "?"
