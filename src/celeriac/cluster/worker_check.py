"""Check one worker by its lease, for the probe of a container: no request reaches the worker."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

from celery import Celery

from celeriac.backend.claims import claims_for
from celeriac.cluster.drain import matching_workers
from celeriac.cluster.status_parts import Leases, WorkerStatus, read_leases
from celeriac.config.settings import scheme_of
from celeriac.errors import BackendUnavailable, InvalidConfig
from celeriac.server_errors import is_server_error


@dataclass(frozen=True, slots=True)
class WorkerCheck:
    """The result of a check."""

    name: str
    """The full name, or the given one if there is no such worker."""

    problem: str | None
    """None if the worker can do its job."""

    worker: WorkerStatus | None = None

    @property
    def summary(self) -> str:
        """The contents of the lease of a worker that can do its job."""
        if self.worker is None:
            return "ok"
        age = self.worker.heartbeat_age
        heartbeat = "" if age is None else f"last heartbeat {age:g} s ago, "
        running = self.worker.running or 0
        tasks = "1 task" if running == 1 else f"{running} tasks"
        return f"{'ok' if self.worker.state == 'live' else self.worker.state}: {heartbeat}runs {tasks}"


def check_worker(app: Celery, name: str, *, timeout: float) -> WorkerCheck:
    """Check a worker. `timeout`, in seconds, bounds each operation.

    Raise `BackendUnavailable`, and `InvalidConfig` if the result backend holds no leases.
    """
    return judge(name, live_leases(app, timeout).workers, socket.gethostname())


def live_leases(app: Celery, timeout: float) -> Leases:
    claims = claims_for(app, timeout=timeout)
    if claims is None:
        kind = scheme_of(app.conf.result_backend or "")
        raise InvalidConfig("backend", f"{kind!r} holds no leases of workers", "give Redis, Valkey or a database")
    with closing(claims):
        try:
            records = claims.leases()
            return read_leases(records, claims.heartbeat_ages(list(records)))
        except Exception as error:
            if not is_server_error(error):
                raise
            raise BackendUnavailable(error) from None


def judge(name: str, workers: Sequence[WorkerStatus], host: str) -> WorkerCheck:
    """Return what the leases say about a worker. Of several with a short name, that of this host is meant.

    A worker that was killed and started again has two leases for some seconds: the younger one counts.
    """
    names = matching_workers(name, [worker.name for worker in workers])
    if f"{name}@{host}" in names:
        names = [f"{name}@{host}"]
    if len(set(names)) > 1:
        return WorkerCheck(name, f"it may be {' or '.join(sorted(set(names)))}: give the full name")
    found = sorted((each for each in workers if each.name in names), key=age_of)
    if not found:
        return WorkerCheck(name, "no worker of this name has a lease")
    worker = found[0]
    if worker.is_suspected:
        return WorkerCheck(worker.name, f"the last heartbeat was {worker.heartbeat_age:.0f} s ago", worker)
    return WorkerCheck(worker.name, None, worker)


def age_of(worker: WorkerStatus) -> float:
    return float("inf") if worker.heartbeat_age is None else worker.heartbeat_age
