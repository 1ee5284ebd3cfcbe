"""What goes into the ledger, and when: many moves in one transaction.

queued, moved ─► a page ─► Ledger.write: once what was first put there is 0.2 s old, and before anything is sent

What is on the page and not yet written, a crash loses; then the result backend still has it, for results are deleted
only once they are written.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from random import Random

from celeriac.errors import LedgerLost, LedgerUnavailable
from celeriac.executor.backoff import backoff
from celeriac.executor.interfaces import Ledger, LedgerBatch, TaskRecord
from celeriac.task.event import Event
from celeriac.task.result import Reason
from celeriac.task.state import State
from celeriac.task.task import Task, TaskKey

logger = logging.getLogger(__name__)

WRITE_DELAY = 0.2  # seconds until a move is written
MAX_BATCH = 5_000  # tasks, new or moved, that are not kept waiting for others
FIRST_RETRY_DELAY = 0.5  # seconds until a ledger that is away is tried again
MAX_RETRY_DELAY = 2.0  # seconds


class LedgerWriter:
    """Keeps the page that is written next. Without a ledger nothing is kept."""

    def __init__(self, ledger: Ledger | None, random: Random, *, on_lost: Callable[[], None]) -> None:
        """`on_lost` is called before a `LedgerLost` is raised."""
        self._ledger, self._random, self._on_lost = ledger, random, on_lost
        self._queued: list[tuple[Task, float]] = []
        self._records: dict[TaskKey, TaskRecord] = {}
        self._events: list[Event] = []
        self._number, self._acknowledged = (0, 0) if ledger is None else ledger.numbers()
        self._since: float | None = None
        self._written_at = float("-inf")
        self._failures = 0
        self._next_try = float("-inf")

    @property
    def is_enabled(self) -> bool:
        return self._ledger is not None

    @property
    def due(self) -> float | None:
        """When something must be written."""
        if self._ledger is None:
            return None
        moments = [] if self._ledger.lease is None else [self._written_at + self._ledger.lease]
        if self._since is not None:
            moments.append(self._since + WRITE_DELAY)
        return max(min(moments), self._next_try) if moments else None

    @property
    def paused(self) -> bool:
        """Whether the last try at writing failed."""
        return self._failures > 0

    def next_number(self) -> int:
        """Of the next event; 0 without a ledger."""
        if self._ledger is not None:
            self._number += 1
        return self._number

    def check(self, task: Task) -> None:
        """Raises `InvalidTask` for a task that cannot be written down."""
        if self._ledger is not None:
            self._ledger.check(task)

    def record_queued(self, task: Task, arrived: float, now: float) -> None:
        if self._ledger is not None:
            self._queued.append((task, arrived))
            self._put(now)
            if len(self._queued) >= MAX_BATCH:  # a million tasks may come before the next heartbeat
                self._write(self._records, now)

    def record_state(self, standing: TaskRecord, now: float) -> None:
        if self._ledger is not None:
            self._records[standing.task.key] = standing
            self._put(now)

    def record_event(self, event: Event) -> None:
        """To be put down beside the standing of its task: each end, and each attempt that another one follows."""
        if self._ledger is not None and (event.state.is_final or event.reason not in (None, Reason.PUBLISH_ERROR)):
            self._events.append(event)

    def acknowledge(self, number: int, now: float) -> None:
        if number > self._acknowledged:
            self._acknowledged = min(number, self._number)
            self._put(now)

    def unacknowledged(self) -> Iterable[Event]:
        return () if self._ledger is None else self._ledger.unacknowledged()

    def record_publishing(self, tasks: Sequence[Task], when: float, now: float) -> bool:
        """Put down that these are about to be sent. If that cannot be written, they must not be."""
        if self._ledger is None:
            return True
        out = {task.key: TaskRecord(task, State.PUBLISHING, when) for task in tasks}
        return self._write({**self._records, **out}, now)

    def write_new(self, now: float) -> bool:
        """Whether all tasks that were queued have been written down, and with them what waited to be."""
        return not self._queued or self._write(self._records, now)

    def write_if_due(self, now: float) -> bool:
        """Whether all has been written."""
        if (due := self.due) is not None and due <= now:
            return self._write(self._records, now)
        return self._since is None

    def flush(self, now: float) -> bool:
        """All of it, at once. Whether that has been done."""
        return self._since is None or self._write(self._records, now)

    def _put(self, now: float) -> None:
        if self._since is None:
            self._since = now
        if len(self._queued) + len(self._records) >= MAX_BATCH:
            self._since = float("-inf")

    def _write(self, standings: dict[TaskKey, TaskRecord], now: float) -> bool:
        if self._ledger is None:
            return True
        if now < self._next_try:
            return False
        try:
            self._ledger.write(LedgerBatch(self._queued, standings, self._events, self._number, self._acknowledged))
        except LedgerUnavailable as away:
            self._failures += 1
            pause = backoff(FIRST_RETRY_DELAY, self._failures, MAX_RETRY_DELAY, self._random)
            self._next_try = now + pause
            if self._failures == 1:
                logger.warning("%s; nothing is started until it can be written", away)
            return False
        except LedgerLost:
            self._on_lost()
            raise
        if self._failures:
            logger.warning("the ledger is written again")
        self._failures, self._next_try = 0, float("-inf")
        self._queued, self._records, self._events = [], {}, []
        self._since, self._written_at = None, now
        return True
