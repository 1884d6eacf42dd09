import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partialmethod
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants

from backend.runtime.engine import BATCH, CLICK, PROCESS, Click, Engine, Late, Superseded, Unavailable
from backend.settings import Settings
from backend.web.app import create_app
from model.builtin.scenes import draw_scene
from model.types import ModelLoadError, Prompt
from model.vlm.vlm import VLM
from model.weights import download
from tests.support.labeling_configs import CONFIG
from tests.support.loopback import running
from tests.support.settings import settings_with
from tests.support.stand_in import StandIn
from tests.support.waiting import soon, wait_for

Make = Callable[..., Engine]


def test_models_load_once_in_the_background(stand_in: StandIn) -> None:
    loads, go = [], threading.Event()

    def load() -> StandIn:
        loads.append(1)
        go.wait(5)
        return stand_in

    engine = Engine(Settings(), version="v1", load=load).start().start()
    assert (engine.state, engine.version) == ("loading", "v1")
    with ThreadPoolExecutor() as pool:
        answers = [
            pool.submit(
                engine.run, lambda model: model.smaller() is stand_in, priority=CLICK, deadline=soon()
            )
            for _ in range(3)
        ]
        go.set()
        assert [answer.result() for answer in answers] == [True] * 3
    assert engine.state == "ready"
    assert loads == [1]


def test_what_waits_for_models_that_never_come_is_told_why(make_engine: Make) -> None:
    go = threading.Event()

    def load() -> StandIn:
        go.wait(5)
        raise ModelLoadError("The weights of the VLM are missing: run make weights.")

    engine = make_engine(load)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(engine.run, lambda model: 1, priority=CLICK, deadline=soon())
        go.set()
        with pytest.raises(Unavailable, match="weights of the VLM are missing"):
            waiting.result()
    with pytest.raises(Unavailable, match="weights of the VLM are missing"), engine.admitted():
        pass
    assert engine.state == "failed"


def test_a_surprise_while_loading_says_nothing_of_the_machine(make_engine: Make) -> None:
    def load() -> StandIn:
        raise KeyError("/srv/secret/path")

    engine = make_engine(load)
    wait_for(lambda: engine.state == "failed")
    with pytest.raises(Unavailable, match="log says why") as caught:
        engine.run(lambda model: 1, priority=CLICK, deadline=soon())
    assert "secret" not in str(caught.value)


def test_a_deadline_passes_while_models_load(make_engine: Make) -> None:
    go = threading.Event()
    engine = make_engine(lambda: go.wait(5))
    with pytest.raises(Late):
        engine.run(lambda model: 1, priority=CLICK, deadline=soon(0.05))
    go.set()


