"""The state of a broker: its queues and its workers.

broker  ─► for each queue: how many tasks wait, and for how long
leases  ─► for each worker: its queues, how many commands it runs at once, how many run now
workers ─► the same by Celery's inspect, which takes two seconds: if asked for, or if no worker has a lease
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from celery import Celery
from kombu import Connection

from celeriac.backend.claims import claims_for
from celeriac.backend.claims.claim import Lease, LeaseState
from celeriac.backend.refused import RefusedMessage, refused_store_for
from celeriac.broker.broker_list import broker_list_of
from celeriac.broker.queues import queue_counts
from celeriac.broker.redis_keys import BrokerKeys
from celeriac.broker.session import BrokerSession
from celeriac.cluster.worker_registry import REPLY_TIMEOUT, concurrency_of, queue_names
from celeriac.config.lease import LEASE_DURATION
from celeriac.config.settings import scheme_of
from celeriac.errors import BackendUnavailable, BrokerUnavailable, InvalidConfig
from celeriac.server_errors import is_refusal, is_server_error

SEARCH_TIME = 0.1  # seconds to look for queues among the keys of a server
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


def status_of(app: Celery, queues: Collection[str], *, timeout: float, ask: bool = False) -> Status:
    """Return the status of these queues, of all queues that workers consume from, and of those where tasks wait, as far
    as the broker can tell.

    The workers are those with a lease. If there are none, or with `ask`, all workers are asked instead, plain Celery
    workers too.

    A broker that refuses requests to the workers, such as a full one, may still show its queues. `timeout`, in seconds,
    bounds each operation. Raise `BrokerUnavailable`.
    """
    session = BrokerSession(app, timeout=max(timeout, 2 * REPLY_TIMEOUT))
    with session.open() as connection:
        problem, leased = None, leased_workers(app, timeout)
        workers = leased
        if ask or not leased:
            try:
                workers = workers_of(app, connection)
            except Exception as error:
                if not is_refusal(error):
                    raise
                problem = str(BrokerUnavailable(str(broker_list_of(app)), error))
        served = {queue for worker in workers for queue in worker.queues}
        names = sorted({*queues, *served, *queues_with_messages(connection)})
        found = tuple(queue_status(connection, name, slots_of(name, workers)) for name in names)
        return Status(found, workers, problem)


def leased_workers(app: Celery, timeout: float) -> tuple[WorkerStatus, ...]:
    """Return the workers whose leases have not ended; none if the leases cannot be read."""
    claims = claims_for(app, timeout=timeout)
    if claims is None:
        return ()
    with closing(claims):
        try:
            records = claims.leases().values()
            leases = [each.lease for each in records if each.lease is not None and each.state is LeaseState.LIVE]
            ages = claims.heartbeat_ages([lease.holder for lease in leases])
        except Exception as error:
            if not is_server_error(error):
                raise
            return ()
    return tuple(leased_worker(lease, ages.get(lease.holder)) for lease in sorted(leases, key=lambda each: each.name))


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
    )


def workers_of(app: Celery, connection: Any) -> tuple[WorkerStatus, ...]:
    """Return the workers that reply."""
    inspect = app.control.inspect(timeout=REPLY_TIMEOUT, connection=connection)
    queues, stats = inspect.active_queues() or {}, inspect.stats() or {}
    return tuple(
        WorkerStatus(
            name,
            tuple(sorted(queue_names(queues.get(name)))),
            concurrency_of(stats[name]),
            own_count(stats[name], "running"),
            own_count(stats[name], "refused"),
        )
        for name in sorted(stats)
    )


def own_count(stats: Any, name: str) -> int | None:
    """Return a number that only a worker of Celeriac adds to its statistics."""
    own = stats.get("celeriac") if isinstance(stats, Mapping) else None
    number = own.get(name) if isinstance(own, Mapping) else None
    return number if isinstance(number, int) else None


def refused_messages(app: Celery, *, timeout: float) -> Sequence[RefusedMessage]:
    """Return the refused messages that the result backend keeps, the newest first.

    `timeout`, in seconds, bounds one operation. Raise `BackendUnavailable`, or `InvalidConfig` if the backend cannot
    keep messages.
    """
    store = refused_store_for(app, timeout=timeout)
    if store is None:
        kind = scheme_of(app.conf.result_backend or "")
        raise InvalidConfig("backend", f"{kind!r} keeps no refused messages", "give Redis, Valkey or a database")
    try:
        return store.newest()
    except Exception as error:
        if not is_server_error(error):
            raise
        raise BackendUnavailable(error) from None
    finally:
        store.close()


def slots_of(queue: str, workers: Collection[WorkerStatus]) -> int:
    return sum(worker.concurrency or 0 for worker in workers if queue in worker.queues and not worker.is_suspected)


def queues_with_messages(connection: Connection) -> Collection[str]:
    """Return the queues of Redis that hold messages of Celery; none for other brokers, which cannot list theirs.

    Where a server has very many keys, the search ends early.
    """
    if connection.transport.driver_type != "redis":
        return ()
    keys = BrokerKeys(connection.default_channel)
    found = set()
    stop_at = time.monotonic() + SEARCH_TIME
    with keys.client() as client:
        for key in client.scan_iter(match=keys.any_list, count=KEYS_PER_SCAN, _type="list"):
            if (message := client.lindex(key, -1)) is not None and is_message(message):
                found.add(keys.queue_of(key))
            if time.monotonic() > stop_at:
                break
    return found


def is_message(value: bytes) -> bool:
    """Return whether an item of a list is a message of Kombu."""
    try:
        return "delivery_tag" in json.loads(value)["properties"]
    except (ValueError, LookupError, TypeError):
        return False


def queue_status(connection: Connection, name: str, slots: int) -> QueueStatus:
    if connection.transport.driver_type == "redis":
        waiting, oldest = redis_queue(connection.default_channel, name)
        return QueueStatus(name, waiting, oldest, slots)
    waiting, _ = queue_counts(connection, name)
    return QueueStatus(name, waiting, None, slots)


def redis_queue(channel: Any, name: str) -> tuple[int, float | None]:
    """Return the length of a queue and the age of its oldest task. Take no task from the queue."""
    waiting, sent_times = 0, []
    keys = BrokerKeys(channel)
    with keys.client() as client:
        for key in keys.waiting(name):
            waiting += client.llen(key)
            if (oldest := client.lindex(key, -1)) is not None and (when := sent_at(oldest)) is not None:
                sent_times.append(when)
    return waiting, max(0.0, time.time() - min(sent_times)) if sent_times else None


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
