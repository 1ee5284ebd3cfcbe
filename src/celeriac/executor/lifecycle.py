"""Every move of a task, and what follows from it: its slot, its event, its line in the ledger, who needed it.

    waiting ─► start ─► out ─► move ─► … ─► an end
       ▲                  └─► again, back_in_line ─┐
       └───────────────────────────────────────────┘

The parts of an executor share what is here, and no task changes state except through this module. The decisions are
made elsewhere: in `dispatcher` by what the broker answers, in `result_handler` by what is known of the tasks in flight,
in `revocation` and `executor` by what the caller wants.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from celeriac.config.executor_config import Config
from celeriac.errors import UnknownTask
from celeriac.executor.dependencies import Dependencies, Unblocked
from celeriac.executor.event_buffer import EventBuffer
from celeriac.executor.history import History
from celeriac.executor.interfaces import Ledger, TaskRecord
from celeriac.executor.ledger_writer import LedgerWriter
from celeriac.executor.priority_queue import Entry, PriorityQueue
from celeriac.executor.publish_retries import PublishRetries
from celeriac.executor.slots import Slots
from celeriac.executor.tracker import Tracked, Tracker
from celeriac.task.event import Event
from celeriac.task.result import Reason, Result
from celeriac.task.state import State
from celeriac.task.task import Task, TaskKey


class TaskLifecycle:
    def __init__(
        self,
        config: Config,
        ledger: Ledger | None,
        *,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        random: Random,
    ) -> None:
        self.clock, self.wall_clock, self.random = clock, wall_clock, random
        self.queue = PriorityQueue()
        self.dependencies = Dependencies()
        self.slots = Slots(config.parallelism, config.queue_limits)
        self.tracker = Tracker(config, random)
        self.publish_retries = PublishRetries(config, random)
        self.unconfirmed: dict[TaskKey, Tracked] = {}
        """Those of which nobody knows whether the broker has them."""

        self.unstarted_cancels: dict[TaskKey, Tracked] = {}
        """Those that are called back unless they have started."""

        self.event_buffer = EventBuffer()
        self.history = History()
        self.ledger_writer = LedgerWriter(ledger, random, on_lost=self._disown)
        self.draining = False
        """Whether nothing more is started, and nothing tried again."""

        self.may_start_more = False
        """Whether something may start that could not before: a slot is free, or a task has come."""

    # — those that wait —

    def is_waiting(self, key: TaskKey) -> bool:
        return key in self.queue or key in self.dependencies

    def has(self, key: TaskKey) -> bool:
        return self.is_waiting(key) or key in self.tracker

    def take_waiting(self, key: TaskKey) -> Entry:
        return self.dependencies.take(key) if key in self.dependencies else self.queue.take(key)

    def end_waiting(self, entry: Entry, state: State, reason: Reason, detail: str | None) -> None:
        """The end of one that was taken out before."""
        self.publish_retries.forget(entry.task.key)
        self.history.begin(entry)
        self._emit(entry.task, state, reason, detail)

    def end_all_waiting(self, detail: str, queue: str | None = None) -> list[TaskKey]:
        """Revoke what waits: all, or those of a queue. None is skipped for another, so all are taken out first."""
        entries = self._take_all_waiting(queue)
        for entry in entries:
            self.end_waiting(entry, State.REVOKED, Reason.REVOKED, detail)
        return [entry.task.key for entry in entries]

    def _take_all_waiting(self, queue: str | None = None) -> list[Entry]:
        tasks = [*self.queue.tasks(), *self.dependencies.tasks()]
        return [self.take_waiting(task.key) for task in tasks if queue in (None, task.queue)]

    def release(self, freed: Unblocked) -> None:
        """Those that need nothing more get in line; those that needed too much are skipped."""
        for entry in freed.ready:
            self.queue.push_back(entry)
            self.may_start_more = True
        for skipped in freed.skipped:
            self.history.begin(skipped.entry)
            self._emit(skipped.entry.task, State.SKIPPED, Reason.NEED_FAILED, skipped.why)

    # — those that are out —

    def get_in_flight(self, key: TaskKey) -> Tracked:
        """Raises `UnknownTask`."""
        tracked = self.tracker.get(key)
        if tracked is None:
            raise UnknownTask(key)
        return tracked

    def start(self, task: Task, now: float) -> Tracked:
        """Out of the queue and into its slots."""
        self.slots.take(task)
        return self.track(self.queue.take(task.key), now)

    def track(self, entry: Entry, now: float) -> Tracked:
        """One that has its slots already."""
        self.history.begin(entry)
        return self.tracker.track(entry, now)

    def change_state(
        self,
        tracked: Tracked,
        state: State,
        reason: Reason | None = None,
        detail: str | None = None,
        result: Result | None = None,
    ) -> None:
        tracked.state, tracked.moved_at = state, self.clock()
        tracked.started_at = tracked.moved_at if state is State.RUNNING else None
        self._settle(tracked)
        if state.is_final:
            self._leave(tracked, state)
        self._emit(tracked.task, state, reason, detail, result)

    def mark_unconfirmed(self, tracked: Tracked, resend_at: float) -> None:
        """Nobody knows whether the broker has it: it is sent again at that moment."""
        tracked.resend_at = resend_at
        self.unconfirmed[tracked.task.key] = tracked

    def is_unconfirmed(self, tracked: Tracked) -> bool:
        return tracked.task.key in self.unconfirmed

    def retry(self, tracked: Tracked, task: Task, result: Result, delay: float) -> None:
        """Run it once more, as `task`, after `delay` seconds."""
        self._settle(tracked)
        self._leave(tracked, State.WAITING)
        not_before = self.clock() + delay if delay else None
        self.queue.push_back(tracked.entry._replace(task=task), not_before=not_before)
        self._emit(tracked.task, State.WAITING, result.reason, result.detail, result, retry_in=delay, next_attempt=task)

    def requeue(self, tracked: Tracked, *, not_before: float | None = None) -> None:
        """It was not sent, and waits where it stood."""
        self._leave(tracked, State.WAITING)
        self.queue.push_back(tracked.entry, not_before=not_before)

    def record_publish_failure(
        self, tracked: Tracked, state: State, why: str, *, retry_in: float | None = None
    ) -> None:
        """Tell of a try at sending that failed, which leaves the task where it is."""
        self._emit(tracked.task, state, Reason.PUBLISH_ERROR, why, retry_in=retry_in)

    def _settle(self, tracked: Tracked) -> None:
        """Whether the broker has it is no longer in question."""
        self.unconfirmed.pop(tracked.task.key, None)
        self.publish_retries.forget(tracked.task.key)

    def _leave(self, tracked: Tracked, state: State) -> None:
        """The task is no longer out: its slot is free."""
        tracked.state = state
        self.tracker.untrack(tracked)
        self.slots.free(tracked.task.key)
        self.unstarted_cancels.pop(tracked.task.key, None)
        self.may_start_more = True

    def _disown(self) -> None:
        """All is another executor's now: nothing here is to be sent, followed or called back."""
        self.draining = True
        self._take_all_waiting()
        for tracked in self.tracker:
            self._settle(tracked)
            self._leave(tracked, tracked.state)

    # — what is told —

    def _emit(
        self,
        task: Task,
        state: State,
        reason: Reason | None = None,
        detail: str | None = None,
        result: Result | None = None,
        *,
        retry_in: float | None = None,
        next_attempt: Task | None = None,
    ) -> None:
        event = Event(
            key=task.key,
            state=state,
            when=self.wall_clock(),
            id=task.message_id,
            attempt=task.attempt,
            reason=reason,
            detail=detail,
            execution=result.execution if result else None,
            retry_in=retry_in,
            number=self.ledger_writer.next_number(),
        )
        self.event_buffer.put(event)
        self.history.record(event)
        if self.ledger_writer.is_enabled:
            self.ledger_writer.record_event(event)
            tracked = self.tracker.get(task.key)
            revoking = tracked is not None and tracked.revoking
            self.ledger_writer.record_state(record_after(event, next_attempt or task, revoking=revoking), self.clock())
        if state.is_final and state is not State.SKIPPED:  # for whom one is skipped, `needs` has said already
            self.release(self.dependencies.on_task_ended(task.key, state))


def record_after(event: Event, task: Task, *, revoking: bool) -> TaskRecord:
    not_before = event.when + event.retry_in if event.retry_in else None
    return TaskRecord(task, event.state, event.when, event.reason, event.detail, event.execution, not_before, revoking)
