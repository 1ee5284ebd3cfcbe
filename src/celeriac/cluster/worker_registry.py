"""Derive the live workers, and how many tasks they run at once, from their replies and their leases.

    leases ──────────────────────────────────────────────────┬─► how many tasks the workers of each queue run at once
    replies to "active_queues" and "stats", with their time ─┘

Every Celery worker replies, also a plain one. A worker that has not replied for `REPLY_EXPIRY` counts as dead. A worker
with a lease is counted by the lease alone: the lease shows a draining worker at once and a dead one within seconds.

There is no I/O here, and no thread; `WorkerMonitor` has both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from celeriac.backend.claims.claim import Lease
from celeriac.backend.claims.stored import MAX_SLOTS
from celeriac.executor.capacity import WorkerShare

REPLY_TIMEOUT = 1.0  # seconds to wait for replies; always waited in full, because the number of workers is unknown
REPLY_EXPIRY = 10.0  # seconds without a reply until a worker counts as dead


@dataclass(slots=True)
class WorkerInfo:
    """One worker, by its replies."""

    queues: tuple[str, ...] | None = None
    """None until the worker has reported its queues."""

    concurrency: int = 0
    """How many tasks the worker runs at once."""

    replied_at: float = 0.0


class WorkerRegistry:
    """The workers that replied lately. All times are seconds on one monotonic clock."""

    def __init__(self) -> None:
        self._workers: dict[str, WorkerInfo] = {}
        self._is_complete = False
        """Whether all workers have had the time to reply once."""

        self.version = 0
        """Changes with everything here that `capacity` depends on."""

    # — replies —

    def stats_replied(self, reply: Any, now: float) -> None:
        """Take a reply to "stats". Ignore what is malformed."""
        for name, stats in tables_of(reply):
            worker, concurrency = self._replied(name, now), concurrency_of(stats) or 1
            self.version += worker.concurrency != concurrency
            worker.concurrency = concurrency

    def queues_replied(self, reply: Any, now: float) -> None:
        """Take a reply to "active_queues". Ignore what is malformed."""
        for name, queues in tables_of(reply):
            if isinstance(queues, list):
                worker, names = self._replied(name, now), queue_names(queues)
                self.version += worker.queues != names
                worker.queues = names

    def seen(self, names: Collection[str], now: float) -> None:
        """Take note that these workers are alive: their leases were renewed. It counts as a reply of each that has
        replied before."""
        for name in names:
            if (worker := self._workers.get(name)) is not None:
                worker.replied_at = now

    def round_ended(self, now: float) -> None:
        """Take note that all workers had the time to reply. Drop the workers that have not replied for too long."""
        workers = {name: worker for name, worker in self._workers.items() if now - worker.replied_at < REPLY_EXPIRY}
        self.version += not self._is_complete or len(workers) < len(self._workers)
        self._is_complete, self._workers = True, workers

    def restart_timers(self, now: float) -> None:
        """Give each worker the full time again: the broker was unavailable, and the workers must reconnect first."""
        for worker in self._workers.values():
            worker.replied_at = now

    # — queries —

    def names(self) -> frozenset[str]:
        """Return the names of the workers that replied lately."""
        return frozenset(self._workers)

    def serving(self, queue: str, leases: Collection[Lease] = ()) -> int:
        """Return how many workers consume from a queue: those that replied, and of the others those with a lease."""
        others = sum(queue in lease.queues for lease in leases if lease.name not in self._workers)
        return others + sum(queue in (worker.queues or ()) for worker in self._workers.values())

    def capacity(self, active: Collection[tuple[Lease, bool]], leased: Collection[str]) -> Mapping[str, int] | None:
        """Return how many tasks the live workers of each queue run at once; None while that is not known.

        `active` are the leases of workers that take tasks, each with whether a renewal was seen. A lease
        without a renewal counts only if its worker has replied: otherwise the worker may have died long ago. `leased`
        has the names of all workers with a lease.
        """
        live = self.live(active)
        others = [worker for name, worker in self._workers.items() if worker.queues is not None and name not in leased]
        if not self._is_complete and not others and not live:
            return None
        capacity: Counter[str] = Counter()
        for lease in live:
            capacity.update(dict.fromkeys(lease.queues, lease.slots))
        for worker in others:
            capacity.update(dict.fromkeys(worker.queues or (), worker.concurrency))
        return capacity

    def live(self, active: Collection[tuple[Lease, bool]]) -> list[Lease]:
        """Return the leases of the live workers, of those that take tasks."""
        return [lease for lease, has_renewed in active if has_renewed or lease.name in self._workers]

    def _replied(self, name: str, now: float) -> WorkerInfo:
        self.version += name not in self._workers
        worker = self._workers.setdefault(name, WorkerInfo())
        worker.replied_at = now
        return worker


def shares_of(leases: Iterable[Lease]) -> dict[str, WorkerShare]:
    """Return the resources of these workers, by holder, of those that share out any."""
    return {
        lease.holder: WorkerShare(lease.resources, frozenset(lease.queues))
        for lease in leases
        if lease.resources is not None
    }


# — replies of workers, which may hold anything —


def tables_of(reply: Any) -> Iterable[tuple[str, Any]]:
    """Return the items of a reply, by the name of the worker."""
    return reply.items() if isinstance(reply, Mapping) else ()


def concurrency_of(stats: Any) -> int | None:
    """Return how many tasks a worker runs at once, as it says in its statistics."""
    match stats:
        case {"pool": {"max-concurrency": int() as number}} if 0 <= number <= MAX_SLOTS:
            return number
    return None


def queue_names(queues: Any) -> tuple[str, ...]:
    """Return the names in a worker's list of queues."""
    return tuple(queue["name"] for queue in queues if is_queue(queue)) if isinstance(queues, list) else ()


def is_queue(queue: Any) -> bool:
    return isinstance(queue, Mapping) and isinstance(queue.get("name"), str)
