"""The state of a broker on Redis whose result backend is Redis, too, read without Celery and the client library.

Importing those takes longer than all the rest of `celeriac status`. What cannot be read in this way, for whatever
reason, is read as with every other broker: see `celeriac.cluster.status`.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from contextlib import suppress
from typing import TYPE_CHECKING

import hiredis

from celeriac.backend.claims.claim import LeaseRecord
from celeriac.backend.claims.stored import LEASE_FIELDS, age_of_lease, decode_lease, text_of
from celeriac.broker.plain_redis import Address, PlainRedis, address_of
from celeriac.broker.redis_keys import BackendKeys, plain_lists, plain_queue_of
from celeriac.cluster.status_parts import (
    KEYS_PER_SCAN,
    SEARCH_TIME,
    Leases,
    QueueStatus,
    Status,
    is_message,
    read_leases,
    shown_queues,
    slots_of,
    waiting_in,
)
from celeriac.config.settings import Connection

if TYPE_CHECKING:
    from celeriac.backend.claims.place_use import LimitStatus

LONGEST_WAIT = 0.5  # seconds for a reply; then the client library is used, which waits longer
LAST = -1  # index of the oldest message of a list
END_OF_SCAN = b"0"


class RedisStatusReader:
    """Reads the status as often as it is asked to, over connections that it keeps."""

    def __init__(self, settings: Connection) -> None:
        self._settings = settings
        self._timeout = min(LONGEST_WAIT, settings.operation_timeout)
        self._open: dict[Address, PlainRedis] = {}

    def read(self, queues: Collection[str]) -> Status | None:
        """Return the status of these queues and of all others that are known; None if it cannot be read here."""
        try:
            broker, backend = address_of(self._settings.broker), address_of(self._settings.backend)
            if broker is None or backend is None or self._settings.key_prefix is not None:
                return None
            return self._read(self._connect(broker), self._connect(backend), queues)
        except (OSError, ValueError, hiredis.HiredisError):
            self.close()
            return None

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()

    def _connect(self, address: Address) -> PlainRedis:
        if address not in self._open:
            self._open[address] = PlainRedis(address, self._settings, timeout=self._timeout)
        return self._open[address]

    def _read(self, broker: PlainRedis, backend: PlainRedis, queues: Collection[str]) -> Status:
        leases = leases_at(backend)
        names = {*queues, *leases.former_queues, *queues_with_messages(broker)}
        names.update(queue for worker in leases.workers for queue in worker.queues)
        found = queues_at(broker, sorted(names), leases)
        shown = shown_queues(found, leases.former_queues - {*queues})
        return Status(shown, leases.workers, limits=limits_at(backend))


def leases_at(backend: PlainRedis) -> Leases:
    keys = BackendKeys()
    [members] = backend.run(("SMEMBERS", keys.leases))
    holders = [text_of(member) for member in members if member.isascii()]
    reads = [("HMGET", keys.lease(holder), *LEASE_FIELDS) for holder in holders]
    replies = backend.run(*reads, *(("PTTL", keys.lease(holder)) for holder in holders))
    records: dict[str, LeaseRecord] = {}
    ages: dict[str, float] = {}
    for holder, fields, remaining in zip(holders, replies, replies[len(holders) :], strict=False):
        with suppress(ValueError):  # it is malformed, or has expired
            records[holder] = decode_lease(holder, *fields)
        if remaining >= 0:
            ages[holder] = age_of_lease(remaining)
    return read_leases(records, ages)


def limits_at(backend: PlainRedis) -> tuple[LimitStatus, ...]:
    """Return the limits that live executors have. Most brokers have none, and import nothing for them."""
    prefix = BackendKeys().limit("")
    [has_limits] = backend.run(("EXISTS", f"{prefix}executors"))
    if not has_limits:
        return ()
    from celeriac.backend.claims.redis_places import limits_in, limits_in_use_call  # late: imports Celery

    [reply] = backend.run(("EVAL", *limits_in_use_call(prefix)))
    return limits_in(reply)


def queues_with_messages(broker: PlainRedis) -> Collection[str]:
    """Return the queues that hold messages of Celery. Where a server has very many keys, the search ends early."""
    found: set[str] = set()
    cursor, stop_at = END_OF_SCAN, time.monotonic() + SEARCH_TIME
    while True:
        [(cursor, keys)] = broker.run(("SCAN", cursor, "MATCH", "*", "COUNT", KEYS_PER_SCAN, "TYPE", "list"))
        oldest = broker.run(*(("LINDEX", key, LAST) for key in keys))
        pairs = zip(keys, oldest, strict=True)
        found.update(plain_queue_of(key) for key, message in pairs if message is not None and is_message(message))
        if cursor == END_OF_SCAN or time.monotonic() > stop_at:
            return found


def queues_at(broker: PlainRedis, names: Collection[str], leases: Leases) -> list[QueueStatus]:
    lists = [(name, key) for name in names for key in plain_lists(name)]
    replies = broker.run(*(command for _, key in lists for command in (("LLEN", key), ("LINDEX", key, LAST))))
    contents: dict[str, list[tuple[int, bytes | None]]] = {name: [] for name in names}
    for (name, _), length, message in zip(lists, replies[::2], replies[1::2], strict=True):
        contents[name].append((length, message))
    now = time.time()
    return [waiting_in(name, content, slots_of(name, leases.workers), now) for name, content in contents.items()]
