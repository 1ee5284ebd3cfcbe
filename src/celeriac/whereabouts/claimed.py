"""What workers have claimed; and what of it is nobody's any more, because its worker is dead or does not have it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable

from celeriac.claims.claim import Claim
from celeriac.claims.watch import LeaseWatch
from celeriac.interfaces import Missing

logger = logging.getLogger(__name__)

CHUNK = 500  # ids in one question to the store
SAID_TWICE = 2  # renewals of a lease: the second was begun after the first had been seen
UNENDED = "its worker runs it no more, and no result of it is stored"


class Claimed:
    def __init__(self, leases: LeaseWatch, find: Callable[[Collection[Missing]], None]) -> None:
        """`find` is told what was fenced off."""
        self._leases, self._find = leases, find
        self._unended: dict[str, int] = {}
        """What a live worker has claimed and does not say it has, and the renewal of its lease at which that was seen
        first."""

    def sift(self, ids: Iterable[str]) -> Collection[str] | None:
        """Those that nobody has claimed, or says he has. Of the rest, what dead workers have claimed is fenced off and
        told. None if nobody can say what is claimed."""
        if not self._leases.has_looked:
            return None
        in_hand = self._in_hand()
        rest = [task_id for task_id in ids if task_id not in in_hand]
        unclaimed: list[str] = []
        for n in range(0, len(rest), CHUNK):
            chunk = rest[n : n + CHUNK]
            try:
                claims = self._leases.claims.read(chunk)
                self._find(self._fence_orphans(claims.values()))
            except self._leases.claims.errors as error:
                logger.debug("nobody can say what is claimed: %s", error)
                return None
            unclaimed += [task_id for task_id in chunk if task_id not in claims]
        asked = set(rest)
        self._unended = {task_id: number for task_id, number in self._unended.items() if task_id in asked}
        return unclaimed

    def _in_hand(self) -> set[str]:
        """What the living say they run; and what they hold, unless they have been silent for so long that they may be
        dead."""
        suspects = {lease.holder for lease in self._leases.suspects()}
        live = self._leases.live()
        running = {task_id for lease in live for task_id in lease.running}
        return running.union(*(lease.held for lease in live if lease.holder not in suspects))

    def _fence_orphans(self, claims: Iterable[Claim]) -> list[Missing]:
        """Raises the errors of the store."""
        orphans = {claim.id: claim for claim in claims if self._is_orphaned(claim)}
        return [self._missing(orphans[task_id]) for task_id in self._leases.claims.fence(list(orphans.values()))]

    def _is_orphaned(self, claim: Claim) -> bool:
        return claim.fenced or self._leases.is_dead(claim.holder) or self._is_unended(claim)

    def _is_unended(self, claim: Claim) -> bool:
        """Whether a live worker has claimed it, and has said since that it has it no more."""
        lease = self._leases.find(claim.holder)
        if lease is None:
            return False
        return lease.number - self._unended.setdefault(claim.id, lease.number) >= SAID_TWICE

    def _missing(self, claim: Claim) -> Missing:
        lease = self._leases.find(claim.holder)
        is_dead = claim.fenced or self._leases.is_dead(claim.holder)
        why = self._word_death(claim.holder) if is_dead else UNENDED
        return Missing(claim.id, why, was_claimed=True, host=lease.host if lease is not None else None)

    def _word_death(self, holder: str) -> str:
        lease, silence = self._leases.find(holder), self._leases.silence_of(holder)
        if lease is None:
            return "the worker that had started it is gone"
        words = f"worker {lease.name} (pid {lease.pid}) is gone"
        return words if silence is None else f"{words}, last heard {silence:.1f} s ago"
