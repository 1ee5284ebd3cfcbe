"""The timers of the commands. While they are paused, no time passes for them."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator
from itertools import count


class Timers:
    """Callbacks by time of the monotonic clock, in seconds."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._paused_at: float | None = None

    @property
    def are_paused(self) -> bool:
        return self._paused_at is not None

    @property
    def next_at(self) -> float | None:
        """The time of the next callback; None if there is none, or while the timers are paused."""
        return None if self.are_paused or not self._heap else self._heap[0][0]

    def add(self, when: float, callback: Callable[[], None]) -> None:
        """Call a function at a time; during a pause, as long after its end as that time is away now."""
        if self._paused_at is not None:
            when -= time.monotonic() - self._paused_at
        heapq.heappush(self._heap, (when, next(self._numbers), callback))

    def take_due(self, now: float) -> Iterator[Callable[[], None]]:
        """Remove and yield the callbacks whose time has come, also those that are added meanwhile."""
        while (next_at := self.next_at) is not None and next_at <= now:
            yield heapq.heappop(self._heap)[2]

    def pause(self) -> None:
        self._paused_at = time.monotonic()

    def resume(self) -> float:
        """Move each time by the length of the pause. Return that length."""
        now = time.monotonic()
        length, self._paused_at = now - (now if self._paused_at is None else self._paused_at), None
        self._heap = [(when + length, number, callback) for when, number, callback in self._heap]
        return length
