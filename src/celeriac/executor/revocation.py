"""Revoke tasks in flight.

A revoked task ends when its worker reports REVOKED. This module ends only the tasks for which no worker will report.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from celeriac.executor.deadlines import describe_overdue, is_overdue
from celeriac.executor.interfaces import Revoker, TaskRecord
from celeriac.executor.lifecycle import TaskLifecycle
from celeriac.executor.result_handler import ResultHandler
from celeriac.executor.tracker import Tracked
from celeriac.log_lines import logger_for
from celeriac.task.result import Reason
from celeriac.task.state import State
from celeriac.task.task import TaskKey

logger = logger_for(__name__)


class Revocation:
    """Asks workers to drop or stop tasks."""

    def __init__(
        self, *, lifecycle: TaskLifecycle, result_handler: ResultHandler, revoker: Revoker, repeat_interval: float
    ) -> None:
        """`repeat_interval` is in seconds: see `repeat`."""
        self._lifecycle, self._result_handler, self._revoker = lifecycle, result_handler, revoker
        self._repeat_interval = repeat_interval
        self._next_repeat = float("-inf")
        self._cancelled: Collection[str] = ()
        """The ids of the cancelled tasks that were in flight at the last `repeat`."""

    def revoke(self, batch: Collection[Tracked]) -> None:
        """Revoke tasks in flight, started or not."""
        for tracked in batch:
            tracked.revoking = True
            record = TaskRecord(tracked.task, tracked.state, self._lifecycle.wall_clock(), revoking=True)
            self._lifecycle.ledger_writer.record_state(record, self._lifecycle.clock())
        self._send_revokes(batch)

    def revoke_tasks(self, keys: Iterable[TaskKey]) -> list[TaskKey]:
        """End waiting tasks and revoke tasks in flight. Return the keys of these tasks, the waiting tasks first."""
        waiting, in_flight = [], []
        for key in keys:
            if self._lifecycle.is_waiting(key):
                waiting.append(self._lifecycle.take_waiting(key))
            elif (tracked := self._lifecycle.tracker.get(key)) is not None:
                in_flight.append(tracked)
        for entry in waiting:  # all were removed first, so that none is skipped because another was revoked
            self._lifecycle.revoke_waiting(entry)
        self.revoke(in_flight)
        return [entry.task.key for entry in waiting] + [tracked.task.key for tracked in in_flight]

    def cancel_unstarted(self) -> None:
        """Revoke the tasks in flight that have not started, as far as is known."""
        self._cancel([tracked for tracked in self._lifecycle.tracker if tracked.state is not State.RUNNING])

    def end_overdue(self) -> None:
        """End the tasks that have not started by their deadlines. While the executor drains, none starts anyway."""
        if self._lifecycle.draining:
            return
        lifecycle, when = self._lifecycle, self._lifecycle.wall_clock()
        waiting, unstarted = [], []
        for key in lifecycle.deadlines.take_passed(when):
            if (entry := lifecycle.get_waiting(key)) is not None:
                waiting += [lifecycle.take_waiting(key)] if is_overdue(entry.task, when) else []
            elif (tracked := lifecycle.tracker.get(key)) is not None and tracked.state is not State.RUNNING:
                unstarted += [tracked] if is_overdue(tracked.task, when) else []
        for entry in waiting:  # all were removed first, so that none is skipped because another has failed
            lifecycle.end_waiting(entry, State.FAILED, Reason.DEADLINE, describe_overdue(entry.task))
        for tracked in unstarted:
            tracked.is_overdue = True
        self._cancel(unstarted)

    def end_lost(self) -> None:
        """End the lost tasks that are not sent again.

        A message that was not found may still turn up: a worker that was frozen has it, or Redis gives it back. Where
        workers claim tasks, its claim is cancelled, and the task ends with the REVOKED that this stores: then no worker
        starts it. Each further search that misses the message cancels the claim again, in case a worker had it then.
        """
        if not self._lifecycle.never_resent:
            return
        lost, self._lifecycle.never_resent = self._lifecycle.never_resent, []
        for tracked, detail in lost:
            was_revoked = tracked.revoking or tracked.task.key in self._lifecycle.unstarted_cancels
            if not was_revoked:
                tracked.lost_detail = detail
                self._lifecycle.unstarted_cancels[tracked.task.key] = tracked
            if self._revoker.is_durable:
                self._send_revokes([tracked], unless_started=not tracked.revoking)
            elif was_revoked:
                self._lifecycle.change_state(tracked, State.REVOKED, Reason.REVOKED, detail)
            else:
                self._lifecycle.change_state(tracked, State.FAILED, Reason.LOST, detail)

    def repeat(self, now: float) -> None:
        """Cancel again the tasks that were cancelled at least `repeat_interval` ago and are still in flight.

        A failover of the result backend may have lost that they were cancelled. Then the command of one would go on,
        and one that was not sent would never end. Cancelling twice has no other effect.
        """
        if not self._revoker.is_durable or now < self._next_repeat:
            return
        self._next_repeat = now + self._repeat_interval
        cancelled = {
            tracked.task.message_id: tracked
            for tracked in self._lifecycle.tracker
            if tracked.revoking or tracked.task.key in self._lifecycle.unstarted_cancels
        }
        again = [tracked for task_id, tracked in cancelled.items() if task_id in self._cancelled]
        self._cancelled = frozenset(cancelled)
        self._send_revokes([tracked for tracked in again if tracked.revoking])
        self._send_revokes([tracked for tracked in again if not tracked.revoking], unless_started=True)

    def _cancel(self, unstarted: Collection[Tracked]) -> None:
        """Revoke tasks unless they have started."""
        new = [tracked for tracked in unstarted if tracked.task.key not in self._lifecycle.unstarted_cancels]
        self._lifecycle.unstarted_cancels.update((tracked.task.key, tracked) for tracked in new)
        self._send_revokes(new, unless_started=True)

    def terminate(self) -> None:
        """Revoke all tasks in flight."""
        self._lifecycle.unstarted_cancels.update((tracked.task.key, tracked) for tracked in self._lifecycle.tracker)
        self.revoke([tracked for tracked in self._lifecycle.tracker if not tracked.revoking])

    def _send_revokes(self, batch: Collection[Tracked], *, unless_started: bool = False) -> None:
        if not batch:
            return
        self._revoker.revoke([tracked.task.message_id for tracked in batch], unless_started=unless_started)
        if self._revoker.is_durable:
            return  # the broker may have an unconfirmed task: it ends when it is certain that no worker starts it
        for tracked in batch:
            if tracked.state is State.PUBLISHING:
                detail = "revoked before the broker had confirmed it"
                self._lifecycle.change_state(tracked, State.REVOKED, Reason.REVOKED, detail)

    def end_unserved(self, now: float) -> None:
        """End the cancelled tasks whose queue no live worker serves, unless the result backend has a result."""
        cancelled, slots = self._lifecycle.unstarted_cancels, self._lifecycle.slots
        if not cancelled or self._revoker.is_durable or not (unserved_queues := slots.queues_without_workers()):
            return

        def is_unserved(tracked: Tracked) -> bool:
            return tracked.state is State.QUEUED and tracked.task.queue in unserved_queues

        unserved_tasks = list(filter(is_unserved, cancelled.values()))
        if not self._result_handler.read_results([tracked.task.message_id for tracked in unserved_tasks], now):
            return
        unserved_tasks = list(filter(is_unserved, unserved_tasks))
        for tracked in unserved_tasks:
            detail = f"no live worker serves queue {tracked.task.queue!r}: its message stays with the broker"
            self._lifecycle.change_state(tracked, State.REVOKED, Reason.REVOKED, detail)
        if unserved_tasks:
            logger.warning(
                "tasks revoked while no live worker serves their queues: %d; a later worker runs their messages",
                len(unserved_tasks),
            )
