"""Unit tests of the small parts of the executor that decide without I/O: with a detector and a clock of the test."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from random import Random
from typing import Any

import pytest
from msgspec.structs import replace

from celeriac.config.executor_config import Config
from celeriac.executor import history as history_module
from celeriac.executor.circuit_breaker import CircuitBreaker
from celeriac.executor.deadlines import Deadlines, describe_overdue, is_overdue
from celeriac.executor.event_buffer import EventBuffer
from celeriac.executor.event_reader import ends_attempt
from celeriac.executor.history import History, without_output
from celeriac.executor.interfaces import LostTask
from celeriac.executor.limit import Limit
from celeriac.executor.lost_task_schedule import DELAY_AFTER_OUTAGE, LostTaskSchedule
from celeriac.executor.pauses import Pause, Pauses
from celeriac.executor.priority_queue import Entry
from celeriac.executor.publish_retries import PublishRetries
from celeriac.executor.requests import CancelRequest, ExplainRequest, WaitReason, wait_of
from celeriac.executor.stats import format_thread
from celeriac.executor.stored_status import ended_status, in_milliseconds
from celeriac.executor.thread_health import ThreadHealth
from celeriac.executor.traced import with_caller, with_variables
from celeriac.executor.tracker import Tracked
from celeriac.ledger.owned_run import RunKey
from celeriac.task.event import Event
from celeriac.task.result import Execution, Output, Reason
from celeriac.task.state import State
from celeriac.task.task import Task
from celeriac.telemetry.trace_context import TRACEPARENT

INTERVAL = 30.0  # seconds between two regular scans
LONG_AGO = 1_000_000_000.0  # seconds since the epoch


class NoJitter(Random):
    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


def task_of(key: str, **fields: Any) -> Task:
    return Task(key=key, command="true", id=key, **fields)


def event_of(key: str, state: State, **fields: Any) -> Event:
    return Event(**{"key": key, "state": state, "when": 0.0, "id": key, "attempt": 1, **fields})


# — lost tasks —


class Detector:
    """A `LostTaskDetector` that records the scans."""

    is_scanning = has_news = False

    def __init__(self) -> None:
        self.scans: list[tuple[list[object], float, bool]] = []
        self.lost = [LostTask("x", "it is gone", was_claimed=False)]

    def scan(self, tasks: Iterable[Task], *, requested_at: float, urgent: bool = False) -> None:
        self.scans.append(([task.key for task in tasks], requested_at, urgent))

    def take_lost(self) -> Collection[LostTask]:
        return self.lost

    def is_held(self, message_id: str) -> bool:
        return message_id == "held"


def tracked(key: str, state: State, moved_at: float) -> Tracked:
    return Tracked(entry=Entry(0, 0, 0, task_of(key)), next_look_after=1.0, state=state, moved_at=moved_at)


@pytest.fixture
def detector() -> Detector:
    return Detector()


@pytest.fixture
def schedule(detector: Detector) -> LostTaskSchedule:
    return LostTaskSchedule(detector, INTERVAL)


def test_a_regular_scan_covers_the_sent_tasks_that_have_not_changed_for_an_interval(schedule, detector):
    in_flight = [
        tracked("queued", State.QUEUED, 100.0),
        tracked("running", State.RUNNING, 90.0),
        tracked("being sent", State.PUBLISHING, 90.0),
        tracked("changed", State.RUNNING, 100.5),
    ]
    assert schedule.poll(in_flight, 100.0 + INTERVAL) == detector.lost
    assert detector.scans == [(["queued", "running"], 100.0 + INTERVAL, False)]
    assert schedule.due == 100.0 + 2 * INTERVAL
    assert schedule.poll(in_flight, 99.0 + 2 * INTERVAL) == detector.lost
    assert len(detector.scans) == 1
    schedule.poll(in_flight, 100.0 + 2 * INTERVAL)
    assert detector.scans[1:] == [(["queued", "running", "changed"], 100.0 + 2 * INTERVAL, False)]


def test_no_scan_begins_while_one_is_under_way_unless_there_is_news(schedule, detector):
    detector.is_scanning = True
    assert schedule.due == float("inf")
    schedule.poll([], 100.0)
    assert detector.scans == []
    detector.has_news = True
    schedule.poll([tracked("new", State.QUEUED, 101.0)], 101.0)
    assert detector.scans == [(["new"], 101.0, False)]


def test_all_tasks_are_searched_for_once_after_an_outage_and_at_once_after_a_restart(schedule, detector):
    in_flight = [tracked("new", State.QUEUED, 100.0)]
    schedule.after_outage(100.0)
    assert schedule.due == 100.0 + DELAY_AFTER_OUTAGE
    schedule.poll(in_flight, 100.0 + DELAY_AFTER_OUTAGE)
    assert detector.scans == [(["new"], 100.0 + DELAY_AFTER_OUTAGE, False)]
    schedule.scan_now(102.0)
    assert schedule.due == 102.0
    schedule.poll(in_flight, 102.0)
    schedule.poll(in_flight, 102.0 + INTERVAL - 3.0)
    schedule.poll([tracked("newer", State.QUEUED, 102.0 + INTERVAL)], 102.0 + INTERVAL)
    assert detector.scans[1:] == [(["new"], 102.0, True), ([], 102.0 + INTERVAL, False)]
    assert [schedule.is_held(message_id) for message_id in ("held", "another")] == [True, False]


# — the events of a task —


def kept(history: History, *keys: str) -> list[str]:
    return [key for key in keys if history.of(key) is not None]


def end(history: History, key: str) -> None:
    history.begin(Entry(0, 0, 0, task_of(key)))
    history.record(event_of(key, State.SUCCESS))


def test_a_task_that_ends_again_counts_as_the_one_that_ended_last(monkeypatch):
    monkeypatch.setattr(history_module, "MAX_ENDED", 2)
    history = History()
    for key in ("a", "b", "a", "c"):
        end(history, key)
    assert (kept(history, "a", "b", "c"), list(history)) == (["a", "c"], ["a", "c"])


def test_a_history_begins_with_the_first_attempt_and_goes_on_with_the_next():
    history = History()
    history.record(event_of("unknown", State.QUEUED))
    for arrived in (1.0, 2.0):
        history.begin(Entry(0, 0, 0, task_of("k", queue="q", priority=3), arrived=arrived))
    history.record(event_of("k", State.QUEUED))
    active = history.of_active("k")
    assert active is not None
    assert (active.queue, active.priority, active.arrived, active.has_ended) == ("q", 3, 1.0, False)
    history.record(event_of("k", State.FAILED))
    assert active.has_ended
    assert (history.of_active("k"), history.of("k"), history.of("unknown")) == (None, active, None)


def test_the_first_and_the_last_sends_of_a_task_are_kept(monkeypatch):
    monkeypatch.setattr(history_module, "MAX_EVENTS", 2)
    history = History()
    entry = Entry(0, 0, 0, task_of("k"))
    history.begin(entry)
    kept_sends = []
    for when in (1.0, 2.0, 3.0, 4.0):
        history.note_send(entry, when)
        active = history.of_active("k")
        assert active is not None
        kept_sends.append([sent_at for sent_at, _ in active.sends])
    assert kept_sends == [[1.0], [1.0, 2.0], [1.0, 2.0, 3.0], [1.0, 3.0, 4.0]]


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_history_keeps_no_output(stream):
    plain_execution = Execution(host="h", exit_code=3)
    execution = replace(plain_execution, **{stream: Output(size=1, tail="x")})
    event = event_of("k", State.FAILED, execution=execution)
    assert without_output(event).execution == plain_execution
    plain = without_output(event)
    assert without_output(plain) is plain


# — events —


def test_events_that_were_not_used_come_first_again():
    buffer = EventBuffer()
    events = [event_of(key, State.QUEUED) for key in "abcd"]
    buffer.put(events[2])
    buffer.extend([events[3]])
    buffer.put_back(events[:2])
    assert (len(buffer), buffer.drain()) == (4, events)


@pytest.mark.parametrize(
    ("state", "reason", "ends"),
    [
        (State.SUCCESS, None, True),
        (State.FAILED, Reason.PUBLISH_ERROR, True),
        (State.SKIPPED, None, False),
        (State.WAITING, Reason.EXIT_CODE, True),
        (State.WAITING, Reason.PUBLISH_ERROR, False),
        (State.RUNNING, None, False),
    ],
)
def test_the_id_of_an_attempt_is_free_once_it_has_ended(state, reason, ends):
    assert ends_attempt(event_of("k", state, reason=reason)) is ends


# — failures to send —


def test_a_broker_that_fails_pauses_all_sending_until_something_was_sent():
    retries = PublishRetries(Config(publish_backoff=2, publish_backoff_max=60), NoJitter())
    assert (retries.is_broker_failing, retries.paused(0.0)) == (False, False)
    retries.pause(10.0)
    assert (retries.is_broker_failing, retries.resume_at) == (True, 12.0)
    retries.resume(12.0)
    assert not retries.is_broker_failing


def test_the_delays_of_a_task_that_cannot_be_sent_grow_and_begin_again_once_it_was_sent():
    retries = PublishRetries(Config(publish_backoff=2, publish_backoff_max=7), NoJitter())
    assert [retries.failed("k", now=0.0) for _ in range(4)] == [2, 4, 7, 7]
    assert (retries.failed("another", now=0.0), retries.counts) == (2, {"k": 4, "another": 1})
    retries.forget("k")
    retries.forget("unknown")
    assert (retries.failed("k", now=0.0), retries.counts) == (2, {"another": 1, "k": 1})


def test_without_a_longest_delay_all_delays_are_the_same():
    breaker = CircuitBreaker("it", first_delay=2.0, random=NoJitter())
    assert breaker.delay == 0
    for now in (0.0, 2.0, 4.0):
        breaker.record_failure(now, "refused")
        assert (breaker.delay, breaker.retry_at) == (2.0, now + 2.0)
    assert breaker.allows(6.0)
    breaker.record_success(6.0)
    assert (breaker.delay, breaker.failures, breaker.allows(0.0)) == (0, 0, True)


# — deadlines —


def test_deadlines_pass_in_their_order_and_once():
    deadlines = Deadlines()
    for key, after in (("c", 30.0), ("a", 10.0), ("b", 20.0), ("a", 10.0)):
        deadlines.watch(task_of(key, deadline=LONG_AGO + after))
    deadlines.watch(task_of("none"))
    assert (deadlines.first, deadlines.take_passed(LONG_AGO + 9.0)) == (LONG_AGO + 10.0, [])
    assert (deadlines.take_passed(LONG_AGO + 20.0), deadlines.first) == (["a", "b"], LONG_AGO + 30.0)
    assert (deadlines.take_passed(LONG_AGO + 99.0), deadlines.first) == (["c"], None)
    assert deadlines.take_passed(LONG_AGO + 99.0) == []


def test_a_task_is_overdue_from_its_deadline_on():
    task = task_of("k", deadline=LONG_AGO)
    assert [is_overdue(task, LONG_AGO + after) for after in (-1.0, 0.0, 1.0)] == [False, True, True]
    assert not is_overdue(task_of("k"), 1e12)
    assert describe_overdue(task).startswith("it had not started by its deadline, ")
    assert describe_overdue(task_of("k", attempt=2)) == "attempt 2 had not started by its deadline"


# — pauses —


def test_the_widest_pause_is_the_one_that_is_named():
    whole, backlog, of_queue, of_run, of_both = (Pause(name, 1.0) for name in ("ada", "journal", "bob", "cid", "dan"))
    task, other = task_of("k", queue="q"), task_of("k", queue="other")
    in_run = Task(key=RunKey("one", "k"), command="true", queue="q")
    pauses = Pauses(runs={"one": {"": of_run, "q": of_both}})
    assert (pauses.of(task), pauses.of(in_run), pauses.words()) == (None, ("the run", of_run), "")
    pauses.runs = {"one": {"q": of_both}}
    assert pauses.of(in_run) == ("queue 'q' of the run", of_both)
    assert pauses.of_run(Task(key=RunKey("one", "k"), command="true", queue="other")) is None
    assert pauses.of_run(Task(key=RunKey("two", "k"), command="true", queue="q")) is None
    pauses.queues["q"] = of_queue
    assert (pauses.of(task), pauses.of(other), pauses.of(in_run)) == (
        ("queue 'q'", of_queue),
        None,
        ("queue 'q'", of_queue),
    )
    assert pauses.words() == "queue 'q' paused"
    pauses.queues["r"] = of_queue
    assert pauses.words() == "queues 'q', 'r' paused"
    pauses.backlog = backlog
    assert pauses.of(other) == ("the run", backlog)
    pauses.whole = whole
    assert (pauses.of(other), pauses.words()) == (("the run", whole), "paused by ada")


# — for people —


def test_a_limit_is_named_as_it_was_given():
    limits = [Limit("queue-rate:gpu", 5, 60.0), Limit("rate:api:v2", 2, 1.0), Limit("key:db", 3, 3600.0)]
    assert [limit.subject for limit in limits] == ["queue 'gpu'", "key 'api:v2'", "key 'db'"]
    assert [limit.rate for limit in limits] == ["5/m", "2/s", "3/h"]


def test_a_thread_is_described_with_its_errors():
    healthy = ThreadHealth(name="t", is_alive=True, round_age=1.25, unexpected_errors=0, last_error=None)
    dead = ThreadHealth(name="u", is_alive=False, round_age=9.0, unexpected_errors=2, last_error="LookupError: a bug")
    assert format_thread(healthy) == "thread t: round of 1.2 s"
    assert format_thread(dead) == "thread u: not running, unexpected errors: 2, the last one: LookupError: a bug"


def test_an_end_is_described_with_its_detail():
    assert ended_status(State.FAILED, "exit code 3").words == "ended: failed: exit code 3"
    status = ended_status(State.SUCCESS, None)
    assert (status.words, status.waits_for) == ("ended: success", WaitReason.NOTHING)
    assert in_milliseconds(1e9 + 0.25).endswith(":40.250")
    assert " " in in_milliseconds(1e9)


def test_only_a_request_to_cancel_waits():
    assert [wait_of(request) for request in (CancelRequest(wait=5.0), ExplainRequest(name="k"))] == [5.0, 0.0]


# — traces —


class Traces:
    """A sink of traces whose caller is in a span."""

    def caller(self) -> Mapping[str, str]:
        return {TRACEPARENT: "theirs"}

    def variables(self, task_id: str, environment: Mapping[str, str]) -> None:
        return None


def test_a_task_gets_the_variables_of_a_trace_unless_it_has_its_own():
    plain, own = task_of("k", env={"A": "1"}), task_of("k", env={TRACEPARENT: "mine"})
    assert with_variables(plain, {}) is plain
    assert with_variables(own, {TRACEPARENT: "theirs"}) is own
    assert with_variables(plain, {TRACEPARENT: "theirs"}).env == {"A": "1", TRACEPARENT: "theirs"}
    assert with_caller(plain, Traces()).env == {"A": "1", TRACEPARENT: "theirs"}
