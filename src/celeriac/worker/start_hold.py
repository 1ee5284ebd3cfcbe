"""Hold the threads of a worker back from starting commands while its machine is busy.

thread with a message ─► StartHold.turn ─► StartGate ─► claim, command
                                       └─► waits, first come first served; the lease says why

The task of a waiting thread is not claimed yet: it can be cancelled, and counts as one that the worker has not begun.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from celeriac.executor.start_gate import StartGate
from celeriac.worker.log import logger

POLL_INTERVAL = 0.2  # seconds in which a waiting thread notices the shutdown of the worker


class StartHold:
    """Admits one thread after another. Threads share it."""

    def __init__(self, gate: StartGate) -> None:
        self._gate = gate
        self._lock = threading.Lock()
        self._waiting: dict[object, str] = {}
        """The task of each waiting thread, in the order of their arrival. Several messages may have the same task."""

        self._in_use = 0
        self._is_logged = False

    @property
    def waiting(self) -> tuple[str, ...]:
        """The ids of the tasks that wait for their start."""
        with self._lock:
            return tuple(self._waiting.values())

    @property
    def words(self) -> str | None:
        """Why nothing starts, for a person; None if nothing waits."""
        with self._lock:
            hold = self._gate.waits
            return hold.words if self._waiting and hold is not None else None

    @contextmanager
    def turn(self, task_id: str, is_shutting_down: Callable[[], bool]) -> Iterator[bool]:
        """Wait until a command may start, and count it until the end of the block. Yield False if the worker shuts
        down before."""
        place = object()
        with self._lock:
            self._waiting[place] = task_id
        try:
            admitted = self._wait(place, is_shutting_down)
        finally:
            with self._lock:
                del self._waiting[place]
        try:
            yield admitted
        finally:
            if admitted:
                with self._lock:
                    self._in_use -= 1

    def _wait(self, place: object, is_shutting_down: Callable[[], bool]) -> bool:
        while not is_shutting_down():
            with self._lock:
                if next(iter(self._waiting)) is place and self._admits():
                    return True
            time.sleep(POLL_INTERVAL)
        return False

    def _admits(self) -> bool:
        now = time.monotonic()
        if not self._gate.admits(self._in_use, now):
            if not self._is_logged and self._gate.waits is not None:
                self._is_logged = True
                logger.warning("nothing starts for now: %s", self._gate.waits.words)
            return False
        self._in_use += 1
        self._gate.started(self._in_use, now)
        self._is_logged = False
        return True


def start_hold_for(max_load: float | str | None, min_free_memory: int | None) -> StartHold | None:
    """Return what holds a worker's threads back; None without a limit."""
    if max_load is None and min_free_memory is None:
        return None
    from celeriac.worker.readings import read_machine  # late: few workers have a limit

    return StartHold(StartGate(read_machine, max_load=max_load, min_free_memory=min_free_memory))
