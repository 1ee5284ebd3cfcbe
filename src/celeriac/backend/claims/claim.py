"""Claims and leases: the protocol, and the values that it takes and returns.

worker   ─► claim ─► Granted, or else AlreadyClaimed, ClaimCancelled, Superseded
         ─► renew (its lease, every few seconds) ─► Renewed, or DeclaredDead
executor ─► leases ─► declare_dead ─► fence: a dead worker's claims can never be used again
         ─► cancel: a task that is not claimed yet can never be claimed

Each worker process is one *holder*. Its id is unique, and a restarted worker gets a new one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from enum import StrEnum
from typing import Any, Protocol, Self, TypeAlias
from uuid import uuid4

import msgspec
from msgspec import Struct

from celeriac.task.amounts import Amounts

CLAIM_KEPT = 25 * 3600  # seconds; longer than Redis waits, by default, until it delivers a message again
TOMBSTONE_KEPT = 30 * 24 * 3600  # seconds, for a task that must never start; its message may stay in a queue for long
LEASE_KEPT = 3600  # seconds that a lease is kept after its last renewal


def new_holder() -> str:
    return uuid4().hex


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """The report that a worker stores with each renewal."""

    holder: str
    name: str
    host: str
    pid: int
    boot_id: str
    """Identifies one boot of the machine; empty where the system has no such id."""

    queues: tuple[str, ...]
    slots: int
    """The number of tasks that the worker runs at once."""

    number: int = 0
    """Number of this renewal: it orders the reports of one worker."""

    draining: bool = False
    """Whether the worker takes no more tasks."""

    drained_by: str | None = None
    """Who has asked the worker to drain, for a person; None if that is unknown."""

    paused: bool = False
    """Whether the worker takes no more tasks until it is resumed. `queues` is empty meanwhile, for executors."""

    paused_by: str | None = None
    """Who has paused the worker, for a person; None if that is unknown."""

    paused_queues: tuple[str, ...] = ()
    """The queues of a paused worker."""

    waits: str | None = None
    """Why the worker starts nothing for now, for a person; None if nothing holds it back."""

    resources: Amounts | None = None
    """What the worker shares out among its tasks; None if it does not count what they need."""

    running: tuple[str, ...] = ()
    """Ids of the tasks that the worker runs."""

    held: tuple[str, ...] = ()
    """Ids of the tasks that the worker has received and not begun."""

    refused: int | None = None
    """How many messages the worker has refused; None for a worker that does not report it."""

    version: str | None = None
    """The worker's version of Celeriac; None for a worker that does not report it."""

    keys: tuple[str, ...] | None = None
    """The fingerprints of the worker's signing keys; None for a worker that does not report them."""

    clock: float | None = None
    """The time of this renewal by the worker's clock; None for a worker that does not report it."""


class LeaseState(StrEnum):
    LIVE = "live"
    """Not ended and not declared dead. The heartbeats show whether the worker is alive."""

    GONE = "gone"
    """Ended by the worker itself."""

    DEAD = "dead"
    """Declared dead. Its worker can neither claim nor renew."""


class LeaseRecord(Struct, frozen=True):
    lease: Lease | None
    """None if the worker was declared dead before it had a lease."""

    heartbeat_count: int
    """Grows with each renewal that is stored. A watcher compares counts, and so needs only its own clock."""

    state: LeaseState

    @property
    def number(self) -> int | None:
        """The number that the worker gave to this renewal; None if its report is malformed, or if it has none.

        A renewal may be stored late, after later ones. And after a failover of the store, a renewal may have the count
        of one that was lost. So it takes both to tell what is new.
        """
        return self.lease.number if self.lease is not None else None


class Claim(Struct, frozen=True):
    id: str
    holder: str
    token: int
    cancelled: bool = False
    fenced: bool = False


class Granted(Struct, frozen=True):
    """The task may start."""

    token: int
    """The fencing token. It grows with every claim of any task."""


