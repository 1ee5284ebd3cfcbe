"""One run: tasks in, totals out.

    tasks (a list, or a stream that is still being written) ─► executor ─► events ─► Totals, and whoever watches

When to stop is decided here; how it looks is not.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Protocol

from celeriac.errors import InvalidTask
from celeriac.executor.executor import CeleryExecutor
from celeriac.runs.job_file import Problem
from celeriac.task.event import Event
from celeriac.task.result import Reason
from celeriac.task.state import State
from celeriac.task.task import Task, TaskKey

STDIN = "<stdin>"
SLOWEST = 5
END_WHAT_RUNS = 2  # interrupts
TICK = 0.2  # seconds between two looks at the run for whoever watches


@dataclass(slots=True)
class Totals:
    """How a run stands, and how it went."""

    queued: int = 0
    succeeded: int = 0
    failed: list[Event] = field(default_factory=list)
    """The last event of each task that failed."""

    revoked: int = 0
    """Tasks that ran and were called back."""

    never_ran: int = 0
    skipped: int = 0
    """Tasks that never ran because one that they need did not end well."""

    retried: int = 0
    """Attempts after which another one followed."""

    output_lost: int = 0
    """Tasks that ended well, and part of whose output could not be written."""

    slowest: list[tuple[float, TaskKey]] = field(default_factory=list)
    """Seconds and key, a heap of the longest executions."""

    name: str | None = None
    """What the ledger calls the run."""

    had_succeeded: int = 0
    """Tasks of an earlier go at this run, which are not run again."""

    had_failed: int = 0
    """Tasks of an earlier go at this run that had failed, and are left so."""

    problems: list[Problem] = field(default_factory=list)
    """Lines of a stream that could not be used."""

    started: float = field(default_factory=time.monotonic)
    ended: float | None = None
    interrupts: int = 0
    record_lost: bool = False
    """The file of events could not be written to its end."""

    stopped_early: bool = False
    """So many tasks failed that the rest was not started."""

    @property
    def interrupted(self) -> bool:
        return self.interrupts > 0

    @property
    def done(self) -> int:
        return self.ran + self.never_ran + self.skipped

    @property
    def ran(self) -> int:
        return self.succeeded + len(self.failed) + self.revoked

    @property
    def wall_time(self) -> float:
        """Seconds since the run began, or from its beginning to its end."""
        return (self.ended or time.monotonic()) - self.started

    @property
    def exit_status(self) -> int:
        if self.interrupted:
            return 130
        if self.problems:
            return 2
        return 1 if self.done > self.succeeded or self.had_failed or self.record_lost else 0


class Watcher(Protocol):
    """Whoever looks on: the progress bar, the file of events."""

    def on_event(self, event: Event) -> None: ...
    def on_tick(self, totals: Totals, executor: CeleryExecutor) -> None: ...
    def on_interrupt(self, totals: Totals, executor: CeleryExecutor) -> None: ...


class Stream:
    """Tasks that are still being read, by another thread."""

    def __init__(self, complain: Callable[[Problem], None]) -> None:
        """`complain` is told of what can be read, and not be queued; of what cannot be read, whoever reads it tells."""
        self.complain = complain
        self._items: SimpleQueue[Task | Problem | None] = SimpleQueue()
        self.ended = False

    def put(self, item: Task | Problem | None) -> None:
        """None is the end."""
        self._items.put(item)

    def take(self) -> list[Task | Problem]:
        """What has come since the last call."""
        taken: list[Task | Problem] = []
        while not self.ended:
            try:
                item = self._items.get_nowait()
            except Empty:
                break
            if item is None:
                self.ended = True
            else:
                taken.append(item)
        return taken


class Run:
    def __init__(
        self,
        executor: CeleryExecutor,
        *,
        watchers: Sequence[Watcher],
        wake: Callable[[], None],
        max_failures: int | None = None,
    ) -> None:
        """`wake` ends the executor's `wait`, and may be called from a signal handler."""
        self.totals = Totals()
        self._executor = executor
        self._watchers = watchers
        self._wake = wake
        self._max_failures = max_failures
        self._interrupts = self._interrupts_seen = 0
        self._draining = False
        self._last_failure: dict[TaskKey, Event] = {}

    def interrupt(self) -> None:
        """Start nothing more; the second time, end what runs; the third, wait for nothing. Safe in a signal handler."""
        self._interrupts += 1
        self._wake()

    def drive(self, tasks: Collection[Task], stream: Stream | None = None, *, recovered: int = 0) -> Totals:
        """Run it all and return when everything has ended. `recovered` tasks are with the executor already."""
        self._executor.queue_tasks(tasks)
        self.totals.queued += recovered + len(tasks)
        next_tick = 0.0
        while True:
            self._act_on_interrupts()
            if stream is not None:
                self._take_from(stream)
            self._executor.heartbeat()
            self._count()
            if (now := time.monotonic()) >= next_tick:
                next_tick = now + TICK
                self._tick()
            if not self._is_going(stream):
                break
            self._executor.wait(next_tick - now)
        self._executor.end()
        self._count()
        self.totals.ended = time.monotonic()
        self._tick()
        return self.totals

    def _is_going(self, stream: Stream | None) -> bool:
        if self._executor.tasks_in_flight:
            return True
        if not self._draining and (self._executor.tasks_waiting or (stream is not None and not stream.ended)):
            return True
        # A ledger that is away is waited for, until told otherwise.
        return not self._executor.flush() and self._interrupts < END_WHAT_RUNS

    def _take_from(self, stream: Stream) -> None:
        for item in stream.take():
            if isinstance(item, Problem):
                self.totals.problems.append(item)
            elif not self._draining:
                self._queue(item, stream)

    def _queue(self, task: Task, stream: Stream) -> None:
        try:
            self._executor.queue_task(task)
        except InvalidTask as wrong:  # it needs what was refused itself, or has ended long ago
            self.totals.problems.append(Problem(STDIN, None, wrong.field, wrong.problem, wrong.remedy))
            stream.complain(self.totals.problems[-1])
        else:
            self.totals.queued += 1

    def _act_on_interrupts(self) -> None:
        while self._interrupts_seen < self._interrupts:
            self._interrupts_seen += 1
            self.totals.interrupts = self._interrupts_seen
            match self._interrupts_seen:
                case 1:
                    self._start_nothing_more()
                case 2:
                    self._executor.terminate()
                case 3:
                    self._executor.end(timeout=0, abandon=True)
            for watcher in self._watchers:
                watcher.on_interrupt(self.totals, self._executor)

    def _count(self) -> None:
        for event in self._executor.get_event_buffer():
            self._count_one(event)
            for watcher in self._watchers:
                watcher.on_event(event)
        if self._max_failures is not None and len(self.totals.failed) >= self._max_failures:
            self.totals.stopped_early = True
            self._start_nothing_more()

    def _start_nothing_more(self) -> None:
        self._draining = True
        self._executor.drain()
        self._executor.cancel_unstarted()

    def _count_one(self, event: Event) -> None:
        totals = self.totals
        match event.state:
            case State.WAITING if event.reason is not Reason.PUBLISH_ERROR:
                totals.retried += 1
                self._last_failure[event.key] = event
                return
            case State.SUCCESS:
                totals.succeeded += 1
                totals.output_lost += event.detail is not None
            case State.FAILED:
                totals.failed.append(event)
            case State.REVOKED if event.key in self._last_failure:  # it had failed, and was to be tried again
                totals.failed.append(self._last_failure[event.key])
            case State.REVOKED if event.execution is not None and event.execution.started is not None:
                totals.revoked += 1
            case State.REVOKED:
                totals.never_ran += 1
            case State.SKIPPED:
                totals.skipped += 1
            case _:
                return
        self._last_failure.pop(event.key, None)
        if event.execution is not None and event.execution.duration is not None:
            self._remember_if_slow(event.execution.duration, event.key)

    def _remember_if_slow(self, duration: float, key: TaskKey) -> None:
        if len(self.totals.slowest) < SLOWEST:
            heapq.heappush(self.totals.slowest, (duration, key))
        elif duration > self.totals.slowest[0][0]:
            heapq.heapreplace(self.totals.slowest, (duration, key))

    def _tick(self) -> None:
        for watcher in self._watchers:
            watcher.on_tick(self.totals, self._executor)
