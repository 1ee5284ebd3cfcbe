"""Decide when to call a peer again that is unavailable or refuses, and which lines to log about it.

    call fails ─► one line, and no call before `retry_at` ─► call fails ─► a longer delay, no line
                                                          └► call succeeds ─► one line: available again

The circuit breaker does no I/O and reads no clock: its owner passes the time, makes the calls and logs the lines.
"""

from __future__ import annotations

import logging
from random import Random

from celeriac.errors import describe_problem, describe_refusal
from celeriac.executor.backoff import backoff
from celeriac.server_errors import ServerProblem, problem_of

ALWAYS = float("-inf")


class CircuitBreaker:
    """The state of one peer. All times are seconds on one clock of the owner's choice."""

    def __init__(
        self,
        peer: str,
        *,
        first_delay: float,
        max_delay: float | None = None,
        random: Random | None = None,
        effect: str = "",
    ) -> None:
        """`peer` is the name of the peer in a log line, without a password: "the result backend". `effect` is the
        effect of an outage, for the reader of the log: "tasks wait". After a failure the next call waits
        `first_delay` seconds, doubled with each further failure up to `max_delay`, with jitter. Without `max_delay` it
        is not doubled."""
        self._peer, self._effect = peer, effect
        self._first_delay, self._max_delay = first_delay, first_delay if max_delay is None else max_delay
        self._random = random or Random()
        self._opened_at: float
        self._is_said = self._is_refused = False
        """Whether a line has reported this outage, and whether one has said that only a person can end it."""

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

    def record_failure(self, now: float, error: BaseException | str, *, patience: float = 0.0) -> str | None:
        """Take note of a failed call. Return the line to log: once the outage has lasted for `patience` seconds, and
        once more if only a person can end it and the first line did not say so."""
        if now < self.retry_at:
            return None
        self.failures += 1
        self.delay = backoff(self._first_delay, self.failures, self._max_delay, self._random)
        self.retry_at = now + self.delay
        if self.failures == 1:
            self._opened_at, self._is_said, self._is_refused = now, False, False
        if now - self._opened_at < patience and not self._is_said:
            return None
        is_refused = not isinstance(error, str) and problem_of(error) is ServerProblem.REFUSED
        is_new = not self._is_said or (is_refused and not self._is_refused)
        self._is_said, self._is_refused = True, self._is_refused or is_refused
        return self._line(error) if is_new else None

    def _line(self, error: BaseException | str) -> str:
        effect = f", {self._effect}" if self._effect else ""
        if isinstance(error, str):
            return f"{self._peer} is unavailable{effect}: {error}"
        return f"{self._peer} {describe_problem(error)}{effect}: {describe_refusal(error)}"

    def record_success(self, now: float) -> str | None:
        """Take note of a call that succeeded. Return the line to log, if one has reported an outage before."""
        is_over = self._is_said
        self.failures, self.retry_at, self.delay, self._is_said = 0, ALWAYS, 0.0, False
        return f"{self._peer} is available again after {now - self._opened_at:.1f} s" if is_over else None


def level_of(error: BaseException | str) -> int:
    """Return the level for a line about a peer that other parts call, too, and whose outage they report.

    They may have rights that this part has not. So a refusal until a person changes a setting is a warning.
    """
    is_refused = not isinstance(error, str) and problem_of(error) is ServerProblem.REFUSED
    return logging.WARNING if is_refused else logging.DEBUG
