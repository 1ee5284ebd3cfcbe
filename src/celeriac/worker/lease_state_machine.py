"""Decide when a worker renews its lease, and what follows from each reply: no threads, no I/O.

    on_tick  ─► Renew
    on_reply ─► Renewed: LeaseRenewed, Heartbeat, StopTasks     DeclaredDead: StopAll, then a new holder
    no reply, an error ─► Renew over a new connection, beside ProbeServer
                          ├─► renewed after all
                          ├─► no one can use the store ─► Heartbeat
                          └─► this worker is cut off   ─► no heartbeat

A supervisor that gets no `Heartbeat` ends all commands. So commands end before the lease expires elsewhere. They go on
while no one can use the store, because then no executor can declare this worker dead.

A dead connection may leave a renewal without a reply while the store works. So what follows is decided only by a
renewal over a new connection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from celeriac.backend.claims.claim import DeclaredDead, Renewed, new_holder
from celeriac.config.lease import RENEWAL_INTERVAL
from celeriac.errors import describe_refusal
from celeriac.server_errors import ServerProblem, is_refusal, problem_of
from celeriac.worker.probe import Reach, is_unavailable_for_everyone

RENEWAL_TIMEOUT = 1.5  # seconds without a reply to a renewal, until it counts as failed
MAX_REPLY_AGE = 2.0  # seconds from a renewal to a reply that is a heartbeat


@dataclass(frozen=True, slots=True)
class Renew:
    """Send a renewal. Its reply is for `on_reply` or `on_error`, however late it comes."""

    number: int
    over_new_connection: bool = False


@dataclass(frozen=True, slots=True)
class ProbeServer:
    """Probe the server of the store, and call `on_probe`."""

    number: int


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
class DropConnections:
    """Close the old connections: only new ones work."""


@dataclass(frozen=True, slots=True)
class Warn:
    """Log a warning."""

    message: str


Decision: TypeAlias = Renew | ProbeServer | LeaseRenewed | Heartbeat | StopTasks | StopAll | DropConnections | Warn


@dataclass(slots=True)
class Attempt:
    """The renewal that decides what follows."""

    number: int
    deadline: float
    is_new_connection: bool
    error: Exception | None = None
    reach: Reach | None = None


class LeaseStateMachine:
    """The lease of one worker. All times are seconds of one monotonic clock."""

    def __init__(self, *, is_strict: bool = False, new_holder: Callable[[], str] = new_holder) -> None:
        """With `is_strict`, commands end whenever the lease cannot be renewed, even if no one can use the store."""
        self._is_strict, self._new_holder = is_strict, new_holder
        self._is_unavailable = self._is_refused = self._has_ended = self._goes_on = False
        self._next_tick = self._renewed_at = float("-inf")
        self._attempt: Attempt | None = None
        self._number = 0

    def seconds_to_wait(self, now: float) -> float:
        """Return the seconds until the next tick."""
        due = self._next_tick if self._attempt is None else self._attempt.deadline
        return max(0.0, due - now)

    def renew_now(self) -> None:
        """Make the next tick due at once."""
        self._next_tick = float("-inf")

    def end(self) -> None:
        """Record that the worker ends its lease. From now on an unavailable store is not reported."""
        self._has_ended = True

    # — events —

    def on_tick(self, now: float) -> Sequence[Decision]:
        """Begin a renewal if it is time to, and give up one without a reply."""
        if self._attempt is not None:
            if now < self._attempt.deadline:
                return ()
            return self._on_failure(TimeoutError(f"no reply within {RENEWAL_TIMEOUT:g} s"), now, is_last_word=True)
        if now < self._next_tick:
            return ()
        self._next_tick = now + RENEWAL_INTERVAL
        # After a change of a password, only old connections may still work.
        return self._renew(now, over_new_connection=self._is_unavailable and not self._is_refused)

    def on_reply(
        self, number: int, reply: Renewed | DeclaredDead, holder: str, sent_at: float, now: float
    ) -> Sequence[Decision]:
        """Handle the reply to a renewal that was sent at `sent_at`. It may be late."""
        is_new_connection = False
        if self._attempt is not None and self._attempt.number == number:
            is_new_connection, self._attempt = self._attempt.is_new_connection, None
        if isinstance(reply, DeclaredDead):
            self._attempt = None
            self.renew_now()
            return (StopAll(self._new_holder()),)
        decisions: list[Decision] = []
        if sent_at > self._renewed_at:  # else a later renewal was faster
            self._renewed_at = sent_at
            decisions.append(LeaseRenewed(holder, sent_at))
        if now - sent_at < MAX_REPLY_AGE:  # others measure the age of the lease from the time of sending
            decisions.append(Heartbeat())
        if is_new_connection:
            decisions.append(DropConnections())
        if reply.cancelled or reply.fenced:
            decisions.append(StopTasks(reply.cancelled, reply.fenced))
        if self._is_unavailable:
            decisions.append(Warn("the lease is renewed again"))
        self._is_unavailable = self._is_refused = False
        return decisions

    def on_error(self, number: int, error: Exception, now: float) -> Sequence[Decision]:
        """Handle the error of a renewal."""
        if self._attempt is None or self._attempt.number != number:
            return ()
        return self._on_failure(error, now, is_last_word=False)

    def on_probe(self, number: int, reach: Reach) -> Sequence[Decision]:
        """Handle the result of a probe."""
        attempt = self._attempt
        if attempt is None or attempt.number != number:
            return ()
        attempt.reach = reach
        return () if attempt.error is None else self._decide(attempt.error, reach)

    # — what follows —

    def _renew(self, now: float, *, over_new_connection: bool) -> Sequence[Decision]:
        self._number += 1
        self._attempt = Attempt(self._number, now + RENEWAL_TIMEOUT, over_new_connection)
        renew = Renew(self._number, over_new_connection)
        return (renew, ProbeServer(self._number)) if over_new_connection and not self._is_strict else (renew,)

    def _on_failure(self, error: Exception, now: float, *, is_last_word: bool) -> Sequence[Decision]:
        """Handle a renewal that failed. With `is_last_word`, do not wait for the probe any longer."""
        attempt = self._attempt
        assert attempt is not None  # noqa: S101 - the callers have checked it
        if self._has_ended:
            self._attempt = None
            return ()
        if not attempt.is_new_connection and not (
            is_refusal(error) and is_unavailable_for_everyone(error, Reach.REPLY)
        ):
            return self._renew(now, over_new_connection=True)
        if attempt.reach is None and not self._decides_alone(error):
            if not is_last_word:
                attempt.error = error
                return ()
            error, attempt.reach = attempt.error or error, Reach.NO_CONNECTION
        return self._decide(error, attempt.reach or Reach.NO_CONNECTION)

    def _decides_alone(self, error: Exception) -> bool:
        """Return whether the result of a probe would change nothing."""
        outcomes = {is_unavailable_for_everyone(error, reach) for reach in Reach}
        return self._is_strict or len(outcomes) == 1

    def _decide(self, error: Exception, reach: Reach) -> Sequence[Decision]:
        self._attempt = None
        for_everyone = not self._is_strict and is_unavailable_for_everyone(error, reach)
        self._is_refused = problem_of(error) is ServerProblem.REFUSED
        decisions: list[Decision] = []
        if (for_everyone, True) != (self._goes_on, self._is_unavailable):
            self._goes_on, self._is_unavailable = for_everyone, True
            effect = "running tasks go on" if for_everyone else "running tasks are ended, to run elsewhere"
            decisions.append(Warn(f"the lease cannot be renewed, {effect}: {describe_refusal(error)}"))
        if for_everyone:
            decisions.append(Heartbeat())
        return decisions
