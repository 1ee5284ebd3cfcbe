"""Read how many workers there are, and what they can run, from what an executor knows of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from celeriac.backend.claims.lease_monitor import LeaseMonitor
from celeriac.cluster.worker_monitor import WorkerMonitor
from celeriac.telemetry import metrics
from celeriac.telemetry.metrics import Metric
from celeriac.telemetry.telemetry import NO_LABELS, Labels, Value


def read_workers(
    workers: WorkerMonitor, leases: LeaseMonitor | None
) -> Iterator[tuple[Metric, Mapping[Labels, Value]]]:
    """Yield the numbers of this moment. Any thread may call this."""
    if leases is not None:
        yield metrics.WORKERS, {(state,): number for state, number in leases.count_by_state().items()}
        yield metrics.WORKERS_DIED, {NO_LABELS: leases.died}
    yield metrics.QUEUE_SLOTS, {(queue,): slots for queue, slots in (workers.by_queue() or {}).items()}
