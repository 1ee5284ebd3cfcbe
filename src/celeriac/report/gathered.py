"""The facts of a report about the attempts of a run: numbers, and the few attempts that are shown one by one."""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from typing import Generic, TypeVar

from celeriac.ledger.attempts import Attempt
from celeriac.report.series import Clock, Durations, Series
from celeriac.task.result import Reason
from celeriac.task.state import State

T = TypeVar("T")

MAX_BARS = 1_200  # attempts that are drawn one by one
MAX_NAMES = 1_000  # hosts, and queues, with numbers of their own
MAX_FAILURES = 100
MAX_SLOWEST = 20
MAX_RETRIED = 20
MAX_LOSSES = 50
OTHERS = "all others"
UNKNOWN_HOST = "a host that is not known"
LOSSES = (Reason.LOST.value, Reason.POISON.value)


class Top(Generic[T]):
    """The items with the highest ranks."""

    def __init__(self, size: int) -> None:
        self._size, self._numbers = size, count()
        self._heap: list[tuple[float, int, T]] = []
        self.left_out = 0

    def add(self, rank: float, item: T) -> None:
        """Add an item. Of equal ones, the earlier stays."""
        entry = (rank, -next(self._numbers), item)
        if len(self._heap) < self._size:
            heapq.heappush(self._heap, entry)
            return
        self.left_out += 1
        if rank > self._heap[0][0]:
            heapq.heapreplace(self._heap, entry)

    @property
    def items(self) -> list[T]:
        """The items, the highest rank first."""
        return [item for _, _, item in sorted(self._heap, key=lambda entry: entry[:2], reverse=True)]


@dataclass(slots=True)
class Host:
    """The numbers of one host."""

    name: str
    series: Series
    attempts: int = 0
    failed: int = 0
    seconds: float = 0.0
    """How long its attempts ran, together."""


@dataclass(slots=True)
class Queue:
    """The numbers of one queue."""

    name: str
    tasks: int = 0
    succeeded: int = 0
    failed: int = 0
    unfinished: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Bar:
    """The time in which an attempt ran."""

    began: float
    ended: float
    attempt: Attempt
    host: str


@dataclass(slots=True)
class Gathered:
    """The attempts so far. `add` takes the last attempt of a task, `add_earlier` any other one."""

    now: float
    """When the report is made, in seconds since the epoch: attempts that run have run until then."""

    states: Counter[State] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    """How many tasks have failed for each reason."""

    never_ran: int = 0
    """Tasks that were revoked before they ran."""

    retries: int = 0
    lost: int = 0
    """Attempts whose workers were lost."""

    clock: Clock = field(default_factory=Clock)
    running: Series = field(init=False)
    hosts: dict[str, Host] = field(default_factory=dict)
    queues: dict[str, Queue] = field(default_factory=dict)
    durations: Durations = field(default_factory=Durations)
    bars: Top[Bar] = field(default_factory=lambda: Top(MAX_BARS))
    slowest: Top[Bar] = field(default_factory=lambda: Top(MAX_SLOWEST))
    retried: Top[Attempt] = field(default_factory=lambda: Top(MAX_RETRIED))
    failures: list[Attempt] = field(default_factory=list)
    losses: list[Attempt] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.running = self.clock.series()

    def add(self, attempt: Attempt) -> None:
        """Add the last attempt of a task, or a task that has not begun."""
        self.states[attempt.state] += 1
        queue = self._queue(attempt.queue or "")
        queue.tasks += 1
        queue.succeeded += attempt.state is State.SUCCESS
        queue.failed += attempt.state is State.FAILED
        queue.unfinished += not attempt.state.is_final
        if attempt.number > 1:
            self.retried.add(attempt.number, attempt)
        if attempt.state is State.FAILED:
            self._add_failure(attempt)
        bar = self._add_attempt(attempt)
        if bar is None:
            self.never_ran += attempt.state is State.REVOKED and attempt.number == 1
            return
        queue.seconds += bar.ended - bar.began
        self.slowest.add(bar.ended - bar.began, bar)

    def add_earlier(self, attempt: Attempt) -> None:
        """Add an attempt that was followed by another."""
        if attempt.reason != Reason.PUBLISH_ERROR.value:
            self.retries += 1
            self._add_attempt(attempt)

    @property
    def all_attempts(self) -> int:
        """How many attempts have begun, as far as the ledger knows."""
        return self.durations.number

    def _add_failure(self, attempt: Attempt) -> None:
        self.reasons[attempt.reason or Reason.CALLER.value] += 1
        if len(self.failures) < MAX_FAILURES:
            self.failures.append(attempt)

    def _add_attempt(self, attempt: Attempt) -> Bar | None:
        """Add the time of an attempt. Return None for one that did not begin."""
        if attempt.reason in LOSSES:
            self.lost += 1
            if len(self.losses) < MAX_LOSSES:
                self.losses.append(attempt)
        bar = bar_of(attempt, self.now)
        if bar is None:
            return None
        host = self._host(bar.host)
        host.attempts += 1
        host.failed += attempt.state in (State.FAILED, State.WAITING)
        host.seconds += bar.ended - bar.began
        self.clock.add(bar.began, bar.ended, (self.running, host.series))
        self.durations.add(bar.ended - bar.began)
        self.bars.add(bar.ended - bar.began, bar)
        return bar

    def _host(self, name: str) -> Host:
        if name not in self.hosts and len(self.hosts) >= MAX_NAMES:
            name = OTHERS
        if name not in self.hosts:
            self.hosts[name] = Host(name, self.clock.series())
        return self.hosts[name]

    def _queue(self, name: str) -> Queue:
        if name not in self.queues and len(self.queues) >= MAX_NAMES:
            name = OTHERS
        return self.queues.setdefault(name, Queue(name))


def bar_of(attempt: Attempt, now: float) -> Bar | None:
    """Return when an attempt ran; None if it did not begin, or if the ledger does not know when."""
    execution = attempt.execution
    host = UNKNOWN_HOST if execution is None else execution.host
    if attempt.state is State.RUNNING:
        began = attempt.changed_at if execution is None or execution.started is None else execution.started
        return Bar(min(began, now), now, attempt, host)
    if execution is None or execution.started is None or execution.started <= 0:
        return None
    duration = execution.duration
    ended = attempt.changed_at if duration is None else execution.started + duration
    return Bar(execution.started, max(execution.started, ended), attempt, host)
