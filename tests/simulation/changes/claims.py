"""Changes of the claim script, and of the leases beside it."""

from __future__ import annotations

from itertools import repeat
from typing import Any

from celeriac.backend.claims import memory
from celeriac.backend.claims.claim import Granted, LeaseRecord, LeaseState
from celeriac.backend.claims.memory import Entry, MemoryClaims
from tests.simulation.changes.change import change


def grant_all(claims: MemoryClaims, task_id: str, *, holder: str, delivery: str, **_: Any) -> Granted:
    entry = claims._entries.setdefault(task_id, Entry())
    entry.holder, entry.delivery, entry.token = holder, delivery, next(claims._tokens)
    return Granted(entry.token)


REAL_CLAIM, REAL_RENEW = MemoryClaims.claim, MemoryClaims.renew
REAL_CANCEL, REAL_RELEASE = MemoryClaims.cancel, MemoryClaims.release


def claim_of_the_dead(claims: MemoryClaims, task_id: str, *, holder: str, **options: Any) -> Any:
    """Claim as if the lease were live."""
    record = claims._leases.pop(holder, None)
    try:
        return REAL_CLAIM(claims, task_id, holder=holder, **options)
    finally:
        if record is not None:
            claims._leases[holder] = record


def claim_of_the_cancelled(claims: MemoryClaims, task_id: str, **options: Any) -> Any:
    entry = claims._entries.get(task_id)
    if entry is not None and entry.holder is None:
        entry.cancelled = False
    return REAL_CLAIM(claims, task_id, **options)


def claim_of_the_fenced(claims: MemoryClaims, task_id: str, **options: Any) -> Any:
    """Give a fenced claim to the next worker, as if its entry had been deleted."""
    entry = claims._entries.get(task_id)
    if entry is not None and entry.fenced:
        claims._entries[task_id] = Entry()
    return REAL_CLAIM(claims, task_id, **options)


def renewal_of_the_dead(claims: MemoryClaims, lease: Any) -> Any:
    record = claims._leases.get(lease.holder)
    if record is not None and record.state is LeaseState.DEAD:
        claims._leases[lease.holder] = LeaseRecord(record.lease, record.heartbeat_count, LeaseState.LIVE)
    return REAL_RENEW(claims, lease)


def cancel_claimed(claims: MemoryClaims, ids: Any, *, unless_started: bool = False) -> Any:
    """Take a claimed task for one that can be cancelled."""
    for task_id in ids:
        entry = claims._entries.get(task_id)
        if entry is not None and not entry.cancelled:
            entry.holder = None
    return REAL_CANCEL(claims, ids, unless_started=unless_started)


def declare_dead_unchecked(claims: MemoryClaims, holder: str, heartbeat_count: int | None) -> bool:
    record = claims._leases.get(holder)
    claims._leases[holder] = LeaseRecord(record.lease if record else None, 1_000_000, LeaseState.DEAD)
    return True


def release_once(claims: MemoryClaims, task_id: str, *, holder: str) -> bool:
    entry = claims._entries.get(task_id)
    return entry is not None and entry.holder == holder and REAL_RELEASE(claims, task_id, holder=holder)


def fence_nothing(claims: MemoryClaims, fenced: Any) -> Any:
    return [claim.id for claim in fenced]


change(
    "no-claim",
    "Each delivery of a message is granted a claim: a doubled message runs twice.",
    (MemoryClaims, "claim", grant_all),
)
change(
    "claim-of-the-dead",
    "The claim script does not check whether the lease was declared dead: what a scan found unclaimed is claimed.",
    (MemoryClaims, "claim", claim_of_the_dead),
)
change(
    "claim-of-the-cancelled",
    "The claim script does not check whether the task was cancelled: what was cancelled starts.",
    (MemoryClaims, "claim", claim_of_the_cancelled),
)
change(
    "claim-of-the-fenced",
    "A fenced claim is free again: another copy of the message runs beside the next attempt.",
    (MemoryClaims, "claim", claim_of_the_fenced),
)
change(
    "same-token",
    "The token does not grow: what a command writes to cannot tell an old attempt from a new one.",
    (memory, "count", lambda _: repeat(1)),
)
change(
    "renewal-of-the-dead",
    "A worker that was declared dead renews its lease, and never learns that its tasks run elsewhere.",
    (MemoryClaims, "renew", renewal_of_the_dead),
)
change(
    "cancel-claimed",
    "A task that a worker has claimed is told as cancelled while it runs.",
    (MemoryClaims, "cancel", cancel_claimed),
)
change(
    "death-unchecked",
    "A worker is declared dead although it has renewed its lease since the watcher looked.",
    (MemoryClaims, "declare_dead", declare_dead_unchecked),
)
change(
    "release-once",
    "A release whose reply was lost is refused when it is repeated: the task counts as cancelled, and was not.",
    (MemoryClaims, "release", release_once),
)
change(
    "no-fence",
    "A claim is told as lost and not fenced: it can still be used.",
    (MemoryClaims, "fence", fence_nothing),
)
