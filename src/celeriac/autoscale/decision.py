"""Decide how many allocations to submit and to cancel. No I/O; times are seconds of one monotonic clock.

waiting tasks, free slots, allocations ─► Observation ─► Scaler.decide ─► Decision
failures ─► SubmitBackoff ─► no submission for a growing time, then one at a time
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from celeriac.executor.backoff import backoff

SURPLUS_TIME = 30.0  # seconds for which pending allocations must have been too many before some are cancelled
FIRST_DELAY = 10.0  # seconds without a submission after the first failure
MAX_DELAY = 600.0  # seconds without a submission after many failures


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits that a user gives."""

    minimum: int
    maximum: int
    slots: int
    """How many tasks the worker of one allocation runs at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """The state at one moment."""

    unserved: int | None
    """The waiting tasks that no free slot takes; None while that is unknown."""

    pending: int
    running: int
    starting: int
    """The running allocations whose worker is still to come."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The allocations to submit and the pending ones to cancel. One of the two is 0."""

    submit: int = 0
    cancel: int = 0


class SubmitBackoff:
    """The pause after failures: of submissions, and of allocations that ended before their worker was there."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._failures = 0
        self._retry_at = float("-inf")
        self._was_submission = False

    @property
    def is_failing(self) -> bool:
        """Whether the last thing that is known is a failure."""
        return self._failures > 0

    def is_over(self, now: float) -> bool:
        """Return whether allocations may be submitted."""
        return now >= self._retry_at

    def failed(self, now: float, *, submission: bool = False) -> float:
        """Record a failure, of a submission or of an allocation. Return the seconds for which nothing is submitted."""
        self._failures += 1
        self._was_submission = submission
        delay = backoff(FIRST_DELAY, self._failures, MAX_DELAY, self._random)
        self._retry_at = now + delay
        return delay

    def submitted(self) -> None:
        """Record a submission. It says nothing about allocations that ended at once."""
        if self._was_submission:
            self.succeeded()

    def succeeded(self) -> None:
        """Record that a worker has come."""
        self._failures, self._retry_at = 0, float("-inf")


class Scaler:
    """Decides from one observation after another."""

    def __init__(self, limits: Limits, backoff: SubmitBackoff, surplus_time: float = SURPLUS_TIME) -> None:
        """Pending allocations are cancelled that have been too many for `surplus_time` seconds."""
        self.limits, self._backoff, self._surplus_time = limits, backoff, surplus_time
        self._surplus_since: float | None = None
        self._smallest_surplus = 0

    def decide(self, seen: Observation, now: float) -> Decision:
        """Return what to do now. Running allocations are never cancelled: their workers end when they are idle."""
        allocations = seen.pending + seen.running
        surplus = self._lasting_surplus(self._surplus(seen), now)
        if (cancel := min(seen.pending, max(surplus, allocations - self.limits.maximum))) > 0:
            return Decision(cancel=cancel)
        return Decision(submit=self._number_to_submit(seen, now))

    def _number_to_submit(self, seen: Observation, now: float) -> int:
        if seen.unserved is None or not self._backoff.is_over(now):
            return 0
        allocations = seen.pending + seen.running
        missing = seen.unserved - self.limits.slots * (seen.pending + seen.starting)
        needed = max(-(-missing // self.limits.slots), self.limits.minimum - allocations)
        number = max(0, min(needed, self.limits.maximum - allocations))
        return min(number, 1) if self._backoff.is_failing else number

    def _surplus(self, seen: Observation) -> int:
        """Return how many pending allocations are not needed."""
        if seen.unserved is None:
            return 0
        spare = (self.limits.slots * (seen.pending + seen.starting) - seen.unserved) // self.limits.slots
        above_minimum = seen.pending + seen.running - self.limits.minimum
        return max(0, min(seen.pending, spare, above_minimum))

    def _lasting_surplus(self, surplus: int, now: float) -> int:
        """Return the smallest surplus of the last seconds, if there was one all the time."""
        if surplus == 0:
            self._surplus_since = None
            return 0
        if self._surplus_since is None:
            self._surplus_since, self._smallest_surplus = now, surplus
        self._smallest_surplus = min(self._smallest_surplus, surplus)
        if now - self._surplus_since < self._surplus_time:
            return 0
        self._surplus_since = None
        return self._smallest_surplus
