"""Count and time the tasks of one worker, and read its numbers of the moment.

Celery's requests report each start and end in the worker's main process, also for a task that ran in a child.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from celery.exceptions import Ignore, Reject
from celery.worker.state import active_requests

from celeriac.errors import CommandFailed
from celeriac.task.result import Reason
from celeriac.telemetry import metrics
from celeriac.telemetry.metrics import Metric
from celeriac.telemetry.telemetry import NO_LABELS, Labels, Telemetry, Value

if TYPE_CHECKING:
    from celeriac.worker.consumer import Worker

SUCCESS = "success"


class WorkerMeasures:
    """The counters of one worker. Any thread may call its methods."""

    def __init__(self, telemetry: Telemetry) -> None:
        self.telemetry = telemetry
        for metric in (metrics.WORKER_STARTED, metrics.WORKER_DROPPED, metrics.WORKER_RETURNED):
            telemetry.count(metric, by=0)

    def started(self) -> None:
        """Count a task that took a slot."""
        self.telemetry.count(metrics.WORKER_STARTED)

    def ended(self, error: BaseException | None, started: float | None) -> None:
        """Count a task that left its slot. `error` is None if it succeeded; `started` is when it took its slot, in
        seconds since the epoch."""
        if isinstance(error, Ignore):
            self.telemetry.count(metrics.WORKER_DROPPED)
        elif isinstance(error, Reject):
            self.telemetry.count(metrics.WORKER_RETURNED)
        else:
            reason = reason_of(error)
            self.telemetry.count(metrics.WORKER_ENDS, reason)
            if started is not None:
                self.telemetry.observe(metrics.WORKER_RUN_SECONDS, time.time() - started, reason)

    def watch(self, worker: Worker) -> None:
        """Read the numbers of the moment from a worker."""
        self.telemetry.set_source("worker", lambda: read_gauges(worker))


def reason_of(error: BaseException | None) -> str:
    """Return the reason of an end, for a label."""
    if error is None:
        return SUCCESS
    reason = error.report.get("reason") if isinstance(error, CommandFailed) else None
    return str(reason) if reason in set(Reason) else Reason.WORKER_ERROR.value


def read_gauges(worker: Worker) -> Iterator[tuple[Metric, Mapping[Labels, Value]]]:
    """Yield the numbers of this moment."""
    parts = worker.parts
    yield metrics.WORKER_CONCURRENCY, {NO_LABELS: worker.slots}
    yield metrics.WORKER_RUNNING, {NO_LABELS: len(active_requests)}
    yield metrics.WORKER_REFUSED, {NO_LABELS: parts.refusals.count}
    lease = parts.lease_manager
    is_draining = parts.shutdown.is_shutting_down or (lease is not None and lease.is_draining)
    yield metrics.WORKER_DRAINING, {NO_LABELS: int(is_draining)}
    yield metrics.WORKER_PAUSED, {NO_LABELS: int(parts.pause.is_on)}
    if lease is not None and (age := lease.age(time.monotonic())) is not None:
        yield metrics.WORKER_LEASE_AGE, {NO_LABELS: age}


def error_of(failure: Any) -> BaseException | None:
    """Return the error of a task that failed, from the failure that Celery's pool reports."""
    error = getattr(failure, "exception", None)
    return getattr(error, "exc", error)  # Billiard wraps an error that comes from another process
