"""Notice that a worker has had no task for a given time: no threads, no I/O."""

from __future__ import annotations

from collections.abc import Hashable

IDLE_EXIT = "--idle-exit"
"""The name under which an idle worker asks for its own drain."""


class IdleTimer:
    """How long a worker has had no task. All times are seconds of one monotonic clock."""

    def __init__(self, limit: float | None) -> None:
        """`limit` is the longest time, in seconds, without a task; None for no limit."""
        self.limit = limit
        self._activity: Hashable = None
        self._idle_since: float | None = None

    def is_over(self, *, is_busy: bool, activity: Hashable, now: float) -> bool:
        """Return whether the worker has had no task for the limit. The time begins anew when `activity` changes: so a
        task counts that began and ended between two calls."""
        if self.limit is None:
            return False
        if is_busy or self._idle_since is None or activity != self._activity:
            self._activity, self._idle_since = activity, now
        return now - self._idle_since >= self.limit
