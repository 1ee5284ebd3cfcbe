"""Follow the changes of tasks as they happen.

    RedisChannel        ─┐
    TaskEvents          ─┼─► a thread ─► take()
    ResultNotifications ─┘           └─► notify: ends the executor's wait

A change is a hint. It has the task's id and not its result, which must be read from the result backend. Hints may be
lost: see `is_complete`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from typing import Protocol

from celeriac.executor.circuit_breaker import CircuitBreaker, level_of
from celeriac.log_lines import logger_for
from celeriac.surviving_loop import SurvivingLoop

logger = logger_for(__name__)

FIRST_RETRY_DELAY = 0.1  # seconds before connecting again; doubled after each failure in a row
MAX_RETRY_DELAY = 5.0  # seconds
MAX_IDS = 1_000_000  # ids kept until `take`


class ChangeSource(Protocol):
    """The source of the changes."""

    reports_refusals: bool
    """Whether to warn when the server refuses until a person changes a setting. False if another part warns of it."""

    def is_server_error(self, error: BaseException) -> bool:
        """Return whether `listen` has raised an error of its server: the server does not answer, or refuses."""
        ...

    def listen(self) -> Iterator[Collection[str] | None]:
        """Connect, then yield the ids of changed tasks as they arrive. Yield an empty collection now and then while no
        ids arrive.

        None means that no change is missed from now on, and that some may have been missed before.
        """
        ...


class ChangeFeed:
    def __init__(self, source: ChangeSource, *, notify: Callable[[], None]) -> None:
        """A thread calls `notify` when `take` has new ids."""
        self._source, self._notify = source, notify
        self._lock = threading.Lock()
        self._ids: set[str] = set()
        self._is_connected = False
        self._has_missed = True
        self._closed = threading.Event()
        self.is_complete = False
        """Whether the last `take` returned every change since the `take` before."""

        self._breaker = CircuitBreaker(
            "the change feed",
            first_delay=FIRST_RETRY_DELAY,
            max_delay=MAX_RETRY_DELAY,
            effect="changes are found by polling",
        )
        self._thread = SurvivingLoop("celeriac-change-feed", self._run_round, wait=self._closed.wait)
        self._thread.start()

    def take(self) -> set[str]:
        """Return the ids that changed since the last call."""
        with self._lock:
            ids, self._ids = self._ids, set()
            self.is_complete = self._is_connected and not self._has_missed
            self._has_missed = not self._is_connected
        return ids

    def close(self) -> None:
        """Stop the thread without waiting for its end. It ends at the next item of its source, in about a second."""
        self._closed.set()

    def _run_round(self) -> bool:
        if self._closed.is_set():
            return False
        try:
            error = self._listen()
        finally:
            self._on_disconnect()
        if self._closed.is_set():
            return False
        now = time.monotonic()
        if line := self._breaker.record_failure(now, error):
            logger.log(level_of(error) if self._source.reports_refusals else logging.DEBUG, line)
        self._closed.wait(self._breaker.retry_at - now)
        return True

    def _listen(self) -> Exception | str:
        """Listen until closed or disconnected. Return the reason."""
        try:
            with closing(self._source.listen()) as changes:  # type: ignore[type-var]
                for ids in changes:
                    if line := self._breaker.record_success(time.monotonic()):
                        logger.debug(line)
                    self._on_change(ids)
                    if self._closed.is_set():
                        break
        except Exception as error:
            if not self._source.is_server_error(error):
                raise
            return error
        return "the source has ended"

    def _on_change(self, ids: Collection[str] | None) -> None:
        if ids is not None and not ids:
            return
        with self._lock:
            if ids is None:
                self._is_connected, self._has_missed = True, True
            elif len(self._ids) < MAX_IDS:
                self._ids.update(ids)
            else:
                self._has_missed = True
        self._notify()

    def _on_disconnect(self) -> None:
        with self._lock:
            self._is_connected, self._has_missed = False, True
