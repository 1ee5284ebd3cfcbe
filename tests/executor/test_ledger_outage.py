"""An executor whose ledger cannot be written for a while."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from celeriac.config.executor_config import Config
from celeriac.errors import LedgerUnavailable
from celeriac.executor.executor import CeleryExecutor
from celeriac.executor.interfaces import LedgerBatch
from celeriac.ledger.memory import MemoryLedger
from celeriac.task.event import Event
from celeriac.task.state import State


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
