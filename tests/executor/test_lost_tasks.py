"""What becomes of a task whose worker is lost: the executor over in-memory doors, and a `Whereabouts` that says what it
is told to say."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import pytest

from celeriac import CeleryExecutor, Config, Event, Execution, Reason, Result, State
from celeriac.executor.interfaces import LostTask
from celeriac.task.task import Task
from celeriac.testing import InMemoryBroker, ManualClock

GONE = "worker w1@h (pid 7) is gone, last heard 10.2 s ago"


class Told:
    """A `Whereabouts`."""

    is_scanning = False
    has_news = False

    def __init__(self) -> None:
        self.searches: list[list[str]] = []
        self._missing: list[LostTask] = []

    def say(self, *missing: LostTask) -> None:
        self._missing += missing

    def scan(self, tasks: Iterable[Task], *, requested_at: float, urgent: bool = False) -> None:
        self.has_news = False
        self.searches.append(sorted(str(task.key) for task in tasks))

    def take_lost(self) -> Collection[LostTask]:
        said, self._missing = self._missing, []
        return said


class Place:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.broker = InMemoryBroker(self.clock)
        self.broker.obeys_revokes = False
        self.whereabouts = Told()
        self.executor = CeleryExecutor(
            Config(parallelism=4),
            publisher=self.broker,
            results=self.broker,
            revoker=self.broker,
            lost_task_detector=self.whereabouts,
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
        """Its worker is gone; the events of the next heartbeats."""
        message_id = self.broker.message(key).message_id
        self.whereabouts.say(LostTask(message_id, GONE, was_claimed=was_claimed, host="h" if was_claimed else None))
        self.executor.heartbeat()
        self.executor.heartbeat()
        return self.executor.get_event_buffer()


@pytest.fixture
def place() -> Place:
    return Place()


def test_it_runs_again_at_once_as_its_next_attempt_and_the_event_says_where_it_was_lost_and_after_how_long(place):
    place.queue("k")
    place.clock.advance(12)
    lost, queued = place.lose("k")
    assert (lost.state, lost.reason, lost.attempt, lost.retry_in) == (State.WAITING, Reason.LOST, 1, 0.0)
    assert lost.detail == f"{GONE}; it had run for 12.0 s"
    assert lost.execution == Execution(host="h", duration=12.0)
    assert (queued.state, queued.attempt, queued.id) == (State.QUEUED, 2, f"{place.broker.messages[0].id}.2")


def test_no_retry_of_its_own_is_used_up(place):
    place.queue("k", retries=1, retry_delay=0)
    place.lose("k")
    place.broker.fail("k")
    place.executor.heartbeat()
    place.executor.heartbeat()
    assert place.broker.message("k").attempt == 3
    place.broker.fail("k")
    place.executor.heartbeat()
    assert place.executor.get_event_buffer()[-1].reason is Reason.EXIT_CODE


def test_a_task_may_ask_to_fail_instead(place):
    place.queue("k", on_worker_lost="fail", retries=3)
    (event,) = place.lose("k")
    assert (event.state, event.reason) == (State.FAILED, Reason.LOST)
    assert event.execution is not None


def test_a_task_that_loses_one_worker_after_another_ends_as_poison(place):
    place.queue("k", max_lost=3)
    for attempt in (1, 2):
        assert [event.state for event in place.lose("k")] == [State.WAITING, State.QUEUED]
        assert place.broker.message("k").attempt == attempt + 1
        place.broker.start("k")
        place.executor.heartbeat()
        place.executor.get_event_buffer()
    (event,) = place.lose("k")
    assert (event.state, event.reason, event.attempt) == (State.FAILED, Reason.POISON, 3)
    assert event.detail is not None
    assert event.detail.startswith(f"gave up after 3 lost workers; the task may be crashing them (last: {GONE}")


def test_what_was_claimed_and_not_seen_to_start_is_lost_too(place):
    place.queue("k", starts=False)
    lost, _ = place.lose("k")
    assert (lost.reason, lost.detail) == (Reason.LOST, GONE)


def test_what_nobody_had_claimed_is_sent_again_under_the_same_id(place):
    place.queue("k", starts=False)
    states = [(event.state, event.reason) for event in place.lose("k", was_claimed=False)]
    assert states == [(State.PUBLISHING, Reason.LOST), (State.QUEUED, None)]
    assert [task.message_id for task in place.broker.messages] == [place.broker.messages[0].message_id] * 2


def test_what_ended_after_all_is_ignored_and_counted_once_the_next_attempt_is_under_way(place):
    place.queue("k")
    first = place.broker.message("k").message_id
    place.lose("k")
    place.broker.put(first, Result(State.SUCCESS))
    place.executor.heartbeat()
    assert place.executor.get_event_buffer() == []
    assert place.executor.stats().results_ignored == 1
    assert place.broker.forgotten[-1] == first
    place.broker.succeed("k")
    place.executor.heartbeat()
    (event,) = place.executor.get_event_buffer()
    assert (event.state, event.attempt) == (State.SUCCESS, 2)


def test_one_whose_end_was_missed_gets_its_end(place):
    place.queue("k")
    place.broker.put(place.broker.message("k").message_id, Result(State.SUCCESS), hint=False)
    (event,) = place.lose("k")
    assert event.state is State.SUCCESS


def test_nothing_is_concluded_while_the_result_backend_does_not_answer(place):
    place.queue("k")
    place.broker.answered = False
    assert place.lose("k") == []
    place.broker.answered = True
    place.executor.heartbeat()
    assert place.executor.get_event_buffer()[0].reason is Reason.LOST


def test_a_revoked_task_whose_worker_is_lost_is_revoked_and_not_run_again(place):
    place.queue("k")
    place.executor.revoke_task("k")
    (event,) = place.lose("k")
    assert (event.state, event.detail) == (State.REVOKED, GONE)
    assert place.executor.tasks_in_flight == 0


def test_nothing_is_run_again_while_the_executor_drains(place):
    place.queue("k")
    place.executor.drain()
    (event,) = place.lose("k")
    assert (event.state, event.reason) == (State.FAILED, Reason.LOST)


def test_a_worker_that_reports_itself_lost_counts_the_same(place):
    place.queue("k", max_lost=2)
    place.broker.put(place.broker.message("k").message_id, Result(State.FAILED, Reason.LOST, "its worker went away"))
    place.executor.heartbeat()
    assert place.executor.get_event_buffer()[0].state is State.WAITING
    place.executor.heartbeat()
    place.broker.put(place.broker.message("k").message_id, Result(State.FAILED, Reason.LOST, "its worker went away"))
    place.executor.heartbeat()
    assert place.executor.get_event_buffer()[-1].reason is Reason.POISON


def test_an_alarm_has_everything_searched_for_at_once(place):
    place.queue("old")
    place.clock.advance(31)
    place.executor.heartbeat()
    place.queue("new")
    before = len(place.whereabouts.searches)
    place.executor.heartbeat()
    assert len(place.whereabouts.searches) == before
    place.whereabouts.has_news = True
    place.executor.heartbeat()
    assert place.whereabouts.searches[before:] == [["new", "old"]]


def test_what_has_started_since_it_was_looked_for_is_not_lost(place):
    """On its way from the broker to a worker it was in no place."""
    place.queue("k", starts=False)
    asked = place.clock()
    place.clock.advance(1)
    place.broker.start("k")
    place.whereabouts.say(LostTask(place.broker.message("k").message_id, GONE, requested_at=asked))
    place.executor.heartbeat()
    place.executor.heartbeat()
    assert [event.state for event in place.executor.get_event_buffer()] == [State.RUNNING]


def test_what_was_looked_for_after_it_had_started_is_lost(place):
    place.queue("k")
    place.whereabouts.say(LostTask(place.broker.message("k").message_id, GONE, requested_at=place.clock()))
    place.executor.heartbeat()
    assert place.executor.get_event_buffer()[0].reason is Reason.LOST


def test_of_an_adopted_task_nobody_says_how_long_it_had_run(place):
    task = Task(key="k", command="true")
    place.executor.adopt_tasks([task], State.RUNNING)
    place.executor.get_event_buffer()
    place.whereabouts.say(LostTask(task.message_id, GONE, was_claimed=True, host="h"))
    place.executor.heartbeat()
    lost = place.executor.get_event_buffer()[0]
    assert (lost.reason, lost.detail, lost.execution) == (Reason.LOST, GONE, Execution(host="h"))
