"""What is said about who may start a task, and about who is still alive.

worker   ─► claim ─► Go, or why not: Taken, Cancelled, Superseded
         ─► renew (its lease, every few seconds) ─► Renewed, or DeclaredDead
executor ◄─ leases, read ─► declare_dead ─► fence: what a dead worker had claimed is nobody's any more
         ─► cancel: who has not claimed it, never will

One worker process is one *holder*: an id of its own, that no other process has and that a restart does not keep.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, TypeAlias
from uuid import uuid4

import msgspec

CLAIM_KEPT = 25 * 3600  # seconds; longer than Redis waits, by default, until it delivers a message again
TOMBSTONE_KEPT = 30 * 24 * 3600  # seconds: of what is never to start, and whose message may lie somewhere for long
LEASE_KEPT = 3600  # seconds that what is known of a worker outlasts it


def new_holder() -> str:
    return uuid4().hex


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker says of itself, with each renewal."""

    holder: str
    name: str
    host: str
    pid: int
    boot_id: str
    """Tells one start of the machine from another; empty where the system has none."""

    queues: tuple[str, ...]
    slots: int
    """How many tasks it runs at once."""

    number: int = 0
    """Of this renewal: so that one can tell what was said before from what was said after."""

    draining: bool = False
    """Whether it takes nothing more."""

    running: tuple[str, ...] = ()
    """The ids of what it runs."""

    held: tuple[str, ...] = ()
    """The ids of what it has received and not begun."""


class LeaseState(StrEnum):
    LIVE = "live"
    """As far as its own words go: whether they are fresh, the beats tell."""

    GONE = "gone"
    """It said goodbye."""

    DEAD = "dead"
    """It was declared dead, and may claim and renew no more."""


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    lease: Lease | None
    """None of a worker that is known by a verdict alone."""

    heartbeat_count: int
    """Grows with each renewal: who watches it needs no clock but his own."""

    state: LeaseState


@dataclass(frozen=True, slots=True)
class Claim:
    id: str
    holder: str
    token: int
    cancelled: bool = False
    fenced: bool = False


@dataclass(frozen=True, slots=True)
class Granted:
    """It may start."""

    token: int
    """Grows with every claim of any task: the fencing token."""


@dataclass(frozen=True, slots=True)
class AlreadyClaimed:
    """It has been started, or will be: this message came twice."""

    holder: str


@dataclass(frozen=True, slots=True)
class ClaimCancelled:
    """It was called back before it started."""


@dataclass(frozen=True, slots=True)
class Superseded:
    """Its worker was declared dead: the task goes on under another id, or has ended."""


ClaimReply: TypeAlias = Granted | AlreadyClaimed | ClaimCancelled | Superseded


@dataclass(frozen=True, slots=True)
class Renewed:
    cancelled: frozenset[str] = frozenset()
    """Of what runs, what was called back."""

    fenced: frozenset[str] = frozenset()
    """Of what runs, what is no longer the worker's to run."""


@dataclass(frozen=True, slots=True)
class DeclaredDead:
    """Nothing it has claimed is its own any more."""


class Claims(Protocol):
    """In the result backend's own store. Every call is atomic for each id, may block for some seconds, and may raise
    one of `errors`."""

    errors: tuple[type[Exception], ...]

    # — for workers —

    def claim(
        self, task_id: str, *, holder: str, delivery: str, place: Mapping[str, Any] | None = None, request: Any = None
    ) -> ClaimReply:
        """Ask to start a task. Asked again with the same `delivery`, the answer is the same: for a reply that was lost.

        With `place`, what Celery stores of a task that has begun is stored with the claim, for Celery's `request`.
        """
        ...

    def release(self, task_id: str, *, holder: str) -> bool:
        """It did not start, or was ended unfinished. Answers whether it may be claimed anew: not if it was called back,
        or is no longer the worker's."""
        ...

    def renew(self, lease: Lease) -> Renewed | DeclaredDead: ...

    def end_lease(self, holder: str) -> None:
        """The goodbye. What the worker has claimed and not given back or finished counts as lost."""
        ...

    # — for executors —

    def leases(self) -> Mapping[str, LeaseRecord]:
        """By holder."""
        ...

    def read(self, ids: Sequence[str]) -> Mapping[str, Claim]:
        """Those that somebody has claimed."""
        ...

    def declare_dead(self, holder: str, beat: int | None) -> bool:
        """Unless its lease was renewed after that beat; None: unless it has a lease. Answers whether it is dead now."""
        ...

    def fence(self, claims: Sequence[Claim]) -> Collection[str]:
        """From now on these cannot be claimed under the same id. Answers the ids of which that is true: not of those
        that another worker has claimed since."""
        ...

    def cancel(self, ids: Sequence[str], *, unless_started: bool = False) -> Collection[str]:
        """Those that nobody has claimed cannot be claimed any more, and Celery's REVOKED is stored as their result;
        answers which. The others' workers are told at their next renewal, unless what has started may go on."""
        ...

    def close(self) -> None: ...
