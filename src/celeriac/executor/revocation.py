"""Back from the broker and from workers: what is called back, and when it counts as called back.

One that is out ends as REVOKED when its worker says so; here only what no worker will ever say anything of.
"""

from __future__ import annotations

import logging
from collections.abc import Collection

from celeriac.executor.interfaces import Revoker, TaskRecord
from celeriac.executor.lifecycle import TaskLifecycle
from celeriac.executor.result_handler import ResultHandler
from celeriac.executor.tracker import Tracked
from celeriac.task.result import Reason
from celeriac.task.state import State

logger = logging.getLogger(__name__)


class Revocation:
    def __init__(self, lifecycle: TaskLifecycle, result_handler: ResultHandler, *, revoker: Revoker) -> None:
        self._lifecycle, self._result_handler, self._revoker = lifecycle, result_handler, revoker

    def revoke(self, out: Collection[Tracked]) -> None:
        """Whether they have started or not."""
        for tracked in out:
            tracked.revoking = True
            standing = TaskRecord(tracked.task, tracked.state, self._lifecycle.wall_clock(), revoking=True)
            self._lifecycle.ledger_writer.record_state(standing, self._lifecycle.clock())
        self._send_revokes(out)

    def cancel_unstarted(self) -> None:
        """What has not started, as far as is known."""
        out = [tracked for tracked in self._lifecycle.tracker if tracked.state is not State.RUNNING]
        withdrawn = [tracked for tracked in out if tracked.task.key not in self._lifecycle.unstarted_cancels]
        self._lifecycle.unstarted_cancels.update((tracked.task.key, tracked) for tracked in withdrawn)
        self._send_revokes(withdrawn, unless_started=True)

    def terminate(self) -> None:
        """All that is out."""
        self._lifecycle.unstarted_cancels.update((tracked.task.key, tracked) for tracked in self._lifecycle.tracker)
        self.revoke([tracked for tracked in self._lifecycle.tracker if not tracked.revoking])

    def _send_revokes(self, out: Collection[Tracked], *, unless_started: bool = False) -> None:
        if not out:
            return
        self._revoker.revoke([tracked.task.message_id for tracked in out], unless_started=unless_started)
        for tracked in out:
            if tracked.state is State.PUBLISHING:
                detail = "revoked while nobody knew whether the broker had it"
                self._lifecycle.change_state(tracked, State.REVOKED, Reason.REVOKED, detail)

    def end_unserved(self, now: float) -> None:
        """Those whose queue no live worker serves, unless the result backend knows better."""
        withdrawn, slots = self._lifecycle.unstarted_cancels, self._lifecycle.slots
        if not withdrawn or self._revoker.is_durable or not (unserved := slots.queues_without_workers()):
            return

        def waits_for_nobody(tracked: Tracked) -> bool:
            return tracked.state is State.QUEUED and tracked.task.queue in unserved

        left = list(filter(waits_for_nobody, withdrawn.values()))
        if not self._result_handler.read_results([tracked.task.message_id for tracked in left], now):
            return
        left = list(filter(waits_for_nobody, left))
        for tracked in left:
            detail = f"no live worker serves queue {tracked.task.queue!r}: its message stays with the broker"
            self._lifecycle.change_state(tracked, State.REVOKED, Reason.REVOKED, detail)
        if left:
            logger.warning("%d called back; with nobody to drop their messages, a later worker runs them", len(left))
