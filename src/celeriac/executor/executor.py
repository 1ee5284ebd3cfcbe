"""Run tasks on Celery workers: the executor, one heartbeat at a time.

    queue_command ─► PriorityQueue ─► open Slots ─► Publisher ─► broker ─► worker: execute_command
                                                                              │
  get_event_buffer ◄─ EventBuffer ◄─ Tracker ◄─ ResultReader ◄─ result backend ◄┘

    heartbeat()  =  trigger_tasks(open slots)  +  sync()

All decisions are made in memory, in the caller's thread. All I/O is behind `celeriac.executor.interfaces`.
An executor is not thread-safe: only one thread may use it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from random import Random
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from celeriac.config.executor_config import Config
from celeriac.executor.capacity import Capacity
from celeriac.executor.control_handler import handler_for
from celeriac.executor.interfaces import (
    ControlChannel,
    Ledger,
    LostTaskDetector,
    OpenPlaces,
    Publisher,
    ResultReader,
    Revoker,
    TaskSource,
)
from celeriac.executor.parts import compose
from celeriac.executor.recovery import NOTHING_ENDED
from celeriac.executor.requests import Explanation
from celeriac.executor.stats import ExecutorStats, collect_stats, format_dump
from celeriac.executor.thread_health import ThreadHealth
from celeriac.task.event import Event
from celeriac.task.result import Reason
from celeriac.task.state import State
from celeriac.task.task import DEFAULT_QUEUE, Command, Task, TaskKey
from celeriac.telemetry.telemetry import Telemetry

if TYPE_CHECKING:
    from celeriac.executor.start_gate import Readings

MAX_WAIT = 60.0  # seconds; `wait` returns at least this often


class CeleryExecutor:
    """Queues tasks, sends the most urgent ones to Celery workers, and reports each transition as an event."""

    def __init__(
        self,
        config: Config,
        *,
        publisher: Publisher,
        results: ResultReader,
        revoker: Revoker,
        capacity: Capacity | None = None,
        lost_task_detector: LostTaskDetector | None = None,
        control_channel: ControlChannel | None = None,
        ledger: Ledger | None = None,
        open_places: OpenPlaces | None = None,
        outbox: bool = True,
        threads: Callable[[], Collection[ThreadHealth]] = tuple,
        telemetry: Telemetry | None = None,
        readings: Callable[[], Readings] | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        random: Random | None = None,
    ) -> None:
        """Compose an executor. Five of its parts are optional:
        - `capacity` binds tasks late: a task is sent only when a live worker can take it.
        - `lost_task_detector` finds tasks that neither broker nor workers have. They are re-sent.
        - `control_channel` receives the requests of other processes. `sync` answers them.
        - `ledger` stores each task and each transition. `recover` takes over what an earlier executor left in it.
        - `open_places` opens what keeps limits of keys and rates with other executors; without it this one keeps them.
        With `outbox` a task is stored in the ledger before it is sent. Pass False if the broker ends with the process.
        `threads` returns what `stats` shows about threads. `telemetry` counts what happens; a cluster passes its own.
        `readings` returns how busy this machine is, for limits of a `Config` whose commands run here.
        `clock` returns seconds that never run backwards. `wall_clock` returns seconds since the epoch, for events.
        """
        parts = compose(
            config,
            publisher=publisher,
            results=results,
            revoker=revoker,
            capacity=capacity,
            lost_task_detector=lost_task_detector,
            ledger=ledger,
            open_places=open_places,
            outbox=outbox,
            clock=clock,
            wall_clock=wall_clock,
            random=random or Random(),
            telemetry=telemetry or Telemetry(),
            readings=readings,
        )
        self._parts, self._clock, self._results, self._threads = parts, clock, results, threads
        self._lifecycle, self._dispatcher, self.intake = parts.lifecycle, parts.dispatcher, parts.intake
        """Checks a task before it is queued, and once more before it is sent."""
        self._result_handler, self._event_reader = parts.result_handler, parts.event_reader
        self._revocation, self._explainer = parts.revocation, parts.explainer
        self._slots, self._tracker = self._lifecycle.slots, self._lifecycle.tracker
        self._control_handler = handler_for(control_channel, self, parts, ledger)
        self._ledger_writer, self.telemetry = self._lifecycle.ledger_writer, self._lifecycle.measures.telemetry
        """What this executor counts and measures. Other threads may read it."""
        self.recovery = parts.recovery
        """Takes over single tasks; `recover` takes over all of a ledger."""
        self.adjustments = parts.adjustments
        """Pauses and resumes all tasks or those of a queue, and changes the limits."""

    # — queue —

    def queue_command(
        self,
        key: TaskKey,
        command: Command | list[str],
        *,
        priority: int = 0,
        queue: str = DEFAULT_QUEUE,
        **fields: Any,
    ) -> Task:
        """Queue a command: a list of arguments, or a string for the shell. `fields` are those of `Task`.

        Return the task. Raise `InvalidTask`, `TaskAlreadyQueued` or `ExecutorEnded`; then nothing was queued.
        """
        arguments = tuple(command) if isinstance(command, list) else command
        task = Task(key=key, command=arguments, priority=priority, queue=queue, **fields)
        self.queue_task(task)
        return task

    def queue_task(self, task: Task) -> None:
        """Queue a task. Its dependencies must be waiting, in flight, or among the last 100,000 tasks that ended.

        Raise the same errors as `queue_command`."""
        self.intake.queue_task(task)

    def queue_tasks(self, tasks: Collection[Task]) -> None:
        """Queue all of the tasks or none. They may depend on each other, in any order.

        Raise the same errors as `queue_command`."""
        self.intake.queue_tasks(tasks)

    def accept_tasks(self, sources: Collection[TaskSource]) -> None:
        """Accept all tasks of sources. Heartbeats queue a part of them while few tasks of their queue are ready.

        Until a task is queued, no other method finds it. Raise `ExecutorEnded`."""
        self.intake.accept_tasks(sources)

    def reprioritise(self, key: TaskKey, priority: int, *, asked_by: str | None = None) -> None:
        """Change the priority of a waiting task. Raise `UnknownTask` if it does not wait. `asked_by` makes an event."""
        self.intake.reprioritise(key, priority, asked_by=asked_by)

    def recover(self, *, coming: Collection[TaskKey] = (), ended: Mapping[TaskKey, State] = NOTHING_ENDED) -> int:
        """Take over what earlier executors of this ledger left. Return the number of tasks.

        Queued tasks stay queued. Tasks in flight are tracked under their Celery ids; lost ones are re-sent. Results
        that exist are applied at once, as events.

        `coming` are the keys of tasks that the caller queues next: tasks that depend on one of them stay blocked.
        `ended` are the final states of tasks that others may depend on. Every other dependency outside the ledger is
        assumed to have succeeded.

        Call it once, before anything is queued. Raise `LedgerUnavailable` or `LedgerBroken`, and `InvalidTask` for a
        waiting task that needs more slots than there are; then nothing was taken over."""
        return self.recovery.recover(coming=coming, ended=ended)

    def adopt_tasks(self, tasks: Collection[Task], state: State = State.QUEUED) -> None:
        """Track tasks that another executor sent, under their Celery ids. `state` is QUEUED or RUNNING.

        They take slots even if too few are open. Results that exist are applied at once, as events. A task that
        neither the broker nor a worker has is re-sent, and a task whose worker is dead follows its `on_worker_lost`.
        Raise `TaskAlreadyQueued` or `ExecutorEnded`; then none was adopted."""
        self.recovery.adopt_tasks(tasks, state)

    # — revoke —

    def revoke_task(self, key: TaskKey) -> None:
        """Revoke a task. A waiting task ends at once. A task in flight ends when its worker reports REVOKED.

        Raise `UnknownTask`."""
        if not self._lifecycle.is_waiting(key):
            self._lifecycle.get_in_flight(key)
        self.revoke_tasks([key])

    def revoke_tasks(self, keys: Iterable[TaskKey] = (), *, queue: str | None = None) -> list[TaskKey]:
        """Revoke tasks together, as `revoke_task` does: those of `keys` that exist, and all tasks of `queue`.

        Return the keys of the revoked tasks, the waiting ones first."""
        if queue is not None:
            keys = [*keys, *(task.key for task in self.tasks() if task.queue == queue)]
        return self._revocation.revoke_tasks(keys)

    # — run —

    def heartbeat(self) -> None:
        """Send tasks and apply results. The caller repeats it, and calls `wait` in between."""
        begun = self._clock()
        self.intake.queue_part()
        self.trigger_tasks(self.slots_available)
        self.sync()
        self._lifecycle.measures.beat(self._clock() - begun)

    def trigger_tasks(self, open_slots: int) -> None:
        """Send the most urgent waiting tasks: as many as fit in `open_slots`."""
        self._dispatcher.trigger_tasks(open_slots, self._clock())

    def sync(self) -> None:
        """Apply the results that changed since the last call. A bad result affects only its own task."""
        now = self._clock()
        self._result_handler.update_all_task_states(now)
        self._parts.end_unstarted(now)
        if self._control_handler is not None:
            self._control_handler.handle_requests(now)
        if self._ledger_writer.write_if_due(now):
            self._result_handler.delete_recorded_results()
        self._lifecycle.measures.synced(now)

    def wait(self, timeout: float) -> None:
        """Return when a heartbeat may have something to do, or after `timeout` seconds."""
        now = self._clock()
        times = [now + min(timeout, MAX_WAIT), *self._parts.due_times(now)]
        if self._control_handler is not None and (reply_due := self._control_handler.due) is not None:
            times.append(reply_due)
        self._results.wait(max(0.0, min(times) - now))

    def run_until_idle(self) -> Iterator[Event]:
        """Yield each event, with heartbeats and waits in between, until no task is waiting or in flight.

        Tasks that the caller queues meanwhile are run too. After `drain` the loop ends when no task is in flight; in a
        pause it waits. The caller may leave the loop, use the executor, and iterate again: no event is lost.

        Raise `LedgerLost` or `LedgerBroken` if there is a ledger. Wait while the ledger, the broker or the result
        backend is unavailable. An exception of the caller's loop, or Ctrl-C, leaves the executor usable as well.
        """
        while True:
            self.heartbeat()
            yield from self._event_reader.take_one_by_one()
            may_start = self.tasks_waiting and not self._lifecycle.draining and not self._dispatcher.has_stopped
            if not self.tasks_in_flight and not may_start:
                return
            self.wait(MAX_WAIT)

    # — observe —

    def get_event_buffer(self, keys: Collection[TaskKey] | None = None) -> list[Event]:
        """Take the events since the last call, oldest first: all, or those of the given keys.

        The stored results of these events may then be deleted: see `Config.delete_results`."""
        return self._event_reader.take(keys)

    def read_events(self) -> list[Event]:
        """Take the events since the last call, as `get_event_buffer` does, once the ledger has them.

        The numbers of the events stay the same after a restart. The first call also returns the final events of earlier
        executors that were not acknowledged. While the ledger is unavailable, return none. Without a ledger all numbers
        are 0, and no event is returned again.
        """
        return self._event_reader.take_with_unacknowledged() if self.flush() else []

    def acknowledge(self, number: int) -> bool:
        """Confirm that all events up to `number` were handled. `read_events` will not return them after a restart.

        Return whether the ledger has stored this. If not, the next write includes it.
        """
        self._ledger_writer.acknowledge(number, self._clock())
        return self.flush()

    def flush(self) -> bool:
        """Write all changes to the ledger now, not later. Return False if it is unavailable."""
        return self._ledger_writer.flush(self._clock())

    def has_task(self, key: TaskKey) -> bool:
        """Return whether a task of this key is waiting or in flight."""
        return self._lifecycle.has(key)

    def tasks(self) -> Iterator[Task]:
        """Yield every task that is waiting or in flight. Do not queue or revoke tasks, or call `sync`, meanwhile."""
        return self._lifecycle.tasks()

    def explain(self, key: TaskKey) -> Explanation:
        """Return the events of a task, and what it waits for now.

        Tasks that are waiting or in flight are known, and the last 10,000 that ended. Raise `UnknownTask`."""
        draining = self._lifecycle.draining or self._dispatcher.has_stopped
        return self._explainer.explain(key, self._clock(), draining=draining)

    @property
    def slots_available(self) -> int:
        """The open slots."""
        return self._slots.open

    @property
    def slots_occupied(self) -> int:
        """The slots of the tasks in flight."""
        return self._slots.in_use

    @property
    def tasks_waiting(self) -> int:
        """The number of tasks that are accepted, queued or blocked."""
        return self._lifecycle.number_waiting

    @property
    def tasks_in_flight(self) -> int:
        """The number of tasks that were sent and have not ended."""
        return len(self._tracker)

    @property
    def tasks_unwritten(self) -> int:
        """The number of new tasks that the ledger does not have yet."""
        return self._ledger_writer.tasks_unwritten

    def stats(self) -> ExecutorStats:
        """Count everything. The cost grows with the tasks in flight."""
        return collect_stats(self._parts, self._threads())

    def debug_dump(self) -> str:
        """Return the counts and the tasks in flight, for a person: keys, ids and states, no commands and no values."""
        return format_dump(self.stats(), self._lifecycle)

    # — set a state by hand —

    def change_state(self, key: TaskKey, state: State, detail: str | None = None) -> None:
        """Set the state of a task. This does not stop its command: for that, use `revoke_task`.

        Raise `UnknownTask`, or `InvalidTransition` for a state that cannot follow the current one."""
        self._lifecycle.set_state(key, state, detail)

    def success(self, key: TaskKey, detail: str | None = None) -> None:
        """End a task as SUCCESS."""
        self.change_state(key, State.SUCCESS, detail)

    def fail(self, key: TaskKey, detail: str | None = None) -> None:
        """End a task as FAILED. It is not retried."""
        self.change_state(key, State.FAILED, detail)

    # — end —

    @property
    def is_draining(self) -> bool:
        """Whether no more tasks start or are accepted: see `drain`."""
        return self._lifecycle.draining

    def drain(self) -> None:
        """Start and accept no more tasks. Tasks in flight go on; failed attempts are not retried."""
        self._lifecycle.draining = True

    def cancel_unstarted(self) -> None:
        """Revoke the tasks in flight that have not started, as far as is known. Running tasks go on.

        Such a task ends as REVOKED when it is certain that it does not start: at once if the workers claim tasks,
        otherwise when a worker drops its message. With late binding and without claims, the task also ends when no live
        worker serves its queue. Then its message stays with the broker, and a later worker runs it.
        """
        self._revocation.cancel_unstarted()

    def revoke_waiting(self, *, silently: bool) -> int:
        """Start and accept no more tasks, and revoke the waiting ones. Return how many have no event.

        With `silently`, a task that was never sent has none, unless the ledger must store the end of each task."""
        self.drain()
        return self._lifecycle.end_all_waiting(silently=silently)

    def end(self, timeout: float | None = None, *, abandon: bool = False) -> bool:
        """Start nothing more, wait for the tasks in flight, then revoke the tasks that never ran.

        Wait at most `timeout` seconds for the tasks; None sets no limit. Do not wait for an unavailable ledger.
        With `abandon`, tasks that are still in flight after that end as lost; their commands may go on.
        Return whether all tasks have ended and the ledger has stored their ends.
        """
        self.drain()
        until = None if timeout is None else self._clock() + timeout
        self.sync()
        while self._tracker and (until is None or self._clock() < until):
            self.wait(MAX_WAIT if until is None else until - self._clock())
            self.heartbeat()
        self._lifecycle.end_all_waiting()
        for tracked in self._tracker if abandon else ():
            self._lifecycle.change_state(tracked, State.FAILED, Reason.LOST, "given up while in flight")
        return self.flush() and not self._tracker

    def terminate(self, why: str | None = None) -> None:
        """Revoke all tasks, waiting (`why` is their detail) or in flight, without waiting for their end: `end` waits.

        Queues without workers are handled as in `cancel_unstarted`."""
        self.drain()
        self._lifecycle.end_all_waiting(why)
        self._revocation.terminate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is not None:
            self.terminate()
        self.end(None if kind is None else MAX_WAIT)
