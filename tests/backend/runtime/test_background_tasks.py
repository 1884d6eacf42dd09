import threading

from backend.runtime.background_tasks import BackgroundTasks
from tests.support.waiting import wait_for


def test_a_task_runs_once_per_key_and_no_more_than_the_capacity_at_a_time() -> None:
    tasks, go, ran = BackgroundTasks(2), threading.Event(), list[str]()

    def task(name: str) -> None:
        def work() -> None:
            ran.append(name)
            assert go.wait(10)

        tasks.start(name, work)

    for name in ("a", "a", "b", "c"):
        task(name)
    wait_for(lambda: len(ran) == 2)
    assert sorted(ran) == ["a", "b"]
    assert len(tasks.running) == 2
    go.set()
    wait_for(lambda: not len(tasks.running))
    task("a")
    wait_for(lambda: not len(tasks.running))
    assert sorted(ran) == ["a", "a", "b"]
