"""Sort tasks by the claims of workers: claimed by a live worker, unclaimed, or lost with a claim that is fenced.

A live worker's claim is trusted until later renewals of its lease do not name the task: then the task is not running
there, and no result is stored.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable

from celeriac.backend.claims.claim import Claim, Lease
from celeriac.backend.claims.lease_monitor import LeaseMonitor
from celeriac.executor.interfaces import LostTask

logger = logging.getLogger(__name__)

BATCH_SIZE = 500  # ids in one request to the store
RENEWALS_UNTIL_LOST = 2  # renewals without the task: the second was composed after the first could be seen
NOT_RUNNING = "its worker no longer runs it, and no result of it is stored"


class ClaimCheck:
    """Reads claims, and fences those of workers that are dead or do not run the task."""

    def __init__(self, leases: LeaseMonitor, *, on_lost: Callable[[Collection[LostTask]], None]) -> None:
        """`on_lost` is called with the tasks whose claims were fenced."""
        self._leases, self._on_lost = leases, on_lost
        self._unnamed: dict[Claim, int] = {}
        """Claims that the lease of their live worker does not name, and the number of the first renewal that was
        read after the claim."""

    def unclaimed(self, ids: Iterable[str], *, is_first: bool) -> Collection[str] | None:
        """Return the ids that no worker claims or holds. Fence and report claims of dead workers.

        Return None if the store is unavailable. `is_first` says that these are all wanted ids, and not those that are
        left of them.
        """
        if not self._leases.has_polled:
            return None
        live = self._leases.live()  # once: while the store is read slowly, newer renewals may name other tasks
        held = self._held(live)
        rest = [task_id for task_id in ids if task_id not in held]
        claims: dict[str, Claim] = {}
        try:
            for first in range(0, len(rest), BATCH_SIZE):
                batch = self._leases.claims.read(rest[first : first + BATCH_SIZE])
                claims |= batch
                self._on_lost(self._fence_orphans(batch.values(), live))
            unnamed = self._find_unnamed(claims.values(), live)
            self._unnamed = unnamed if is_first else {**self._unnamed, **unnamed}
        except self._leases.claims.errors as error:
            logger.debug("the claims cannot be read: %s", error)
            return None
        return [task_id for task_id in rest if task_id not in claims]

    def _held(self, live: Iterable[Lease]) -> set[str]:
        """Return the tasks that live workers run, and those that workers have received and are not suspected."""
        suspected = {lease.holder for lease in self._leases.suspected()}
        running = {task_id for lease in live for task_id in lease.running}
        return running.union(*(lease.held for lease in live if lease.holder not in suspected))

    def _fence_orphans(self, claims: Iterable[Claim], live: Iterable[Lease]) -> list[LostTask]:
        """Fence the claims that have no worker any more. Raise the store's errors."""
        numbers = {lease.holder: lease.number for lease in live}
        orphans = {claim.id: claim for claim in claims if self._is_orphaned(claim, numbers.get(claim.holder))}
        return [self._lost_task(orphans[task_id]) for task_id in self._leases.claims.fence(list(orphans.values()))]

    def _is_orphaned(self, claim: Claim, number: int | None) -> bool:
        """Return whether no worker runs the claimed task. `number` is that of its worker's renewal, which does not name
        the task; None if the worker is not live."""
        if claim.fenced or self._leases.is_dead(claim.holder):
            return True
        first_number = self._unnamed.get(claim)
        return first_number is not None and number is not None and number - first_number >= RENEWALS_UNTIL_LOST

    def _find_unnamed(self, claims: Collection[Claim], live: Iterable[Lease]) -> dict[Claim, int]:
        """Return the claims that their live workers do not name, each with the renewal to count from. Raise the store's
        errors.

        Such a task may have been claimed after its worker's renewal. So the count begins with the renewal that is read
        now, when the claim is known.
        """
        known = {lease.holder for lease in live}
        unnamed = [claim for claim in claims if claim.holder in known]
        records = self._leases.claims.leases() if any(claim not in self._unnamed for claim in unnamed) else {}
        numbers = {holder: record.lease.number for holder, record in records.items() if record.lease is not None}
        counted_from = {claim: self._unnamed.get(claim, numbers.get(claim.holder)) for claim in unnamed}
        return {claim: number for claim, number in counted_from.items() if number is not None}

    def _lost_task(self, claim: Claim) -> LostTask:
        lease = self._leases.find(claim.holder)
        is_dead = claim.fenced or self._leases.is_dead(claim.holder)
        detail = self._describe_death(claim.holder) if is_dead else NOT_RUNNING
        return LostTask(claim.id, detail, was_claimed=True, host=lease.host if lease is not None else None)

    def _describe_death(self, holder: str) -> str:
        lease, silence = self._leases.find(holder), self._leases.silence_of(holder)
        if lease is None:
            return "the worker that had started it is gone"
        worker = f"worker {lease.name} (pid {lease.pid}) is gone"
        return worker if silence is None else f"{worker}, last heartbeat {silence:.1f} s ago"
