"""Batches that an executor writes to its ledger: the contents of each, and when it is due."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import Any

import pytest

from celeriac.errors import LedgerBroken, LedgerError, LedgerUnavailable
from celeriac.executor import ledger_writer
from celeriac.executor.interfaces import LedgerBatch, LedgerTraits, TaskRecord
from celeriac.executor.ledger_writer import LedgerWriter
from celeriac.ledger.memory import MemoryLedger
from celeriac.task.event import Event, priority_event
from celeriac.task.result import Reason
from celeriac.task.state import State
from celeriac.task.task import Task

NEVER = float("-inf")


class NotedLedger(MemoryLedger):
    """A ledger that keeps each batch."""

    error: LedgerError | None = None

    def __init__(self, *, lease: float | None = None, **traits: Any) -> None:
        super().__init__()
        self.lease, self.traits = lease, LedgerTraits(**traits)
        self.batches: list[LedgerBatch] = []
        self.tries = 0

    def write(self, batch: LedgerBatch) -> None:
        self.tries += 1
        if self.error is not None:
            raise self.error
        self.batches.append(batch)
        super().write(batch)

    def queued(self) -> list[list[str]]:
        """Return the keys of the new tasks of each batch."""
        return [sorted(str(queued.task.key) for queued in batch.queued) for batch in self.batches]


def writer_of(ledger: NotedLedger | None) -> LedgerWriter:
    return LedgerWriter(ledger, Random(1), on_lost=lambda: None)


def task(key: object, *needs: str) -> Task:
    return Task(key=str(key), command="true", needs=needs)


def queue(writer: LedgerWriter, keys: Iterable[object], now: float = 0.0) -> None:
    for key in keys:
        writer.record_queued(task(key), 0.0, now)


def record(key: object, state: State = State.QUEUED) -> TaskRecord:
    return TaskRecord(task(key), state, 0.0)


def event(state: State, reason: Reason | None = None) -> Event:
    return Event(key="k", state=state, when=0.0, id="i", attempt=1, reason=reason)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a batch have two new tasks beside those that it must have, and four changed ones."""
    monkeypatch.setattr(ledger_writer, "MAX_NEW", 2)
    monkeypatch.setattr(ledger_writer, "MAX_BATCH", 4)


def test_without_a_ledger_nothing_is_recorded():
    writer = writer_of(None)
    queue(writer, "a")
    writer.record_state(record("a"), 0.0)
    writer.record_event(event(State.SUCCESS))
    assert (writer.is_enabled, writer.is_failing, writer.due, writer.tasks_unwritten) == (False, False, None, 0)
    assert (writer.next_number(), writer.next_number(), writer.reserve_places(3)) == (0, 0, 0)
    assert writer.record_publishing([task("a")], 0.0, 0.0)
    assert writer.write_new([task("a")], 0.0)
    assert writer.write_if_due(0.0)
    assert writer.flush(0.0)
    assert writer.may_forget_new
    assert not writer.record_revoked_waiting("why", 0.0, 0.0)
    assert list(writer.unacknowledged()) == []


def test_a_change_is_written_a_moment_after_the_first_one():
    ledger = NotedLedger()
    writer = writer_of(ledger)
    assert (writer.due, writer.write_if_due(100.0), ledger.batches) == (None, True, [])
    queue(writer, "a", now=100.0)
    queue(writer, "b", now=100.1)
    assert writer.due == pytest.approx(100.2)
    assert (writer.write_if_due(100.1), ledger.batches) == (False, [])
    assert writer.write_if_due(100.3)
    assert (ledger.queued(), writer.due, writer.tasks_unwritten) == ([["a", "b"]], None, 0)


def test_a_lease_is_renewed_by_a_write_without_a_change():
    ledger = NotedLedger(lease=5.0)
    writer = writer_of(ledger)
    assert writer.write_if_due(100.0)
    assert (writer.due, len(ledger.batches)) == (105.0, 1)
    writer.write_if_due(104.0)
    assert len(ledger.batches) == 1
    queue(writer, "a", now=104.5)
    assert writer.due == pytest.approx(104.7)
    writer.write_if_due(105.0)
    assert (ledger.queued(), writer.due) == ([[], ["a"]], 110.0)


@pytest.mark.usefixtures("few")
def test_many_new_tasks_are_written_at_once_in_parts():
    ledger = NotedLedger()
    writer = writer_of(ledger)
    queue(writer, "ab", now=100.0)
    assert writer.due == pytest.approx(100.2)
    queue(writer, "cde", now=100.0)
    for rest, due in ((3, NEVER), (1, NEVER), (0, None)):
        writer.write_if_due(100.0)
        assert (writer.tasks_unwritten, writer.due) == (rest, due)
    assert ledger.queued() == [["a", "b"], ["c", "d"], ["e"]]


