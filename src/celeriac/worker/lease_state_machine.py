"""Decide when a worker renews its lease, and what follows from each reply: no threads, no I/O.

    on_tick  ─► Renew
    on_reply ─► Renewed: LeaseRenewed, Heartbeat, StopTasks     DeclaredDead: StopAll, then a new holder
    on_error ─► ProbeStore ─► on_probe ─► Heartbeat if the store is unavailable for everyone; Warn once per outage

A supervisor that gets no `Heartbeat` ends all commands. So commands end before the lease expires elsewhere. They go on
while the store is unavailable for everyone, because then no executor can declare this worker dead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from celeriac.backend.claims.claim import DeclaredDead, Renewed, new_holder
from celeriac.config.lease import RENEWAL_INTERVAL

RENEWAL_TIMEOUT = 2.0  # seconds without a reply to a renewal, until the store counts as unavailable


@dataclass(frozen=True, slots=True)
class Renew:
    """Send a renewal."""


@dataclass(frozen=True, slots=True)
class LeaseRenewed:
    """The lease was good when its renewal was sent."""

    holder: str
    sent_at: float


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Tell the supervisors that commands may go on."""


@dataclass(frozen=True, slots=True)
class StopTasks:
    """End running tasks that executors cancelled, or fenced off."""

    cancelled: frozenset[str]
    fenced: frozenset[str]


@dataclass(frozen=True, slots=True)
class StopAll:
    """End all running tasks: they run elsewhere. From now on the worker claims under a new holder."""

    new_holder: str


@dataclass(frozen=True, slots=True)
class ProbeStore:
    """Find out whether the store is unavailable for everyone, and call `on_probe`."""

    error: Exception


@dataclass(frozen=True, slots=True)
class Warn:
    """Log a warning."""

    message: str


Decision: TypeAlias = Renew | LeaseRenewed | Heartbeat | StopTasks | StopAll | ProbeStore | Warn


class LeaseStateMachine:
    """The lease of one worker. All times are seconds of one monotonic clock."""

    def __init__(self, *, is_strict: bool = False, new_holder: Callable[[], str] = new_holder) -> None:
        """With `is_strict`, commands end whenever the lease cannot be renewed, even if the store is unavailable for
        everyone."""
        self._is_strict, self._new_holder = is_strict, new_holder
        self._is_renewing = self._is_unavailable = self._has_ended = False
        self._next_tick = float("-inf")

    def seconds_to_wait(self, now: float) -> float:
        """Return the seconds until the next tick."""
        return max(0.0, self._next_tick - now)

    def on_tick(self, now: float) -> Sequence[Decision]:
        """Begin a renewal, unless the last one has no reply yet."""
        self._next_tick = now + RENEWAL_INTERVAL
        if self._is_renewing:
            return ()
        self._is_renewing = True
        return (Renew(),)

    def on_reply(self, reply: Renewed | DeclaredDead, holder: str, sent_at: float, now: float) -> Sequence[Decision]:
        """Handle the reply to the renewal that was sent at `sent_at`."""
        self._is_renewing = False
        if isinstance(reply, DeclaredDead):
            self._next_tick = float("-inf")
            return (StopAll(self._new_holder()),)
        self._is_unavailable = False
        decisions: list[Decision] = [LeaseRenewed(holder, sent_at)]
        if now - sent_at < RENEWAL_TIMEOUT:  # others measure the age of the lease from the time of sending
            decisions.append(Heartbeat())
        if reply.cancelled or reply.fenced:
            decisions.append(StopTasks(reply.cancelled, reply.fenced))
        return decisions

    def on_error(self, error: Exception) -> Sequence[Decision]:
        """Handle the error of a renewal."""
        self._is_renewing = False
        return self._on_unavailable(error)

    def on_timeout(self) -> Sequence[Decision]:
        """Handle a renewal without a reply in time. The reply may still come."""
        return self._on_unavailable(TimeoutError(f"no reply within {RENEWAL_TIMEOUT:g} s"))

    def on_probe(self, error: Exception, *, is_unavailable_for_everyone: bool) -> Sequence[Decision]:
        """Handle the result of a probe. `error` is the error of the renewal."""
        decisions: list[Decision] = []
        if not self._is_unavailable:
            self._is_unavailable = True
            effect = (
                "running tasks go on" if is_unavailable_for_everyone else "running tasks are ended, to run elsewhere"
            )
            decisions.append(Warn(f"the lease cannot be renewed, {effect}: {error}"))
        if is_unavailable_for_everyone:
            decisions.append(Heartbeat())
        return decisions

    def end(self) -> None:
        """Record that the worker ends its lease. From now on an unavailable store is not reported."""
        self._has_ended = True

    def _on_unavailable(self, error: Exception) -> Sequence[Decision]:
        if self._has_ended:
            return ()
        if self._is_strict:
            return self.on_probe(error, is_unavailable_for_everyone=False)
        return (ProbeStore(error),)
