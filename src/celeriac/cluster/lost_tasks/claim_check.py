"""Sort tasks by the claims of workers: claimed by a live worker, unclaimed, or lost with a claim that is fenced.

A live worker's claim is trusted until later renewals of its lease no longer list the task. Then the worker does not run
the task, and no result is stored.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping

from celeriac.backend.claims.claim import Claim, Lease, LeaseRecord
from celeriac.backend.claims.lease_monitor import LeaseMonitor
from celeriac.cluster.lost_tasks.scan import RETRY_DELAY
from celeriac.executor.circuit_breaker import CircuitBreaker, level_of
from celeriac.executor.interfaces import LostTask
from celeriac.log_lines import logger_for
from celeriac.server_errors import is_server_error

logger = logger_for(__name__)

BATCH_SIZE = 500  # ids in one request to the store
RENEWALS_UNTIL_LOST = 2  # renewals without the task; the worker made the second one after the first was stored
NOT_RUNNING = "its worker no longer runs it, and no result of it is stored"


class ClaimCheck:
    """Reads claims. Fences each claim whose worker is dead or does not run the task."""

    def __init__(self, leases: LeaseMonitor, *, on_lost: Callable[[Collection[LostTask]], None]) -> None:
        """`on_lost` is called with the tasks whose claims were fenced."""
        self._leases, self._on_lost = leases, on_lost
        self._breaker = CircuitBreaker(
            "the result backend",
            first_delay=RETRY_DELAY,
            effect="lost tasks cannot be looked for",
        )
        self._unlisted: dict[Claim, LeaseRecord] = {}
        """Claims that the lease of their live worker does not list, each with the first renewal that was read after the
        claim."""

    def unclaimed(self, ids: Iterable[str], *, is_first: bool) -> Collection[str] | None:
        """Return the ids that no worker claims or holds. Fence and report claims of dead workers.

        Return None if the store is unavailable. `is_first` says that `ids` are all wanted ids, not only the
        remaining ones.
        """
        if not self._leases.has_polled:
            return None
        # Once: during a slow read of the store, renewals may arrive that list other tasks.
        live = self._leases.live_records()
        held = self._held([record.lease for record in live.values() if record.lease is not None])
        unheld = [task_id for task_id in ids if task_id not in held]
        claims: dict[str, Claim] = {}
        try:
            for start in range(0, len(unheld), BATCH_SIZE):
                batch = self._leases.claims.read(unheld[start : start + BATCH_SIZE])
                claims |= batch
                self._on_lost(self._fence_orphans(batch.values(), live))
            unlisted = self._find_unlisted(claims.values(), live)
            self._unlisted = unlisted if is_first else {**self._unlisted, **unlisted}
        except Exception as error:
            if not is_server_error(error):
                raise
            if line := self._breaker.record_failure(time.monotonic(), error):
                logger.log(level_of(error), line)
            return None
        if line := self._breaker.record_success(time.monotonic()):
            logger.debug(line)
        return [task_id for task_id in unheld if task_id not in claims]

    def _held(self, live: Iterable[Lease]) -> set[str]:
        """Return the tasks that live workers run, and the tasks that workers that are not suspected have received."""
        suspected = {lease.holder for lease in self._leases.suspected()}
        running = {task_id for lease in live for task_id in lease.running}
        return running.union(*(lease.held for lease in live if lease.holder not in suspected))

    def _fence_orphans(self, claims: Iterable[Claim], live: Mapping[str, LeaseRecord]) -> list[LostTask]:
        """Fence the claims whose tasks no worker runs any more. Raise the store's errors."""
        orphans = {claim.id: claim for claim in claims if self._is_orphaned(claim, live.get(claim.holder))}
        return [self._lost_task(orphans[task_id]) for task_id in self._leases.claims.fence(list(orphans.values()))]

    def _is_orphaned(self, claim: Claim, renewal: LeaseRecord | None) -> bool:
        """Return whether no worker runs the claimed task. `renewal` is the one of its worker, which does not list the
        task; None if the worker is not live."""
        if claim.fenced or self._leases.is_dead(claim.holder):
            return True
        first = self._unlisted.get(claim)
        return first is not None and renewal is not None and is_later(renewal, first)

    def _find_unlisted(self, claims: Collection[Claim], live: Mapping[str, LeaseRecord]) -> dict[Claim, LeaseRecord]:
        """Return the claims that their live workers do not list, each with the renewal to count from. Raise the store's
        errors.

        Such a task may have been claimed after its worker's renewal. So the count begins with the renewal that is read
        now, when the claim is known.
        """
        unlisted = [claim for claim in claims if claim.holder in live]
        records = self._leases.claims.leases() if any(claim not in self._unlisted for claim in unlisted) else {}
        counted_from = {claim: self._unlisted.get(claim, records.get(claim.holder)) for claim in unlisted}
        return {claim: first for claim, first in counted_from.items() if first is not None and first.lease is not None}

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


def is_later(renewal: LeaseRecord, first: LeaseRecord) -> bool:
    """Return whether a renewal was stored after the first one, and made after that was stored.

    A renewal that was on its way for long is stored after later ones, with a small number. And the leases of a poll
    that takes long may be older than the first renewal.
    """
    if renewal.number is None or first.number is None:
        return False
    is_stored_later = renewal.heartbeat_count > first.heartbeat_count
    return is_stored_later and renewal.number - first.number >= RENEWALS_UNTIL_LOST
