"""Sees workers out: each takes nothing more, finishes what it runs within its grace, hands back the rest, and goes."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from celery import Celery

from celeriac.backend.claims.claim import Claims, LeaseRecord, LeaseState
from celeriac.cluster.status import ANSWERS
from celeriac.config.lease import LEASE_DURATION
from celeriac.errors import BackendUnavailable

LOOK = 0.2  # seconds between two looks at the leases


def answering(app: Celery, connection: Any) -> list[str]:
    """The names of the workers that are up. Raises what the broker's client does when it goes away."""
    return sorted(app.control.inspect(timeout=ANSWERS, connection=connection).ping() or {})


def named(given: str, workers: Collection[str]) -> list[str]:
    """Those that are called so: in full, or without their host."""
    if given in workers:
        return [given]
    return [worker for worker in workers if worker.partition("@")[0] == given]


@dataclass(slots=True)
class LastSeen:
    """What was last heard of a worker."""

    name: str
    leased: LeaseRecord
    heard: float


class DrainMonitor:
    """Watches workers until they have gone: by their leases, or where they keep none, by their answers."""

    def __init__(self, app: Celery, connection: Any, claims: Claims | None, workers: Collection[str]) -> None:
        """Made before they are told to go. Raises `BackendAway`."""
        self._app, self._connection, self._claims = app, connection, claims
        now = time.monotonic()
        self._leases = {
            holder: LastSeen(leased.lease.name, leased, now)
            for holder, leased in self._read().items()
            if leased.lease is not None and leased.lease.name in workers and leased.state is LeaseState.LIVE
        }
        have_leases = {last.name for last in self._leases.values()}
        self._others = {worker for worker in workers if worker not in have_leases}

    def wait(self, seconds: float) -> dict[str, int | None]:
        """Until all have gone, or time is up. Answers who has not, and how many tasks it runs, if that is known."""
        until = time.monotonic() + seconds
        self._look()
        while (self._leases or self._others) and time.monotonic() < until:
            time.sleep(LOOK)  # a lease that ends tells nobody
            self._look()
        left: dict[str, int | None] = dict.fromkeys(self._others)
        return left | {
            last.name: len(last.leased.lease.running) for last in self._leases.values() if last.leased.lease is not None
        }

    def _look(self) -> None:
        leases, now = self._read(), time.monotonic()
        for holder, last in list(self._leases.items()):
            leased = leases.get(holder)
            if leased is None or leased.state is not LeaseState.LIVE:
                del self._leases[holder]
            elif leased.heartbeat_count != last.leased.heartbeat_count:
                self._leases[holder] = LastSeen(last.name, leased, now)
            elif now - last.heard >= LEASE_DURATION:  # killed before, or on its way
                del self._leases[holder]
        if self._others:
            self._others &= set(answering(self._app, self._connection))

    def _read(self) -> dict[str, LeaseRecord]:
        if self._claims is None:
            return {}
        try:
            return dict(self._claims.leases())
        except self._claims.errors as error:
            raise BackendUnavailable(error) from None
