"""Test how the executor handles lost tasks: in memory, with a detector that reports what the test sets."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import pytest

from celeriac import CeleryExecutor, Config, Event, Execution, Reason, Result, State
from celeriac.errors import SentBefore
from celeriac.executor.executor import MAX_WAIT
from celeriac.executor.interfaces import LostTask, UnfinishedTask, Unreadable
from celeriac.executor.lost_task_schedule import DELAY_AFTER_OUTAGE
from celeriac.task.task import Task
from celeriac.testing import InMemoryBroker, ManualClock

DETAIL = "worker w1@h (pid 7) is dead, last heartbeat 10.2 s ago"


class ScriptedDetector:
    """A `LostTaskDetector` that finds the tasks given to `report`."""

    is_scanning = False
    has_news = False

    def __init__(self) -> None:
        self.scans: list[list[str]] = []
        self.urgent_scans = 0
        self.held: set[str] = set()
        self._lost: list[LostTask] = []

    def report(self, *lost_tasks: LostTask) -> None:
        self._lost += lost_tasks

    def scan(self, tasks: Iterable[Task], *, requested_at: float, urgent: bool = False) -> None:
        self.has_news = False
        self.urgent_scans += urgent
        self.scans.append(sorted(str(task.key) for task in tasks))

    def take_lost(self) -> Collection[LostTask]:
        lost, self._lost = self._lost, []
        return lost

    def is_held(self, message_id: str) -> bool:
        return message_id in self.held


class Harness:
    """An executor with an in-memory broker and a scripted detector."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.broker = InMemoryBroker(self.clock)
        self.broker.obeys_revokes = False
        self.detector = ScriptedDetector()
        self.use(Config(parallelism=4))

    def use(self, config: Config) -> None:
        """Go on with an executor that has this configuration."""
        self.executor = CeleryExecutor(
            config,
            publisher=self.broker,
            results=self.broker,
            revoker=self.broker,
            lost_task_detector=self.detector,
            clock=self.clock,
            wall_clock=self.clock,
        )

    def queue(self, key: str, *, starts: bool = True, **fields: object) -> None:
        self.executor.queue_command(key, "true", **fields)  # type: ignore[arg-type]
        self.executor.heartbeat()
        if starts:
            self.broker.start(key)
            self.executor.heartbeat()
        self.executor.get_event_buffer()

    def lose(self, key: str, *, was_claimed: bool = True) -> list[Event]:
        """Report the task as lost. Return the events of the next two heartbeats."""
        message_id = self.broker.message(key).message_id
        self.detector.report(LostTask(message_id, DETAIL, was_claimed=was_claimed, host="h" if was_claimed else None))
        self.executor.heartbeat()
        self.executor.heartbeat()
        return self.executor.get_event_buffer()


@pytest.fixture
def harness() -> Harness:
    return Harness()


def test_a_lost_task_is_retried_at_once_and_its_event_names_host_and_duration(harness):
    harness.queue("k")
    harness.clock.advance(12)
    lost, queued = harness.lose("k")
    assert (lost.state, lost.reason, lost.attempt, lost.retry_in) == (State.WAITING, Reason.LOST, 1, 0.0)
    assert lost.detail == f"{DETAIL}; it had run for 12.0 s"
    assert lost.execution == Execution(host="h", duration=12.0)
    assert (queued.state, queued.attempt, queued.id) == (State.QUEUED, 2, f"{harness.broker.messages[0].id}.2")


def test_a_lost_worker_uses_up_no_retry(harness):
    harness.queue("k", retries=1, retry_delay=0)
    harness.lose("k")
    harness.broker.fail("k")
    harness.executor.heartbeat()
    harness.executor.heartbeat()
    assert harness.broker.message("k").attempt == 3
    harness.broker.fail("k")
    harness.executor.heartbeat()
    assert harness.executor.get_event_buffer()[-1].reason is Reason.EXIT_CODE


def test_on_worker_lost_fail_ends_the_task(harness):
    harness.queue("k", on_worker_lost="fail", retries=3)
    (event,) = harness.lose("k")
    assert (event.state, event.reason) == (State.FAILED, Reason.LOST)
    assert event.execution is not None


def test_a_task_ends_as_poison_after_max_lost_workers(harness):
    harness.queue("k", max_lost=3)
    for attempt in (1, 2):
        assert [event.state for event in harness.lose("k")] == [State.WAITING, State.QUEUED]
        assert harness.broker.message("k").attempt == attempt + 1
        harness.broker.start("k")
        harness.executor.heartbeat()
        harness.executor.get_event_buffer()
    (event,) = harness.lose("k")
    assert (event.state, event.reason, event.attempt) == (State.FAILED, Reason.POISON, 3)
    assert event.detail is not None
    assert event.detail.startswith(f"gave up after 3 lost workers; the task may be crashing them (last: {DETAIL}")


def test_a_claimed_task_is_lost_even_if_its_start_was_not_reported(harness):
    harness.queue("k", starts=False)
    lost, _ = harness.lose("k")
    assert (lost.reason, lost.detail) == (Reason.LOST, DETAIL)


