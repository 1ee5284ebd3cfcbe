"""Whether a worker is paused by remote control, and by whom. `served_queues` consumes from no queue meanwhile.

A pause ends with the process: a worker that starts again is not paused.
"""

from __future__ import annotations

from collections.abc import Iterable


class WorkerPause:
    """The pause of one worker. The thread of the event loop changes it; any thread may read it."""

    def __init__(self) -> None:
        self.is_on = False
        self.asked_by: str | None = None
        """Who has asked for it; None if that is unknown."""

        self.queues: frozenset[str] = frozenset()
        """The queues from which the worker consumes once it is resumed."""

    def begin(self, queues: Iterable[str], asked_by: str | None) -> None:
        self.queues, self.asked_by, self.is_on = frozenset(queues), asked_by, True

    def end(self) -> None:
        self.is_on, self.asked_by, self.queues = False, None, frozenset()
