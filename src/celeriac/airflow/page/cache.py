"""One read for all viewers: a value is kept for a moment, and no two threads read it at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

KEPT = 2.0  # seconds
SHARE = 3  # a read that takes long is repeated less often: its value is kept for this many times as long


class Cached(Generic[T]):
    """A value that is read when a viewer asks for it and the last one is too old."""

    def __init__(self, read: Callable[[], T], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._read, self._clock = read, clock
        self._lock = threading.Lock()
        self._value: T | None = None
        self._valid_until = float("-inf")

    def get(self) -> T:
        """Return the value. Viewers that come during a read wait for it, and share it."""
        with self._lock:
            begun = self._clock()
            if self._value is None or begun >= self._valid_until:
                self._value = self._read()
                now = self._clock()
                self._valid_until = now + max(KEPT, SHARE * (now - begun))
            return self._value
