"""Decide what to log, and how long to wait, while a server is unavailable or refuses: no threads, no I/O.

failure ─► a line, if it is the first one or has a new reason ─► seconds to wait, longer with each failure
success ─► a line, if there was a failure before
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from itertools import count
from random import Random
from typing import TypeVar

from celeriac.errors import describe_problem, describe_refusal
from celeriac.executor.backoff import backoff
from celeriac.server_errors import problem_of
from celeriac.worker.log import logger

FIRST_DELAY = 0.1  # seconds from the first failure to the next attempt
MAX_DELAY = 2.0  # seconds between two attempts; up to half as many more with jitter
MIN_LINE_INTERVAL = 30.0  # seconds between two lines about one outage

T = TypeVar("T")


class OutageLog:
    """The log lines about one server. All times are seconds of one monotonic clock."""

    def __init__(self, server: str, effect: str) -> None:
        """`server` is its name in a log line, without a password. `effect`, such as "results are kept", is the effect
        of an outage for the reader of the log."""
        self._server, self._effect = server, effect
        self._began: float | None = None
        self._last_line = float("-inf")
        self._reason = ""

    def failure(self, error: BaseException, now: float, delay: float, reason: str | None = None) -> str | None:
        """Take note of a failure. Return the line to log, if any.

        `delay` is the time until the next attempt. `reason` replaces the text of the error.
        """
        is_new = self._began is None
        if is_new:
            self._began = now
        reason = reason or describe_refusal(error)
        if not is_new and (reason == self._reason or now - self._last_line < MIN_LINE_INTERVAL):
            return None
        self._reason, self._last_line = reason, now
        return f"{self._server} {describe_problem(error)}, {self._effect}: {reason}; next attempt in {delay:.1f} s"

    def success(self, now: float) -> str | None:
        """Take note of a success. Return the line to log, if there was a failure before."""
        if self._began is None:
            return None
        began, self._began, self._last_line = self._began, None, float("-inf")
        return f"{self._server} is available again after {now - began:.1f} s"


class ServerRetry:
    """Repeats calls to one server until the server serves them. Any thread may use it."""

    def __init__(self, server: str, effect: str, *, max_delay: float = MAX_DELAY, random: Random | None = None) -> None:
        """`max_delay`, in seconds, bounds the time between two attempts, without jitter."""
        self._log, self._max_delay = OutageLog(server, effect), max_delay
        self._lock = threading.Lock()
        self._random = random or Random()

    def failed(self, error: BaseException, failures: int, reason: str | None = None) -> float:
        """Log an attempt that failed for the `failures`th time in a row. Return the seconds to wait."""
        delay = self._delay(failures)
        with self._lock:
            line = self._log.failure(error, time.monotonic(), delay, reason)
        if line is not None:
            logger.warning("%s", line)
        return delay

    def ended(self) -> None:
        """Log that the server serves calls again, if it did not before."""
        with self._lock:
            line = self._log.success(time.monotonic())
        if line is not None:
            logger.warning("%s", line)

    def call(self, function: Callable[[], T], on_failure: Callable[[Exception], object] = lambda _: None) -> T:
        """Return what the function returns. While the server is unavailable or refuses, call it again.

        Any other error is raised. `on_failure` is called after each error.
        """

        def attempt() -> tuple[T]:
            try:
                return (function(),)
            except Exception as error:
                on_failure(error)
                raise

        result = self.call_until(attempt, never)
        assert result is not None  # noqa: S101 - `never` does not end it
        return result[0]

    def call_until(self, function: Callable[[], T | None], is_over: Callable[[], bool]) -> T | None:
        """Call the function until it returns something else than None, and return that; None once `is_over`.

        It is called again, after growing delays, while the server is unavailable or refuses, and while it returns None.
        Any other error is raised.
        """
        for failures in count(1):
            if is_over():
                break
            try:
                result = function()
            except Exception as error:
                if problem_of(error) is None:
                    raise
                delay = self.failed(error, failures)
            else:
                if result is not None:
                    self.ended()
                    return result
                delay = self._delay(failures)
            time.sleep(delay)  # no event reports that the server is available again
        return None

    def _delay(self, failures: int) -> float:
        return backoff(FIRST_DELAY, failures, self._max_delay, self._random)


def never() -> bool:
    return False
