"""Delete results that are no longer needed, in a separate thread."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from random import Random
from typing import TypeAlias

from celeriac.errors import describe_error
from celeriac.executor.backoff import backoff
from celeriac.executor.circuit_breaker import CircuitBreaker
from celeriac.log_lines import logger_for
from celeriac.server_errors import is_refusal, is_server_error
from celeriac.surviving_loop import SurvivingLoop

logger = logger_for(__name__)

Delete: TypeAlias = Callable[[Sequence[str]], None]

MAX_WAITING = 200_000  # ids; some 20 MB; further ids are left to `result_expires`
MAX_TRIES = 8  # about two minutes, with the delays between the tries; for an error that is not the server's
FIRST_RETRY_DELAY = 0.5  # seconds
MAX_RETRY_DELAY = 60.0  # seconds


class ResultCleaner:
    """One thread, started with the first id.

    While the backend is unavailable or refuses, a deletion is retried. After another error it is retried a few times;
    then Celery's `result_expires` deletes the results: a leftover result does no harm.
    """

    def __init__(self, delete: Delete, *, batch_size: int) -> None:
        self._delete, self._batch_size = delete, batch_size
        self._waiting: deque[str] = deque()
        self._changed = threading.Condition()
        self._thread: SurvivingLoop | None = None
        self._closed = self._has_warned = False
        self._random = Random()
        self._breaker = CircuitBreaker(
            "the result backend",
            first_delay=FIRST_RETRY_DELAY,
            max_delay=MAX_RETRY_DELAY,
            random=self._random,
            effect="results are deleted later",
        )

    def add(self, ids: Collection[str]) -> None:
        """Delete these results soon. Do not wait."""
        with self._changed:
            free = MAX_WAITING - len(self._waiting)
            self._waiting.extend(list(ids)[: max(0, free)])
            self._changed.notify()
        if self._thread is None and ids:
            self._thread = SurvivingLoop("celeriac-cleaner", self._run_round, wait=self._pause)
            self._thread.start()

    def close(self, until: float) -> None:
        """Wait for the remaining deletions, at most until `until` on the monotonic clock."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(max(0.0, until - time.monotonic()))

    def _run_round(self) -> bool:
        ids, tries = self._next_batch(), 1
        while ids and not self._try(ids, is_last=tries == MAX_TRIES) and not self._closed:
            self._pause(backoff(FIRST_RETRY_DELAY, tries, MAX_RETRY_DELAY, self._random))
            tries += 1
        return bool(ids)

    def _next_batch(self) -> list[str]:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            return [self._waiting.popleft() for _ in range(min(self._batch_size, len(self._waiting)))]

    def _pause(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed, seconds)

    def _try(self, ids: list[str], *, is_last: bool) -> bool:
        """Return whether nothing is left to do for these results."""
        try:
            self._delete(ids)
        except Exception as error:  # noqa: BLE001 - each client has errors of its own
            if is_server_error(error):
                self._log_outage(error)
                return False
            if is_last and not self._has_warned:
                self._has_warned = True
                logger.warning("cannot delete results; result_expires will remove them: %s", describe_error(error))
            return is_last
        self._has_warned = False
        if line := self._breaker.record_success(time.monotonic()):
            logger.debug(line)
        return True

    def _log_outage(self, error: Exception) -> None:
        """Log a refusal once. An outage is logged by the reader."""
        if line := self._breaker.record_failure(time.monotonic(), error):
            logger.log(logging.WARNING if is_refusal(error) else logging.DEBUG, line)
