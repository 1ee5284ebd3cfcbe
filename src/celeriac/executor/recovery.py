"""Take over tasks that earlier executors queued or sent.

    Ledger.unfinished ─► waiting   ─► queued or blocked again, in order of arrival
                      └► in flight ─► tracked under the same Celery id; results that exist are applied at once

A task in flight that neither the broker nor a worker has is re-sent later: the scan for lost tasks finds it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType

from celeriac.errors import ExecutorEnded, InvalidTask, TaskAlreadyQueued
from celeriac.executor.deadlines import is_overdue
from celeriac.executor.explain import Explainer
from celeriac.executor.interfaces import Ledger, TaskRecord, UnfinishedTask
from celeriac.executor.lifecycle import TaskLifecycle
from celeriac.executor.lost_task_schedule import LostTaskSchedule
from celeriac.executor.priority_queue import Entry
from celeriac.executor.result_handler import ResultHandler
from celeriac.executor.revocation import Revocation
from celeriac.task.result import Reason
from celeriac.task.state import State
from celeriac.task.task import Task, TaskKey

NOTHING_ENDED: Mapping[TaskKey, State] = MappingProxyType({})


class Recovery:
    """Takes over tasks of other executors."""

    def __init__(
        self,
        *,
        lifecycle: TaskLifecycle,
        result_handler: ResultHandler,
        revocation: Revocation,
        explainer: Explainer,
        lost_task_schedule: LostTaskSchedule | None,
        ledger: Ledger | None,
        outbox: bool,
        max_retry_delay: float,
    ) -> None:
        """Without `outbox` no task is in flight after a restart: the broker ended with the earlier executor.

        No task waits longer than `max_retry_delay` seconds for its next attempt, whatever time the ledger has: the
        clock of the earlier executor may have been wrong."""
        self._max_retry_delay = max_retry_delay
        self._lifecycle, self._result_handler, self._revocation = lifecycle, result_handler, revocation
        self._explainer, self._lost_task_schedule, self._ledger = explainer, lost_task_schedule, ledger
        self._queue, self._dependencies = lifecycle.queue, lifecycle.dependencies
        self._slots, self._tracker = lifecycle.slots, lifecycle.tracker
        self._in_flight_states = {State.PUBLISHING, State.QUEUED, State.RUNNING} if outbox else set()

    def recover(self, *, coming: Collection[TaskKey] = (), ended: Mapping[TaskKey, State] = NOTHING_ENDED) -> int:
        """Take over all unfinished tasks of the ledger: see `CeleryExecutor.recover`."""
        unfinished = [] if self._ledger is None else list(self._ledger.unfinished())
        for unfinished_task in unfinished:
            if unfinished_task.state not in self._in_flight_states:
                self._lifecycle.check_limits(unfinished_task.task)
        self.resume(unfinished, coming=coming, ended=ended)
        return len(unfinished)

    def resume(
        self,
        unfinished: Collection[UnfinishedTask],
        *,
        coming: Collection[TaskKey] = (),
        ended: Mapping[TaskKey, State] = NOTHING_ENDED,
    ) -> None:
        """Take over tasks that are in the ledger and not in this executor. This may be called at any time, repeatedly.

        `coming` and `ended` are those of `CeleryExecutor.recover`. A waiting task that needs more slots than there are
        ends as FAILED.
        """
        self._dependencies.load_ended(ended)
        waiting = [
            unfinished_task for unfinished_task in unfinished if unfinished_task.state not in self._in_flight_states
        ]
        blocked = [entry for unfinished_task in waiting if (entry := self._requeue(unfinished_task)) is not None]
        if in_flight := [
            unfinished_task for unfinished_task in unfinished if unfinished_task.state in self._in_flight_states
        ]:
            self._adopt(in_flight)
        is_alive = self._lifecycle.has
        self._lifecycle.release(self._dependencies.block(blocked, lambda key: key in coming or is_alive(key)))

    def adopt_tasks(self, tasks: Collection[Task], state: State) -> None:
        """Take over tasks that another executor sent: see `CeleryExecutor.adopt_tasks`."""
        if self._lifecycle.draining:
            raise ExecutorEnded()
        ledger_writer = self._lifecycle.ledger_writer
        for task in tasks:
            ledger_writer.check(task)
            if self._lifecycle.has(task.key):
                raise TaskAlreadyQueued(task.key)
        arrived, now = self._lifecycle.wall_clock(), self._lifecycle.clock()
        for task in tasks:
            ledger_writer.record_queued(task, arrived, now)
            ledger_writer.record_state(TaskRecord(task, state, arrived), now)
        self._adopt([UnfinishedTask(task, state, arrived) for task in tasks])

    def _requeue(self, unfinished: UnfinishedTask) -> Entry | None:
        """Queue a waiting task. Return its entry instead if it has dependencies, so that the caller blocks it."""
        task = unfinished.task
        self._explainer.note_key(task.key)
        self._lifecycle.deadlines.watch(task)
        self._lifecycle.measures.queued(task)
        entry = self._queue.place(task, unfinished.arrived)
        if unfinished.revoking:
            self._lifecycle.end_waiting(entry, State.REVOKED, Reason.REVOKED, "revoked before its executor stopped")
            return None
        try:
            self._lifecycle.check_limits(task)
        except InvalidTask as error:
            self._lifecycle.end_waiting(entry, State.FAILED, Reason.NOT_STARTED, f"it can never start here: {error}")
            return None
        if task.needs and task.attempt == 1:  # the dependencies of a later attempt had ended before the first one
            return entry
        delay = 0.0 if unfinished.not_before is None else unfinished.not_before - self._lifecycle.wall_clock()
        delay = min(delay, self._max_retry_delay)
        self._queue.push_back(entry, not_before=self._lifecycle.clock() + delay if delay > 0 else None)
        self._lifecycle.may_start_more = True
        return None

    def _adopt(self, in_flight: Collection[UnfinishedTask]) -> None:
        """Track tasks in flight. They take slots even if too few are open."""
        now = self._lifecycle.clock()
        revoking = []
        for unfinished_task in in_flight:
            self._slots.take(unfinished_task.task)
            self._lifecycle.deadlines.watch(unfinished_task.task)
            self._lifecycle.measures.queued(unfinished_task.task)
            self._explainer.note_key(unfinished_task.task.key)
            tracked = self._lifecycle.track(self._queue.place(unfinished_task.task, unfinished_task.arrived), now)
            tracked.moved_at = now
            tracked.revoking = unfinished_task.revoking  # before its result is read: no other attempt may follow
            # An earlier executor may have cancelled it. The ledger may say that it runs: a worker may have handed it
            # back while the ledger was unavailable.
            tracked.is_overdue = is_overdue(tracked.task, self._lifecycle.wall_clock())
            if unfinished_task.state is not State.PUBLISHING:
                self._lifecycle.measures.adopted(tracked.task, unfinished_task.state)
                tracked.state = unfinished_task.state
            elif self._lost_task_schedule is not None:
                tracked.state = State.QUEUED  # if the broker does not have it, the scan below finds it lost
            else:
                self._lifecycle.mark_unconfirmed(tracked, resend_at=now)
            if unfinished_task.revoking:
                revoking.append(tracked)
        if self._lifecycle.limits is not None:
            self._lifecycle.limits.renew_at_once()
        self._result_handler.read_results([unfinished_task.task.message_id for unfinished_task in in_flight], now)
        self._revocation.revoke([tracked for tracked in revoking if self._tracker.get(tracked.task.key) is tracked])
        if self._lost_task_schedule is not None:
            self._lost_task_schedule.scan_now(now)
