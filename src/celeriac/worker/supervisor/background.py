"""Work on files that may take long: threads do it, so that the loop goes on."""

from __future__ import annotations

import os
import sys
import threading
from collections import deque

TYPE_CHECKING = False

if TYPE_CHECKING:
    from collections.abc import Callable

    from celeriac.worker.supervisor.interfaces import Loop


class Background:
    """The threads of one loop."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._done: deque[Callable[[], None]] = deque()
        self._read_end, self._write_end = os.pipe()
        self.unfinished = 0
        """The number of works whose second function was not called yet."""

        loop.watch(self._read_end, self._on_done)

    def run(self, work: Callable[[], None], then: Callable[[], None]) -> None:
        """Call a function in a thread, then another one in the loop."""
        self.unfinished += 1

        def call() -> None:
            try:
                work()
            except Exception as error:  # noqa: BLE001 - a bug; the loop waits for the other function
                sys.excepthook(type(error), error, error.__traceback__)
            self._done.append(then)
            os.write(self._write_end, b".")

        try:
            threading.Thread(target=call, daemon=True).start()
        except (RuntimeError, MemoryError):  # no thread can be started
            call()

    def _on_done(self) -> None:
        os.read(self._read_end, 1)
        self.unfinished -= 1
        self._done.popleft()()
