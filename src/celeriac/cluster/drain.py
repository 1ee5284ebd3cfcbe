"""Follow workers that were told to drain until they have stopped.

    leases, replies, time ─► DrainTracker ─► the workers that have not stopped, and how many tasks they run

A draining worker takes no more tasks. It finishes running tasks within its grace, returns the others, and stops.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from celery import Celery

from celeriac.backend.claims.claim import Claims, Lease, LeaseRecord, LeaseState
from celeriac.cluster.worker_registry import REPLY_TIMEOUT
from celeriac.config.lease import LEASE_DURATION
from celeriac.errors import BackendUnavailable
from celeriac.server_errors import is_server_error

POLL_INTERVAL = 0.2  # seconds between two polls of the leases


def send_drain(app: Celery, connection: Any, workers: Collection[str], *, asked_by: str) -> None:
    """Tell workers to drain. Their leases name `asked_by`. Raise the errors of the broker's client."""
    arguments = {"asked_by": asked_by, "msg": f"draining, asked by {asked_by}"}  # a plain worker logs the message
    app.control.broadcast("shutdown", arguments, list(workers), connection=connection)


def replying_workers(app: Celery, connection: Any) -> list[str]:
    """Return the names of the live workers. Raise the errors of the broker's client."""
    return sorted(app.control.inspect(timeout=REPLY_TIMEOUT, connection=connection).ping() or {})


def matching_workers(name: str, workers: Collection[str]) -> list[str]:
    """Return the worker with this full name or, if there is none, all workers with this name before the host."""
    if name in workers:
        return [name]
    return [worker for worker in workers if worker.partition("@")[0] == name]


@dataclass(frozen=True, slots=True)
class LastHeartbeat:
    """The last heartbeat that was seen of one worker."""

    lease: Lease
    count: int
    seen_at: float


class DrainTracker:
    """The workers that have not stopped: by their leases or, for workers without one, by their replies.

    There is no I/O here. All times are seconds on one monotonic clock.
    """

    def __init__(self, workers: Collection[str], leases: Mapping[str, LeaseRecord], now: float) -> None:
        """`leases` must be read before the workers are told to drain."""
        self._leased = {
            holder: LastHeartbeat(record.lease, record.heartbeat_count, now)
            for holder, record in leases.items()
            if record.lease is not None and record.lease.name in workers and record.state is LeaseState.LIVE
        }
        leased_names = {last.lease.name for last in self._leased.values()}
        self._unleased = {worker for worker in workers if worker not in leased_names}

    @property
    def needs_replies(self) -> bool:
        """Whether there are workers without a lease."""
        return bool(self._unleased)

    def leases_read(self, leases: Mapping[str, LeaseRecord], now: float) -> None:
        """Drop the workers whose leases have ended. Drop those without a heartbeat for `LEASE_DURATION`: they were
        killed."""
        for holder, last in list(self._leased.items()):
            record = leases.get(holder)
            if record is None or record.state is not LeaseState.LIVE:
                del self._leased[holder]
            elif record.heartbeat_count != last.count:
                self._leased[holder] = LastHeartbeat(record.lease or last.lease, record.heartbeat_count, now)
            elif now - last.seen_at >= LEASE_DURATION:
                del self._leased[holder]

    def workers_replied(self, names: Collection[str]) -> None:
        """Drop the workers without a lease that did not reply."""
        self._unleased &= set(names)

    def running(self) -> dict[str, int | None]:
        """Return the workers that have not stopped, each with how many tasks it runs, or None if that is unknown."""
        unleased: dict[str, int | None] = dict.fromkeys(self._unleased)
        return unleased | {last.lease.name: len(last.lease.running) for last in self._leased.values()}


class DrainMonitor:
    """Polls leases and workers for a `DrainTracker`."""

    def __init__(self, app: Celery, *, connection: Any, claims: Claims | None, workers: Collection[str]) -> None:
        """Begin to follow workers, before they are told to drain. Raise `BackendUnavailable`."""
        self._app, self._connection, self._claims = app, connection, claims
        self._tracker = DrainTracker(workers, self._read_leases(), time.monotonic())

    def wait(self, seconds: float) -> dict[str, int | None]:
        """Wait until all workers have stopped, at most `seconds`.

        Return the others, each with how many tasks it runs, or None if that is unknown. Raise
        `BackendUnavailable` and the errors of the broker's client.
        """
        until = time.monotonic() + seconds
        self._poll()
        while (running := self._tracker.running()) and time.monotonic() < until:
            time.sleep(POLL_INTERVAL)  # the end of a lease causes no notification
            self._poll()
        return running

    def _poll(self) -> None:
        self._tracker.leases_read(self._read_leases(), time.monotonic())
        if self._tracker.needs_replies:
            self._tracker.workers_replied(replying_workers(self._app, self._connection))

    def _read_leases(self) -> Mapping[str, LeaseRecord]:
        if self._claims is None:
            return {}
        try:
            return self._claims.leases()
        except Exception as error:
            if not is_server_error(error):
                raise
            raise BackendUnavailable(error) from None