def test_an_error_of_a_job_is_its_callers(make_engine: Make) -> None:
    engine = make_engine()

    def job(model: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        engine.run(job, priority=BATCH, deadline=soon())
    assert engine.run(lambda model: 1, priority=BATCH, deadline=soon()) == 1


def test_a_job_may_itself_raise_a_timeout(make_engine: Make) -> None:
    def job(model: object) -> None:
        raise TimeoutError("of its own")

    with pytest.raises(TimeoutError, match="of its own"):
        make_engine().run(job, priority=BATCH, deadline=soon())


def test_clicks_go_before_batches_and_one_job_runs_at_a_time(make_engine: Make) -> None:
    engine, order, running, go = make_engine(), list[str](), list[int](), threading.Event()

    def job(name: str) -> Callable[[object], None]:
        def work(_: object) -> None:
            running.append(1)
            assert sum(running) == 1
            if name == "first":
                go.wait(5)
            order.append(name)
            running.pop()

        return work

    with ThreadPoolExecutor() as pool:
        futures = [pool.submit(engine.run, job("first"), priority=BATCH, deadline=soon())]
        wait_for(lambda: bool(running))
        for name, priority in (
            ("batch 1", BATCH),
            ("batch 2", BATCH),
            ("click 1", CLICK),
            ("click 2", CLICK),
        ):
            futures.append(pool.submit(engine.run, job(name), priority=priority, deadline=soon()))
            count = len(futures) - 1
            wait_for(lambda count=count: len(engine._jobs) == count)  # type: ignore[misc]
        go.set()
        for future in futures:
            future.result()
    assert order == ["first", "click 1", "click 2", "batch 1", "batch 2"]


def test_clicks_that_never_cease_do_not_starve_a_batch(make_engine: Make) -> None:
    engine, order, done = make_engine(deadline=2), list[str](), threading.Event()

    def click(_: object) -> None:
        order.append("click")
        time.sleep(0.01)

    def clicking() -> None:
        while not done.is_set():
            engine.run(click, priority=CLICK, deadline=soon())

    with ThreadPoolExecutor() as pool:
        clickers = [pool.submit(clicking) for _ in range(3)]  # of which one is always waiting
        wait_for(lambda: len(order) > 5)
        images = [
            pool.submit(engine.run, lambda model: order.append("image"), priority=BATCH, deadline=soon())
            for _ in range(2)
        ]
        try:
            for image in images:
                image.result()
        finally:
            done.set()
        for clicker in clickers:
            clicker.result()
    first, second = (index for index, name in enumerate(order) if name == "image")
    assert second - first > 3  # nor does a long batch hold up the clicks


PLACE = ("http://studio", "1.1", "7", "kp")


def of(*prompts: str, place: tuple[str, ...] = PLACE, arrived: float = 1.0) -> Click:
    return Click(place, frozenset(prompts), arrived)


@pytest.mark.parametrize(
    ("older", "newer", "superseded"),
    [
        (of("a"), of("a", "b", arrived=2), True),
        (of("a", "b"), of("a", "b", "c", "d", arrived=2), True),
        (of("a"), of("a", arrived=2), False),  # sent again: the first answer is as good
        (of("a"), of("b", arrived=2), False),  # somebody else's
        (of("a", "b"), of("b", "c", arrived=2), False),
        (of("a", "b"), of("a", arrived=2), False),  # a prompt was deleted
        (of("a"), of("a", "b", arrived=0), False),  # b was deleted, and it is `older` that is newer
        (of(), of("a", arrived=2), False),
        (of("a"), of(arrived=2), False),
        *[
            (of("a"), of("a", "b", place=(*PLACE[:n], "another", *PLACE[n + 1 :]), arrived=2), False)
            for n in range(4)
        ],
    ],
)
def test_which_click_supersedes_another(older: Click, newer: Click, superseded: bool) -> None:
    assert newer.supersedes(older) == superseded


@pytest.fixture
def busy(make_engine: Make) -> Iterator[tuple[Engine, threading.Event]]:
    """An engine in the midst of a job, and what ends that job."""
    engine, begun, go = make_engine(), threading.Event(), threading.Event()

    def long(_: object) -> None:
        begun.set()
        go.wait(5)

    thread = threading.Thread(target=engine.run, args=(long,), kwargs={"priority": CLICK, "deadline": soon()})
    thread.start()
    begun.wait(5)
    yield engine, go
    go.set()
    thread.join()


def test_a_click_is_dropped_when_a_newer_one_asks_for_more(busy: tuple[Engine, threading.Event]) -> None:
    engine, go = busy
    ran = list[str]()

    def click(name: str, about: Click | None) -> "Future[None]":
        last = engine._jobs[-1:]
        future = pool.submit(
            engine.run, lambda model: ran.append(name), priority=CLICK, deadline=soon(), click=about
        )
        wait_for(lambda: future.done() or engine._jobs[-1:] != last)
        return future

    with ThreadPoolExecutor() as pool:
        first = click("first", of("a", arrived=1))
        others = [click("other's", of("x", arrived=2)), click("unnamed", None)]
        newest = click("newest", of("a", "b", "c", arrived=4))
        with pytest.raises(Superseded):  # at once, while the job before it still runs
            first.result(5)
        with pytest.raises(Superseded):  # its image came later than that of the newest
            click("second", of("a", "b", arrived=3)).result(5)
        assert not newest.done()
        go.set()
        for future in (*others, newest):
            future.result(5)
    assert ran == ["other's", "unnamed", "newest"]


def test_a_job_that_came_too_late_is_never_run(make_engine: Make) -> None:
    engine, begun, go, ran = make_engine(), threading.Event(), threading.Event(), list[str]()

    def long(_: object) -> None:
        begun.set()
        go.wait(5)

    with ThreadPoolExecutor() as pool:
        first = pool.submit(engine.run, long, priority=BATCH, deadline=soon())
        begun.wait(5)
        with pytest.raises(Late):
            engine.run(lambda model: ran.append("late"), priority=BATCH, deadline=soon(0.05))
        assert engine._jobs == []
        go.set()
        first.result()
    engine.run(lambda model: None, priority=BATCH, deadline=soon())
    assert ran == []


def test_more_requests_than_the_queue_holds_are_refused(make_engine: Make) -> None:
    engine = make_engine(queue=2)
    with engine.admitted():
        with (
            engine.admitted(),
            pytest.raises(Unavailable, match="2 predictions are waiting"),
            engine.admitted(),
        ):
            pass
        with engine.admitted():
            pass


def test_the_engine_of_a_process_is_made_on_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Engine] = []

    def start(engine: Engine) -> Engine:
        made.append(engine)
        return engine

    monkeypatch.setattr(Engine, "start", start)
    PROCESS.install(None)
    try:
        assert PROCESS.engine() is PROCESS.engine()
        assert made[0] is made[1]
        assert made[0].version
    finally:
        PROCESS.install(None)


