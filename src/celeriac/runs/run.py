"""One run: drive an executor until all tasks have ended, and count how they ended.

    tasks (a list, or a stream that is still being written) ─► executor ─► events ─► Totals, Watchers

A run decides when to stop. It prints nothing: the watchers do.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from queue import Empty, SimpleQueue
from typing import Protocol

from msgspec import Struct, field

from celeriac.errors import InvalidTask
from celeriac.executor.executor import CeleryExecutor
from celeriac.runs.job_file import Jobs, PlainJobs, Problem
from celeriac.runs.suspension import Suspension
from celeriac.task.event import Event
from celeriac.task.line_key import is_line_key
from celeriac.task.result import Reason
from celeriac.task.state import State
from celeriac.task.task import Command, Task, TaskKey

STDIN = "<stdin>"
SLOWEST_KEPT = 5  # executions
TERMINATE = 2  # interrupts
MAX_UNWRITTEN = 5_000  # tasks of a stream that are not in the ledger yet
MAX_LEDGER_WAIT = 2.0  # seconds that an interrupted run waits for a ledger that cannot be written
MANY = 20_000  # tasks; to revoke so many takes a moment
TICK_INTERVAL = 0.2  # seconds between two calls of `on_tick`
IDLE_TICK_INTERVAL = 5.0  # the same while the run is paused and nothing is in flight


class Totals(Struct):
    """The numbers of a run, so far or in the end."""

    queued: int = 0
    succeeded: int = 0
    failed: list[Event] = field(default_factory=list)
    """The last event of each task that failed."""

    failed_commands: dict[TaskKey, Command] = field(default_factory=dict)
    """The commands of the tasks that failed and whose keys are only numbers of lines."""

    revoked: int = 0
    """Tasks that were revoked while they ran."""

    never_ran: int = 0
    """Tasks that were revoked before they ran."""

    skipped: int = 0
    """Tasks that did not run because a task that they need did not succeed."""

    retried: int = 0
    """Attempts that were followed by another one."""

    output_lost: int = 0
    """Tasks that succeeded, although a part of their output could not be written."""

    slowest: list[tuple[float, TaskKey]] = field(default_factory=list)
    """The longest executions, in seconds, with the keys of their tasks: a heap."""

    name: str | None = None
    """The name of the run in the ledger."""

    unrecorded: int = 0
    """How many of the tasks that never ran are not in the ledger, but in the file of the run."""

    had_succeeded: int = 0
    """Tasks that succeeded in an earlier process and do not run again."""

    had_failed: int = 0
    """Tasks that failed in an earlier process and do not run again."""

    problems: list[Problem] = field(default_factory=list)
    """The bad lines of a stream."""

    on_workers: bool = False
    """Whether workers elsewhere run the tasks: one that was sent may not have started."""

    started: float = field(default_factory=time.monotonic)
    ended: float | None = None
    interrupts: int = 0
    suspended: bool = False
    """Whether Ctrl-Z is about to stop this process and its commands."""

    cancelled: bool = False
    """Whether another process has cancelled the whole run."""

    record_lost: bool = False
    """Whether the file of events is incomplete because it could not be written."""

    stopped_early: bool = False
    """Whether no more tasks were started because too many had failed."""

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
        """Seconds since the start of the run, up to its end if it has ended."""
        return (self.ended or time.monotonic()) - self.started

    @property
    def exit_status(self) -> int:
        if self.interrupted:
            return 130
        if self.problems:
            return 2
        return 1 if self.done > self.succeeded or self.had_failed or self.record_lost else 0


class Watcher(Protocol):
    """An observer of a run: the progress bar, the file of events."""

    records_all: bool
    """Whether `on_event` must get an event of each task, also of the tasks that never ran."""

    def on_queued(self, jobs: Iterable[tuple[TaskKey, Command]]) -> None:
        """Take note of jobs and their commands, in their order."""
        ...

    def on_event(self, event: Event, command: Command | None) -> None:
        """`command` is given for a task that failed, if its key is only the number of a line."""
        ...

    def on_tick(self, totals: Totals, executor: CeleryExecutor) -> None: ...
    def on_interrupt(self, totals: Totals, executor: CeleryExecutor) -> None: ...
    def on_revoke(self, waiting: int) -> None:
        """Take note that many waiting tasks are about to be revoked and written down."""


class Stream:
    """Tasks that another thread is still reading."""

    def __init__(self, report_problem: Callable[[Problem], None]) -> None:
        """`report_problem` is called for a task that cannot be queued. The reader of the stream reports bad lines."""
        self.report_problem = report_problem
        self._items: SimpleQueue[Task | Problem | None] = SimpleQueue()
        self.ended = False

    def put(self, item: Task | Problem | None) -> None:
        """Add a task or a bad line. None ends the stream."""
        self._items.put(item)

    def take(self, limit: int) -> list[Task | Problem]:
        """Return the items since the last call, at most `limit`."""
        taken: list[Task | Problem] = []
        while not self.ended and len(taken) < limit:
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
    """The tasks of one `celeriac run` or `retry`, from the first to the last."""

    def __init__(
        self,
        executor: CeleryExecutor,
        *,
        watchers: Sequence[Watcher],
        wake: Callable[[], None],
        suspension: Suspension | None = None,
        max_failures: int | None = None,
    ) -> None:
        """`wake` ends the executor's `wait`, and may be called from a signal handler. `suspension` handles Ctrl-Z.

        After `max_failures` failed tasks, no more tasks start.
        """
        self.totals = Totals()
        self._executor = executor
        self._watchers = watchers
        self._wake, self._suspension = wake, suspension
        self._max_failures = max_failures
        self._interrupts = self._interrupts_seen = 0
        self._draining = False
        self._ledger_deadline: float | None = None
        """When an interrupted run ends, even if the ledger cannot be written."""

        self._last_failure: dict[TaskKey, Event] = {}
        self._listed: Jobs | PlainJobs | None = None
        self._commands: dict[TaskKey, Command] = {}
        """The commands of tasks whose keys are only numbers; those of `_listed` are looked up after a failure."""

    def interrupt(self) -> None:
        """Start no more tasks. The second call ends the running tasks; the third call does not wait for their end.

        May be called from a signal handler.
        """
        self._interrupts += 1
        self._wake()

    def drive(self, jobs: Jobs | PlainJobs, stream: Stream | None = None, *, recovered: int = 0) -> Totals:
        """Run all jobs, and return when they have ended. The executor has `recovered` tasks already."""
        self._commands = line_commands((task.key, task.command) for task in self._executor.tasks())
        self._listed = jobs
        earlier = [(task.key, task.command) for task in self._executor.tasks()] if recovered else []
        if isinstance(jobs, PlainJobs):
            self._executor.accept_tasks(jobs.sources())
        else:
            self._executor.queue_tasks(jobs)
        for watcher in self._watchers:
            watcher.on_queued(chain(earlier, jobs.commands()))
        self.totals.queued += recovered + len(jobs)
        last_tick = float("-inf")
        while True:
            self._act_on_interrupts()
            if self._suspension is not None and self._suspension.is_requested:
                self._suspend(self._suspension)
            if stream is not None:
                self._take_from(stream)
            self._executor.heartbeat()
            if self._executor.is_draining and not self._draining:
                self._draining = self.totals.cancelled = True
            self._take_events()
            interval = IDLE_TICK_INTERVAL if self._is_idle() else TICK_INTERVAL
            if (now := time.monotonic()) >= last_tick + interval:
                last_tick = now
                self._tick()
            if self._has_ended(stream):
                break
            self._executor.wait(last_tick + interval - now)
        self._executor.end()
        self._take_events()
        self.totals.ended = time.monotonic()
        self._tick()
        return self.totals

    def _is_idle(self) -> bool:
        """Return whether nothing changes until the run is resumed."""
        executor = self._executor
        return executor.adjustments.pauses.whole is not None and not executor.tasks_in_flight

    def _has_ended(self, stream: Stream | None) -> bool:
        if self._executor.tasks_in_flight:
            return False
        if not self._draining and (self._executor.tasks_waiting or (stream is not None and not stream.ended)):
            return False
        self._revoke_waiting()
        if self._executor.flush() or self._interrupts >= TERMINATE:
            return True
        if not self.totals.interrupted:
            return False
        self._ledger_deadline = self._ledger_deadline or time.monotonic() + MAX_LEDGER_WAIT
        return time.monotonic() >= self._ledger_deadline

    def _take_from(self, stream: Stream) -> None:
        """Queue what was read, but not much more than the ledger has: a crash would lose the rest."""
        for item in stream.take(MAX_UNWRITTEN - self._executor.tasks_unwritten):
            if isinstance(item, Problem):
                self.totals.problems.append(item)
            elif not self._draining:
                self._queue(item, stream)

    def _queue(self, task: Task, stream: Stream) -> None:
        try:
            self._executor.queue_task(task)
        except InvalidTask as error:  # a task that it needs was refused, or ended long ago
            self.totals.problems.append(Problem(STDIN, None, error.field, error.problem, error.remedy))
            stream.report_problem(self.totals.problems[-1])
        else:
            self.totals.queued += 1
            for watcher in self._watchers:
                watcher.on_queued([(task.key, task.command)])
            self._commands |= line_commands([(task.key, task.command)])

    def _act_on_interrupts(self) -> None:
        while self._interrupts_seen < self._interrupts:
            self._interrupts_seen += 1
            self.totals.interrupts = self._interrupts_seen
            match self._interrupts_seen:
                case 1:
                    self._drain()
                case 2:
                    self._revoke_waiting()
                    self._executor.terminate()
                case 3:
                    self._executor.end(timeout=0, abandon=True)
            for watcher in self._watchers:
                watcher.on_interrupt(self.totals, self._executor)

    def _suspend(self, suspension: Suspension) -> None:
        self.totals.suspended = True
        self._tick()
        suspension.suspend()
        self.totals.suspended = False

    def _revoke_waiting(self) -> None:
        """Revoke the tasks that never run. They have no events if no watcher needs these."""
        waiting = self._executor.tasks_waiting
        if not waiting:
            return
        silently = not any(watcher.records_all for watcher in self._watchers)
        number = sum(1 for _ in self._executor.tasks()) if silently else waiting
        if number >= MANY:
            for watcher in self._watchers:
                watcher.on_revoke(number)
        self.totals.never_ran += self._executor.revoke_waiting(silently=silently)

    def _take_events(self) -> None:
        for event in self._executor.get_event_buffer():
            command = self._take_command(event)
            self._count(event)
            for watcher in self._watchers:
                watcher.on_event(event, command)
        if self._max_failures is not None and len(self.totals.failed) >= self._max_failures:
            self.totals.stopped_early = True
            self._drain()

    def _take_command(self, event: Event) -> Command | None:
        """Return the command of a task that has failed, if its key is only a number."""
        was_revoked_after_failure = event.state is State.REVOKED and event.key in self._last_failure
        if not (event.state is State.FAILED or was_revoked_after_failure) or not is_line_key(event.key):
            if event.state.is_final:
                self._commands.pop(event.key, None)
            return None
        if isinstance(self._listed, Jobs):
            self._commands |= line_commands(self._listed.commands())
            self._listed = None
        command = self._commands.pop(event.key, None)
        if command is None and self._listed is not None:
            command = self._listed.command_of(str(event.key))
        if command is not None:
            self.totals.failed_commands[event.key] = command
        return command

    def _drain(self) -> None:
        self._draining = True
        self._executor.drain()
        self._executor.cancel_unstarted()

    def _count(self, event: Event) -> None:
        totals = self.totals
        match event.state:
            case State.WAITING if event.reason is not Reason.PUBLISH_ERROR and event.priority is None:
                totals.retried += 1
                self._last_failure[event.key] = event
                return
            case State.SUCCESS:
                totals.succeeded += 1
                totals.output_lost += event.detail is not None
            case State.FAILED:
                totals.failed.append(event)
            case State.REVOKED if event.key in self._last_failure:  # revoked while it waited for a retry
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
            self._keep_if_slow(event.execution.duration, event.key)

    def _keep_if_slow(self, duration: float, key: TaskKey) -> None:
        if len(self.totals.slowest) < SLOWEST_KEPT:
            heapq.heappush(self.totals.slowest, (duration, key))
        elif duration > self.totals.slowest[0][0]:
            heapq.heapreplace(self.totals.slowest, (duration, key))

    def _tick(self) -> None:
        for watcher in self._watchers:
            watcher.on_tick(self.totals, self._executor)


def line_commands(commands: Iterable[tuple[TaskKey, Command]]) -> dict[TaskKey, Command]:
    """Return the commands of the tasks whose keys are only numbers of lines."""
    return {key: command for key, command in commands if is_line_key(key)}