def test_an_unclaimed_lost_task_is_resent_under_the_same_id(harness, caplog):
    harness.queue("k", starts=False)
    states = [(event.state, event.reason) for event in harness.lose("k", was_claimed=False)]
    assert states == [(State.PUBLISHING, Reason.LOST), (State.QUEUED, None)]
    assert [task.message_id for task in harness.broker.messages] == [harness.broker.messages[0].message_id] * 2
    assert caplog.messages == ["re-sent 1 tasks that neither the broker nor a worker has: 'k'"]


def test_a_lost_task_that_has_started_meanwhile_goes_on_without_a_second_message(harness):
    harness.queue("k", starts=False)
    harness.broker.refuse("k", transient=False, error=SentBefore("it has started"))
    assert [event.state for event in harness.lose("k", was_claimed=False)][-1] is State.QUEUED
    harness.broker.heal()
    harness.broker.succeed("k")
    harness.executor.heartbeat()
    assert [event.state for event in harness.executor.get_event_buffer()] == [State.SUCCESS]
    assert len(harness.broker.messages) == 1


def test_a_task_that_no_receipt_has_confirmed_is_not_lost(harness):
    harness.broker.leave_unsure("k", delivered=True)
    harness.queue("k", starts=False)
    assert harness.lose("k", was_claimed=False) == []


def test_a_late_result_of_a_lost_attempt_is_ignored_and_counted(harness):
    harness.queue("k")
    first = harness.broker.message("k").message_id
    harness.lose("k")
    harness.broker.put(first, Result(State.SUCCESS))
    harness.executor.heartbeat()
    assert harness.executor.get_event_buffer() == []
    assert harness.executor.stats().results_ignored == 1
    assert harness.broker.forgotten[-1] == first
    harness.broker.succeed("k")
    harness.executor.heartbeat()
    (event,) = harness.executor.get_event_buffer()
    assert (event.state, event.attempt) == (State.SUCCESS, 2)


def test_a_lost_task_with_a_stored_result_ends_with_that_result(harness):
    harness.queue("k")
    harness.broker.put(harness.broker.message("k").message_id, Result(State.SUCCESS), hint=False)
    (event,) = harness.lose("k")
    assert event.state is State.SUCCESS


def test_lost_tasks_wait_while_the_result_backend_is_unavailable(harness):
    harness.queue("k")
    harness.broker.answered = False
    assert harness.lose("k") == []
    harness.broker.answered = True
    harness.executor.heartbeat()
    assert harness.executor.get_event_buffer()[0].reason is Reason.LOST


def test_a_revoked_task_of_a_lost_worker_ends_as_revoked(harness):
    harness.queue("k")
    harness.executor.revoke_task("k")
    (event,) = harness.lose("k")
    assert (event.state, event.detail) == (State.REVOKED, DETAIL)
    assert harness.executor.tasks_in_flight == 0


def test_a_result_with_reason_lost_counts_as_a_lost_worker(harness):
    harness.queue("k", max_lost=2)
    harness.broker.put(harness.broker.message("k").message_id, Result(State.FAILED, Reason.LOST, "its worker exited"))
    harness.executor.heartbeat()
    assert harness.executor.get_event_buffer()[0].state is State.WAITING
    harness.executor.heartbeat()
    harness.broker.put(harness.broker.message("k").message_id, Result(State.FAILED, Reason.LOST, "its worker exited"))
    harness.executor.heartbeat()
    assert harness.executor.get_event_buffer()[-1].reason is Reason.POISON


def test_news_of_the_detector_starts_a_scan_of_all_tasks_in_flight(harness):
    harness.queue("old")
    harness.clock.advance(31)
    harness.executor.heartbeat()
    harness.queue("new")
    scans_before = len(harness.detector.scans)
    harness.executor.heartbeat()
    assert len(harness.detector.scans) == scans_before
    harness.detector.has_news = True
    harness.executor.heartbeat()
    assert harness.detector.scans[scans_before:] == [["new", "old"]]


def test_a_task_that_started_after_the_scan_was_requested_is_not_lost(harness):
    """During the scan it was on its way from the broker to a worker."""
    harness.queue("k", starts=False)
    requested_at = harness.clock()
    harness.clock.advance(1)
    harness.broker.start("k")
    harness.detector.report(LostTask(harness.broker.message("k").message_id, DETAIL, requested_at=requested_at))
    harness.executor.heartbeat()
    harness.executor.heartbeat()
    assert [event.state for event in harness.executor.get_event_buffer()] == [State.RUNNING]


def test_a_task_that_started_before_the_scan_was_requested_is_lost(harness):
    harness.queue("k")
    harness.detector.report(LostTask(harness.broker.message("k").message_id, DETAIL, requested_at=harness.clock()))
    harness.executor.heartbeat()
    assert harness.executor.get_event_buffer()[0].reason is Reason.LOST