@pytest.mark.usefixtures("few")
def test_many_changed_tasks_are_written_at_once():
    writer = writer_of(NotedLedger())
    for key in "abc":
        writer.record_state(record(key), 100.0)
    assert writer.due == pytest.approx(100.2)
    writer.record_state(record("d"), 100.0)
    assert writer.due == NEVER


@pytest.mark.usefixtures("few")
def test_a_batch_has_the_tasks_that_are_sent_or_changed_and_those_that_they_need():
    ledger = NotedLedger()
    writer = writer_of(ledger)
    queue(writer, "abcdef")
    for new in (task("x", "e", "y"), task("y", "f", "stored"), task("z", "x")):
        writer.record_queued(new, 0.0, 0.0)
    writer.record_state(record("d"), 0.0)
    assert writer.record_publishing([task("x", "e", "y")], 0.0, 0.0)
    (batch,) = ledger.batches
    assert ledger.queued() == [["a", "b", "d", "e", "f", "x", "y"]]
    assert {key: each.state for key, each in batch.records.items()} == {"d": State.QUEUED, "x": State.PUBLISHING}
    assert writer.flush(0.0)
    assert ledger.queued()[1:] == [["c", "z"]]


@pytest.mark.usefixtures("few")
def test_as_many_new_tasks_as_fit_are_one_batch():
    ledger = NotedLedger()
    writer = writer_of(ledger)
    writer.record_queued(task("b"), 0.0, 0.0, place=7)
    writer.record_queued(task("a"), 0.0, 0.0)
    assert writer.flush(0.0)
    assert [(queued.task.key, queued.place) for queued in ledger.batches[0].queued] == [("b", 7), ("a", 0)]


def test_new_tasks_are_written_before_they_are_sent_and_only_then():
    ledger = NotedLedger()
    writer = writer_of(ledger)
    assert writer.write_new([task("stored")], 0.0)
    queue(writer, "ab")
    assert writer.write_new([task("stored")], 0.0)
    assert ledger.batches == []
    assert writer.write_new([task("stored"), task("b")], 0.0)
    assert (ledger.queued(), dict(ledger.batches[0].records)) == ([["a", "b"]], {})


@pytest.mark.parametrize("is_optional", [False, True])
def test_tasks_are_sent_without_a_ledger_only_if_it_is_optional(is_optional):
    ledger = NotedLedger(is_optional=is_optional)
    writer = writer_of(ledger)
    queue(writer, "a")
    ledger.error = LedgerUnavailable("ledger.db", "cannot be written")
    assert writer.resume_at == NEVER
    assert writer.write_new([task("a")], 0.0) is is_optional
    assert writer.record_publishing([task("a")], 0.0, 0.0) is is_optional
    assert writer.flush(0.0) is is_optional
    assert not writer.write_if_due(9.0)
    assert (writer.is_failing, writer.paused, ledger.tries) == (True, not is_optional, 2)
    assert writer.resume_at == (NEVER if is_optional else writer.due)
    assert writer.due is not None
    assert writer.due > 9.0
    ledger.error = None
    assert writer.flush(99.0)
    assert (ledger.queued(), writer.is_failing, writer.paused, writer.resume_at) == ([["a"]], False, False, NEVER)


def test_an_end_in_the_ledger_does_not_count_for_a_later_task_of_the_same_key():
    ledger = NotedLedger()
    writer = writer_of(ledger)
    writer.record_state(record("a", State.SUCCESS), 0.0)
    queue(writer, "a")
    assert writer.flush(0.0)
    assert [unfinished.task.key for unfinished in ledger.unfinished()] == ["a"]


@pytest.mark.parametrize("has_source", [False, True])
@pytest.mark.usefixtures("few")
def test_tasks_that_wait_are_revoked_together_with_the_last_batch(has_source):
    ledger = NotedLedger(revokes_together=True, has_source=has_source)
    writer = writer_of(ledger)
    queue(writer, "abcd")
    writer.record_state(record("d"), 0.0)
    assert writer.may_forget_new is has_source
    assert writer.record_revoked_waiting("why", 8.0, 0.0)
    assert writer.flush(0.0)
    assert ledger.queued() == ([["d"]] if has_source else [["a", "b", "d"], ["c"]])
    revoked = [batch.revoked_waiting for batch in ledger.batches]
    assert revoked[:-1] == [None] * (len(revoked) - 1)
    assert revoked[-1] is not None
    assert (revoked[-1].when, revoked[-1].detail) == (8.0, "why")
    writer.record_state(record("d", State.SUCCESS), 0.0)
    assert writer.flush(0.0)
    assert ledger.batches[-1].revoked_waiting is None


