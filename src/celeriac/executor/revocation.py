"""Back from the broker and from workers: what is called back, and when it counts as called back.

One that is out ends as REVOKED when its worker says so; here only what no worker will ever say anything of.
"""

from __future__ import annotations

import logging
from collections.abc import Collection

from celeriac.executor.interfaces import Revoker, Standing
from celeriac.executor.lifecycle import Moves
from celeriac.executor.result_handler import Outcomes
from celeriac.executor.tracker import Tracked
from celeriac.task.result import Reason
from celeriac.task.state import State

logger = logging.getLogger(__name__)


class Recalls:
    def __init__(self, moves: Moves, outcomes: Outcomes, *, revoker: Revoker) -> None:
        self._moves, self._outcomes, self._revoker = moves, outcomes, revoker

    def revoke(self, out: Collection[Tracked]) -> None:
        """Whether they have started or not."""
        for tracked in out:
            tracked.revoking = True
            standing = Standing(tracked.task, tracked.state, self._moves.wall_clock(), revoking=True)
            self._moves.books.stands(standing, self._moves.clock())
        self._call_back(out)

    def withdraw(self) -> None:
        """What has not started, as far as is known."""
        out = [tracked for tracked in self._moves.tracker if tracked.state is not State.RUNNING]
        withdrawn = [tracked for tracked in out if tracked.task.key not in self._moves.withdrawn]
        self._moves.withdrawn.update((tracked.task.key, tracked) for tracked in withdrawn)
        self._call_back(withdrawn, unless_started=True)

    def terminate(self) -> None:
        """All that is out."""
        self._moves.withdrawn.update((tracked.task.key, tracked) for tracked in self._moves.tracker)
        self.revoke([tracked for tracked in self._moves.tracker if not tracked.revoking])

    def _call_back(self, out: Collection[Tracked], *, unless_started: bool = False) -> None:
        if not out:
            return
        self._revoker.revoke([tracked.task.message_id for tracked in out], unless_started=unless_started)
        for tracked in out:
            if tracked.state is State.PUBLISHING:
                detail = "revoked while nobody knew whether the broker had it"
                self._moves.move(tracked, State.REVOKED, Reason.REVOKED, detail)

    def end_withdrawn(self, now: float) -> None:
        """Those whose queue no live worker serves, unless the result backend knows better."""
        withdrawn, slots = self._moves.withdrawn, self._moves.slots
        if not withdrawn or self._revoker.lasts or not (unserved := slots.unserved_queues()):
            return

        def waits_for_nobody(tracked: Tracked) -> bool:
            return tracked.state is State.QUEUED and tracked.task.queue in unserved

        left = list(filter(waits_for_nobody, withdrawn.values()))
        if not self._outcomes.read([tracked.task.message_id for tracked in left], now):
            return
        left = list(filter(waits_for_nobody, left))
        for tracked in left:
            detail = f"no live worker serves queue {tracked.task.queue!r}: its message stays with the broker"
            self._moves.move(tracked, State.REVOKED, Reason.REVOKED, detail)
        if left:
            logger.warning("%d called back; with nobody to drop their messages, a later worker runs them", len(left))
