"""Apply every transition of a task and its effects: slots, events, ledger records, dependants.

    waiting ─► start ─► in flight ─► change_state ─► … ─► a final state
       ▲                    └─► retry, requeue ─┐
       └────────────────────────────────────────┘

The parts of an executor share one `TaskLifecycle`. A task changes its state only in this module. The decisions
are made elsewhere: in `dispatcher` from the receipts of the publisher, in `result_handler` from the results of the
tasks in flight, in `revocation` and `executor` from the calls of the caller.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from random import Random

from msgspec.structs import replace

from celeriac.config.executor_config import Config
from celeriac.errors import InvalidTransition, UnknownTask
from celeriac.executor.accepted import AcceptedTasks
from celeriac.executor.deadlines import Deadlines, describe_overdue
from celeriac.executor.dependencies import Dependencies, Unblocked
from celeriac.executor.event_buffer import EventBuffer
from celeriac.executor.history import MAX_ENDED, History
from celeriac.executor.interfaces import Ledger, OpenPlaces, TaskRecord
from celeriac.executor.ledger_writer import LedgerWriter
from celeriac.executor.measures import Measures
from celeriac.executor.open_limits import open_limits
from celeriac.executor.pauses import Pauses
from celeriac.executor.priority_queue import Entry, PriorityQueue
from celeriac.executor.publish_retries import PublishRetries
from celeriac.executor.slots import Slots, check_concurrency_key
from celeriac.executor.tracker import Tracked, Tracker
from celeriac.task.event import Event, priority_event
from celeriac.task.result import Reason, Result
from celeriac.task.state import TRANSITIONS, State
from celeriac.task.task import Task, TaskKey, new_task_id
from celeriac.telemetry.telemetry import Telemetry

NEVER_RAN = "never ran: the executor ended"
SET_BY_CALLERS = {State.QUEUED, State.RUNNING, State.SUCCESS, State.FAILED}


class TaskLifecycle:
    """The tasks of one executor: waiting, blocked and in flight."""

    def __init__(
        self,
        *,
        config: Config,
        ledger: Ledger | None,
        open_places: OpenPlaces | None,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        random: Random,
        telemetry: Telemetry,
    ) -> None:
        self.measures = Measures(telemetry, clock=clock, wall_clock=wall_clock)
        self.clock, self.wall_clock, self.random = clock, wall_clock, random
        self.accepted = AcceptedTasks()
        self.queue = PriorityQueue(wall_clock)
        self.dependencies = Dependencies()
        self.deadlines = Deadlines()
        self.slots = Slots(config.parallelism, config.queue_limits)
        self.open_limits = partial(open_limits, open_places=open_places, clock=clock)
        self.config, self.limits = config, self.open_limits(config) if config.has_shared_limits else None
        """The limits of concurrency keys and rates; None if there never were any."""

        self.limited_keys = config.limited_keys
        """The concurrency keys that have a limit, or had one."""

        self.tracker = Tracker(config, random)
        """The tasks in flight. Airflow's executors call them `running`."""

        self.publish_retries = PublishRetries(config, random)
        self.unconfirmed: dict[TaskKey, Tracked] = {}
        """The tasks in flight that the broker may or may not have: no receipt confirmed them."""

        self.unstarted_cancels: dict[TaskKey, Tracked] = {}
        """The tasks in flight that are revoked unless they have started."""

        self.never_resent: list[tuple[Tracked, str]] = []
        """Lost tasks, each with a detail, that are not sent again: they are revoked, or the executor drains."""

        self.event_buffer = EventBuffer()
        self.history = History()
        self.ledger_writer = LedgerWriter(ledger, random, on_lost=self._drop_all_tasks)
        self.draining = False
        """Whether no task is started and no attempt is retried."""

        self.pauses = Pauses()
        self.may_send: Callable[[TaskKey], bool] = always
        """Asked before a waiting task is sent. If it returns False, the task is revoked instead."""

        self.may_start_more = False
        """Whether a slot was freed or a task was queued since the last batch was chosen."""

    # — waiting tasks —

    def is_waiting(self, key: TaskKey) -> bool:
        """Return whether a task is queued or blocked."""
        return key in self.queue or key in self.dependencies

    def has(self, key: TaskKey) -> bool:
        """Return whether a task is waiting or in flight."""
        return self.is_waiting(key) or key in self.tracker

    @property
    def number_waiting(self) -> int:
        """The number of tasks that are accepted, queued or blocked."""
        return len(self.accepted) + len(self.queue) + len(self.dependencies)

    def tasks(self) -> Iterator[Task]:
        """Yield every task that is queued, blocked or in flight."""
        yield from self.queue.tasks()
        yield from self.dependencies.tasks()
        yield from (tracked.task for tracked in self.tracker)

    def take_waiting(self, key: TaskKey) -> Entry:
        """Remove a waiting task and return its entry. Raise `UnknownTask` if it does not wait."""
        return self.dependencies.take(key) if key in self.dependencies else self.queue.take(key)

    def get_waiting(self, key: TaskKey) -> Entry | None:
        """Return the entry of a waiting task."""
        return self.dependencies.get(key) or self.queue.get(key)

    def end_waiting(self, entry: Entry, state: State, reason: Reason, detail: str | None) -> None:
        """End a task that `take_waiting` has removed."""
        self.publish_retries.forget(entry.task.key)
        self.history.begin(entry)
        self._emit(entry.task, state, reason, detail)

    def revoke_waiting(self, entry: Entry) -> None:
        """Revoke a task that `take_waiting` has removed."""
        self.end_waiting(entry, State.REVOKED, Reason.REVOKED, "revoked while it waited")

    def end_all_waiting(self, why: str | None = None, *, silently: bool = False) -> int:
        """Revoke all waiting tasks, for good: no more are accepted. No task is skipped because another was revoked.

        With `silently`, those that have no event yet get none, unless the ledger must store the end of each task.
        Return their number.
        """
        why = why or NEVER_RAN
        entries = [*self.queue.take_all(), *self.dependencies.take_all()]
        sources = self.accepted.take_all()
        if not entries and not any(map(len, sources)):
            return 0
        when, writer = self.wall_clock(), self.ledger_writer
        is_recorded = writer.record_revoked_waiting(why, when, self.clock())
        number = 0
        if silently and (is_recorded or not writer.is_enabled):
            silent = Counter(entry.task.queue for entry in entries if not self.history.of_active(entry.task.key))
            silent.update({source.queue: len(source) for source in sources})
            self.measures.revoked_silently(silent)
            entries, sources = [entry for entry in entries if self.history.of_active(entry.task.key)], []
            number = silent.total()
        keys = [key for source in sources for key in source.keys()]  # noqa: SIM118 - a source is no mapping
        tasks = [(entry.task.key, entry.task.message_id, entry.task.attempt) for entry in entries]
        events = [
            Event(
                key=key,
                state=State.REVOKED,
                when=when,
                id=message_id,
                attempt=attempt,
                reason=Reason.REVOKED,
                detail=why,
                number=writer.next_number(),
            )
            for key, message_id, attempt in [*tasks, *((key, new_task_id(), 1) for key in keys)]
        ]
        self.event_buffer.extend(events)
        self._note_revoked(entries, events, is_recorded=is_recorded)
        return number

    def _note_revoked(self, entries: Sequence[Entry], events: Sequence[Event], *, is_recorded: bool) -> None:
        """Apply the effects of the events of revoked tasks. `is_recorded` says that the ledger has their states."""
        unkept = len(entries) - MAX_ENDED  # the history keeps no more of the ended tasks
        for number, (entry, event) in enumerate(zip(entries, events, strict=False)):
            self.publish_retries.forget(event.key)
            if number >= unkept:
                self.history.begin(entry)
            self._record(event, entry.task, is_recorded=is_recorded)

    def release(self, unblocked: Unblocked) -> None:
        """Queue the tasks whose dependencies have ended, and end the tasks that are skipped."""
        for entry in unblocked.ready:
            self.queue.push_back(entry)
            self.may_start_more = True
        for skipped in unblocked.skipped:
            self.history.begin(skipped.entry)
            self._emit(skipped.entry.task, State.SKIPPED, Reason.NEED_FAILED, skipped.why)

    def note_priority(self, entry: Entry, before: int, asked_by: str) -> None:
        """Report that another process has changed the priority of a waiting task."""
        task = entry.task
        event = priority_event(task, before, asked_by, self.wall_clock(), self.ledger_writer.next_number())
        self.event_buffer.put(event)
        self.history.begin(entry)
        self.history.record(event)
        self.ledger_writer.record_event(event)

    def check_limits(self, task: Task) -> None:
        """Raise `InvalidTask` for a task that could never start, or whose concurrency key has no limit."""
        self.slots.check(task)
        check_concurrency_key(task, self.limited_keys)

    # — tasks in flight —

    def get_in_flight(self, key: TaskKey) -> Tracked:
        """Return a task in flight. Raise `UnknownTask`."""
        tracked = self.tracker.get(key)
        if tracked is None:
            raise UnknownTask(key)
        return tracked

    def start(self, task: Task, now: float) -> Tracked:
        """Move a task from the queue into its slots."""
        self.slots.take(task)
        entry = self.queue.take(task.key)
        tracked = self.track(entry, now)
        if self.measures.telemetry.traces is not None:
            self.history.note_send(entry, self.wall_clock())
        return tracked

    def track(self, entry: Entry, now: float) -> Tracked:
        """Track a task that has its slots already."""
        if self.limits is not None:
            self.limits.hold(entry.task)
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
        """Apply a transition of a task in flight. One that was revoked for its deadline, or was lost while the executor
        drains, becomes FAILED."""
        if state is State.REVOKED and not tracked.revoking and tracked.lost_detail is not None:
            state, reason, detail = State.FAILED, Reason.LOST, tracked.lost_detail
        elif state is State.REVOKED and tracked.is_overdue and not tracked.revoking and not has_run(result):
            state, reason, detail = State.FAILED, Reason.DEADLINE, describe_overdue(tracked.task)
        elif tracked.state is State.RUNNING and not state.is_final:
            self.deadlines.watch(tracked.task)
        self.measures.moved(tracked, state, result)
        tracked.state, tracked.moved_at = state, self.clock()
        tracked.started_at = tracked.moved_at if state is State.RUNNING else None
        self._forget_publish_failures(tracked)
        if state is State.RUNNING and self.limits is not None:
            self.limits.started(tracked.task.key)
            self.may_start_more = True
        if state.is_final:
            self._remove_from_flight(tracked, state)
        self._emit(tracked.entry.task, state, reason, detail, result)

    def mark_unconfirmed(self, tracked: Tracked, resend_at: float) -> None:
        """Note that the broker may or may not have a task. It is re-sent at `resend_at`."""
        if tracked.task.key not in self.unconfirmed:
            self.measures.unconfirmed(tracked.task)
        tracked.resend_at = resend_at
        self.unconfirmed[tracked.task.key] = tracked

    def is_unconfirmed(self, tracked: Tracked) -> bool:
        """Return whether no receipt has confirmed a task."""
        return tracked.task.key in self.unconfirmed

    def retry(self, tracked: Tracked, task: Task, result: Result, delay: float) -> None:
        """End an attempt and queue the next one, `task`, for `delay` seconds later."""
        self._forget_publish_failures(tracked)
        self.measures.moved(tracked, State.WAITING, result)
        self.measures.attempt_failed(tracked.task, result.reason)
        self._remove_from_flight(tracked, State.WAITING)
        not_before = self.clock() + delay if delay else None
        self.queue.push_back(replace(tracked.entry, task=task), not_before=not_before)
        self.deadlines.watch(task)
        self._emit(tracked.task, State.WAITING, result.reason, result.detail, result, retry_in=delay, next_attempt=task)

    def requeue(self, tracked: Tracked, *, not_before: float | None = None) -> None:
        """Put a task that was not sent back to its place in the queue."""
        if self.limits is not None:
            self.limits.free(tracked.task.key, was_sent=False)
        self._remove_from_flight(tracked, State.WAITING)
        self.queue.push_back(tracked.entry, not_before=not_before)

    def record_publish_failure(
        self, tracked: Tracked, state: State, why: str, *, retry_in: float | None = None
    ) -> None:
        """Emit an event about a failed attempt to send a task. Its state does not change."""
        self.measures.publish_failed(tracked.task)
        self._emit(tracked.task, state, Reason.PUBLISH_ERROR, why, retry_in=retry_in)

    def _forget_publish_failures(self, tracked: Tracked) -> None:
        """Forget that a task was unconfirmed or could not be sent."""
        if self.unconfirmed:
            self.unconfirmed.pop(tracked.task.key, None)
        if self.publish_retries.counts:
            self.publish_retries.forget(tracked.task.key)

    def _remove_from_flight(self, tracked: Tracked, state: State) -> None:
        """Stop tracking a task in flight, and free its slots."""
        tracked.state = state
        self.tracker.untrack(tracked)
        self.slots.free(tracked.task.key)
        if self.limits is not None:
            self.limits.free(tracked.task.key, was_sent=True)
        self.unstarted_cancels.pop(tracked.task.key, None)
        self.may_start_more = True

    def _drop_all_tasks(self) -> None:
        """Drop all tasks without events: another executor owns them now. Nothing more is sent, tracked or revoked."""
        self.draining = True
        self.accepted.take_all()
        self.queue.take_all()
        self.dependencies.take_all()
        for tracked in self.tracker:
            self._forget_publish_failures(tracked)
            self.measures.moved(tracked, State.WAITING, None)
            self._remove_from_flight(tracked, tracked.state)

    def set_state(self, key: TaskKey, state: State, detail: str | None) -> None:
        """Apply a transition that the caller asks for. Raise `UnknownTask` or `InvalidTransition`."""
        tracked = None if self.is_waiting(key) else self.get_in_flight(key)
        current = State.WAITING if tracked is None else tracked.state
        if state not in SET_BY_CALLERS or state not in TRANSITIONS[current]:
            raise InvalidTransition(key, current, state, tuple(TRANSITIONS[current]))
        if tracked is None:
            self.end_waiting(self.take_waiting(key), state, Reason.CALLER, detail)
        else:
            self.change_state(tracked, state, Reason.CALLER, detail)

    # — events —

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
        """Report a transition."""
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
        self._record(event, next_attempt or task)
        if state.is_final and state is not State.SKIPPED:  # `Dependencies` has skipped the dependants already
            self.release(self.dependencies.on_task_ended(task.key, state))

    def _record(self, event: Event, task: Task, *, is_recorded: bool = False) -> None:
        """Record an event in the history and in the ledger, with the state of its task after it.

        `task` has the current or the next attempt. `is_recorded` says that the ledger has the state.
        """
        self.history.record(event)
        if event.state.is_final:
            self.measures.ended(task, event, self.history.of(event.key))
        self.ledger_writer.record_event(event)
        if self.ledger_writer.is_enabled and not is_recorded:
            tracked = self.tracker.get(event.key)
            revoking = tracked is not None and tracked.revoking
            self.ledger_writer.record_state(record_after(event, task, revoking=revoking), self.clock())


def always(_: TaskKey) -> bool:
    return True


def has_run(result: Result | None) -> bool:
    """Return whether a result tells of a process."""
    return result is not None and result.execution is not None and result.execution.pid is not None


def record_after(event: Event, task: Task, *, revoking: bool) -> TaskRecord:
    """Return the ledger's record of a task after an event. `task` has the current or the next attempt."""
    not_before = event.when + event.retry_in if event.retry_in else None
    return TaskRecord(task, event.state, event.when, event.reason, event.detail, event.execution, not_before, revoking)
