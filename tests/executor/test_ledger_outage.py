"""An executor whose ledger cannot be written for a while."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from celeriac.config.executor_config import Config
from celeriac.errors import (
    ExecutorEnded,
    InvalidTask,
    LedgerBroken,
    LedgerError,
    LedgerLocked,
    LedgerLost,
    LedgerUnavailable,
    UnknownTask,
)
from celeriac.executor.executor import CeleryExecutor
from celeriac.executor.interfaces import LedgerBatch, LedgerTraits
from celeriac.executor.requests import PriorityRequest
from celeriac.ledger.memory import MemoryLedger
from celeriac.runs.job_file import PlainJobs
from celeriac.runs.job_file.draft import Draft
from celeriac.task.event import Event
from celeriac.task.state import State
from celeriac.task.task import Task
from celeriac.telemetry import metrics


class FailingLedger(MemoryLedger):
    is_available = False

    def write(self, batch: LedgerBatch) -> None:
        if not self.is_available:
            raise LedgerUnavailable("ledger.db", "cannot be written")
        super().write(batch)


class SilentLedger(MemoryLedger):
    """Writes, and its reply is lost."""

    is_silent = False

    def write(self, batch: LedgerBatch) -> None:
        super().write(batch)
        if self.is_silent:
            raise LedgerUnavailable("ledger.db", "does not answer")


class UnreadableLedger(MemoryLedger):
    is_readable = True

    def unacknowledged(self) -> Iterable[Event]:
        if not self.is_readable:
            raise LedgerUnavailable("ledger.db", "cannot be read")
        return super().unacknowledged()


def executor_with(ledger: MemoryLedger, broker: Any, clock: Any) -> CeleryExecutor:
    return CeleryExecutor(
        Config(parallelism=1),
        publisher=broker,
        results=broker,
        revoker=broker,
        ledger=ledger,
        clock=clock,
        wall_clock=clock,
    )


def test_no_event_is_lost_while_those_of_an_earlier_executor_cannot_be_read(broker, clock):
    ledger = UnreadableLedger()
    earlier = executor_with(ledger, broker, clock)
    earlier.queue_command("first", "true")
    earlier.revoke_task("first")
    assert earlier.flush()
    executor = executor_with(ledger, broker, clock)
    executor.queue_command("second", "true")
    executor.revoke_task("second")
    ledger.is_readable = False
    assert executor.read_events() == []
    ledger.is_readable = True
    events = executor.read_events()
    assert [(event.key, event.state) for event in events] == [("first", State.REVOKED), ("second", State.REVOKED)]


def test_a_task_that_was_recorded_and_not_sent_waits_for_the_next_executor(broker, clock):
    ledger = SilentLedger()
    executor = executor_with(ledger, broker, clock)
    executor.queue_command("first", "true")
    assert executor.flush()
    ledger.is_silent = True
    executor.heartbeat()
    assert (broker.messages, executor.tasks_waiting) == ([], 1)
    ledger.is_silent = False
    clock.advance(10)
    executor.queue_command("urgent", "true", priority=1)
    executor.heartbeat()
    assert executor.flush()
    states = {unfinished.task.key: unfinished.state for unfinished in ledger.unfinished()}
    assert states == {"first": State.WAITING, "urgent": State.QUEUED}


def test_an_executor_rests_until_it_may_try_to_write_again(broker, clock):
    ledger = FailingLedger()
    executor = executor_with(ledger, broker, clock)
    executor.queue_command("k", "true")
    for _ in range(3):
        before = clock.now
        executor.heartbeat()
        executor.wait(60.0)
        assert clock.now > before
    assert broker.messages == []
    ledger.is_available = True
    for _ in range(2):
        executor.heartbeat()
        executor.wait(60.0)
    assert [task.key for task in broker.messages] == ["k"]


class OptionalLedger(MemoryLedger):
    """The tasks start also while it cannot be written."""

    traits = LedgerTraits(is_optional=True)
    error: LedgerError | None = None
    writes = 0

    def write(self, batch: LedgerBatch) -> None:
        self.writes += 1
        if self.error is not None:
            raise self.error
        super().write(batch)


def run_one(executor: CeleryExecutor, broker: Any, clock: Any, key: str) -> None:
    executor.queue_command(key, "true")
    executor.heartbeat()
    broker.succeed(key)
    executor.heartbeat()
    clock.advance(60)
    executor.heartbeat()


def test_a_run_goes_on_without_a_ledger_that_it_can_do_without(broker, clock, caplog):
    ledger = OptionalLedger()
    ledger.error = LedgerUnavailable("ledger.db", "cannot be written")
    executor = executor_with(ledger, broker, clock)
    for key in ("first", "second"):
        run_one(executor, broker, clock, key)
    assert [task.key for task in broker.messages] == ["first", "second"]
    assert [record.message for record in caplog.records if "goes on without it" in record.message] == [
        f"{ledger.error}: the run goes on without it, and --resume may run again what it does not record"
    ]
    ledger.error = None
    run_one(executor, broker, clock, "third")
    assert [event.key for event in ledger.unacknowledged()] == ["first", "second", "third"]


def test_a_broken_ledger_is_given_up_or_ends_the_executor(broker, clock):
    ledger = OptionalLedger()
    ledger.error = LedgerBroken("ledger.db", "is no database")
    executor = executor_with(ledger, broker, clock)
    for key in ("first", "second"):
        run_one(executor, broker, clock, key)
    assert ([task.key for task in broker.messages], ledger.writes) == (["first", "second"], 1)
    needed = OptionalLedger()
    needed.traits, needed.error = LedgerTraits(), ledger.error
    executor = executor_with(needed, broker, clock)
    executor.queue_command("third", "true")
    with pytest.raises(LedgerBroken):
        executor.heartbeat()


def test_a_ledger_is_given_up_when_too_much_is_unwritten(broker, clock, monkeypatch):
    monkeypatch.setattr("celeriac.executor.ledger_writer.MAX_UNWRITTEN", 3)
    ledger = OptionalLedger()
    ledger.error = LedgerUnavailable("ledger.db", "cannot be written")
    executor = executor_with(ledger, broker, clock)
    for number in range(5):
        run_one(executor, broker, clock, str(number))
    writes, ledger.error = ledger.writes, None
    run_one(executor, broker, clock, "last")
    assert writes < 5
    assert (ledger.writes, list(ledger.unfinished()), len(broker.messages)) == (writes, [], 6)


def test_tasks_wait_for_a_ledger_that_another_process_writes_to(broker, clock, caplog):
    ledger = OptionalLedger()
    ledger.error = LedgerLocked("ledger.db", "is locked")
    executor = executor_with(ledger, broker, clock)
    executor.queue_command("k", "true")
    executor.heartbeat()
    assert (broker.messages, caplog.messages) == ([], [])
    for _ in range(20):
        clock.advance(1)
        executor.heartbeat()
    assert len(caplog.messages) == 1
    assert caplog.messages[0].endswith("ledger.db is locked")
    ledger.error = None
    clock.advance(60)
    executor.heartbeat()
    assert [task.key for task in broker.messages] == ["k"]


def test_each_result_is_deleted_once_when_the_ledger_has_its_event(broker, clock):
    executor = executor_with(MemoryLedger(), broker, clock)
    for key in ("first", "second"):
        run_one(executor, broker, clock, key)
        executor.get_event_buffer()
        clock.advance(60)
        executor.heartbeat()
    assert broker.forgotten == [task.message_id for task in broker.messages]


def test_a_heartbeat_that_sends_nothing_leaves_changes_to_a_later_write(broker, clock):
    ledger = OptionalLedger()
    executor = executor_with(ledger, broker, clock)
    for key in ("runs", "waits"):
        executor.queue_command(key, "true")
        executor.heartbeat()
    assert ledger.writes == 1
    clock.advance(0.2)
    executor.heartbeat()
    assert ledger.writes == 2


class RefusingLedger(MemoryLedger):
    def check(self, task: Task) -> None:
        raise InvalidTask(str(task.key), "cannot be stored", "give another key")


def test_a_task_that_the_ledger_cannot_store_is_refused(broker, clock):
    executor = executor_with(RefusingLedger(), broker, clock)
    with pytest.raises(InvalidTask):
        executor.queue_command("k", "true")
    with pytest.raises(InvalidTask):
        executor.intake.check(Task(key="k", command="true"), ())
    assert executor.tasks_waiting == 0


class TakenLedger(MemoryLedger):
    """Another executor has taken it over."""

    def write(self, batch: LedgerBatch) -> None:
        raise LedgerLost("ledger.db", "belongs to another executor")


def test_an_executor_drops_all_tasks_when_another_owns_its_ledger(broker, clock):
    executor = executor_with(TakenLedger(), broker, clock)
    for key in ("chosen", "waits"):
        executor.queue_command(key, "true")
    with pytest.raises(LedgerLost):
        executor.heartbeat()
    assert (executor.tasks_waiting, executor.tasks_in_flight, broker.messages) == (0, 0, [])
    assert executor.get_event_buffer() == []
    with pytest.raises(ExecutorEnded):
        executor.queue_command("new", "true")
    for key in ("chosen", "waits"):
        with pytest.raises(UnknownTask):
            executor.explain(key)


class SharedLedger(TakenLedger):
    """Another executor takes it over when a test says so."""

    traits = LedgerTraits(revokes_together=True, has_source=True)
    is_taken = False

    def write(self, batch: LedgerBatch) -> None:
        if self.is_taken:
            super().write(batch)


def test_an_executor_drops_tasks_in_each_state_when_another_owns_its_ledger(broker, clock):
    ledger = SharedLedger()
    executor = CeleryExecutor(
        Config(parallelism=2), publisher=broker, results=broker, revoker=broker, ledger=ledger, clock=clock
    )
    broker.leave_unsure("unsure", delivered=False)
    executor.queue_tasks([Task(key=key, command="true") for key in ("runs", "unsure")])
    executor.queue_command("blocked", "true", needs=("runs",))
    executor.heartbeat()
    executor.accept_tasks(PlainJobs([Draft("true", 1, {})], []).sources())
    broker.start("runs")
    executor.sync()
    executor.get_event_buffer()
    ledger.is_taken = True
    executor.revoke_task("blocked")
    executor.queue_command("blocked", "true", needs=("runs",))
    with pytest.raises(LedgerLost):
        executor.flush()
    assert (executor.tasks_waiting, executor.tasks_in_flight, executor.slots_occupied) == (0, 0, 0)
    assert executor.stats().task_publish_retries == {}
    running = {family.metric: family.numbers for family in executor.telemetry.read()}[metrics.TASKS_RUNNING]
    assert [value for _, value in running] == [0]


class SourceLedger(MemoryLedger):
    """Its tasks can be queued again from a file."""

    traits = LedgerTraits(revokes_together=True, has_source=True)

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[LedgerBatch] = []

    def write(self, batch: LedgerBatch) -> None:
        self.batches.append(batch)
        super().write(batch)


def test_a_task_of_a_file_that_is_revoked_before_it_is_stored_is_not_stored(broker, clock):
    ledger = SourceLedger()
    executor = executor_with(ledger, broker, clock)
    executor.queue_command("runs", "true")
    executor.heartbeat()
    executor.queue_command("waits", "true")
    executor.end(timeout=0.0)
    stored = [queued.task.key for batch in ledger.batches for queued in batch.queued]
    assert stored == ["runs"]
    assert not any("waits" in batch.records for batch in ledger.batches)
    assert [batch.revoked_waiting is not None for batch in ledger.batches].count(True) == 1


def test_a_new_priority_is_recorded_with_its_event(broker, clock, channel):
    ledger = SourceLedger()
    executor = CeleryExecutor(
        Config(parallelism=1), publisher=broker, results=broker, revoker=broker, ledger=ledger, control_channel=channel
    )
    executor.queue_command("k", "true")
    assert executor.flush()
    channel.ask(PriorityRequest(name="k", priority=7, asked_by="ada"))
    executor.sync()
    assert executor.flush()
    assert [unfinished.task.priority for unfinished in ledger.unfinished()] == [7]
    assert [event.priority is not None for batch in ledger.batches for event in batch.events] == [True]
