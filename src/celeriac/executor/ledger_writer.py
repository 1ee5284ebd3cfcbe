"""Buffer the changes for the ledger, and write many of them in one transaction.

queued tasks, states, events ─► LedgerBatch ─► Ledger.write: 0.2 s after the first change, and before tasks are sent

Of many new tasks, each batch has a part: those that are about to be sent, those whose state has changed, and as many
others as fit. So the first of 200,000 tasks starts at once. A task is stored after the tasks that it needs, or with
them: a crash must leave no task without them.

A crash loses the batch that is not yet written. The result backend still has those results, because results are
deleted only after the ledger has them.

While the ledger cannot be written, no task starts. An optional ledger is the exception: tasks start, and their records
are kept for a later write. While another process is writing, tasks wait in either case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from random import Random

from celeriac.errors import LedgerBroken, LedgerError, LedgerLocked, LedgerLost, LedgerUnavailable
from celeriac.executor.circuit_breaker import CircuitBreaker
from celeriac.executor.interfaces import Ledger, LedgerBatch, QueuedTask, RevokedWaiting, TaskRecord
from celeriac.log_lines import logger_for
from celeriac.task.event import Event
from celeriac.task.result import Reason
from celeriac.task.state import State
from celeriac.task.task import Task, TaskKey

logger = logger_for(__name__)

WRITE_DELAY = 0.2  # seconds from a change until it is written
MAX_BATCH = 5_000  # changed tasks; a batch of this size is written at once
MAX_NEW = 1_000  # new tasks in a batch, beside those that it must have; other processes write in between
FIRST_RETRY_DELAY = 0.5  # seconds from a failed write until the next attempt
MAX_RETRY_DELAY = 2.0  # seconds
MAX_UNWRITTEN = 100_000  # records kept for an optional ledger; with more, it is given up


class LedgerWriter:
    """The batch that is written next. Without a ledger nothing is buffered."""

    def __init__(self, ledger: Ledger | None, random: Random, *, on_lost: Callable[[], None]) -> None:
        """`on_lost` is called before a `LedgerLost` is raised."""
        self._ledger, self._on_lost = ledger, on_lost
        self._queued: dict[TaskKey, QueuedTask] = {}
        """The new tasks that are not stored yet, in order of arrival."""

        self._revoked_waiting: RevokedWaiting | None = None
        self._records: dict[TaskKey, TaskRecord] = {}
        self._events: list[Event] = []
        self._number, self._acknowledged = (0, 0) if ledger is None else ledger.numbers()
        self._first_change_at: float | None = None
        self._written_at = float("-inf")
        self._goes_on = False
        """Whether tasks start although the last write failed."""

        self._is_missed = False
        """Whether a line has said that tasks start without the ledger."""

        self._breaker = CircuitBreaker(
            "the ledger",
            first_delay=FIRST_RETRY_DELAY,
            max_delay=MAX_RETRY_DELAY,
            random=random,
            effect="nothing is started until it can be written",
        )

    @property
    def is_enabled(self) -> bool:
        """Whether there is a ledger."""
        return self._ledger is not None

    @property
    def due(self) -> float | None:
        """The time of the next write. None if there is nothing to write."""
        if self._ledger is None:
            return None
        times = [] if self._ledger.lease is None else [self._written_at + self._ledger.lease]
        if self._first_change_at is not None:
            times.append(self._first_change_at + WRITE_DELAY)
        return max(min(times), self._breaker.retry_at) if times else None

    @property
    def is_failing(self) -> bool:
        """Whether the last write failed."""
        return self._breaker.is_open

    @property
    def paused(self) -> bool:
        """Whether tasks wait because the last write failed."""
        return self._breaker.is_open and not self._goes_on

    @property
    def resume_at(self) -> float:
        """When tasks may be sent again at the earliest, if they wait because the last write failed."""
        return self._breaker.retry_at if self.paused else float("-inf")

    @property
    def tasks_unwritten(self) -> int:
        """The number of new tasks that are not stored yet."""
        return len(self._queued)

    @property
    def may_forget_new(self) -> bool:
        """Whether a new task need not be stored if it is revoked before: there is no ledger, or a file has it."""
        return self._ledger is None or (self._ledger.traits.revokes_together and self._ledger.traits.has_source)

    def next_number(self) -> int:
        """Return the number of the next event; 0 without a ledger."""
        if self._ledger is not None:
            self._number += 1
        return self._number

    def check(self, task: Task) -> None:
        """Raise `InvalidTask` for a task that the ledger cannot store."""
        if self._ledger is not None:
            self._ledger.check(task)

    def reserve_places(self, number: int) -> int:
        """Reserve the places of tasks that are queued later. Return the first place."""
        return 0 if self._ledger is None else self._ledger.next_place(number)

    def record_queued(self, task: Task, arrived: float, now: float, place: int | None = None) -> None:
        """Add a new task to the batch. `arrived` is in seconds since the epoch; `place` was reserved, or is None."""
        if self._ledger is not None:
            place = self._ledger.next_place() if place is None else place
            self._queued[task.key] = QueuedTask(task, arrived, place)
            self._records.pop(task.key, None)  # the state of an earlier task of this key
            self._note_change(now)

    def record_state(self, record: TaskRecord, now: float) -> None:
        """Add the state of a task to the batch, in place of an earlier one."""
        if self._ledger is not None:
            self._records[record.task.key] = record
            self._note_change(now)

    def record_revoked_waiting(self, detail: str, when: float, now: float) -> bool:
        """Record that all waiting tasks were revoked. Return False if each of them must be recorded by itself."""
        if self._ledger is None or not self._ledger.traits.revokes_together:
            return False
        if self._ledger.traits.has_source:
            self._queued = {key: queued for key, queued in self._queued.items() if key in self._records}
        self._revoked_waiting = RevokedWaiting(when, detail)
        self._note_change(now)
        return True

    def record_event(self, event: Event) -> None:
        """Add an event to the batch if it ends a task or an attempt, or changes a priority. Use `record_state` for the
        state of its task."""
        if self._ledger is None:
            return
        is_kept = event.state.is_final or event.priority is not None
        if is_kept or event.reason not in (None, Reason.PUBLISH_ERROR):
            self._events.append(event)

    def acknowledge(self, number: int, now: float) -> None:
        """Record that the caller has handled all events up to `number`."""
        if number > self._acknowledged:
            self._acknowledged = min(number, self._number)
            self._note_change(now)

    def unacknowledged(self) -> Iterable[Event]:
        """Return the final events that the caller has not acknowledged, from the ledger."""
        return () if self._ledger is None else self._ledger.unacknowledged()

    def record_publishing(self, tasks: Sequence[Task], when: float, now: float) -> bool:
        """Write that tasks are about to be sent. Return whether they may be sent."""
        if self._ledger is None:
            return True
        publishing = {task.key: TaskRecord(task, State.PUBLISHING, when) for task in tasks}
        return self._write({**self._records, **publishing}, now, tasks) or self._goes_on

    def write_new(self, tasks: Sequence[Task], now: float) -> bool:
        """Write the batch if one of these tasks is not stored. Return whether they may be sent."""
        is_stored = not any(task.key in self._queued for task in tasks)
        return is_stored or self._write(self._records, now, tasks) or self._goes_on

    def write_if_due(self, now: float) -> bool:
        """Write the batch if it is due. Return whether no state and no event is left to write."""
        if (due := self.due) is not None and due <= now:
            return self._write(self._records, now)
        return self._first_change_at is None

    def flush(self, now: float) -> bool:
        """Write everything now. Return whether nothing is left that must be written."""
        while self._first_change_at is not None:
            if not self._write(self._records, now):
                return self._goes_on
        return True

    def _note_change(self, now: float) -> None:
        if self._first_change_at is None:
            self._first_change_at = now
        if len(self._records) >= MAX_BATCH or len(self._queued) > MAX_NEW:
            self._first_change_at = float("-inf")

    def _write(self, records: dict[TaskKey, TaskRecord], now: float, tasks: Sequence[Task] = ()) -> bool:
        """Write a batch that has these tasks, if they are new. Return whether it was written."""
        if self._ledger is None:
            return True
        if not self._breaker.allows(now):
            return False
        queued = choose_new(self._queued, [*(task.key for task in tasks), *records])
        revoked_waiting = self._revoked_waiting if len(queued) == len(self._queued) else None
        batch = LedgerBatch(queued.values(), records, self._events, self._number, self._acknowledged, revoked_waiting)
        try:
            self._ledger.write(batch)
        except (LedgerUnavailable, LedgerBroken) as error:
            self._note_failure(error, now)
            return False
        except LedgerLost:
            self._on_lost()
            raise
        if line := self._breaker.record_success(now):
            logger.warning(line)
        self._drop_batch(queued)
        self._written_at = now
        return True

    def _note_failure(self, error: LedgerUnavailable | LedgerBroken, now: float) -> None:
        """Take note of a failed write. Raise the error if no later write can succeed."""
        is_locked = isinstance(error, LedgerLocked)
        is_optional = self._ledger is not None and self._ledger.traits.is_optional
        if isinstance(error, LedgerBroken) and not is_optional:
            raise error
        patience = LedgerLocked.REPORT_DELAY if is_locked else 0.0
        line = self._breaker.record_failure(now, f"{error.ledger} {error.problem}", patience=patience)
        self._goes_on = is_optional and not is_locked
        if self._goes_on:
            self._go_on_without(error)
        elif line is not None:
            logger.warning(line)

    def _go_on_without(self, error: LedgerError) -> None:
        """Say once that tasks start without the ledger. Give it up if it is broken, or if too much is unwritten."""
        if not self._is_missed:
            logger.warning("%s: the run goes on without it, and --resume may run again what it does not record", error)
        self._is_missed = True
        if isinstance(error, LedgerBroken) or len(self._records) + len(self._queued) > MAX_UNWRITTEN:
            self._ledger = None
            self._drop_batch(self._queued)

    def _drop_batch(self, queued: Mapping[TaskKey, QueuedTask]) -> None:
        """Forget the changes of a batch, with these new tasks."""
        self._records, self._events = {}, []
        if len(queued) == len(self._queued):
            self._queued, self._revoked_waiting, self._first_change_at = {}, None, None
        else:  # they were more than `MAX_NEW`, so the others are due at once, too
            for key in queued:
                del self._queued[key]


def choose_new(new: Mapping[TaskKey, QueuedTask], keys: Iterable[TaskKey]) -> dict[TaskKey, QueuedTask]:
    """Return new tasks for a batch: those of the keys, `MAX_NEW` others, and the new tasks that one of them needs."""
    if len(new) <= MAX_NEW:
        return dict(new)
    chosen: dict[TaskKey, QueuedTask] = {}
    pending = [*islice(new, MAX_NEW), *keys]
    while pending:
        key = pending.pop()
        if key in new and key not in chosen:
            chosen[key] = new[key]
            pending += new[key].task.needs
    return chosen