def test_each_task_is_recorded_where_tasks_are_not_revoked_together():
    ledger = NotedLedger(has_source=True)
    writer = writer_of(ledger)
    queue(writer, "a")
    assert not writer.record_revoked_waiting("why", 8.0, 0.0)
    assert not writer.may_forget_new
    assert writer.flush(0.0)
    assert (ledger.queued(), ledger.batches[0].revoked_waiting) == ([["a"]], None)


def test_that_tasks_were_revoked_is_written_without_another_change():
    ledger = NotedLedger(revokes_together=True)
    writer = writer_of(ledger)
    assert writer.record_revoked_waiting("why", 8.0, 1.0)
    assert writer.due == pytest.approx(1.2)


@pytest.mark.parametrize(
    ("noted", "is_kept"),
    [
        (event(State.QUEUED), False),
        (event(State.RUNNING), False),
        (event(State.SUCCESS), True),
        (event(State.FAILED, Reason.PUBLISH_ERROR), True),
        (event(State.WAITING, Reason.EXIT_CODE), True),
        (event(State.WAITING, Reason.PUBLISH_ERROR), False),
        (priority_event(task("k"), 0, "ada", 0.0, 1), True),
    ],
)
def test_events_that_end_an_attempt_or_change_a_priority_are_written(noted, is_kept):
    ledger = NotedLedger()
    writer = writer_of(ledger)
    writer.record_event(noted)
    writer.record_state(record("k"), 0.0)
    assert writer.flush(0.0)
    assert list(ledger.batches[0].events) == [noted] * is_kept


def test_what_the_caller_has_handled_is_written_once():
    ledger = NotedLedger()
    writer = writer_of(ledger)
    assert [writer.next_number() for _ in range(3)] == [1, 2, 3]
    writer.acknowledge(0, 0.0)
    assert writer.due is None
    writer.acknowledge(2, 0.0)
    assert writer.due == pytest.approx(0.2)
    assert writer.flush(0.0)
    writer.acknowledge(2, 0.0)
    assert writer.due is None
    writer.acknowledge(9, 0.0)
    assert writer.flush(0.0)
    assert [(batch.last_number, batch.acknowledged) for batch in ledger.batches] == [(3, 2), (3, 3)]
    assert (writer_of(ledger).next_number(), ledger.numbers()) == (4, (3, 3))


def test_places_are_reserved_in_order():
    ledger = NotedLedger()
    writer = writer_of(ledger)
    assert (writer.reserve_places(3), writer.reserve_places(1)) == (0, 3)
    queue(writer, "a")
    assert writer.flush(0.0)
    assert [queued.place for queued in ledger.batches[0].queued] == [4]


def test_an_outage_is_logged_at_once_and_its_end_once(caplog):
    ledger = NotedLedger()
    writer = writer_of(ledger)
    for now, error in (
        (0.0, None),
        (10.0, LedgerUnavailable("ledger.db", "cannot be written")),
        (20.0, None),
        (30.0, None),
    ):
        ledger.error = error
        queue(writer, "a")
        assert writer.flush(now) is (error is None)
    assert caplog.messages == [
        "the ledger is unavailable, nothing is started until it can be written: ledger.db cannot be written",
        "the ledger is available again after 10.0 s",
    ]


def test_nothing_is_kept_for_a_ledger_that_is_given_up():
    ledger = NotedLedger(is_optional=True)
    writer = writer_of(ledger)
    queue(writer, "ab")
    ledger.error = LedgerBroken("ledger.db", "is no database")
    assert writer.record_publishing([task("a")], 0.0, 0.0)
    assert (writer.is_enabled, writer.tasks_unwritten, writer.due) == (False, 0, None)
    queue(writer, "c")
    assert writer.record_publishing([task("c")], 0.0, 99.0)
    assert (writer.tasks_unwritten, ledger.tries) == (0, 1)


def test_a_ledger_is_given_up_with_more_unwritten_records_than_are_kept(monkeypatch):
    monkeypatch.setattr(ledger_writer, "MAX_UNWRITTEN", 2)
    ledger = NotedLedger(is_optional=True)
    writer = writer_of(ledger)
    ledger.error = LedgerUnavailable("ledger.db", "cannot be written")
    queue(writer, "a")
    for key, now, is_kept in (("b", 0.0, True), ("c", 99.0, False)):
        writer.record_state(record(key), now)
        assert writer.flush(now)
        assert writer.is_enabled is is_kept
