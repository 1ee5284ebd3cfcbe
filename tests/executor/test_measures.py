"""Measurements of an executor, read through its telemetry: the cases beside the usual life of a task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from celeriac.config.executor_config import Config
from celeriac.errors import LedgerUnavailable
from celeriac.executor.capacity import WorkerShare
from celeriac.executor.executor import CeleryExecutor
from celeriac.executor.interfaces import LedgerBatch, LostTask
from celeriac.ledger.memory import MemoryLedger
from celeriac.runs.job_file import PlainJobs, read_whole
from celeriac.task.result import Execution, Reason, Result
from celeriac.task.state import State
from celeriac.task.task import Task
from celeriac.telemetry import Distribution, metrics
from celeriac.telemetry.metrics import Metric
from celeriac.telemetry.telemetry import Labels, Value
from celeriac.testing import HOST, InMemoryBroker
from tests.executor.test_lost_tasks import ScriptedDetector


@pytest.fixture
def make(broker, clock):
    def make(*, config: Config | None = None, **parts: Any) -> CeleryExecutor:
        return CeleryExecutor(
            config or Config(parallelism=9),
            publisher=broker,
            results=broker,
            revoker=broker,
            clock=clock,
            wall_clock=clock,
            **parts,
        )

    return make


def values(executor: CeleryExecutor, metric: Metric) -> Mapping[Labels, Value]:
    return next((family.values for family in executor.telemetry.read() if family.metric is metric), {})


def observed(executor: CeleryExecutor, metric: Metric, *labels: str) -> tuple[int, float]:
    """Return how many observations there are, and their sum."""
    distribution = values(executor, metric)[labels]
    assert isinstance(distribution, Distribution)
    return distribution.number, distribution.total


def test_a_new_executor_has_measured_nothing(make, clock):
    executor = make()
    clock.advance(3)
    assert values(executor, metrics.LATE_RESULTS) == {(): 0}
    assert values(executor, metrics.HEARTBEAT_AGE) == {(): 3.0}
    for metric in (
        metrics.RESULT_DELAY,
        metrics.PUBLISH_SECONDS,
        metrics.HEARTBEAT_SECONDS,
        metrics.SYNC_SECONDS,
    ):
        assert observed(executor, metric) == (0, 0.0)
    assert values(executor, metrics.TASK_ENDS) == values(executor, metrics.TASKS_QUEUED) == {}


def test_the_age_of_the_last_heartbeat_and_its_length_are_measured(make, broker, clock):
    executor = make()
    broker.changed = lambda: clock.advance(0.5) or []
    executor.heartbeat()
    assert values(executor, metrics.HEARTBEAT_AGE) == {(): 0.0}
    assert observed(executor, metrics.SYNC_SECONDS) == observed(executor, metrics.HEARTBEAT_SECONDS) == (1, 0.5)
    clock.advance(7)
    assert values(executor, metrics.HEARTBEAT_AGE) == {(): 7.0}


def test_it_is_shown_whether_the_ledger_and_the_result_backend_answer(make, broker, clock):
    class Ledger(MemoryLedger):
        is_available = True

        def write(self, batch: LedgerBatch) -> None:
            if not self.is_available:
                raise LedgerUnavailable("ledger.db", "cannot be written")
            super().write(batch)

    ledger = Ledger()
    executor = make(ledger=ledger)
    executor.queue_command("k", "true")
    executor.heartbeat()
    assert values(executor, metrics.LEDGER_AVAILABLE) == values(executor, metrics.BACKEND_AVAILABLE) == {(): 1}
    ledger.is_available = broker.answered = False
    executor.queue_command("other", "true")
    executor.heartbeat()
    assert values(executor, metrics.LEDGER_AVAILABLE) == values(executor, metrics.BACKEND_AVAILABLE) == {(): 0}
    assert metrics.LEDGER_AVAILABLE not in [family.metric for family in make().telemetry.read()]


def test_the_places_of_each_limit_with_a_name_are_shown(make, broker):
    config = Config(
        concurrency_limits={"db": 3, "*": 9}, concurrency_rates={"api": "5/s", "*": "7/s"}, queue_rates={"net": "4/m"}
    )
    executor = make(config=config)
    for key in ("db", "api"):
        executor.queue_command(key, "true", concurrency_key=key, queue="net")
    executor.heartbeat()
    assert values(executor, metrics.LIMIT_PLACES) == {("key:db",): 3, ("key-rate:api",): 5, ("queue-rate:net",): 4}
    assert values(executor, metrics.LIMIT_PLACES_HELD) == {
        ("key:db",): 1,
        ("key-rate:api",): 1,
        ("queue-rate:net",): 2,
    }
    for key in ("db", "api"):
        broker.succeed(key)
    executor.heartbeat()
    assert set(values(executor, metrics.LIMIT_PLACES_HELD).values()) == {0}
    assert values(make(), metrics.LIMIT_PLACES) == {}


def test_a_queue_without_a_live_worker_is_shown(make):
    class Workers:
        def by_queue(self) -> Mapping[str, int]:
            return {"served": 2}

        def why_held(self, queue: str) -> str | None:
            return None

        def shares(self) -> Mapping[str, WorkerShare] | None:
            return None

    executor = make(capacity=Workers())
    for queue in ("served", "not"):
        executor.queue_command(queue, "true", queue=queue)
    executor.heartbeat()
    assert values(executor, metrics.QUEUE_UNSERVED) == {("served",): 0, ("not",): 1}


def test_a_task_that_a_worker_hands_back_is_sent_once_and_no_longer_runs(make, broker, clock):
    executor = make()
    executor.queue_command("k", "true")
    executor.heartbeat()
    broker.start("k")
    executor.heartbeat()
    clock.advance(5)
    broker.put(broker.message("k").message_id, Result(State.QUEUED))
    executor.heartbeat()
    assert values(executor, metrics.TASKS_RUNNING) == {("default",): 0}
    assert values(executor, metrics.PUBLISHES) == {("default",): 1}
    assert observed(executor, metrics.WAIT_SECONDS, "default") == (1, 0.0)
    clock.advance(2)
    broker.start("k")
    executor.heartbeat()
    assert values(executor, metrics.TASKS_RUNNING) == {("default",): 1}
    assert observed(executor, metrics.START_SECONDS, "default") == (2, 2.0)


def test_a_task_that_starts_before_the_broker_confirms_it_has_waited_until_then(make, broker, clock):
    executor = make()
    broker.leave_unsure("k", delivered=True)
    executor.queue_command("k", "true")
    executor.heartbeat()
    clock.advance(3)
    broker.start("k")
    executor.sync()
    assert observed(executor, metrics.WAIT_SECONDS, "default") == (1, 3.0)
    assert observed(executor, metrics.START_SECONDS, "default") == (0, 0.0)
    assert values(executor, metrics.TASKS_RUNNING) == {("default",): 1}
    assert values(executor, metrics.PUBLISHES) == {("default",): 0}


def test_the_wait_of_a_task_with_a_time_begins_at_that_time(make, clock):
    clock.now = 2e9
    executor = make()
    executor.queue_command("k", "true", not_before=clock() + 60)
    clock.advance(61)
    executor.heartbeat()
    assert observed(executor, metrics.WAIT_SECONDS, "default") == (1, 1.0)


def test_only_the_first_attempt_is_a_wait(make, broker, clock):
    executor = make()
    executor.queue_command("k", "true", retries=1, retry_delay=0.0)
    executor.heartbeat()
    broker.put(broker.message("k").message_id, Result(State.FAILED))
    executor.heartbeat()
    clock.advance(9)
    executor.heartbeat()
    assert observed(executor, metrics.WAIT_SECONDS, "default") == (1, 0.0)
    assert values(executor, metrics.PUBLISHES) == {("default",): 2}
    assert values(executor, metrics.TASK_RETRIES) == {("default", "none"): 1}
    assert values(executor, metrics.TASKS_LOST) == {("default",): 0}


@pytest.mark.parametrize(
    ("execution", "runs", "delay"),
    [
        (None, {}, (0, 0.0)),
        (Execution(host=HOST, started=1.0), {}, (0, 0.0)),
        (Execution(host=HOST, duration=2.0), {("default", "success"): 2.0}, (0, 0.0)),
        (Execution(host=HOST, started=999_998.0, duration=2.0), {("default", "success"): 2.0}, (1, 0.0)),
    ],
)
def test_what_a_result_does_not_say_is_not_measured(make, broker, execution, runs, delay):
    executor = make()
    executor.queue_command("k", "true")
    executor.heartbeat()
    broker.put(broker.message("k").message_id, Result(State.SUCCESS, execution=execution))
    executor.heartbeat()
    totals = {
        labels: observed(executor, metrics.RUN_SECONDS, *labels)[1] for labels in values(executor, metrics.RUN_SECONDS)
    }
    assert (totals, observed(executor, metrics.RESULT_DELAY)) == (runs, delay)


def test_each_lost_attempt_and_each_late_result_is_counted(make, broker):
    detector = ScriptedDetector()
    executor = make(lost_task_detector=detector)
    executor.queue_command("k", "true", max_lost=2)
    first = None
    for lost in (1, 2):
        executor.heartbeat()
        first = first or broker.message("k").message_id
        detector.report(LostTask(broker.message("k").message_id, "its worker is dead", was_claimed=True))
        executor.heartbeat()
        assert values(executor, metrics.TASKS_LOST) == {("default",): lost}
    assert values(executor, metrics.TASK_RETRIES) == {("default", "lost"): 1}
    assert values(executor, metrics.TASK_ENDS) == {("default", "failed", "poison"): 1}
    broker.put(first, Result(State.SUCCESS))
    executor.heartbeat()
    assert values(executor, metrics.LATE_RESULTS) == {(): 1}
    assert executor.stats().results_ignored == 1


def test_of_the_tasks_of_a_queue_at_the_broker_the_longest_there_counts(make, broker, clock):
    executor = make()
    for key in ("first", "second"):
        executor.queue_command(key, "true")
        executor.heartbeat()
        clock.advance(4)
    assert values(executor, metrics.OLDEST_QUEUED) == {("default",): 8.0}
    broker.leave_unsure("unsure", delivered=False)
    executor.queue_command("unsure", "true", queue="other")
    executor.heartbeat()
    clock.advance(1)
    assert values(executor, metrics.OLDEST_QUEUED) == {("default",): 9.0, ("other",): 0.0}
    for key, longest in (("first", 6.0), ("second", 0.0)):
        broker.start(key)
        executor.heartbeat()
        clock.advance(1)
        assert values(executor, metrics.OLDEST_QUEUED)["default",] == longest


def test_accepted_tasks_wait(make, tmp_path):
    (tmp_path / "jobs.jsonl").write_text('{"command": "true"}\n' * 3)
    jobs = read_whole(str(tmp_path / "jobs.jsonl"), "auto", {}, None, None, None)
    assert isinstance(jobs, PlainJobs)
    executor = make()
    executor.queue_command("k", "true")
    executor.accept_tasks(jobs.sources())
    assert values(executor, metrics.TASKS_WAITING) == {("default",): 4}


def test_tasks_that_were_adopted_at_the_broker_do_not_run(make, clock):
    executor = make(config=Config(parallelism=1))
    executor.adopt_tasks([Task(key=key, command="true") for key in "ab"], State.QUEUED)
    clock.advance(3)
    assert values(executor, metrics.OLDEST_QUEUED) == {("default",): 3.0}
    assert values(executor, metrics.TASKS_RUNNING) == {("default",): 0}
    assert values(executor, metrics.SLOTS_OPEN) == {(): 0}
    assert values(executor, metrics.TASKS_IN_FLIGHT) == {("default",): 2}


class Traces:
    """A sink of traces, outside of any trace."""

    def caller(self) -> dict[str, str]:
        return {}

    def variables(self, task_id: str, environment: Mapping[str, str]) -> None:
        """Leave them to the worker."""


def test_a_task_outside_of_a_trace_has_no_parent(make, broker: InMemoryBroker):
    executor = make()
    executor.telemetry.keep_ended_tasks(Traces())
    executor.queue_command("k", "true")
    executor.reprioritise("k", 5, asked_by="ada")
    executor.heartbeat()
    broker.put(broker.message("k").message_id, Result(State.FAILED, Reason.EXIT_CODE))
    executor.heartbeat()
    (ended,) = executor.telemetry.take_ended_tasks()
    assert [step.state for step in ended.steps] == ["publishing", "queued", "failed"]  # and no change of its priority
    assert (ended.parent, ended.steps[-1].reason, ended.steps[-1].started) == (None, "exit_code", None)
