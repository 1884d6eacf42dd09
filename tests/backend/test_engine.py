import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from backend.engine import BATCH, CLICK, PROCESS, Engine, Late, Unavailable
from backend.settings import Settings
from model.types import ModelLoadError
from tests.backend.conftest import StandIn

Make = Callable[..., Engine]


def soon(seconds: float = 5) -> float:
    return time.monotonic() + seconds


def wait_for(condition: Callable[[], bool]) -> None:
    until = soon()
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


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
            pool.submit(engine.run, lambda model: model is stand_in, priority=CLICK, deadline=soon())
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


def test_a_profile_that_there_is_not() -> None:
    with pytest.raises(ModelLoadError, match="gpu-9000"):
        Engine.of(Settings(profile="gpu-9000"))