class AlreadyClaimed(Struct, frozen=True):
    """The task was claimed before: this message is a duplicate."""

    holder: str


class ClaimCancelled(Struct, frozen=True):
    """The task was cancelled before it started."""


class Superseded(Struct, frozen=True):
    """Its worker was declared dead. The task continues under another id, or has ended."""


ClaimReply: TypeAlias = Granted | AlreadyClaimed | ClaimCancelled | Superseded


class Renewed(Struct, frozen=True):
    cancelled: frozenset[str] = frozenset()
    """The running tasks that were cancelled."""

    fenced: frozenset[str] = frozenset()
    """The running tasks that the worker may run no longer."""


class DeclaredDead(Struct, frozen=True):
    """The worker has lost all its claims."""


class Claims(Protocol):
    """Claims in the result backend's own store. Every call is atomic for each id. It may block for some seconds, and
    may raise one of `errors`."""

    errors: tuple[type[Exception], ...]

    # — for workers —

    def claim(
        self,
        task_id: str,
        *,
        holder: str,
        delivery: str,
        started_info: Mapping[str, Any] | None = None,
        request: Any = None,
    ) -> ClaimReply:
        """Claim the right to start a task. With the same `delivery` the reply is the same: call again after a lost
        reply.

        With `started_info`, store it as Celery's STARTED, for Celery's `request`, together with the claim.
        """
        ...

    def release(self, task_id: str, *, holder: str) -> bool:
        """Release the claim of a task that did not start, or was stopped unfinished.

        Return whether the task can be claimed again. It cannot if it was cancelled or if the worker has lost the claim.
        The reply to a call that is repeated, because the first reply was lost, is the same.
        """
        ...

    def renew(self, lease: Lease) -> Renewed | DeclaredDead:
        """Renew a worker's lease: one heartbeat. Return what has changed for its running tasks."""
        ...

    def end_lease(self, holder: str) -> None:
        """End a worker's lease. Tasks that it has claimed and neither released nor finished count as lost."""
        ...

    # — for executors —

    def leases(self) -> Mapping[str, LeaseRecord]:
        """Return all leases by holder."""
        ...

    def heartbeat_ages(self, holders: Sequence[str]) -> Mapping[str, float]:
        """Return for how many seconds these workers have sent no heartbeat, by holder, where the store knows it.

        For people only: a database compares the clocks of two machines here.
        """
        ...

    def check_writable(self) -> None:
        """Write something that no reader takes for a lease or a claim. Raise an error of the server if it refuses
        writes: then no worker can renew its lease."""
        ...

    def read(self, ids: Sequence[str]) -> Mapping[str, Claim]:
        """Return the claims of those tasks that are claimed."""
        ...

    def declare_dead(self, holder: str, heartbeat_count: int | None) -> bool:
        """Declare a worker dead, unless it has renewed its lease since that count. With None: unless it has a lease.

        Return whether the worker is dead now.
        """
        ...

    def fence(self, claims: Sequence[Claim]) -> Collection[str]:
        """Fence claims: their tasks can never be claimed again under the same id.

        Return the ids that are fenced now. A claim that another worker has since replaced is not fenced.
        """
        ...

    def cancel(self, ids: Sequence[str], *, unless_started: bool = False) -> Collection[str]:
        """Cancel tasks. Those that are not claimed can never be claimed; their result becomes Celery's REVOKED, unless
        it is final.

        Return the ids of the tasks that are REVOKED now. The workers of the other tasks get the cancellation with their
        next renewal; with `unless_started` they do not, and started tasks continue.
        """
        ...

    # — connections —

    def check_rights(self) -> None:
        """Do without effect what a worker does. Raise an error of the server if it refuses one of the steps."""
        ...

    def anew(self) -> Self:
        """Return the same claims without a connection: the first call opens one."""
        ...

    def cut(self) -> None:
        """Cut all connections. Calls under way in other threads fail, and later calls open new connections."""
        ...

    def close(self) -> None: ...
