"""Decide when the commands of a worker that sends no heartbeats are ended, and how fast.

    heartbeat ─► silence < SILENCE_LIMIT ─► commands go on
                 silence ≥ SILENCE_LIMIT ─► TERM ─► SILENCE_GRACE ─► KILL
                 noticed too late        ─► KILL at once: the machine itself had stopped

Other processes declare a worker dead `LEASE_DURATION` after its last heartbeat, and run its tasks again. Its commands
must be dead by then.
"""

from __future__ import annotations

SILENCE_LIMIT = 6.0  # seconds without a heartbeat until commands are ended
SILENCE_GRACE = 1.5  # seconds from TERM to KILL of these commands


class LeasePolicy:
    """The heartbeats of one worker. All times are seconds of one monotonic clock."""

    def __init__(self, *, oversleep_limit: float) -> None:
        """If a silence is noticed more than `oversleep_limit` seconds late, no time is left for a grace."""
        self._oversleep_limit = oversleep_limit
        self._last_heartbeat: float | None = None
        self._grace: float | None = None

    @property
    def silent_at(self) -> float:
        """When the worker counts as silent, unless another heartbeat comes. Infinite before the first heartbeat."""
        return float("inf") if self._last_heartbeat is None else self._last_heartbeat + SILENCE_LIMIT

    def record_heartbeat(self, sent_at: float, now: float) -> None:
        """Record a heartbeat. A heartbeat that was sent too long ago does not end a silence."""
        self._last_heartbeat = sent_at
        if now < self.silent_at:
            self._grace = None

    def grace(self, now: float) -> float | None:
        """Return the seconds from TERM to KILL for the worker's commands; None while the worker is not silent.

        The grace stays the same until the silence ends.
        """
        if now < self.silent_at:
            return None
        if self._grace is None:
            self._grace = SILENCE_GRACE if now < self.silent_at + self._oversleep_limit else 0.0
        return self._grace
