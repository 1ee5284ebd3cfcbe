"""A broker that is away: said once, looked for in the background, and said once more when it is back."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from random import Random

from celeriac.executor.backoff import backoff

logger = logging.getLogger(__name__)

FIRST_LOOK = 0.1  # seconds until the first look whether it is back
LONGEST_PAUSE = 2.0  # seconds between two looks


class Outage:
    """While it lasts nobody but a thread of its own waits for the broker, so that a heartbeat need not."""

    def __init__(self, what: str, look: Callable[[], None], away: tuple[type[Exception], ...]) -> None:
        """`what` names the broker, without its password; `look` raises one of `away` while it is away."""
        self._what, self._look, self._away = what, look, away
        self._ended = threading.Event()
        self.error: Exception | None = None
        """Why the broker cannot be reached; None when there is no outage."""

    def begin(self, error: Exception) -> None:
        if self.error is not None:
            return
        self.error = error
        logger.warning("%s is away, tasks wait: %s", self._what, error or type(error).__name__)
        self._ended = threading.Event()
        threading.Thread(target=self._watch, args=(self._ended,), name="celeriac-outage", daemon=True).start()

    def close(self) -> None:
        """Look no more."""
        self._ended.set()

    def _watch(self, ended: threading.Event) -> None:
        began, tries = time.monotonic(), 0
        try:
            while not ended.wait(backoff(FIRST_LOOK, tries := tries + 1, LONGEST_PAUSE, Random())):
                try:
                    self._look()
                except self._away:
                    continue
                logger.warning("%s is back after %.1f s", self._what, time.monotonic() - began)
                return
        finally:
            self.error = None
