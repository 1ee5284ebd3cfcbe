"""Celery's request for a workload: its name in the log, a late revoke, and the death of the child that runs it.

child killed ─► Celery's WorkerLostError ─► was it this worker? ─► which signal, and was memory short?
                                                     the task's log, the result: lost ◄─┘
"""

from __future__ import annotations

import logging
import re
import time
from functools import partial
from typing import Any

from celery.exceptions import WorkerLostError

from celeriac.airflow.prefork_control import GRACE_OVER, WorkloadPoolControl
from celeriac.airflow.task_end import signal_detail
from celeriac.airflow.task_log import append_to_existing
from celeriac.airflow.workload_names import WorkloadNames, head_of
from celeriac.errors import CommandFailed
from celeriac.log_lines import logger_for
from celeriac.task.result import Reason
from celeriac.worker.acks import ReconnectSafeRequest
from celeriac.worker.celery_internals import ExceptionInfo, is_marked_revoked
from celeriac.worker.kill_evidence import MemoryCounters, read_memory
from celeriac.worker.measures import error_of
from celeriac.worker.outcome import not_run
from celeriac.worker.parts import WorkerParts

SIGNAL = re.compile(r"signal (\d+)")
ORPHAN_TIMEOUT = 10.0  # seconds; the task reaper kills a task earlier whose supervisor is dead
ORPHAN_POLL_INTERVAL = 0.2  # seconds
CHILD = "the process of the worker that ran it"

log = logger_for(__name__)


class WorkloadRequest(ReconnectSafeRequest):
    pool_control: WorkloadPoolControl
    names: WorkloadNames
    end_reasons: frozenset[str] = frozenset()
    """The reasons for which the child of this request has got TERM."""

    before = MemoryCounters()
    """The counters when the child began."""

    def __init__(self, message: Any, **options: Any) -> None:
        super().__init__(message, **options)
        self.names.remember(self.id, self._message_text())

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        self.before = read_memory()
        super().on_accepted(pid, time_accepted)
        if is_marked_revoked(self.id):  # the revoke came before the child accepted the request
            self.pool_control.revoke(self)

    def on_failure(self, exc_info: Any, *args: Any, **options: Any) -> Any:
        error = error_of(exc_info)
        if isinstance(error, WorkerLostError):
            return self._end_lost(self._lost(str(error)), time.monotonic() + ORPHAN_TIMEOUT)
        return super().on_failure(exc_info, *args, **options)

    def _end_lost(self, exc_info: Any, deadline: float) -> None:
        """End the request when its task has ended, too: else the next try could run beside it."""
        child = self.worker_pid
        if child is not None and self.pool_control.has_task_of(child) and time.monotonic() < deadline:
            self.pool_control.call_after(ORPHAN_POLL_INTERVAL, partial(self._end_lost, exc_info, deadline))
        else:
            super().on_failure(exc_info)

    def _lost(self, error: str) -> Any:
        """Return the failure of a request whose child is dead, and say it in the logs of the worker and of the task."""
        detail = child_detail(error, self.end_reasons, self.before)
        log.warning("[%s] lost: %s", self.id, detail)
        append_to_existing(head_of(self._message_text()).log_path, f"Lost: {detail}", logging.ERROR)
        try:
            raise CommandFailed(not_run(Reason.LOST, detail))
        except CommandFailed:
            return ExceptionInfo()

    def _message_text(self) -> Any:
        """Return the JSON of the workload; None for a message without one."""
        try:
            return self.message.payload[0][0]
        except (LookupError, TypeError, AttributeError, ValueError):
            return None


def child_detail(error: str, end_reasons: frozenset[str], before: MemoryCounters) -> str:
    """Return why the child that ran a workload is dead. `error` is the text of Celery's error."""
    if GRACE_OVER in end_reasons:
        return "the worker was shut down, and its time to finish was over"
    found = SIGNAL.search(error)
    return (
        f"{CHILD} ended: {error}" if found is None else signal_detail(int(found[1]), before, read_memory(), what=CHILD)
    )


class HideHandledFailures(logging.Filter):
    """Drops Celery's line about a failure that `WorkloadRequest` has logged by its id."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        return not isinstance(getattr(error, "exc", error), CommandFailed)  # Billiard wraps it


def request_class(parts: WorkerParts, pool_control: WorkloadPoolControl, names: WorkloadNames) -> type[WorkloadRequest]:
    bound = {"acks": parts.acks, "measures": parts.measures, "pool_control": pool_control, "names": names}
    return type("WorkloadRequest", (WorkloadRequest,), bound)
