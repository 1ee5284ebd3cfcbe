"""A thread beside the scheduler's heartbeat: it writes into the logs of failed tasks why they failed.

    heartbeat ─► FailureLog.add ─► a short queue ─► thread ─► `failure_file.write_failure`: files, remote logging

The heartbeat never waits for it. What the queue cannot hold has its reason in Airflow's event log alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from queue import Full, Queue
from typing import Any

from celeriac.log_lines import logger_for
from celeriac.surviving_loop import SurvivingLoop

THREAD = "celeriac-failure-log"
QUEUE_SIZE = 1000
CLOSE_TIMEOUT = 3.0  # seconds for the last lines

log = logger_for(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A failed try, and why it failed."""

    ti_id: Any
    try_number: int
    log_path: str | None
    """The path of the try's log in the folder of the logs; None if it must be read from Airflow's database."""

    text: str
    detail: str
    """The part of the text that a worker may have written to the log already."""

    has_started: bool
    """Whether a worker may have begun the log of this try."""

    at: datetime


class FailureLog:
    """Takes failures. The first one starts the thread."""

    def __init__(self, write: Callable[[Failure], None]) -> None:
        self._write = write
        self._waiting: Queue[Failure | None] = Queue(QUEUE_SIZE)
        self._is_closed = threading.Event()
        self._thread: SurvivingLoop | None = None

    def add(self, failure: Failure) -> None:
        """Let the thread write. Does not block."""
        if self._thread is None:
            self._thread = SurvivingLoop(THREAD, self._run_round, wait=self._is_closed.wait)
            self._thread.start()
        try:
            self._waiting.put_nowait(failure)
        except Full:
            log.warning("too many failures at once: why this try failed is not in its own log: %s", failure.text)

    def close(self) -> None:
        """Write what waits, within a limited time."""
        if self._thread is None:
            return
        self._is_closed.set()
        with suppress(Full):
            self._waiting.put(None, timeout=CLOSE_TIMEOUT)
            self._thread.join(CLOSE_TIMEOUT)

    def _run_round(self) -> bool:
        failure = self._waiting.get()
        if failure is None:
            return False
        self._write(failure)
        return True
