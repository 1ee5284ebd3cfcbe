"""What workers have claimed; and what of it is nobody's any more, because its worker is dead or does not have it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable

from celeriac.backend.claims.claim import Claim, Lease
from celeriac.backend.claims.lease_monitor import LeaseMonitor
from celeriac.executor.interfaces import LostTask

logger = logging.getLogger(__name__)

CHUNK = 500  # ids in one question to the store
SAID_TWICE = 2  # renewals of a lease: the second was put into words after the first had been seen
UNENDED = "its worker runs it no more, and no result of it is stored"


class ClaimCheck:
    def __init__(self, leases: LeaseMonitor, find: Callable[[Collection[LostTask]], None]) -> None:
        """`find` is told what was fenced off."""
        self._leases, self._find = leases, find
        self._unended: dict[Claim, int] = {}
        """What a live worker has claimed and did not say it has, and the renewal of its lease that was read after the
        claim."""

    def sift(self, ids: Iterable[str], *, anew: bool) -> Collection[str] | None:
        """Those that nobody has claimed, or says he has. Of the rest, what dead workers have claimed is fenced off and
        told. None if nobody can say what is claimed. `anew` with all that is looked for, and not what is left of it."""
        if not self._leases.has_polled:
            return None
        live = self._leases.live()  # once: the store may be slow, and who renews meanwhile has said something else
        in_hand = self._in_hand(live)
        rest = [task_id for task_id in ids if task_id not in in_hand]
        claims: dict[str, Claim] = {}
        try:
            for n in range(0, len(rest), CHUNK):
                some = self._leases.claims.read(rest[n : n + CHUNK])
                claims |= some
                self._find(self._fence_orphans(some.values(), live))
            unended = self._note_unended(claims.values(), live)
            self._unended = unended if anew else {**self._unended, **unended}
        except self._leases.claims.errors as error:
            logger.debug("nobody can say what is claimed: %s", error)
            return None
        return [task_id for task_id in rest if task_id not in claims]

    def _in_hand(self, live: Iterable[Lease]) -> set[str]:
        """What the living say they run; and what they hold, unless they have been silent for so long that they may be
        dead."""
        suspects = {lease.holder for lease in self._leases.suspected()}
        running = {task_id for lease in live for task_id in lease.running}
        return running.union(*(lease.held for lease in live if lease.holder not in suspects))

    def _fence_orphans(self, claims: Iterable[Claim], live: Iterable[Lease]) -> list[LostTask]:
        """Raises the errors of the store, as the next one does."""
        numbers = {lease.holder: lease.number for lease in live}
        orphans = {claim.id: claim for claim in claims if self._is_orphaned(claim, numbers.get(claim.holder))}
        return [self._missing(orphans[task_id]) for task_id in self._leases.claims.fence(list(orphans.values()))]

    def _is_orphaned(self, claim: Claim, number: int | None) -> bool:
        """`number` is that of the renewal in which its worker did not name it, if it lives."""
        if claim.fenced or self._leases.is_dead(claim.holder):
            return True
        before = self._unended.get(claim)
        return before is not None and number is not None and number - before >= SAID_TWICE

    def _note_unended(self, claims: Collection[Claim], live: Iterable[Lease]) -> dict[Claim, int]:
        """What the living did not name may have been claimed after they spoke. So the renewals that count from here on
        are those that follow what is read now, when the claim is there."""
        known = {lease.holder for lease in live}
        unended = [claim for claim in claims if claim.holder in known]
        now = self._leases.claims.leases() if any(claim not in self._unended for claim in unended) else {}
        numbers = {holder: leased.lease.number for holder, leased in now.items() if leased.lease is not None}
        counted_from = {claim: self._unended.get(claim, numbers.get(claim.holder)) for claim in unended}
        return {claim: number for claim, number in counted_from.items() if number is not None}

    def _missing(self, claim: Claim) -> LostTask:
        lease = self._leases.find(claim.holder)
        is_dead = claim.fenced or self._leases.is_dead(claim.holder)
        why = self._word_death(claim.holder) if is_dead else UNENDED
        return LostTask(claim.id, why, was_claimed=True, host=lease.host if lease is not None else None)

    def _word_death(self, holder: str) -> str:
        lease, silence = self._leases.find(holder), self._leases.silence_of(holder)
        if lease is None:
            return "the worker that had started it is gone"
        words = f"worker {lease.name} (pid {lease.pid}) is gone"
        return words if silence is None else f"{words}, last heard {silence:.1f} s ago"
