"""Decide when to call an unavailable peer again, and which lines to log about it.

    call fails ─► one line, and no call before `retry_at` ─► call fails ─► a longer delay, no line
                                                          └► call succeeds ─► one line: available again

The circuit breaker does no I/O and reads no clock: its owner passes the time, makes the calls and logs the lines.
"""

from __future__ import annotations

from random import Random

from celeriac.executor.backoff import backoff

ALWAYS = float("-inf")


class CircuitBreaker:
    """The state of one peer. All times are seconds on one clock of the owner's choice."""

    def __init__(self, peer: str, *, first_delay: float, max_delay: float, random: Random, effect: str = "") -> None:
        """`peer` is the name of the peer in a log line, without a password: "the result backend". `effect` is the
        effect of an outage, for the reader of the log: "tasks wait". After a failure the next call waits
        `first_delay` seconds, doubled with each further failure up to `max_delay`, with jitter."""
        self._peer, self._effect = peer, effect
        self._first_delay, self._max_delay, self._random = first_delay, max_delay, random
        self._opened_at = 0.0
        self.failures = 0
        """Failed calls in a row. A failure before `retry_at` comes from an earlier call and does not count."""

        self.retry_at = ALWAYS
        """No call should be made before this time."""

        self.delay = 0.0
        """Seconds from the last failure to `retry_at`; 0 while the circuit is closed."""

    @property
    def is_open(self) -> bool:
        """Whether the last call failed."""
        return self.failures > 0

    def allows(self, now: float) -> bool:
        """Return whether a call may be made."""
        return now >= self.retry_at

    def record_failure(self, now: float, error: str) -> str | None:
        """Take note of a failed call. Return the line to log, if the peer has just become unavailable."""
        if now < self.retry_at:
            return None
        self.failures += 1
        self.delay = backoff(self._first_delay, self.failures, self._max_delay, self._random)
        self.retry_at = now + self.delay
        if self.failures > 1:
            return None
        self._opened_at = now
        effect = f", {self._effect}" if self._effect else ""
        return f"{self._peer} is unavailable{effect}: {error}"

    def record_success(self, now: float) -> str | None:
        """Take note of a call that succeeded. Return the line to log, if the peer was unavailable before."""
        if not self.failures:
            return None
        self.failures, self.retry_at, self.delay = 0, ALWAYS, 0.0
        return f"{self._peer} is available again after {now - self._opened_at:.1f} s"
