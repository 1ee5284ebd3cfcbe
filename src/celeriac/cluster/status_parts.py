"""The state of a broker's queues and workers, as values, and what they are made from. It imports no client.

leases of workers ─► WorkerStatus
lists of Redis    ─► QueueStatus
"""

from __future__ import annotations

import base64
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from celeriac.backend.claims.claim import Lease, LeaseRecord, LeaseState
from celeriac.config.lease import LEASE_DURATION

if TYPE_CHECKING:
    from celeriac.backend.claims.place_use import LimitStatus

SEARCH_TIME = 0.1  # seconds to look for queues among the keys of a server of Redis
KEYS_PER_SCAN = 1_000


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """One queue."""

    name: str
    waiting: int
    oldest: float | None
    """Seconds since the task that has waited longest was sent; None if that is unknown."""

    slots: int
    """How many tasks the workers of the queue run at once. A worker of several queues counts for each of its queues."""


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker."""

    name: str
    queues: tuple[str, ...]
    concurrency: int | None
    running: int | None
    """None for a worker that is not Celeriac's."""

    refused: int | None = None
    """How many messages the worker has refused; None for a worker that is not Celeriac's."""

    draining: bool = False
    """Whether the worker takes no more tasks."""

    heartbeat_age: float | None = None
    """Seconds since the last heartbeat of its lease; None if that is unknown."""

    host: str | None = None
    """None for a worker that is known by its reply alone, like `tasks`."""

    tasks: tuple[str, ...] | None = None
    """The ids of the tasks that the worker runs."""

    drained_by: str | None = None
    """Who has asked the worker to drain; None if that is unknown."""

    paused: bool = False
    """Whether the worker takes no more tasks until it is resumed. `queues` is empty meanwhile."""

    paused_by: str | None = None
    """Who has paused the worker; None if that is unknown."""

    waits: str | None = None
    """Why the worker starts nothing for now; None if nothing holds it back."""

    @property
    def state(self) -> str:
        """One word for the state of the worker: "live" if nothing is unusual."""
        if self.is_suspected:
            return "suspected"
        return "draining" if self.draining else "paused" if self.paused else "live"

    @property
    def is_suspected(self) -> bool:
        """Whether its lease has expired, so that the next executor declares it dead."""
        return self.heartbeat_age is not None and self.heartbeat_age > LEASE_DURATION


@dataclass(frozen=True, slots=True)
class Status:
    """The queues and the workers of one broker."""

    queues: tuple[QueueStatus, ...]
    workers: tuple[WorkerStatus, ...]
    problem: str | None = None
    """One line about the broker if it refuses to ask the workers. Then `workers` are those that have a lease."""

    limits: tuple[LimitStatus, ...] = ()
    """The limits of keys and rates that live executors have."""


@dataclass(frozen=True, slots=True)
class Leases:
    """The workers of a result backend, according to their leases."""

    workers: tuple[WorkerStatus, ...] = ()
    """Those whose leases have not ended, sorted by name."""

    former_queues: frozenset[str] = frozenset()
    """The queues of workers that have gone, were declared dead or are paused, and that no other worker serves."""


def read_leases(records: Mapping[str, LeaseRecord], ages: Mapping[str, float]) -> Leases:
    """Return what leases say, each given by its holder. `ages` are those of the last heartbeats."""
    live: list[WorkerStatus] = []
    former: set[str] = set()
    for holder, record in records.items():
        if record.lease is None:
            continue
        if record.state is LeaseState.LIVE:
            live.append(leased_worker(record.lease, ages.get(holder)))
            former.update(record.lease.paused_queues)
        else:
            former.update(record.lease.queues)
    workers = tuple(sorted(live, key=lambda worker: worker.name))
    return Leases(workers, frozenset(former.difference(*(worker.queues for worker in workers))))


def leased_worker(lease: Lease, age: float | None) -> WorkerStatus:
    """Return a worker as its lease describes it. `age` is that of its last heartbeat."""
    return WorkerStatus(
        lease.name,
        tuple(sorted(lease.queues)),
        lease.slots,
        len(lease.running),
        lease.refused,
        lease.draining,
        None if age is None else round(age, 1),
        lease.host,
        lease.running,
        lease.drained_by,
        lease.paused,
        lease.paused_by,
        lease.waits,
    )


def slots_of(queue: str, workers: Collection[WorkerStatus]) -> int:
    return sum(worker.concurrency or 0 for worker in workers if queue in worker.queues and not worker.is_suspected)


def is_message(value: bytes) -> bool:
    """Return whether an item of a list is a message of Kombu."""
    try:
        return "delivery_tag" in json.loads(value)["properties"]
    except (ValueError, LookupError, TypeError):
        return False


def sent_at(message: bytes) -> float | None:
    """Return when a message of Celeriac's was sent, in seconds since the epoch; None for any other message."""
    try:
        envelope = json.loads(message)
        body = envelope["body"]
        if envelope["properties"].get("body_encoding") == "base64":
            body = base64.b64decode(body)
        return float(json.loads(body)[0][0]["sent_at"])
    except (ValueError, LookupError, TypeError):
        return None


def in_use(queue: str, workers: Collection[WorkerStatus]) -> int:
    """Return how many tasks the workers of a queue run. A worker of several queues counts for each of its queues."""
    return sum(worker.running or 0 for worker in workers if queue in worker.queues and not worker.is_suspected)


def shown_queues(queues: Iterable[QueueStatus], only_with_tasks: Collection[str]) -> tuple[QueueStatus, ...]:
    """Return the queues without those that are named only for the tasks in them, and are empty."""
    return tuple(queue for queue in queues if queue.waiting or queue.name not in only_with_tasks)


def waiting_in(name: str, lists: Iterable[tuple[int, bytes | None]], slots: int, now: float) -> QueueStatus:
    """Return a queue of Redis from the length and the oldest message of each of its lists."""
    lengths, messages = zip(*lists, strict=True)
    times = [when for message in messages if message is not None and (when := sent_at(message)) is not None]
    return QueueStatus(name, sum(lengths), max(0.0, now - min(times)) if times else None, slots)
