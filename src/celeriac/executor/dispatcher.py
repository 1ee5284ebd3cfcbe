"""To the broker: which tasks go now, and what each answer of the publisher means.

    most urgent first ─► open slots ─► the ledger ─► Publisher ─► Sent, NotSent, Unsure

`Sent`: it is queued there. `NotSent`: back where it stood in line. `Unsure`: it keeps its slot, for it may run, and
goes again under the same id. While nothing at all can be sent, all sending pauses.
"""

from __future__ import annotations

import logging
from typing import assert_never

from celeriac.config.executor_config import Config
from celeriac.errors import describe_error
from celeriac.executor.interfaces import Capacity, NotSent, Publisher, Receipt, Revoker, Sent, Unsure
from celeriac.executor.lifecycle import TaskLifecycle
from celeriac.executor.lost_task_schedule import LostTaskSchedule
from celeriac.executor.tracker import Tracked
from celeriac.task.result import Reason
from celeriac.task.state import State

logger = logging.getLogger(__name__)

CAPACITY_POLL_INTERVAL = 0.5  # seconds until a worker that came or went is noticed, while tasks wait


class Dispatcher:
    def __init__(
        self,
        lifecycle: TaskLifecycle,
        config: Config,
        *,
        publisher: Publisher,
        revoker: Revoker,
        capacity: Capacity | None,
        lost_task_schedule: LostTaskSchedule | None,
        outbox: bool,
    ) -> None:
        self._lifecycle, self._config = lifecycle, config
        self._publisher, self._revoker, self._capacity, self._lost_task_schedule = (
            publisher,
            revoker,
            capacity,
            lost_task_schedule,
        )
        self._outbox = outbox
        self._queue, self._slots, self._publishing = lifecycle.queue, lifecycle.slots, lifecycle.publish_retries
        self.queues_without_workers: set[str] = set()
        """Queues that wait for a worker, and of which that has been said."""

        self.paused = False
        """Whether nothing more is sent, and what waits is left as it is."""

    def trigger_tasks(self, open_slots: int, now: float) -> None:
        """Hand the most urgent waiting tasks to the publisher: as many as fit in `open_slots`."""
        books = self._lifecycle.ledger_writer
        if self.paused or self._publishing.paused(now) or (books.paused and not books.flush(now)):
            return
        self._queue.release(now)
        if open_slots >= self._slots.open:
            self._lifecycle.may_start_more = False
        if self._capacity is not None:
            self._slots.bind(self._capacity.by_queue(), self._config.late_binding_margin)
        again = [tracked for tracked in self._lifecycle.unconfirmed.values() if tracked.resend_at <= now]
        batch = [*again, *self._take_batch(open_slots, now)]
        if batch and self._record_before_sending(batch, now):
            self.send_tasks_to_celery(batch)

    def next_send(self, now: float) -> float | None:
        """When something can next be sent, as far as that depends on time alone."""
        moments = [tracked.resend_at for tracked in self._lifecycle.unconfirmed.values()]
        if self.paused:
            return None
        if not self._lifecycle.draining and self._slots.open > 0:
            if self._lifecycle.may_start_more and self._queue:
                moments.append(now)
            if (next_release := self._queue.next_release()) is not None:
                moments.append(next_release)
            if self._capacity is not None and self._queue:
                moments.append(now + CAPACITY_POLL_INTERVAL)
        return max(min(moments), self._publishing.resume_at) if moments else None

    # — what goes —

    def _take_batch(self, open_slots: int, now: float) -> list[Tracked]:
        """Move the most urgent tasks out of the queue and into slots.

        A queue at its limit is stepped over. A task that needs more slots than are open holds back those behind it, or
        small tasks would keep it waiting for ever.
        """
        batch: list[Tracked] = []
        full: set[str] = set()
        open_slots = min(open_slots, self._slots.open)
        while not self._lifecycle.draining and open_slots > 0 and (task := self._queue.head(besides=full)):
            if not self._slots.queue_has_room(task):
                full.add(task.queue)
                continue
            if task.slots > open_slots:
                break
            open_slots -= task.slots
            batch.append(self._lifecycle.start(task, now))
        self._log_queues_without_workers(full | self._slots.queues_without_workers())
        return batch

    def _log_queues_without_workers(self, full: set[str]) -> None:
        """Say once of a queue that nobody takes its tasks, and once that somebody does."""
        for queue in {queue for queue in self.queues_without_workers if self._slots.is_served(queue)}:
            self.queues_without_workers.discard(queue)
            logger.warning("queue %r is served again", queue)
        for queue in sorted(full - self.queues_without_workers):
            if not self._slots.is_served(queue):
                self.queues_without_workers.add(queue)
                logger.warning("no live worker serves queue %r: its tasks wait", queue)

    def _record_before_sending(self, batch: list[Tracked], now: float) -> bool:
        """In the ledger, before they are sent; where that need not be, at least that there are such tasks: else whoever
        comes after a crash knows nothing of what has begun. What cannot be put down waits where it stood."""
        if self._outbox:
            tasks = [tracked.task for tracked in batch]
            is_written = self._lifecycle.ledger_writer.record_publishing(tasks, self._lifecycle.wall_clock(), now)
        else:
            is_written = self._lifecycle.ledger_writer.write_new(now)
        if is_written:
            return True
        for tracked in batch:
            if not self._lifecycle.is_unconfirmed(tracked):
                self._lifecycle.requeue(tracked)
        return False

    # — what became of it —

    def send_tasks_to_celery(self, batch: list[Tracked]) -> None:
        receipts: list[Receipt] = []
        try:
            for receipt in self._publisher.publish([t.task for t in batch], timeout=self._config.operation_timeout):
                receipts.append(receipt)
        finally:  # a publisher that raises has a bug; what it did send is out all the same
            answered = {receipt.task.key for receipt in receipts}
            silence = RuntimeError("the publisher gave no answer")
            receipts += [Unsure(t.task, silence) for t in batch if t.task.key not in answered]
            self._apply_receipts(receipts, self._lifecycle.clock())

    def _apply_receipts(self, receipts: list[Receipt], now: float) -> None:
        pause = None
        if any(isinstance(receipt, Sent) for receipt in receipts):
            if self._publishing.resume() and self._lost_task_schedule is not None:
                self._lost_task_schedule.after_outage(now)
        elif any(not isinstance(receipt, NotSent) or receipt.transient for receipt in receipts):
            pause = self._publishing.pause(now)
        for receipt in receipts:
            tracked = self._lifecycle.tracker.get(receipt.task.key)
            if tracked is not None and tracked.state is State.PUBLISHING:
                self._apply_receipt(tracked, receipt, pause, now)

    def _apply_receipt(self, tracked: Tracked, receipt: Receipt, pause: float | None, now: float) -> None:
        match receipt:
            case Sent():
                self._lifecycle.change_state(tracked, State.QUEUED)
            case NotSent(error=error, transient=False):
                self._lifecycle.change_state(
                    tracked, State.FAILED, Reason.PUBLISH_ERROR, f"it cannot be sent: {describe_error(error)}"
                )
            case NotSent(error=error) if not self._lifecycle.is_unconfirmed(tracked):
                self._requeue(tracked, error, pause, now)
            case NotSent(error=error) | Unsure(error=error):  # an earlier try may have got through
                self._keep_unconfirmed(tracked, error, pause, now)
            case _:
                assert_never(receipt)

    def _requeue(self, tracked: Tracked, error: Exception, pause: float | None, now: float) -> None:
        delay = self._publishing.failed(tracked.task.key, now)
        if delay is None:
            self._give_up(tracked, error)
            return
        # With the broker away everything waits, so places in line are kept; a failure of its own waits alone.
        self._lifecycle.requeue(tracked, not_before=None if pause is not None else now + delay)
        self._lifecycle.record_publish_failure(tracked, State.WAITING, describe_error(error), retry_in=pause or delay)

    def _keep_unconfirmed(self, tracked: Tracked, error: Exception, pause: float | None, now: float) -> None:
        delay = self._publishing.failed(tracked.task.key, now)
        if delay is None:
            self._revoker.revoke([tracked.task.message_id])
            self._give_up(tracked, error)
            return
        is_new = not self._lifecycle.is_unconfirmed(tracked)
        self._lifecycle.mark_unconfirmed(tracked, resend_at=now + (delay if pause is None else pause))
        if is_new:
            self._lifecycle.record_publish_failure(tracked, State.PUBLISHING, f"not confirmed: {describe_error(error)}")

    def _give_up(self, tracked: Tracked, error: Exception) -> None:
        tries = self._publishing.counts[tracked.task.key]
        detail = f"the broker did not take it in {tries} tries: {describe_error(error)}"
        self._lifecycle.change_state(tracked, State.FAILED, Reason.PUBLISH_ERROR, detail)
