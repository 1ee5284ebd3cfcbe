"""Report the ends of submitted runs, and their first failures, for a service.

A thread of its own does that, with connections of its own: tasks must not wait for a web server. What is to be reported
is in the ledger. So an end is reported also if the service dies before: by the next one, and perhaps twice.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from celeriac.config.notice_targets import NoticeTargets
from celeriac.errors import CeleriacError
from celeriac.ledger.database import Database
from celeriac.ledger.inputs import RunInputs
from celeriac.ledger.notices import StoredInputs, change_inputs, due_ends, find_inputs
from celeriac.ledger.run_store import RunStore
from celeriac.ledger.views import RunView, count_states, find_run, list_tasks
from celeriac.runs.notices import DELIVERY_TIMEOUT, END, FIRST_FAILURE, MAX_FAILURES, Notifier, notice
from celeriac.runs.summary import failure_fields
from celeriac.surviving_loop import Survivor
from celeriac.task.state import State

MIN_INTERVAL = 0.5  # seconds between two looks at the ledger
INTERVAL = 15.0  # seconds between two looks for ends that another service has not reported
CLAIM = 2 * DELIVERY_TIMEOUT  # seconds after which another service may report an end that this one has begun to report
STOP_TIMEOUT = 10.0  # seconds that a service which stops waits for what is being reported
THREAD = "celeriac-run-notices"
NEVER = float("-inf")


class ServiceNotices:
    """The notices of a service. Its methods do not wait, but for `finish`."""

    def __init__(self, url: str, warn: Callable[[str], None]) -> None:
        """`url` is that of the ledger. `warn` receives lines, in another thread."""
        self._url, self._warn = url, warn
        self._survivor = Survivor(THREAD)
        self._thread: threading.Thread | None = None
        self._notifier: Notifier | None = None
        self._failed: set[str] = set()
        """The names of runs with a failure that were not looked at yet."""

        self._looked_at: set[str] = set()
        self._is_wanted = False
        self._last_look = NEVER

    def on_failure(self, run: str) -> None:
        """Take note that a task of this run has failed."""
        if run not in self._looked_at:
            self._looked_at.add(run)
            self._failed.add(run)
            self._is_wanted = True

    def on_end(self, run: str) -> None:
        """Take note that this run has ended."""
        self._looked_at.discard(run)
        self._is_wanted = True

    def check(self, now: float) -> None:
        """Start to report if it is time, and nothing is being reported. `now` is a monotonic time."""
        pause = MIN_INTERVAL if self._is_wanted else INTERVAL
        if now < self._last_look + pause or (self._thread is not None and self._thread.is_alive()):
            return
        self._last_look, self._is_wanted = now, False
        failed, self._failed = self._failed, set()
        self._thread = threading.Thread(target=self._run, args=(failed,), name=self._survivor.name, daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait a while for what is being reported, then end it. The next service reports the rest."""
        if self._thread is not None:
            self._thread.join(STOP_TIMEOUT)
        if self._notifier is not None:
            self._notifier.give_up()

    def _run(self, failed: set[str]) -> None:
        with self._survivor.guard():
            try:
                self._report(failed)
            except CeleriacError as error:
                self._warn(f"{error}: ends of runs are reported later")

    def _report(self, failed: set[str]) -> None:
        with RunStore(self._url, must_exist=True) as ledger:
            for name in sorted(failed):
                self._report_first_failure(ledger.database, name)
            for ended in due_ends(ledger.database, time.time()):
                self._report_end(ledger.database, ended)

    def _report_first_failure(self, database: Database, name: str) -> None:
        found = find_inputs(database, name)
        if found is None or not found.inputs.notify_first_failure or found.inputs.failure_reported:
            return
        if targets_of(found.inputs) and change_inputs(database, found, failure_reported=True) is not None:
            self._deliver(found, notice_of(database, name, FIRST_FAILURE))

    def _report_end(self, database: Database, ended: StoredInputs) -> None:
        claimed = change_inputs(database, ended, notice_due=time.time() + CLAIM)
        if claimed is not None:
            self._deliver(ended, notice_of(database, ended.name, END))
            change_inputs(database, claimed, notice_due=None)

    def _deliver(self, found: StoredInputs, told: dict[str, Any]) -> None:
        self._notifier = notifier = Notifier(targets_of(found.inputs))
        notifier.begin(told)
        problems = notifier.wait(DELIVERY_TIMEOUT)
        notifier.give_up()
        for problem in ["it was not reported in time"] if problems is None else problems:
            self._warn(f"run {found.name}: {problem}")


def targets_of(inputs: RunInputs) -> NoticeTargets:
    """Return what is told of the run of these inputs."""
    return NoticeTargets(command=inputs.on_end, url=inputs.notify, first_failure=inputs.notify_first_failure)


def notice_of(database: Database, name: str, event: str) -> dict[str, Any]:
    """Return a notice about a run, as the ledger has it. Raises `InvalidConfig` if the run was removed."""
    run = find_run(database, name)
    with database.reading() as connection:
        skipped = count_states(connection, run.id)[State.SKIPPED]
    limit = MAX_FAILURES if event == END else 1
    failures = [
        failure_fields(task.last_event()) for task in list_tasks(database, run.id, states=[State.FAILED], limit=limit)
    ]
    return notice(event, {**run_fields(run, skipped), "failures": failures, "exit_status": status_of(run, event)})


def run_fields(run: RunView, skipped: int) -> dict[str, Any]:
    """Return the numbers of a run."""
    counts = run.counts
    return {
        "run": run.name,
        "tasks": counts.tasks,
        "succeeded": counts.succeeded,
        "failed": counts.failed,
        "revoked": counts.revoked,
        "never_ran": max(0, counts.never_ran - skipped),
        "skipped": skipped,
        "wall_time": round(run.duration, 3),
    }


def status_of(run: RunView, event: str) -> int | None:
    """Return the exit status that `celeriac run` would have had."""
    return None if event != END else int(not run.all_succeeded)
