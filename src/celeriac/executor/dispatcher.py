"""Send tasks to the broker: choose a batch, record it in the ledger, publish it, apply the outcome of each task.

    trigger_tasks ─► process_tasks ─► send_tasks_to_celery ─► Sent:    queued
       choose        ledger, outcomes      publisher       ─► NotSent: back to its place in the queue
                                                           ─► Unsure:  keeps its slot, re-sent under the same id

The names of the steps are those of Airflow's CeleryExecutor. While the broker accepts nothing, all sending pauses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, assert_never

from celeriac.config.executor_config import Config
from celeriac.errors import SentBefore, describe_error
from celeriac.executor.capacity import Capacity
from celeriac.executor.interfaces import NotSent, Publisher, Receipt, Revoker, Sent, TaskRecord, Unsure
from celeriac.executor.lifecycle import TaskLifecycle
from celeriac.executor.lost_task_schedule import LostTaskSchedule
from celeriac.executor.priority_queue import Group
from celeriac.executor.resources import Room
from celeriac.executor.revocation import Revocation
from celeriac.executor.tracker import Tracked
from celeriac.log_lines import logger_for
from celeriac.task.amounts import needs_texts
from celeriac.task.result import Reason
from celeriac.task.state import State
from celeriac.task.task import Task

if TYPE_CHECKING:
    from celeriac.executor.limits import Limits
    from celeriac.executor.start_gate import StartGate

logger = logger_for(__name__)

CAPACITY_POLL_INTERVAL = 0.5  # seconds between two counts of the live workers, while tasks wait for workers


class Dispatcher:
    """Moves tasks from the queue to the broker."""

    def __init__(
        self,
        *,
        lifecycle: TaskLifecycle,
        config: Config,
        publisher: Publisher,
        revoker: Revoker,
        revocation: Revocation,
        capacity: Capacity | None,
        lost_task_schedule: LostTaskSchedule | None,
        start_gate: StartGate | None,
        outbox: bool,
    ) -> None:
        self._lifecycle, self._config = lifecycle, config
        self._publisher, self._revoker, self._capacity = publisher, revoker, capacity
        self._revocation, self._start_gate = revocation, start_gate
        self._lost_task_schedule, self._outbox = lost_task_schedule, outbox
        self._queue, self._slots, self._retries = lifecycle.queue, lifecycle.slots, lifecycle.publish_retries
        if capacity is not None:
            self._slots.resources.share(capacity.shares)
        self.queues_without_workers: set[str] = set()
        """The queues whose tasks wait for a worker. Each was logged once."""

        self._groups_without_workers: set[Group] = set()
        """The groups whose first task needs more than any live worker of its queue has. Each was logged once."""

        self.has_stopped = False
        """Whether no more tasks are sent. The queued tasks stay queued."""

    def trigger_tasks(self, open_slots: int, now: float) -> None:
        """Send the most urgent waiting tasks: as many as fit in `open_slots`. Re-send the unconfirmed ones."""
        ledger_writer, limits = self._lifecycle.ledger_writer, self._lifecycle.limits
        if limits is not None:
            limits.renew_if_due(now)
        if self.is_paused or self._retries.paused(now) or (ledger_writer.paused and not ledger_writer.flush(now)):
            return
        self._revocation.end_overdue()
        self._queue.release(now)
        if limits is not None:
            self._take_back(limits, now)
        if open_slots >= self._slots.open:
            self._lifecycle.may_start_more = False
        if self._capacity is not None:
            self._slots.bind(self._capacity.by_queue(), self._config.late_binding_margin)
        resends = [tracked for tracked in self._unconfirmed() if tracked.resend_at <= now]
        batch = [*resends, *self._take_batch(open_slots, now)]
        self.process_tasks(batch if limits is None else self._with_places(limits, batch, now), now)

    def process_tasks(self, batch: list[Tracked], now: float) -> None:
        """Record a batch in the ledger, send it, and apply the outcome of each task."""
        if not batch or not self._record_before_sending(batch, now):
            return
        receipts: list[Receipt] = []
        begun = self._lifecycle.clock()
        try:
            for receipt in self.send_tasks_to_celery(batch):
                receipts.append(receipt)
        finally:  # a publisher that raises has a bug, but the tasks that it has sent are in flight
            keys_with_receipt = {receipt.task.key for receipt in receipts}
            no_receipt = RuntimeError("the publisher returned no receipt")
            receipts += [Unsure(t.task, no_receipt) for t in batch if t.task.key not in keys_with_receipt]
            ended = self._lifecycle.clock()
            self._lifecycle.measures.published(ended - begun)
            self._apply_receipts(receipts, ended)

    def send_tasks_to_celery(self, batch: list[Tracked]) -> Iterable[Receipt]:
        """Publish a batch in one call."""
        return self._publisher.publish([t.task for t in batch], timeout=self._config.operation_timeout)

    def next_send(self, now: float) -> float | None:
        """Return the next time at which a task may be sent, as far as that depends on time alone."""
        if self.is_paused:
            return None
        times = [tracked.resend_at for tracked in self._unconfirmed()]
        if not self._lifecycle.draining and self._slots.open > 0:
            if self._lifecycle.may_start_more and self._queue:
                times.append(now)
            if (gate := self._start_gate) is not None and gate.waits is not None:
                times.append(gate.retry_at)
            if (next_release := self._queue.next_release(now)) is not None:
                times.append(next_release)
            limits = self._lifecycle.limits
            if limits is not None and self._queue.aside and (next_try := limits.next_try) is not None:
                times.append(next_try)
            if self._capacity is not None and self._has_tasks_to_send():
                times.append(now + CAPACITY_POLL_INTERVAL)
        return max(min(times), self._retries.resume_at, self._lifecycle.ledger_writer.resume_at) if times else None

    @property
    def is_paused(self) -> bool:
        """Whether nothing at all is sent."""
        pauses = self._lifecycle.pauses
        return self.has_stopped or pauses.whole is not None or pauses.backlog is not None

    def _unconfirmed(self) -> Iterator[Tracked]:
        """Yield the unconfirmed tasks that are neither held back by a pause nor revoked."""
        pauses, cancels = self._lifecycle.pauses, self._lifecycle.unstarted_cancels
        for key, tracked in self._lifecycle.unconfirmed.items():
            if pauses.of(tracked.task) is None and not tracked.revoking and key not in cancels:
                yield tracked

    def _has_tasks_to_send(self) -> bool:
        paused = self._lifecycle.pauses.queues
        return any(number and queue not in paused for queue, number in self._queue.by_queue.items())

    # — choose —

    def _take_batch(self, open_slots: int, now: float) -> list[Tracked]:
        """Move the most urgent tasks out of the queue and into slots.

        A queue that is paused or at its limit is skipped. A task that needs more slots than are open holds back all
        tasks behind it: otherwise small tasks could take each free slot, and it would never start. A task that needs
        more of another resource keeps its share, and tasks behind it take what is left.
        """
        if (gate := self._start_gate) is not None:
            gate.waits = None
        batch: list[Tracked] = []
        full: set[str] = set()
        too_large: dict[Group, Task] = {}
        skipped: set[Group] = set(self._lifecycle.pauses.queues)
        room = Room(min(open_slots, self._slots.open), self._slots.resources)
        limits = self._lifecycle.limits
        while not self._lifecycle.draining and room.slots > 0 and (task := self._queue.head(besides=skipped)):
            if not self._slots.queue_has_room(task):
                full.add(task.queue)
                skipped.add(task.queue)
                continue
            if limits is not None and (limit := limits.full_limit(task, now)) is not None:
                self._queue.set_aside(task, limit)
                continue
            if task.slots > room.slots:
                break
            if not room.fits(task):
                group = self._queue.group_of_head(task)
                if not room.keep_for(task) and self._slots.resources.workers_are_known:
                    too_large[group] = task
                skipped.add(group)
                continue
            if gate is not None and not gate.admits(self._slots.in_use, now):
                break
            if not self._lifecycle.may_send(task.key):
                self._lifecycle.revoke_waiting(self._lifecycle.take_waiting(task.key))
                continue
            room.take(task)
            batch.append(self._lifecycle.start(task, now))
            if gate is not None:
                gate.started(self._slots.in_use, now)
        self._log_queues_without_workers(full | self._slots.queues_without_workers())
        self._log_needs_without_workers(too_large)
        return batch

    def _take_back(self, limits: Limits, now: float) -> None:
        """Make the tasks ready again that were set aside, as far as their limits may have places."""
        limits.begin_batch(now)
        for limit in [*self._queue.aside] if self._slots.open > 0 else ():
            if (room := limits.room(limit, now)) > 0:
                self._queue.take_back(limit, room)

    def _with_places(self, limits: Limits, batch: list[Tracked], now: float) -> list[Tracked]:
        """Reserve the places of a batch in one call. Put the tasks back that got none, and return the others."""
        refusals = limits.reserve([tracked.task.key for tracked in batch], now)
        for tracked in batch if refusals else ():
            if (refusal := refusals.get(tracked.task.key)) is None:
                continue
            if self._lifecycle.is_unconfirmed(tracked):
                self._lifecycle.mark_unconfirmed(tracked, resend_at=now + refusal.retry_in)
            else:
                self._lifecycle.requeue(tracked)
        return [tracked for tracked in batch if tracked.task.key not in refusals]

    def _log_queues_without_workers(self, full: set[str]) -> None:
        """Log once when a queue has tasks and no live worker, and once when a worker serves it again."""
        for queue in {queue for queue in self.queues_without_workers if self._slots.is_served(queue)}:
            self.queues_without_workers.discard(queue)
            logger.warning("queue %r is served again", queue)
        for queue in sorted(full - self.queues_without_workers):
            if not self._slots.is_served(queue):
                self.queues_without_workers.add(queue)
                logger.warning("no live worker serves queue %r: its tasks wait", queue)

    def _log_needs_without_workers(self, too_large: Mapping[Group, Task]) -> None:
        """Log once when no live worker of its queue has what a task needs."""
        for group in too_large.keys() - self._groups_without_workers:
            task = too_large[group]
            needs = " and ".join(needs_texts(task))
            logger.warning("no live worker of queue %r has %s: task %r waits", task.queue, needs, task.key)
        self._groups_without_workers = {*too_large}

    # — record —

    def _record_before_sending(self, batch: list[Tracked], now: float) -> bool:
        """Write to the ledger that a batch is about to be sent. Return whether it was written.

        After a crash the next executor must know of every task that may have started. Without an outbox it is enough
        that the ledger has the tasks themselves. If the ledger cannot be written, the batch goes back to its place in
        the queue. The next write says so, because a write without a reply may have been made.
        """
        tasks = [tracked.task for tracked in batch]
        if self._outbox:
            is_written = self._lifecycle.ledger_writer.record_publishing(tasks, self._lifecycle.wall_clock(), now)
        else:
            is_written = self._lifecycle.ledger_writer.write_new(tasks, now)
        if is_written:
            return True
        when = self._lifecycle.wall_clock()
        for tracked in batch:
            if not self._lifecycle.is_unconfirmed(tracked):
                self._lifecycle.requeue(tracked)
                self._lifecycle.ledger_writer.record_state(TaskRecord(tracked.task, State.WAITING, when), now)
        return False

    # — apply the outcomes —

    def _apply_receipts(self, receipts: list[Receipt], now: float) -> None:
        pause = None
        if any(isinstance(receipt, Sent) for receipt in receipts):
            if self._retries.resume(now) and self._lost_task_schedule is not None:
                self._lost_task_schedule.after_outage(now)
        elif any(not isinstance(receipt, NotSent) or receipt.transient for receipt in receipts):
            pause = self._retries.pause(now)
        for receipt in receipts:
            tracked = self._lifecycle.tracker.get(receipt.task.key)
            if tracked is not None and tracked.state is State.PUBLISHING:
                self._apply_receipt(tracked, receipt, pause, now)

    def _apply_receipt(self, tracked: Tracked, receipt: Receipt, pause: float | None, now: float) -> None:
        match receipt:
            case Sent() | NotSent(error=SentBefore()):
                self._lifecycle.change_state(tracked, State.QUEUED)
            case NotSent(error=error, transient=False):
                detail = f"cannot be sent: {describe_error(error)}"
                self._lifecycle.change_state(tracked, State.FAILED, Reason.PUBLISH_ERROR, detail)
            case NotSent(error=error) if not self._lifecycle.is_unconfirmed(tracked):
                self._requeue(tracked, error, pause, now)
            case NotSent(error=error) | Unsure(error=error):  # an earlier attempt to send it may have succeeded
                self._keep_unconfirmed(tracked, error, pause, now)
            case _:
                assert_never(receipt)

    def _requeue(self, tracked: Tracked, error: Exception, pause: float | None, now: float) -> None:
        delay = self._retries.failed(tracked.task.key, now)
        if delay is None:
            self._give_up(tracked, error)
            return
        # In an outage every task waits, so the order of the queue is kept. An error of one task delays only that task.
        self._lifecycle.requeue(tracked, not_before=None if pause is not None else now + delay)
        self._lifecycle.record_publish_failure(tracked, State.WAITING, describe_error(error), retry_in=pause or delay)

    def _keep_unconfirmed(self, tracked: Tracked, error: Exception, pause: float | None, now: float) -> None:
        delay = self._retries.failed(tracked.task.key, now)
        if delay is None:
            self._revoker.revoke([tracked.task.message_id])
            self._give_up(tracked, error)
            return
        is_new = not self._lifecycle.is_unconfirmed(tracked)
        self._lifecycle.mark_unconfirmed(tracked, resend_at=now + (delay if pause is None else pause))
        if is_new:
            self._lifecycle.record_publish_failure(tracked, State.PUBLISHING, f"not confirmed: {describe_error(error)}")

    def _give_up(self, tracked: Tracked, error: Exception) -> None:
        tries = self._retries.counts[tracked.task.key]
        detail = f"the broker did not take it in {tries} tries: {describe_error(error)}"
        self._lifecycle.change_state(tracked, State.FAILED, Reason.PUBLISH_ERROR, detail)