def test_the_event_of_a_lost_adopted_task_has_no_duration(harness):
    task = Task(key="k", command="true")
    harness.executor.adopt_tasks([task], State.RUNNING)
    harness.executor.get_event_buffer()
    harness.detector.report(LostTask(task.message_id, DETAIL, was_claimed=True, host="h"))
    harness.executor.heartbeat()
    lost = harness.executor.get_event_buffer()[0]
    assert (lost.reason, lost.detail, lost.execution) == (Reason.LOST, DETAIL, Execution(host="h"))


def test_an_executor_waits_while_a_scan_outlasts_its_interval(harness):
    """An outage can make a scan last for hours. The next scan is overdue all that time."""
    harness.queue("k")
    harness.detector.is_scanning = True
    harness.clock.advance(Config().search_interval + 1)
    harness.executor.heartbeat()
    before = harness.clock()
    harness.executor.wait(0.2)
    assert harness.clock() - before == pytest.approx(0.2)


def test_a_task_with_an_unreadable_result_goes_on_while_a_worker_has_it(harness):
    harness.queue("a")
    message_id = harness.broker.message("a").message_id
    harness.detector.held.add(message_id)
    harness.broker.put(message_id, Unreadable(ValueError("garbage")))
    for _ in range(10):
        harness.clock.now += 60
        harness.executor.sync()
    assert harness.executor.has_task("a")
    harness.broker.succeed("a")
    harness.executor.sync()
    assert harness.executor.get_event_buffer()[-1].state is State.SUCCESS
    assert harness.executor.slots_occupied == 0


def test_a_task_with_an_unreadable_result_ends_when_no_worker_has_it(harness):
    harness.queue("a")
    message_id = harness.broker.message("a").message_id
    harness.detector.held.add(message_id)
    harness.broker.put(message_id, Unreadable(ValueError("garbage")))
    harness.executor.sync()
    harness.detector.held.clear()
    for _ in range(2):
        harness.clock.now += 120
        harness.executor.sync()
    end = harness.executor.get_event_buffer()[-1]
    assert (end.state, end.reason) == (State.FAILED, Reason.LOST)
    assert end.detail == "its result cannot be read: ValueError: garbage"
    assert harness.executor.slots_occupied == 0


def test_a_regular_scan_leaves_out_tasks_that_have_changed_since_or_were_not_sent(harness):
    half = Config().search_interval / 2
    harness.queue("old")
    harness.clock.advance(half)
    harness.broker.leave_unsure("unsent", delivered=False)
    harness.executor.queue_command("unsent", "true")
    harness.queue("new")
    harness.detector.scans.clear()
    harness.clock.advance(half)
    harness.executor.heartbeat()
    assert harness.detector.scans == [["old"]]


def test_all_tasks_are_searched_for_after_a_gap_in_the_pushed_changes(harness):
    harness.broker.pushes = True
    harness.queue("k")
    harness.detector.scans.clear()
    harness.broker.pushes = False
    harness.executor.heartbeat()
    harness.clock.advance(DELAY_AFTER_OUTAGE)
    harness.executor.heartbeat()
    assert harness.detector.scans == [["k"]]


def test_all_tasks_are_searched_for_after_an_outage_of_the_broker(harness):
    """Expect that it may have lost messages: the regular search leaves out tasks that were sent just before."""
    harness.queue("k", starts=False)
    harness.broker.refuse()
    harness.executor.queue_command("other", "true")
    harness.executor.heartbeat()
    harness.detector.scans.clear()
    harness.broker.heal()
    harness.clock.advance(10)
    harness.executor.heartbeat()
    harness.clock.advance(DELAY_AFTER_OUTAGE)
    harness.executor.heartbeat()
    assert harness.detector.scans == [["k", "other"]]
    harness.queue("after", starts=False)
    harness.clock.advance(DELAY_AFTER_OUTAGE)
    harness.executor.heartbeat()
    assert len(harness.detector.scans) == 1


def test_an_idle_executor_is_not_woken_by_scans(harness):
    harness.executor.heartbeat()
    began = harness.clock.now
    harness.executor.wait(2 * Config().search_interval)
    assert harness.clock.now == began + min(MAX_WAIT, 2 * Config().search_interval)


def test_a_task_that_was_about_to_be_sent_is_searched_for_before_it_is_sent(harness):
    unfinished = UnfinishedTask(Task(key="k", command="true"), State.PUBLISHING, 1.0)
    harness.executor.recovery.resume([unfinished])
    harness.executor.heartbeat()
    assert (harness.detector.scans, harness.broker.messages) == ([["k"]], [])
    harness.detector.report(LostTask(unfinished.task.message_id, DETAIL))
    harness.executor.heartbeat()
    harness.executor.heartbeat()
    assert [task.message_id for task in harness.broker.messages] == [unfinished.task.message_id]


def test_tasks_that_are_taken_over_are_searched_for_at_once(harness):
    harness.executor.heartbeat()
    harness.detector.scans.clear()
    harness.executor.recovery.resume([UnfinishedTask(Task(key="k", command="true"), State.QUEUED, 1.0)])
    harness.executor.queue_command("own", "true")
    harness.executor.heartbeat()
    harness.executor.heartbeat()
    assert (harness.detector.scans, harness.detector.urgent_scans) == ([["k", "own"]], 1)
