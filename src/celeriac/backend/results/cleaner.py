"""Deletes results whose events were taken, beside everything else."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from random import Random
from typing import TypeAlias

from celeriac.backend.results.outage import word
from celeriac.executor.backoff import backoff

logger = logging.getLogger(__name__)

Delete: TypeAlias = Callable[[Sequence[str]], None]

MOST_WAITING = 200_000  # ids; some 20 MB
TRIES = 8  # with the pauses between them, two minutes
FIRST_PAUSE = 0.5  # seconds
LONGEST_PAUSE = 60.0  # seconds


class ResultCleaner:
    """One thread, started with the first id. What cannot be deleted is tried again a few times and then left to
    Celery's `result_expires`: a result too many harms nobody."""

    def __init__(self, delete: Delete, *, chunk: int) -> None:
        self._delete, self._chunk = delete, chunk
        self._waiting: deque[str] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = self._has_warned = False
        self._random = Random()

    def add(self, ids: Collection[str]) -> None:
        """Does not wait."""
        with self._changed:
            room = MOST_WAITING - len(self._waiting)
            self._waiting.extend(list(ids)[: max(0, room)])
            self._changed.notify()
        if self._thread is None and ids:
            self._thread = threading.Thread(target=self._work, name="celeriac-forget", daemon=True)
            self._thread.start()

    def close(self, until: float) -> None:
        """Wait for what is still to be deleted, at most until the monotonic clock says `until`."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(max(0.0, until - time.monotonic()))

    def _work(self) -> None:
        while ids := self._next():
            for tries in range(1, TRIES + 1):
                if self._try(ids, is_last=tries == TRIES) or self._closed:
                    break
                self._pause(backoff(FIRST_PAUSE, tries, LONGEST_PAUSE, self._random))

    def _next(self) -> list[str]:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            return [self._waiting.popleft() for _ in range(min(self._chunk, len(self._waiting)))]

    def _pause(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed, seconds)

    def _try(self, ids: list[str], *, is_last: bool) -> bool:
        try:
            self._delete(ids)
        except Exception as error:  # noqa: BLE001 - each client has errors of its own
            if is_last and not self._has_warned:
                self._has_warned = True
                logger.warning("results could not be deleted and are left to result_expires: %s", word(error))
            return False
        self._has_warned = False
        return True
