"""The sentence about a task instance of Airflow, and the one read for all viewers."""

from __future__ import annotations

import threading

import pytest

from celeriac.airflow.page.cache import KEPT, SHARE, Cached
from celeriac.airflow.page.wording import Place, TaskFacts, sentence, spoken


def of(state: str | None, place: Place | None = None, **facts: object) -> str:
    return sentence(TaskFacts(state=state, **facts), place)  # type: ignore[arg-type]


def test_a_task_that_is_not_sent():
    assert "waits for other tasks" in of(None)
    assert of("scheduled", age=3.0, pool_open=0) == (
        "It is scheduled for 3.0 s, and waits until the scheduler queues it: the pool 'default_pool' has no open slot."
    )
    assert "has 1 open slot," in of("scheduled", pool_open=1)
    assert "has not sent it to the broker yet" in of("queued", age=2.0)


SENT = {
    "cannot be read now: gone": Place(problem="gone", cancelled=True),
    "was revoked": Place(cancelled=True, worker="w"),
    "lost before the task started": Place(fenced=True, worker="w"),
    "Worker w has claimed it (last heartbeat 1.5 s ago), and is starting it": Place(worker="w", worker_age=1.5),
    "Worker w had claimed it and is silent": Place(worker="w", worker_is_lost=True),
    "Worker w has received it": Place(held_by="w", workers=1),
    "No worker with a lease serves the queue 'gpu', in which 7 messages wait: start one": Place(waiting=7),
    "has left the queue 'gpu', and one of 2 workers": Place(waiting=0, workers=2),
    "in which 1 message waits. The queue has 1 worker with 4 slots: it starts when": Place(
        waiting=1, workers=1, slots=4
    ),
}


@pytest.mark.parametrize("words", SENT)
def test_a_queued_task(words):
    assert words in of("queued", SENT[words], queue="gpu", celery_id="an-id", age=60.0)


def test_a_running_task():
    words = of("running", Place(worker="w"), host="h", pid=7, age=300.0, heartbeat_age=1.0)
    assert words == "It runs on h (pid 7) for 5 min, in worker w. Its supervisor sent the last heartbeat 1.0 s ago."
    assert "is silent: the task fails as lost" in of("running", Place(worker="w", worker_is_lost=True))
    assert of("running", Place()) == "It runs."


def test_a_task_that_runs_no_more():
    assert of("success", duration=3.0, host="h") == "It has ended: success after 3.0 s on h."
    assert "Try 2 failed on h. The next try" in of("up_for_retry", try_number=2, host="h")
    assert "a trigger waits" in of("deferred")
    assert of("new_in_airflow_9") == "Its state is new_in_airflow_9."


def test_durations():
    texts = [spoken(each) for each in (-1, 9.96, 61, 3600, 90_000, 1_000_000)]
    assert texts == ["0.0 s", "10.0 s", "61 s", "60 min", "25 h 0 min", "11 days"]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_value_is_read_once_for_all_viewers_and_slow_reads_are_repeated_less_often():
    clock, reads, took = Clock(), [], 0.0

    def read() -> int:
        clock.now += took
        reads.append(1)
        return len(reads)

    cached = Cached(read, clock=clock)
    viewers = [threading.Thread(target=cached.get) for _ in range(20)]
    for viewer in viewers:
        viewer.start()
    for viewer in viewers:
        viewer.join()
    assert cached.get() == 1
    clock.now += KEPT
    took = 10.0
    assert cached.get() == 2
    clock.now += SHARE * took - 1
    assert cached.get() == 2
    clock.now += 1
    assert cached.get() == 3


def test_a_failed_read_is_repeated():
    values: list[int] = []

    def read() -> int:
        values.append(7)
        return values[1]

    cached = Cached(read)
    with pytest.raises(IndexError):
        cached.get()
    assert cached.get() == 7
