"""Make the runs of schedules, for a service.

A thread of its own does that, with connections of its own: tasks must not wait while a large file is read and stored.
It runs when a time is due, and ends when nothing is. The service then takes the run as any that was submitted.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from typing import Any

from celeriac.errors import CeleriacError, InvalidInput
from celeriac.ledger.run_store import RunStore
from celeriac.ledger.schedules import ScheduleStore
from celeriac.runs.schedule import Schedule
from celeriac.runs.schedule_step import MakeRun, PassOver, Past, next_step
from celeriac.surviving_loop import Survivor

WAIT_INTERVAL = 2.0  # seconds between two looks while a due time waits for the run before
RETRY_DELAY = 5.0  # seconds until the next look after one that failed
MAX_INTERVAL = 60.0  # seconds between two looks, in which the clock may have been set
STOP_TIMEOUT = 10.0  # seconds that a service which stops waits for a run that is being made
THREAD = "celeriac-schedules"


class ServiceSchedules:
    """The schedules of a service. Its methods do not wait, but for `finish`."""

    def __init__(self, url: str, schedules: Collection[Schedule], log: Callable[..., None]) -> None:
        """`url` is that of the ledger. `log` gets an event and its facts, in another thread."""
        self._url, self._schedules, self._log = url, schedules, log
        self._survivor = Survivor(THREAD)
        self._thread: threading.Thread | None = None
        self._next_look = 0.0  # seconds since the epoch
        self._looked_at = float("-inf")
        self._is_stopping = False

    def check(self) -> None:
        """Look at the schedules if a time may be due."""
        is_busy = self._thread is not None and self._thread.is_alive()
        is_late = time.monotonic() - self._looked_at >= MAX_INTERVAL
        if not self._schedules or is_busy or (time.time() < self._next_look and not is_late):
            return
        self._looked_at = time.monotonic()
        self._next_look = time.time() + RETRY_DELAY
        self._thread = threading.Thread(target=self._run, name=self._survivor.name, daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait a limited time for a run that is being made. Make no other."""
        self._is_stopping = True
        if self._thread is not None:
            self._thread.join(STOP_TIMEOUT)

    def _run(self) -> None:
        with self._survivor.guard():
            try:
                with RunStore(self._url, must_exist=True) as ledger:
                    store = ScheduleStore(ledger)
                    self._next_look = min(self._handle(store, schedule) for schedule in self._schedules)
            except CeleriacError as error:
                self._log("schedules wait", level=logging.WARNING, why=error)

    def _handle(self, store: ScheduleStore, schedule: Schedule) -> float:
        """Handle the due times of a schedule. Return when to look again."""
        while not self._is_stopping:
            now, stored = time.time(), store.read(schedule.name)
            active = None if stored.has_ended else stored.run
            match next_step(schedule, Past(handled=stored.handled, run=active, ended=stored.ended), now):
                case MakeRun(due):
                    self._make_run(store, schedule, due)
                case PassOver(until, why):
                    if store.pass_over(schedule.name, until):
                        self._log(
                            "schedule passed over", schedule=schedule.name, until=schedule.run_name(until), why=why
                        )
                case None:
                    (following,) = schedule.next_times(now, 1)
                    waits = bool(schedule.pending(stored.handled, now))
                    return min(following, now + WAIT_INTERVAL) if waits else following
        return self._next_look

    def _make_run(self, store: ScheduleStore, schedule: Schedule, due: float) -> None:
        """Make the run of a due time. A file that is bad now gets none."""
        facts: dict[str, Any] = {"schedule": schedule.name, "run": schedule.run_name(due)}
        try:
            tasks = schedule.read_tasks()
        except InvalidInput as error:
            if store.pass_over(schedule.name, due):
                self._log("schedule failed: its jobs cannot be read", level=logging.ERROR, **facts, why=error)
            return
        if store.make_run(schedule.name, due, schedule.run_name(due), schedule.jobs, tasks):
            self._log("scheduled", **facts, tasks=len(tasks))