@pytest.mark.slow
def test_f6_answers_that_were_cut_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    image = draw_scene(np.random.default_rng(7), width=200, height=150, count=2, degrade=False).image
    engine = Engine.of(Settings()).start()

    def counted() -> list[str]:
        lines = engine.metrics.text().decode().splitlines()
        return [line for line in lines if line.startswith("vlsam_cut_answers_total")]

    engine.run(lambda model: model.annotate(image), priority=BATCH, deadline=soon(60))
    assert counted() == ["vlsam_cut_answers_total 0.0"]
    monkeypatch.setattr(VLM, "answer", partialmethod(VLM.answer, max_new_tokens=2))
    assert engine.run(lambda model: model.annotate(image), priority=BATCH, deadline=soon(60)) == []
    assert counted() == ["vlsam_cut_answers_total 1.0"]


def test_a_profile_that_there_is_not() -> None:
    with pytest.raises(ModelLoadError, match="gpu-9000"):
        Engine.of(settings_with(profile="gpu-9000"))


def test_f5_weights_that_the_hub_does_not_give_fail_to_load_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with running() as site:
        monkeypatch.setattr(constants, "ENDPOINT", site.url)
    engine = Engine.of(settings_with(vlm="somebody/tiny-vl", model_dir=tmp_path))
    client = create_app(engine=engine).test_client()
    assert client.get("/health").status_code == 200
    assert client.post("/setup", json={"project": "1.1", "schema": CONFIG}).status_code == 200
    wait_for(lambda: engine.state == "failed")
    assert client.get("/ready").status_code == 503
    with pytest.raises(Unavailable, match="somebody/tiny-vl cannot be fetched, for the hub does not answer"):
        engine.run(lambda model: model, priority=CLICK, deadline=soon())
    PROCESS.install(None)


def test_the_version_of_weights_that_are_not_there_yet_is_that_which_they_will_have(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    weights = {"config.json": b'{"model_type": "qwen2_5_vl"}', "model.safetensors": bytes(5000)}
    with running() as site:
        monkeypatch.setattr(constants, "ENDPOINT", site.url)
        site.repositories["somebody/tiny-vl"] = weights
        settings = settings_with(vlm="somebody/tiny-vl", sam="somebody/tiny-vl", model_dir=tmp_path)
        before = Engine.of(settings)
        download.hub("somebody/tiny-vl", tmp_path)
        assert Engine.of(settings).version == before.version
        site.repositories["somebody/tiny-vl"] = {**weights, "model.safetensors": bytes(4999) + b"1"}
        other = Engine.of(replace(settings, models=replace(settings.models, model_dir=tmp_path / "other")))
    assert other.version != before.version
    assert other.embeddings.handle("x").key != before.embeddings.handle("x").key


def test_the_version_is_stable_and_follows_every_setting_that_changes_results() -> None:
    version = Engine.of(Settings()).version
    same = (
        Settings(),
        settings_with(
            port=1234, threads=8, deadline=5.0, log_level="DEBUG", cache_mb=0, labels_in_place=True
        ),
        Settings.from_env({"VLSAM_LEFTOVER": "drop", "VLSAM_SIMILARITY": "0", "VLSAM_VOCABULARY": "open"}),
    )
    assert {Engine.of(settings).version for settings in same} == {version}
    others = [
        settings_with(leftover="keep"),
        settings_with(leftover="other:Thing"),
        settings_with(leftover="other:Any"),
        settings_with(similarity=0.5),
        settings_with(similarity=0.51),
        settings_with(vocabulary="project"),
        settings_with(vocabulary="both"),
        settings_with(questions=("What is there?",)),
        settings_with(attention="paper"),
    ]
    versions = {Engine.of(settings).version for settings in others}
    assert len(versions - {version}) == len(others)


def test_regions_name_the_version_that_predictions_do() -> None:
    engine = Engine.of(settings_with(leftover="keep", device="cpu")).start()
    made = engine.run(
        lambda model: model.refine(model.encode(np.zeros((40, 40, 3), np.uint8)), Prompt.of((9, 9, 1))),
        priority=0,
        deadline=soon(60),
    )
    assert made.evidence.model_version == engine.version
