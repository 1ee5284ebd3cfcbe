"""The state of a broker: its queues and its workers.

broker  ─► for each queue: how many tasks wait, and for how long
leases  ─► for each worker: its queues, how many commands it runs at once, how many run now
workers ─► the same by Celery's inspect, which takes two seconds: if asked for, or if no worker has a lease
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing, suppress
from typing import Any

from celery import Celery
from kombu import Connection

from celeriac.backend.claims import claims_for
from celeriac.backend.claims.claim import Claims
from celeriac.backend.claims.open import places_for
from celeriac.backend.claims.place_use import LimitStatus
from celeriac.backend.claims.places import Places
from celeriac.backend.refused import RefusedMessage, refused_store_for
from celeriac.broker.broker_list import broker_list_of
from celeriac.broker.queues import queue_counts
from celeriac.broker.redis_keys import BrokerKeys
from celeriac.broker.session import BrokerSession
from celeriac.cluster.status_parts import (
    KEYS_PER_SCAN,
    SEARCH_TIME,
    Leases,
    QueueStatus,
    Status,
    WorkerStatus,
    is_message,
    read_leases,
    shown_queues,
    slots_of,
    waiting_in,
)
from celeriac.cluster.worker_registry import REPLY_TIMEOUT, concurrency_of, queue_names
from celeriac.config.settings import scheme_of
from celeriac.errors import BackendUnavailable, BrokerUnavailable, InvalidConfig
from celeriac.server_errors import is_refusal, is_server_error


def status_of(app: Celery, queues: Collection[str], *, timeout: float, ask: bool = False) -> Status:
    """Return the status of these queues, of all queues that workers consume from, and of those where tasks wait, as far
    as the broker can tell. RabbitMQ cannot list its queues: there, those of workers that have gone are looked up.

    The workers are those with a lease. If there are none, or with `ask`, all workers are asked instead, plain Celery
    workers too.

    A broker that refuses requests to the workers, such as a full one, may still show its queues. `timeout`, in seconds,
    bounds each operation. Raise `BrokerUnavailable`.
    """
    session = BrokerSession(app, timeout=max(timeout, 2 * REPLY_TIMEOUT))
    with session.open() as connection:
        problem, leases = None, leases_of(app, timeout)
        workers = leases.workers
        if ask or not workers:
            try:
                workers = workers_of(app, connection)
            except Exception as error:
                if not is_refusal(error):
                    raise
                problem = str(BrokerUnavailable(str(broker_list_of(app)), error))
        found = queues_of(connection, queues, workers, leases.former_queues)
        places = places_for(app, timeout=timeout)
        return Status(found, workers, problem, limits_in(places, close=True))


class StatusReader:
    """Reads the status as often as it is asked to, over connections that it keeps. It asks no worker."""

    def __init__(self, app: Celery, *, timeout: float) -> None:
        """`timeout`, in seconds, bounds each operation."""
        self._session = BrokerSession(app, timeout=timeout)
        self._brokers = broker_list_of(app)
        self._claims, self._places = claims_for(app, timeout=timeout), places_for(app, timeout=timeout)
        self._connection: Any = None

    def read(self, queues: Collection[str]) -> Status:
        """Return the status of these queues and of all others that are known. Raise `BrokerUnavailable`."""
        try:
            if self._connection is None:
                self._connection = self._session.connect()
            leases, problem = Leases(), None
            try:
                leases = leases_in(self._claims)
            except Exception as error:
                if not is_server_error(error):
                    raise
                problem = str(BackendUnavailable(error))
            found = queues_of(self._connection, queues, leases.workers, leases.former_queues)
            return Status(found, leases.workers, problem, limits_in(self._places) if problem is None else ())
        except Exception as error:
            self._disconnect()
            if not self._session.is_broker_error(error):
                raise
            raise BrokerUnavailable(str(self._brokers), error) from None

    def close(self) -> None:
        self._disconnect()
        if self._claims is not None:
            self._claims.close()
        if self._places is not None:
            self._places.close()

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(*connection.connection_errors, *connection.channel_errors):
                connection.release()


def queues_of(
    connection: Connection, queues: Collection[str], workers: Sequence[WorkerStatus], former: Collection[str]
) -> tuple[QueueStatus, ...]:
    """Return these queues, those of the workers, those where tasks wait, and of the `former` ones those with tasks."""
    names = {*queues, *former, *queues_with_messages(connection)}
    names.update(queue for worker in workers for queue in worker.queues)
    found = [queue_status(connection, name, slots_of(name, workers)) for name in sorted(names)]
    return shown_queues(found, {*former} - {*queues})


def leases_of(app: Celery, timeout: float) -> Leases:
    """Return the workers that have a lease; none if the leases cannot be read."""
    claims = claims_for(app, timeout=timeout)
    if claims is None:
        return Leases()
    with closing(claims):
        try:
            return leases_in(claims)
        except Exception as error:
            if not is_server_error(error):
                raise
            return Leases()


def leases_in(claims: Claims | None) -> Leases:
    """Return the workers that have a lease. Raise the errors of the store."""
    if claims is None:
        return Leases()
    records = claims.leases()
    return read_leases(records, claims.heartbeat_ages([*records]))


def limits_in(places: Places | None, *, close: bool = False) -> tuple[LimitStatus, ...]:
    """Return the limits that live executors have; none if they cannot be read."""
    if places is None:
        return ()
    try:
        return places.limits_in_use()
    except Exception as error:
        if not is_server_error(error):
            raise
        return ()
    finally:
        if close:
            places.close()


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
            paused=own_fact(stats[name], "paused") is True,
        )
        for name in sorted(stats)
    )


def own_count(stats: Any, name: str) -> int | None:
    """Return a number that only a worker of Celeriac adds to its statistics."""
    number = own_fact(stats, name)
    return number if isinstance(number, int) else None


def own_fact(stats: Any, name: str) -> Any:
    """Return a value that only a worker of Celeriac adds to its statistics; None if it is not there."""
    own = stats.get("celeriac") if isinstance(stats, Mapping) else None
    return own.get(name) if isinstance(own, Mapping) else None


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


def queue_status(connection: Connection, name: str, slots: int) -> QueueStatus:
    if connection.transport.driver_type == "redis":
        return redis_queue(connection.default_channel, name, slots)
    waiting, _ = queue_counts(connection, name)
    return QueueStatus(name, waiting, None, slots)


def redis_queue(channel: Any, name: str, slots: int) -> QueueStatus:
    """Return a queue of Redis. Take no task from it."""
    keys = BrokerKeys(channel)
    with keys.client() as client:
        lists = [(client.llen(key), client.lindex(key, -1)) for key in keys.waiting(name)]
    return waiting_in(name, lists, slots, time.time())
