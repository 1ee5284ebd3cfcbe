"""Rests of an executor: each lasts until a heartbeat has something to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from celeriac.config.executor_config import Config
from celeriac.executor.executor import MAX_WAIT, CeleryExecutor
from celeriac.executor.interfaces import UnfinishedTask
from celeriac.ledger.memory import MemoryLedger
from celeriac.runs.job_file import PlainJobs, read_whole
from celeriac.task.state import State
from celeriac.task.task import Task
from celeriac.testing import InMemoryBroker, ManualClock
from tests.executor.test_lost_tasks import ScriptedDetector

LOOKS_RARELY = Config(parallelism=2, first_look=1_000.0, reconcile_interval=1_000.0)


class Workers:
    """A `Capacity` whose workers serve a queue."""

    def by_queue(self) -> Mapping[str, int]:
        return {"default": 9}

    def why_held(self, queue: str) -> str | None:
        return None

    def shares(self) -> None:
        return None


@pytest.fixture
def make(broker: InMemoryBroker, clock: ManualClock):
    def make(config: Config = LOOKS_RARELY, **parts: Any) -> CeleryExecutor:
        clock.now = 2e9
        broker.obeys_revokes = False
        return CeleryExecutor(
            config, publisher=broker, results=broker, revoker=broker, clock=clock, wall_clock=clock, **parts
        )

    return make


def rest(executor: CeleryExecutor, clock: ManualClock) -> float:
    """Return how long the executor rests."""
    before = clock.now
    executor.wait(1e9)
    return round(clock.now - before, 6)


def test_an_executor_rests_at_most_a_while(make, clock):
    executor = make()
    executor.queue_command("k", "true")
    executor.heartbeat()
    assert rest(executor, clock) == MAX_WAIT
    before = clock.now
    executor.wait(3.0)
    assert clock.now - before == 3.0


def test_a_look_at_a_task_in_flight_ends_the_rest(make, clock):
    executor = make(Config(first_look=4.0))
    assert rest(executor, clock) == MAX_WAIT
    executor.queue_command("k", "true")
    executor.heartbeat()
    assert rest(executor, clock) == 4.0


def test_a_task_that_may_be_sent_ends_the_rest(make, clock):
    executor = make()
    executor.queue_command("k", "true", not_before=clock.now + 7)
    executor.heartbeat()
    assert rest(executor, clock) == 7.0
    executor.heartbeat()
    executor.queue_command("other", "true")
    assert rest(executor, clock) == 0.0


def test_a_deadline_ends_the_rest_unless_the_executor_drains(make, clock):
    executor = make(Config(parallelism=1, first_look=1_000.0))
    executor.queue_command("runs", "true")
    executor.heartbeat()
    executor.queue_command("waits", "true", deadline=clock.now + 6)
    assert rest(executor, clock) == 6.0
    clock.advance(2)
    assert rest(executor, clock) == 0.0  # it has passed
    executor.drain()
    assert rest(executor, clock) == MAX_WAIT


def test_a_search_for_lost_tasks_ends_the_rest_while_there_are_tasks(make, clock):
    executor = make(Config(first_look=1_000.0, search_interval=5.0), lost_task_detector=ScriptedDetector())
    executor.heartbeat()
    assert rest(executor, clock) == MAX_WAIT
    executor.queue_command("k", "true")
    executor.heartbeat()
    executor.heartbeat()
    assert rest(executor, clock) == 5.0


@pytest.mark.parametrize(("capacity", "seconds"), [(None, MAX_WAIT), (Workers(), 0.5)])
def test_the_workers_of_a_cancelled_task_are_counted_again_soon(make, broker, clock, capacity, seconds):
    executor = make(capacity=capacity)
    executor.queue_command("k", "true")
    executor.heartbeat()
    assert rest(executor, clock) == MAX_WAIT
    executor.cancel_unstarted()
    executor.drain()
    assert rest(executor, clock) == seconds


def test_a_write_that_is_due_ends_the_rest(make, clock):
    executor = make(ledger=MemoryLedger())
    executor.heartbeat()
    assert rest(executor, clock) == MAX_WAIT
    executor.queue_command("later", "true", not_before=clock.now + 500)
    executor.heartbeat()
    assert rest(executor, clock) == 0.2


def test_accepted_tasks_that_are_needed_end_the_rest_unless_the_executor_drains(make, clock, tmp_path):
    (tmp_path / "jobs.jsonl").write_text('{"command": "true"}\n')
    executor = make()
    assert rest(executor, clock) == MAX_WAIT
    jobs = read_whole(str(tmp_path / "jobs.jsonl"), "auto", {}, None, None, None)
    assert isinstance(jobs, PlainJobs)
    executor.accept_tasks(jobs.sources())
    assert rest(executor, clock) == 0.0
    executor.drain()
    assert rest(executor, clock) == MAX_WAIT


def test_a_task_that_is_taken_over_waits_no_longer_than_a_retry_may(make, clock):
    executor = make(Config(retry_delay_max=4.0))
    task = Task(key="k", command="true", attempt=2)
    executor.recovery.resume([UnfinishedTask(task, State.WAITING, clock.now, not_before=clock.now + 1e6)])
    executor.heartbeat()
    assert rest(executor, clock) == 6.0  # with the most jitter
    executor.heartbeat()
    assert executor.tasks_in_flight == 1


def test_a_deadline_passes_in_a_pause_too(make, clock):
    executor = make()
    executor.adjustments.pause()
    executor.queue_command("k", "true", deadline=clock.now + 6)
    executor.heartbeat()
    assert rest(executor, clock) == 6.0
    executor.heartbeat()
    assert [event.state for event in executor.get_event_buffer()] == [State.FAILED]
