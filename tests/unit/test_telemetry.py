"""Tests of what an executor counts and measures, and of the table of metrics."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

import pytest
from celery.exceptions import Ignore, Reject

from celeriac import CeleryExecutor, Config, State, Task
from celeriac.errors import CommandFailed
from celeriac.task.result import Execution, Reason, Result
from celeriac.telemetry import METRICS, Distribution, Kind, Telemetry, metrics
from celeriac.telemetry.telemetry import MAX_SERIES
from celeriac.telemetry.trace_context import ids_of_task, new_trace, parse_traceparent
from celeriac.testing import HOST, InMemoryBroker, ManualClock
from celeriac.worker.measures import WorkerMeasures


class Site:
    """An executor with a broker in memory, and its numbers."""

    def __init__(self, **config):
        self.clock = ManualClock()
        self.broker = InMemoryBroker(self.clock)
        self.executor = CeleryExecutor(
            Config(**config),
            publisher=self.broker,
            results=self.broker,
            revoker=self.broker,
            clock=self.clock,
            wall_clock=self.clock,
        )

    def numbers(self, metric):
        return {
            labels: value
            for family in self.executor.telemetry.read()
            if family.metric is metric
            for labels, value in family.numbers
        }

    def observed(self, metric, *labels):
        (family,) = [each for each in self.executor.telemetry.read() if each.metric is metric]
        return dict(family.distributions)[labels]

    def end(self, key, state=State.SUCCESS, *, duration=2.0, reason=None):
        execution = Execution(host=HOST, started=self.clock() - duration, duration=duration)
        self.broker.put(self.broker.message(key).message_id, Result(state, reason, None, execution))
        self.executor.heartbeat()


def test_the_tasks_of_each_queue_are_counted_by_phase():
    site = Site(parallelism=3)
    for number in range(5):
        site.executor.queue_command(str(number), "true", queue="gpu" if number % 2 else "cpu")
    site.executor.queue_command("after", "true", queue="cpu", needs=["4"])
    assert site.numbers(metrics.TASKS_WAITING) == {("cpu",): 4, ("gpu",): 2}
    assert site.numbers(metrics.TASKS_BLOCKED) == {(): 1}
    site.executor.heartbeat()
    site.broker.start("0")
    site.executor.heartbeat()
    assert site.numbers(metrics.TASKS_WAITING) == {("cpu",): 2, ("gpu",): 1}
    assert site.numbers(metrics.TASKS_IN_FLIGHT) == {("cpu",): 2, ("gpu",): 1}
    assert site.numbers(metrics.TASKS_RUNNING) == {("cpu",): 1, ("gpu",): 0}
    assert (site.numbers(metrics.SLOTS_IN_USE), site.numbers(metrics.SLOTS_OPEN)) == ({(): 3}, {(): 0})
    assert site.numbers(metrics.TASKS_QUEUED) == {("cpu",): 4, ("gpu",): 2}
    assert site.numbers(metrics.PUBLISHES) == {("cpu",): 2, ("gpu",): 1}


def test_times_are_observed_from_the_arrival_to_the_end():
    site = Site(parallelism=1)
    site.executor.queue_command("first", "true")
    site.executor.queue_command("second", "true")
    site.executor.heartbeat()
    assert site.numbers(metrics.OLDEST_QUEUED) == {("default",): 0.0}
    site.clock.advance(3)
    assert site.numbers(metrics.OLDEST_WAITING) == {(): 3.0}
    assert site.numbers(metrics.OLDEST_QUEUED) == {("default",): 3.0}
    site.broker.start("first")
    site.executor.heartbeat()
    assert site.numbers(metrics.OLDEST_QUEUED) == {("default",): 0.0}
    site.clock.advance(4)
    site.end("first", duration=3.5)
    assert site.observed(metrics.START_SECONDS, "default").total == 3.0
    assert site.observed(metrics.RUN_SECONDS, "default", "success").total == 3.5
    site.executor.heartbeat()
    assert site.observed(metrics.WAIT_SECONDS, "default").total == 7.0
    assert site.observed(metrics.WAIT_SECONDS, "default").number == 2
    site.clock.advance(5)
    site.end("second", duration=1.0)  # its start is never reported
    assert site.observed(metrics.START_SECONDS, "default").total == 7.0


def test_the_delay_of_a_result_is_the_lag_of_the_change_feed():
    site = Site()
    site.executor.queue_command("a", "true")
    site.executor.heartbeat()
    execution = Execution(host=HOST, started=site.clock(), duration=2.0)
    site.broker.put(site.broker.message("a").message_id, Result(State.SUCCESS, None, None, execution))
    site.clock.advance(2.25)
    site.executor.heartbeat()
    assert site.observed(metrics.RESULT_DELAY).total == 0.25


def test_ends_are_counted_by_state_and_reason():
    site = Site()
    for key in ("good", "bad", "gone", "unwanted"):
        site.executor.queue_command(key, "true", retries=1 if key == "bad" else 0, on_worker_lost="fail")
    site.executor.heartbeat()
    site.end("good")
    site.end("bad", State.FAILED, reason=Reason.EXIT_CODE)
    site.end("gone", State.FAILED, reason=Reason.LOST)
    site.executor.revoke_task("unwanted")
    site.executor.heartbeat()
    assert site.numbers(metrics.TASK_ENDS) == {
        ("default", "success", "none"): 1,
        ("default", "failed", "lost"): 1,
        ("default", "revoked", "revoked"): 1,
    }
    assert site.numbers(metrics.TASK_RETRIES) == {("default", "exit_code"): 1}
    assert site.numbers(metrics.TASKS_LOST) == {("default",): 1}


def test_tasks_that_never_ran_are_counted_as_revoked():
    site = Site(parallelism=1)
    for number in range(3):
        site.executor.queue_command(str(number), "true", queue="cpu")
    site.executor.heartbeat()
    site.executor.revoke_waiting(silently=True)
    assert site.numbers(metrics.TASK_ENDS) == {("cpu", "revoked", "revoked"): 2}
    assert site.numbers(metrics.TASKS_WAITING) == {("cpu",): 0}


def test_an_outage_of_the_broker_is_shown():
    site = Site()
    site.executor.queue_command("a", "true")
    site.broker.refuse("a")
    site.executor.heartbeat()
    assert site.numbers(metrics.BROKER_AVAILABLE) == {(): 0}
    assert site.numbers(metrics.PUBLISH_RETRIES) == {("default",): 1}


def test_a_task_that_an_outage_delays_is_observed_once():
    site = Site()
    site.executor.queue_command("a", "true")
    site.broker.refuse("a")
    site.executor.heartbeat()
    assert site.observed(metrics.WAIT_SECONDS, "default").number == 0
    site.broker.heal("a")
    site.clock.advance(60)
    site.executor.heartbeat()
    assert site.observed(metrics.WAIT_SECONDS, "default").number == 1
    assert site.observed(metrics.WAIT_SECONDS, "default").total == 60
    site.broker.heal()
    site.clock.advance(60)
    site.executor.heartbeat()
    assert site.numbers(metrics.BROKER_AVAILABLE) == {(): 1}
    assert site.numbers(metrics.PUBLISHES) == {("default",): 1}


def test_a_reader_in_another_thread_disturbs_no_heartbeat():
    site = Site(parallelism=50)
    done, problems = threading.Event(), []

    def read():
        while not done.is_set():
            try:
                site.executor.telemetry.read()
            except Exception as error:  # noqa: BLE001 - it is the result
                problems.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(3_000):
            site.executor.queue_command(str(number), "true", queue=f"q{number % 300}")
        while site.executor.tasks_waiting:
            site.executor.heartbeat()
            for task in site.broker.unfinished:
                site.broker.succeed(task.key)
    finally:
        done.set()
        reader.join()
    site.executor.heartbeat()
    assert not problems
    assert sum(site.numbers(metrics.TASK_ENDS).values()) == 3_000


def test_more_queues_than_the_limit_are_added_up():
    telemetry = Telemetry()
    for number in range(MAX_SERIES + 10):
        telemetry.count(metrics.WORKER_ENDS, f"reason {number}")
    (family,) = telemetry.read()
    numbers = dict(family.numbers)
    assert len(numbers) == MAX_SERIES
    assert numbers[("other",)] == 11
    assert sum(numbers.values()) == MAX_SERIES + 10


def test_a_new_executor_replaces_the_numbers_of_the_one_before():
    telemetry = Telemetry()
    telemetry.set_source("executor", lambda: [(metrics.SLOTS_OPEN, {(): 5})])
    telemetry.set_source("executor", lambda: [(metrics.SLOTS_OPEN, {(): 7})])
    (family,) = telemetry.read()
    assert dict(family.numbers) == {(): 7}


@pytest.mark.parametrize(
    ("seconds", "bucket"), [(-1.0, 0), (0.0, 0), (0.005, 0), (0.006, 1), (86_400.0, 12), (1e9, 13)]
)
def test_an_observation_falls_into_the_bucket_of_its_upper_bound(seconds, bucket):
    distribution = Distribution.of(metrics.RUN_SECONDS)
    distribution.add(seconds)
    assert distribution.counts.index(1) == bucket
    assert distribution.total == max(0.0, seconds)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_the_names_follow_the_rules_of_prometheus(metric):
    assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
    assert set(metric.labels) <= {"queue", "state", "reason", "worker", "route", "status", "limit"}
    assert metric.bounds == tuple(sorted(metric.bounds))
    assert bool(metric.bounds) == (metric.kind is Kind.HISTOGRAM)
    assert metric.help.endswith(".")


@pytest.mark.parametrize(
    ("error", "counted"),
    [
        (None, (metrics.WORKER_ENDS, ("success",))),
        (CommandFailed({"reason": "exit_code", "execution": {}}), (metrics.WORKER_ENDS, ("exit_code",))),
        (CommandFailed({"reason": "<b>", "execution": {}}), (metrics.WORKER_ENDS, ("worker_error",))),
        (ZeroDivisionError(), (metrics.WORKER_ENDS, ("worker_error",))),
        (Ignore(), (metrics.WORKER_DROPPED, ())),
        (Reject(), (metrics.WORKER_RETURNED, ())),
    ],
)
def test_a_worker_counts_each_end_once(error, counted):
    telemetry = Telemetry()
    WorkerMeasures(telemetry).ended(error, time.time() - 3)
    numbers = {(f.metric, labels): value for f in telemetry.read() for labels, value in f.numbers if value}
    assert numbers == {counted: 1}
    times = [d for f in telemetry.read() for _, d in f.distributions]
    assert [distribution.number for distribution in times] == ([1] if counted[0] is metrics.WORKER_ENDS else [])


def test_the_short_way_to_a_new_trace_gives_the_ids_of_the_task():
    context = parse_traceparent(new_trace("a-task-id"))
    assert context is not None
    assert (context.trace, context.span) == ids_of_task("a-task-id", None)
    assert context.is_sampled


def test_tasks_that_are_taken_over_are_counted_as_accepted():
    site = Site()
    site.executor.adopt_tasks([Task(key="a", command="true", queue="gpu")], State.RUNNING)
    assert site.numbers(metrics.TASKS_QUEUED) == {("gpu",): 1}
    assert site.numbers(metrics.TASKS_RUNNING) == {("gpu",): 1}


class Traces:
    """A sink of traces, outside of any trace."""

    def caller(self) -> dict[str, str]:
        return {}

    def variables(self, task_id: str, environment: Mapping[str, str]) -> None:
        """Leave them to the worker."""


def test_an_ended_task_has_each_step_and_each_attempt():
    site = Site(parallelism=1)
    site.executor.telemetry.keep_ended_tasks(Traces())
    parent = "00-" + "1" * 32 + "-" + "2" * 16 + "-01"
    task = site.executor.queue_command(
        "k", "true", queue="gpu", retries=1, retry_delay=0.0, env={"TRACEPARENT": parent}, priority=1
    )
    site.executor.reprioritise("k", 2)
    arrived = site.clock()
    site.clock.advance(1)
    site.executor.heartbeat()
    site.clock.advance(1)
    site.end("k", State.FAILED, reason=Reason.EXIT_CODE, duration=0.5)
    site.clock.advance(1)
    site.executor.heartbeat()
    site.clock.advance(1)
    site.end("k")
    (ended,) = site.executor.telemetry.take_ended_tasks()
    assert (ended.name, ended.id, ended.parent, ended.queue, ended.arrived) == ("k", task.id, parent, "gpu", arrived)
    assert [(step.state, step.attempt, step.when - arrived) for step in ended.steps] == [
        ("publishing", 1, 1.0),
        ("queued", 1, 1.0),
        ("waiting", 1, 2.0),
        ("publishing", 2, 3.0),
        ("queued", 2, 3.0),
        ("success", 2, 4.0),
    ]
    failed, last = ended.steps[2], ended.steps[-1]
    assert (failed.reason, failed.started, last.reason, last.started) == ("exit_code", arrived + 1.5, None, arrived + 2)


def test_of_many_attempts_the_first_and_the_last_sends_are_kept(monkeypatch):
    monkeypatch.setattr("celeriac.executor.history.MAX_EVENTS", 3)
    site = Site(parallelism=1)
    site.executor.telemetry.keep_ended_tasks(Traces())
    site.executor.queue_command("k", "true", retries=6, retry_delay=0.0)
    for _ in range(7):
        site.executor.heartbeat()
        site.end("k", State.FAILED, reason=Reason.EXIT_CODE)
    (ended,) = site.executor.telemetry.take_ended_tasks()
    assert [step.attempt for step in ended.steps if step.state == "publishing"] == [1, 5, 6, 7]


def test_unconfirmed_tasks_are_counted_once():
    site = Site()
    site.broker.leave_unsure("k", delivered=False)
    site.executor.queue_command("k", "true", queue="gpu")
    for _ in range(3):
        site.executor.heartbeat()
        site.clock.advance(60)
    assert site.numbers(metrics.PUBLISH_UNCONFIRMED) == {("gpu",): 1}


def test_heartbeats_and_batches_are_timed():
    site = Site()
    assert site.numbers(metrics.OLDEST_WAITING) == {(): 0.0}
    site.executor.telemetry.keep_observations()
    site.executor.queue_command("k", "true")
    site.executor.heartbeat()
    assert (site.observed(metrics.HEARTBEAT_SECONDS).number, site.observed(metrics.HEARTBEAT_SECONDS).total) == (1, 0.0)
    assert site.observed(metrics.PUBLISH_SECONDS).number == 1
    observed = [metric for metric, _, _ in site.executor.telemetry.take_observations()]
    assert observed == [metrics.PUBLISH_SECONDS, metrics.WAIT_SECONDS, metrics.SYNC_SECONDS, metrics.HEARTBEAT_SECONDS]


def test_the_age_of_the_oldest_waiting_task_begins_with_its_arrival():
    site = Site()
    site.executor.queue_command("k", "true")
    assert site.numbers(metrics.OLDEST_WAITING) == {(): 0.0}
    site.clock.advance(0.5)
    assert site.numbers(metrics.OLDEST_WAITING) == {(): 0.5}


def test_of_many_tasks_that_are_revoked_together_only_the_last_have_a_trace(monkeypatch):
    monkeypatch.setattr("celeriac.executor.lifecycle.MAX_ENDED", 1)
    site = Site()
    site.executor.telemetry.keep_ended_tasks(Traces())
    for key in ("first", "last"):
        site.executor.queue_command(key, "true")
    site.executor.terminate()
    assert [ended.name for ended in site.executor.telemetry.take_ended_tasks()] == ["last"]
