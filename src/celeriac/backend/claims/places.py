"""The places of limits, in the store of the claims: the protocol, and the rules that both kinds of stores follow.

executor ─► reserve ─► a place for RESERVATION seconds, renewed while its task is in flight ─► end
worker   ─► take, before it claims ─► held under its lease ─► leave
                                   └► the worker is dead, or gone: the next one who needs the place frees it

A place of a rate is held until the length of its window has passed since the last `take` of its delivery. So at any
moment the reservations and the starts of the last window are no more than the rate allows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from enum import StrEnum
from typing import Protocol

from celeriac.backend.claims.place_use import LimitStatus, Note
from celeriac.executor.limit import PlaceRequest, Refusal

RESERVATION = 30.0  # seconds after its last renewal until the place of a task that was not taken is free
RENEW_INTERVAL = 8.0  # seconds between two renewals
POLL_INTERVAL = 0.25  # seconds until an executor asks again for a place of a number of tasks
MIN_POLL_INTERVAL, MAX_POLL_INTERVAL = 0.01, 1.0  # seconds; the same for a rate, whose next end is known
KILLED_KEPT = 5.0  # seconds that a place stays taken after its process was killed: then its command is dead, too
TURN_KEPT = 3.0  # seconds after which an executor that has not asked again loses its turn


class TakeReply(StrEnum):
    """The reply to a worker that is about to claim a task."""

    TAKEN = "taken"
    HELD = "held"
    """Another message of the task has its place."""

    FULL = "full"
    """The reservation has ended, and the place is taken by another task."""

    DEAD = "dead"
    """The worker was declared dead, or has no lease."""


class LeaveReason(StrEnum):
    """Why a worker gives up a place."""

    ENDED = "ended"
    HANDED_BACK = "handed back"
    """Its message returns to the broker. The place is reserved for it."""

    NOT_STARTED = "not started"
    KILLED = "killed"
    """The process that ran the task was killed. The place stays taken until its command is dead, too."""


class Places(Protocol):
    """Places in the result backend's own store. Every call is atomic. It may block for some seconds, and may raise one
    of `errors`."""

    errors: tuple[type[Exception], ...]
    reservation: float
    """Seconds that a reservation lasts."""

    def reserve(
        self, asker: str, requests: Sequence[PlaceRequest], ended: Sequence[tuple[PlaceRequest, bool]] = ()
    ) -> Mapping[str, Refusal]:
        """Give up the places of ended tasks, then reserve or renew all places of each request, or none of them. Return
        the refusals, by id.

        `asker` names the executor: those that were refused get free places in the order in which they asked. Each ended
        task says whether it may have started. A worker that has taken its place gives it up itself.
        """
        ...

    def renew(self, requests: Sequence[PlaceRequest]) -> None:
        """Renew the reservations that have not ended."""
        ...

    def take(self, request: PlaceRequest, *, holder: str, delivery: str) -> TakeReply:
        """Take the reserved places of a task for a worker, or free ones. With the same `delivery` the reply is the
        same: call again after a lost reply."""
        ...

    def leave(self, request: PlaceRequest, *, holder: str, delivery: str, reason: LeaveReason) -> None:
        """Give up the places that were taken for this delivery. After a kill, `delivery` is the begin of its name."""
        ...

    def holders(self, name: str) -> Collection[str]:
        """Return the ids of the tasks that hold a place of a limit, reserved or taken."""
        ...

    def announce(self, asker: str, note: Note | None) -> None:
        """Store what an executor tells about its limits, for `NOTE_KEPT` seconds; with None, forget it."""
        ...

    def limits_in_use(self) -> tuple[LimitStatus, ...]:
        """Return the limits of all executors, and how many of their places are in use."""
        ...

    def close(self) -> None: ...


def clamp(seconds: float) -> float:
    """Return when to ask again for a place that ends in so many seconds."""
    return min(max(seconds, MIN_POLL_INTERVAL), MAX_POLL_INTERVAL)
