"""To the broker: which tasks go now, and what each answer of the publisher means.

    most urgent first ─► open slots ─► the ledger ─► Publisher ─► Sent, NotSent, Unsure

`Sent`: it is queued there. `NotSent`: back where it stood in line. `Unsure`: it keeps its slot, for it may run, and
goes again under the same id. While nothing at all can be sent, all sending pauses.
"""

from __future__ import annotations

import logging
from typing import assert_never

from celeriac.config.executor_config import Config
from celeriac.executor.interfaces import Capacity, NotSent, Publisher, Receipt, Revoker, Sent, Unsure
from celeriac.executor.lifecycle import Moves, word
from celeriac.executor.lost_task_schedule import Searches
from celeriac.executor.tracker import Tracked
from celeriac.task.result import Reason
from celeriac.task.state import State

logger = logging.getLogger(__name__)

CAPACITY_LOOK = 0.5  # seconds until a worker that came or went is noticed, while tasks wait


class Sending:
    def __init__(
        self,
        moves: Moves,
        config: Config,
        *,
        publisher: Publisher,
        revoker: Revoker,
        capacity: Capacity | None,
        searches: Searches | None,
        outbox: bool,
    ) -> None:
        self._moves, self._config = moves, config
        self._publisher, self._revoker, self._capacity, self._searches = publisher, revoker, capacity, searches
        self._outbox = outbox
        self._queue, self._slots, self._publishing = moves.queue, moves.slots, moves.publishing
        self.unserved: set[str] = set()
        """Queues that wait for a worker, and of which that has been said."""

        self.held = False
        """Whether nothing more is sent, and what waits is left as it is."""

    def trigger_tasks(self, open_slots: int, now: float) -> None:
        """Hand the most urgent waiting tasks to the publisher: as many as fit in `open_slots`."""
        books = self._moves.books
        if self.held or self._publishing.paused(now) or (books.paused and not books.write(now)):
            return
        self._queue.release(now)
        if open_slots >= self._slots.open:
            self._moves.room_was_made = False
        if self._capacity is not None:
            self._slots.bind(self._capacity.by_queue(), self._config.late_binding_margin)
        again = [tracked for tracked in self._moves.unsure.values() if tracked.resend_at <= now]
        batch = [*again, *self._take_batch(open_slots, now)]
        if batch and self._put_down(batch, now):
            self._publish(batch)

    def next_send(self, now: float) -> float | None:
        """When something can next be sent, as far as that depends on time alone."""
        moments = [tracked.resend_at for tracked in self._moves.unsure.values()]
        if self.held:
            return None
        if not self._moves.draining and self._slots.open > 0:
            if self._moves.room_was_made and self._queue:
                moments.append(now)
            if (next_release := self._queue.next_release()) is not None:
                moments.append(next_release)
            if self._capacity is not None and self._queue:
                moments.append(now + CAPACITY_LOOK)
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
        while not self._moves.draining and open_slots > 0 and (task := self._queue.head(besides=full)):
            if not self._slots.queue_has_room(task):
                full.add(task.queue)
                continue
            if task.slots > open_slots:
                break
            open_slots -= task.slots
            batch.append(self._moves.start(task, now))
        self._note_unserved(full | self._slots.unserved_queues())
        return batch

    def _note_unserved(self, full: set[str]) -> None:
        """Say once of a queue that nobody takes its tasks, and once that somebody does."""
        for queue in {queue for queue in self.unserved if self._slots.is_served(queue)}:
            self.unserved.discard(queue)
            logger.warning("queue %r is served again", queue)
        for queue in sorted(full - self.unserved):
            if not self._slots.is_served(queue):
                self.unserved.add(queue)
                logger.warning("no live worker serves queue %r: its tasks wait", queue)

    def _put_down(self, batch: list[Tracked], now: float) -> bool:
        """In the ledger, before they are sent; where that need not be, at least that there are such tasks: else whoever
        comes after a crash knows nothing of what has begun. What cannot be put down waits where it stood."""
        if self._outbox:
            tasks = [tracked.task for tracked in batch]
            is_written = self._moves.books.sending(tasks, self._moves.wall_clock(), now)
        else:
            is_written = self._moves.books.write_new(now)
        if is_written:
            return True
        for tracked in batch:
            if not self._moves.doubts(tracked):
                self._moves.back_in_line(tracked)
        return False

    # — what became of it —

    def _publish(self, batch: list[Tracked]) -> None:
        receipts: list[Receipt] = []
        try:
            for receipt in self._publisher.publish([t.task for t in batch], timeout=self._config.operation_timeout):
                receipts.append(receipt)
        finally:  # a publisher that raises has a bug; what it did send is out all the same
            answered = {receipt.task.key for receipt in receipts}
            silence = RuntimeError("the publisher gave no answer")
            receipts += [Unsure(t.task, silence) for t in batch if t.task.key not in answered]
            self._apply_receipts(receipts, self._moves.clock())

    def _apply_receipts(self, receipts: list[Receipt], now: float) -> None:
        pause = None
        if any(isinstance(receipt, Sent) for receipt in receipts):
            if self._publishing.resume() and self._searches is not None:
                self._searches.after_outage(now)
        elif any(not isinstance(receipt, NotSent) or receipt.transient for receipt in receipts):
            pause = self._publishing.pause(now)
        for receipt in receipts:
            tracked = self._moves.tracker.get(receipt.task.key)
            if tracked is not None and tracked.state is State.PUBLISHING:
                self._apply_receipt(tracked, receipt, pause, now)

    def _apply_receipt(self, tracked: Tracked, receipt: Receipt, pause: float | None, now: float) -> None:
        match receipt:
            case Sent():
                self._moves.move(tracked, State.QUEUED)
            case NotSent(error=error, transient=False):
                self._moves.move(tracked, State.FAILED, Reason.PUBLISH_ERROR, f"it cannot be sent: {word(error)}")
            case NotSent(error=error) if not self._moves.doubts(tracked):
                self._put_back(tracked, error, pause, now)
            case NotSent(error=error) | Unsure(error=error):  # an earlier try may have got through
                self._not_confirmed(tracked, error, pause, now)
            case _:
                assert_never(receipt)

    def _put_back(self, tracked: Tracked, error: Exception, pause: float | None, now: float) -> None:
        delay = self._publishing.failed(tracked.task.key, now)
        if delay is None:
            self._give_up(tracked, error)
            return
        # With the broker away everything waits, so places in line are kept; a failure of its own waits alone.
        self._moves.back_in_line(tracked, not_before=None if pause is not None else now + delay)
        self._moves.not_sent(tracked, State.WAITING, word(error), retry_in=pause or delay)

    def _not_confirmed(self, tracked: Tracked, error: Exception, pause: float | None, now: float) -> None:
        delay = self._publishing.failed(tracked.task.key, now)
        if delay is None:
            self._revoker.revoke([tracked.task.message_id])
            self._give_up(tracked, error)
            return
        is_new = not self._moves.doubts(tracked)
        self._moves.doubt(tracked, resend_at=now + (delay if pause is None else pause))
        if is_new:
            self._moves.not_sent(tracked, State.PUBLISHING, f"not confirmed: {word(error)}")

    def _give_up(self, tracked: Tracked, error: Exception) -> None:
        tries = self._publishing.counts[tracked.task.key]
        detail = f"the broker did not take it in {tries} tries: {word(error)}"
        self._moves.move(tracked, State.FAILED, Reason.PUBLISH_ERROR, detail)
