"""Whether a worker can do its job: read beside it, by any thread."""

from __future__ import annotations

from math import isinf

from celeriac.worker.consumer import Worker
from celeriac.worker.lease_manager import CLAIM_VALIDITY


class WorkerHealth:
    """The conditions that one worker needs. Each method returns what is wrong, or None."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def lease_problem(self) -> str | None:
        """Check that the worker may claim tasks. One without a lease needs none."""
        manager = self._worker.parts.lease_manager
        if manager is None:
            return None
        age = manager.renewal_age
        if isinf(age):
            return "the lease has not been taken up: the result backend has not answered"
        return None if age <= CLAIM_VALIDITY else f"the lease was not renewed for {age:.0f} s"

    def broker_problem(self) -> str | None:
        """Check the connection to the broker."""
        consumer = getattr(self._worker, "consumer", None)
        is_connected = consumer is not None and not self._worker.is_waiting_for_broker
        return None if is_connected else "there is no connection to the broker"

    def stop_problem(self) -> str | None:
        """Check that the worker takes tasks."""
        parts = self._worker.parts
        if parts.shutdown.is_shutting_down:
            return "the worker is stopping"
        return "the worker is paused" if parts.pause.is_on else None
