"""What ends a wait from outside it."""

from __future__ import annotations

from queue import Empty, SimpleQueue


class Wakeup:
    """A `SimpleQueue` beneath: an `Event` rung by a signal handler could lock its own thread out for ever."""

    def __init__(self) -> None:
        self._rung: SimpleQueue[None] = SimpleQueue()

    def notify(self) -> None:
        """May be called from a signal handler or another thread."""
        if self._rung.empty():
            self._rung.put(None)

    def wait(self, timeout: float) -> None:
        """Return when it rings, at once if it has since the last wait, or after `timeout` seconds."""
        try:
            self._rung.get(timeout=max(0.0, timeout))
            while True:
                self._rung.get_nowait()
        except Empty:
            return
