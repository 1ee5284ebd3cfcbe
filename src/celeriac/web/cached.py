"""A value that many viewers share: it is read once for all of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Cached(Generic[T]):
    """The last value of a slow read. While one thread reads, the others wait for its result."""

    def __init__(self, read: Callable[[], T], *, pause_per_read: float = 10.0) -> None:
        """Between two reads, pause at least `pause_per_read` times as long as the read took."""
        self._read, self._pause_per_read = read, pause_per_read
        self._lock = threading.Lock()
        self._value: T | None = None
        self._error: Exception | None = None
        self._ended_at: float | None = None
        self._took = 0.0

    def get(self, max_age: float) -> T:
        """Return a value that is at most `max_age` seconds old, or older if reading takes long. Raises what the read
        raised."""
        with self._lock:
            if time.monotonic() >= self.due(max_age):
                self._refresh()
            if self._error is not None:
                raise self._error
            assert self._value is not None  # noqa: S101 - it was read, or there is an error
            return self._value

    def peek(self) -> T | None:
        """Return the last value, without a wait; None if there is none."""
        return self._value

    def due(self, max_age: float) -> float:
        """Return the time from which a new value is read, on the monotonic clock."""
        if self._ended_at is None:
            return float("-inf")
        return self._ended_at + max(max_age, self._pause_per_read * self._took)

    def _refresh(self) -> None:
        began = time.monotonic()
        try:
            self._value, self._error = self._read(), None
        except Exception as error:  # noqa: BLE001 - whoever asks gets it
            self._error = error
        self._ended_at = time.monotonic()
        self._took = self._ended_at - began
