"""Read the load of some queues: from the broker, the leases of workers, and the executors.

An executor sends a queue little more than its live workers take, so most tasks wait there and not at the broker.
"""

from __future__ import annotations

from collections.abc import Collection

from celery import Celery

from celeriac.autoscale.load import Load, load_of
from celeriac.broker.session import BrokerSession
from celeriac.cluster.status import StatusReader
from celeriac.cluster.worker_registry import REPLY_TIMEOUT
from celeriac.control.broker_client import BrokerControlClient
from celeriac.control.mailbox import has_mailboxes
from celeriac.errors import CeleriacError
from celeriac.executor.requests import DemandReply, DemandRequest

EXECUTOR_TIMEOUT = 5.0  # seconds for an executor to reply; one that does not counts next time


class LoadUnknown(CeleriacError):
    """The leases of the workers cannot be read. The text is one line."""


class LoadReader:
    """Reads the load as often as it is asked to."""

    def __init__(self, app: Celery, queues: Collection[str], *, timeout: float) -> None:
        """`timeout`, in seconds, bounds each operation."""
        self._queues = tuple(queues)
        self._status = StatusReader(app, timeout=timeout)
        self._session = BrokerSession(app, timeout=max(timeout, 2 * REPLY_TIMEOUT))
        self._has_mailboxes = has_mailboxes(app)

    def read(self) -> Load:
        """Return the load. Raise `BrokerUnavailable` or `LoadUnknown`."""
        status = self._status.read(self._queues)
        if status.problem is not None:
            raise LoadUnknown(status.problem)
        at_broker = {queue.name: queue.waiting for queue in status.queues}
        return load_of(self._queues, at_broker, self._ask_executors(), status.workers)

    def close(self) -> None:
        self._status.close()

    def _ask_executors(self) -> list[DemandReply]:
        if not self._has_mailboxes:
            return []
        with self._session.open() as connection:
            replies = BrokerControlClient(connection).send_request(DemandRequest(), timeout=EXECUTOR_TIMEOUT)
            return [reply.demand for reply in replies if reply.demand is not None]
