"""Keep the ledger of a service below its limits: at its start, and once a day.

A service does it in a thread of its own, with connections of its own: removing a large run takes seconds, and tasks
must not wait for that. The thread ends when no run exceeds a limit.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from celeriac.config.ledger_keep import LedgerKeep
from celeriac.errors import CeleriacError
from celeriac.ledger.run_store import RunStore
from celeriac.runs.old_runs import announcement, remove_old_runs
from celeriac.runs.temporary_output import remove_old_folders
from celeriac.surviving_loop import Survivor

INTERVAL = 86_400.0  # seconds between two checks of a service
RETRY_DELAY = 3_600.0  # seconds until the next check after one that failed
PART_DELAY = 0.5  # seconds between two parts of the work, in which other processes write

THREAD = "celeriac-ledger-limits"
NEVER = float("-inf")


class DailyLimits:
    """The limits of the ledger of a service."""

    def __init__(self, url: str, keep: LedgerKeep, warn: Callable[[str], None]) -> None:
        """`url` is that of the ledger. `warn` receives lines, in another thread."""
        self._url, self._keep, self._warn = url, keep, warn
        self._survivor = Survivor(THREAD)
        self._thread: threading.Thread | None = None
        self._next_check = NEVER

    def check(self, now: float) -> None:
        """Start the check if it is time. `now` is a monotonic time."""
        is_busy = self._thread is not None and self._thread.is_alive()
        if now < self._next_check or is_busy or self._keep == LedgerKeep():
            return
        self._next_check = now + RETRY_DELAY
        self._thread = threading.Thread(target=self._run, args=(now,), name=self._survivor.name, daemon=True)
        self._thread.start()

    def _run(self, now: float) -> None:
        with self._survivor.guard():
            try:
                self._remove()
                self._next_check = now + INTERVAL
            except CeleriacError as error:
                self._warn(f"{error}: old runs stay")

    def _remove(self) -> None:
        if self._keep.seconds is not None:
            remove_old_folders(self._keep.seconds)
        with RunStore(self._url, must_exist=True) as ledger:
            while (removed := remove_old_runs(ledger, self._keep)).runs:
                if removed.is_first:
                    self._warn(announcement(self._keep, len(removed.runs)))
                time.sleep(PART_DELAY)
