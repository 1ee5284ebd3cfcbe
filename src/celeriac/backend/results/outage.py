"""A result backend that is away: one line when it goes, one when it is back, and a pause between two tries."""

from __future__ import annotations

import logging
import time
from random import Random

from celeriac.executor.backoff import backoff

logger = logging.getLogger(__name__)

FIRST_PAUSE = 0.2  # seconds; doubled after each failure in a row
LONGEST_PAUSE = 5.0  # seconds


class Outage:
    def __init__(self) -> None:
        self._random = Random()
        self._since = 0.0
        self._failures = 0
        self.resume_at = float("-inf")
        """Until when the backend is to be left alone, on the monotonic clock."""

    @property
    def paused(self) -> bool:
        return time.monotonic() < self.resume_at

    def failed(self, error: Exception) -> None:
        """Failures during a pause are of tries made before it: they count as one."""
        now = time.monotonic()
        if now < self.resume_at:
            return
        if not self._failures:
            self._since = now
            logger.warning("the result backend is away: %s", word(error))
            logger.debug("how that was seen", exc_info=error)
        self._failures += 1
        self.resume_at = now + backoff(FIRST_PAUSE, self._failures, LONGEST_PAUSE, self._random)

    def answered(self) -> None:
        if self._failures:
            logger.warning("the result backend is back after %.1f s", time.monotonic() - self._since)
        self._failures = 0
        self.resume_at = float("-inf")


def word(error: Exception) -> str:
    """One line. SQLAlchemy's errors would show the whole statement: the driver's own stands behind them."""
    cause = getattr(error, "orig", None) or error
    first_line = next(iter(str(cause).splitlines()), "")
    return f"{type(cause).__name__}: {first_line}" if first_line else type(cause).__name__
