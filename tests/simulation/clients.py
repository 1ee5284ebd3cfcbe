"""The servers as an executor sees them: it publishes, reads results, and writes its ledger."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from celeriac.broker.task_message import LimitsOf
from celeriac.config.lease import RENEWAL_INTERVAL
from celeriac.errors import LedgerError, LedgerLocked, LedgerLost, LedgerUnavailable
from celeriac.executor.executor import CeleryExecutor
from celeriac.executor.interfaces import LedgerBatch, NotSent, Receipt, Sent, Unreadable, Unsure
from celeriac.server_errors import problem_of
from celeriac.task.result import Result
from celeriac.task.task import Task
from tests.simulation.primitives import Condition, monotonic
from tests.simulation.world import Process

if TYPE_CHECKING:
    from tests.simulation.history import History

READ_RETRY_DELAY = 1.0  # seconds until the result backend is read again after a failure


class SimulatedPublisher:
    """Sends one message after the other on one connection."""

    def __init__(self, history: History) -> None:
        self._history = history
        self.executor: CeleryExecutor | None = None
        self.limits_of: LimitsOf = lambda task_id: []

    def publish(self, tasks: Sequence[Task], *, timeout: float) -> list[Receipt]:
        assert self.executor is not None
        self._history.invariants.published(tasks, self.executor)
        return [self._publish(task) for task in tasks]

    def _publish(self, task: Task) -> Receipt:
        history, broker = self._history, self._history.broker
        arrived, limits = False, self.limits_of(task.message_id)

        def send() -> None:
            nonlocal arrived
            arrived = True
            broker.publish(task, limits)

        try:
            history.network.call(broker, send, "publish")
        except Exception as error:
            if problem_of(error) is None:
                raise
            # A client that got no reply cannot know; one whose connection was refused does.
            is_known = not arrived and not isinstance(error, TimeoutError | type(history.no_reply))
            return NotSent(task, error) if is_known else Unsure(task, error)
        return Sent(task)


class SimulatedResults:
    """Reads results. Hints about changes may be lost."""

    pushes = False

    def __init__(self, history: History, process: Process) -> None:
        self._history, self._process = history, process
        self._changed = Condition()
        self._hints: set[str] = set()
        self._unread: set[str] = set()
        self._retry_at = float("-inf")
        self._woken = False
        self.answered = True
        history.store.readers.append(self._on_stored)

    def _on_stored(self, task_id: str) -> None:
        history, process = self._history, self._process
        if process.is_alive and history.network.reaches(process, history.store) and history.world.random.random() < 0.9:
            process.spawn(self.hint, [task_id], name="change feed")

    def hint(self, ids: Collection[str]) -> None:
        with self._changed:
            self._hints.update(ids)
            self._changed.notify_all()

    def wake(self) -> None:
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def changed(self) -> list[str]:
        hints, self._hints = self._hints, set()
        if monotonic() >= self._retry_at:
            hints |= self._unread
            self._unread = set()
        return sorted(hints)

    def read(self, ids: Collection[str]) -> Mapping[str, Result | Unreadable]:
        store, wanted = self._history.store, sorted(ids)
        self.answered = True
        if not wanted:
            return {}
        if monotonic() >= self._retry_at:
            try:
                return self._history.network.call(store, lambda: store.fetch(wanted), "fetch", writes=False)
            except Exception as error:
                if problem_of(error) is None:
                    raise
                self._retry_at = monotonic() + READ_RETRY_DELAY
        self.answered = False
        self._unread.update(wanted)
        return {}

    def forget(self, ids: Collection[str]) -> None:
        self._process.spawn(self._forget, sorted(ids), name="cleaner")

    def _forget(self, ids: list[str]) -> None:
        try:
            self._history.network.call(self._history.store, lambda: self._history.store.delete(ids), "delete")
        except Exception as error:
            if problem_of(error) is None:
                raise

    def close(self) -> None:
        self._history.store.readers.remove(self._on_stored)

    def wait(self, timeout: float) -> None:
        if self._unread:
            timeout = min(timeout, max(0.0, self._retry_at - monotonic()))
        with self._changed:
            self._changed.wait_for(lambda: self._hints or self._woken, timeout)
            self._woken = False


class OwnedLedger:
    """The ledger of one history, as one executor holds it. Another executor takes it over."""

    lease: float | None = RENEWAL_INTERVAL
    drained_after = float("inf")
    """The number of the last event before its executor was asked to drain."""

    def __init__(self, history: History) -> None:
        self._history, self._stored = history, history.ledger
        history.ledger_owner += 1
        self._owner = history.ledger_owner
        self.traits = self._stored.traits
        self.check, self.next_place = self._stored.check, self._stored.next_place

    def write(self, batch: LedgerBatch) -> None:
        """Write a batch, in one transaction. Without a reply it may have been written, and is written again."""
        try:
            self._history.network.call(self._history.ledger_server, lambda: self._write(batch), "ledger")
        except LedgerError:
            raise
        except Exception as error:
            if problem_of(error) is None:
                raise
            kind = LedgerLocked if self._history.ledger_server.is_hung else LedgerUnavailable
            raise kind("simulated", "does not answer") from error

    def _write(self, batch: LedgerBatch) -> None:
        self._check()
        stored, _ = self._stored.numbers()
        new = replace(batch, events=[event for event in batch.events if event.number > stored])
        self._stored.write(new)
        self._history.invariants.ledger_written(new, self.drained_after)

    def unfinished(self) -> Any:
        self._check()
        return self._stored.unfinished()

    def numbers(self) -> tuple[int, int]:
        self._check()
        return self._stored.numbers()

    def unacknowledged(self) -> Any:
        self._check()
        return self._stored.unacknowledged()

    def _check(self) -> None:
        if self._history.ledger_owner != self._owner:
            raise LedgerLost("simulated", "was taken over")
        if not self._history.ledger_server.is_up:
            raise LedgerUnavailable("simulated", "is locked")
