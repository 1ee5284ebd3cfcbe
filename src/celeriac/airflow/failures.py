"""Say why a task failed on Celeriac's side: in the scheduler's log, in Airflow's event log, and in the task's own log.

    event of the engine ─► Failures.report ─► the scheduler's log
                                          ├─► Airflow's event log: `log_task_event`, which the scheduler stores
                                          ├─► FailureLog ─► the task's own log
                                          └─► the text, for the executor's event

A worker has written to the log itself of a task whose process was killed.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from celeriac.airflow import versions
from celeriac.airflow.failure_file import write_failure
from celeriac.airflow.failure_log import Failure, FailureLog
from celeriac.airflow.submitted import SubmittedWorkload
from celeriac.log_lines import logger_for
from celeriac.task.event import Event
from celeriac.task.result import Reason

log = logger_for(__name__)


class Failures:
    """Tells the failures of one executor. Only the scheduler's own thread calls it."""

    def __init__(self, executor: Any) -> None:
        self._executor = executor
        self._log = FailureLog(write_failure)

    def report(self, submitted: SubmittedWorkload, event: Event) -> str:
        """Tell why a workload failed. Return the text."""
        text = describe_end(event)
        reason = (event.reason or Reason.WORKER_ERROR).value
        written = event.reason is Reason.SIGNAL
        is_refused = event.reason is Reason.REFUSED
        self._tell(submitted, reason, text, event.detail or text, has_started=not is_refused, is_written=written)
        return text

    def report_unsendable(self, submitted: SubmittedWorkload, text: str) -> str:
        """Tell why a workload could not be sent at all. Return the text."""
        self._tell(submitted, "not_sent", f"it cannot be sent: {text}", text, has_started=False, is_written=False)
        return text

    def note(self, submitted: SubmittedWorkload, event: str, text: str) -> None:
        """Add an event about a task to Airflow's event log."""
        if submitted.ti_id is not None:
            versions.log_task_event(self._executor, f"celeriac {event}", text, submitted.key)

    def close(self) -> None:
        self._log.close()

    def _tell(
        self, submitted: SubmittedWorkload, reason: str, text: str, detail: str, *, has_started: bool, is_written: bool
    ) -> None:
        log.warning("%s failed: %s", submitted.name or submitted.key, text)
        self.note(submitted, reason, text)
        if submitted.ti_id is not None and submitted.try_number is not None and not is_written:
            failure = Failure(
                ti_id=submitted.ti_id,
                try_number=submitted.try_number,
                log_path=submitted.log_path,
                text=f"This try failed: {text}",
                detail=detail,
                has_started=has_started,
                at=datetime.now(UTC),
            )
            self._log.add(failure)


def describe_end(event: Event) -> str:
    """Return why a task did not succeed, and on which host: one line for the scheduler's log."""
    reason = event.reason.value if event.reason else event.state.value
    text = ": ".join(part for part in (reason, event.detail) if part)
    host = event.execution.host if event.execution is not None else None
    return text if host is None or host in text else f"{text}; on {host}"
