"""Query the workers from a thread, by Celery's remote control.

broadcast "stats", "active_queues" ─► workers ─► replies ─► WorkerRegistry ─► capacity by queue

Each reply costs time here. A renewed lease tells more than a reply, but only a reply shows a worker without a lease. So
if many workers have leases, all workers are queried at longer intervals, and the others are still queried each round.
When a worker has started, which Redis shows, all are queried at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

from celery import Celery

from celeriac.backend.claims.claim import Lease
from celeriac.backend.claims.lease_monitor import LeaseMonitor
from celeriac.broker.redis_keys import number_of_mailboxes
from celeriac.broker.session import BrokerSession
from celeriac.cluster.worker_questions import ask_workers
from celeriac.cluster.worker_registry import REPLY_TIMEOUT, WorkerRegistry, shares_of, tables_of
from celeriac.executor.capacity import WorkerShare
from celeriac.executor.circuit_breaker import CircuitBreaker, level_of
from celeriac.log_lines import logger_for
from celeriac.surviving_loop import SurvivingLoop

logger = logger_for(__name__)

INTERVAL = 1.0  # seconds between two rounds of requests
REST_PER_REPLY = 0.01  # seconds until all workers are queried again, for each reply of a worker with a renewed lease
MAX_REST = 60.0  # seconds; the longest such interval
ROUNDS_AFTER_START = 2  # rounds that query all workers after one has started: in the first it may not listen yet
FIRST_INTERVAL = 0.1  # seconds; the same, while no worker has replied


class WorkerMonitor:
    """The executor's `Capacity`. A thread queries the workers from its creation until `close`."""

    def __init__(self, app: Celery, *, leases: LeaseMonitor | None = None, timeout: float) -> None:
        """`timeout`, in seconds, bounds one operation on the broker."""
        self._app, self._leases = app, leases
        self._session = BrokerSession(app, timeout=timeout)
        self._lock = threading.Lock()
        self._registry = WorkerRegistry()
        self._counted: tuple[tuple[int, int], Mapping[str, int] | None] = ((-1, -1), None)
        """The versions of the registry and of the leases, and the capacity that was counted from them."""

        self._shares: tuple[tuple[int, int], Mapping[str, WorkerShare] | None] = ((-1, -1), None)
        """The same, and what each worker has."""

        self._breaker = CircuitBreaker(
            "the broker",
            first_delay=INTERVAL,
            effect="the workers cannot be queried",
        )
        self._query_all_at = float("-inf")
        self._query_all_requested = False
        self._mailboxes: int | None = None
        """How many workers listened in the last round; None if that is not known."""

        self._rounds_after_start = 0
        """How many more rounds query all workers because one has started."""

        self._leased_replies = 0
        """The replies in this round of workers with a renewed lease: `_leased` has their names."""

        self._leased: set[str] = set()

        self._closed = threading.Event()
        self._thread = SurvivingLoop("celeriac-workers", self._run_round, wait=self._closed.wait)
        self._thread.start()

    def by_queue(self) -> Mapping[str, int] | None:
        """Return how many tasks the live workers of each queue run at once; None while that is not known.

        Each heartbeat calls this, so the workers are counted anew only after a reply or a poll that may change it.
        """
        versions = self._versions
        counted_from, capacity = self._counted
        if counted_from != versions:
            active = self._leases.active if self._leases is not None else []
            leased = self._leases.names() if self._leases is not None else frozenset()
            with self._lock:
                capacity = self._registry.capacity(active, leased)
            self._counted = (versions, capacity)
        return capacity

    def shares(self) -> Mapping[str, WorkerShare] | None:
        """Return what each live worker has, by the holder of its lease; None while that is not known.

        Without leases no worker shares out any."""
        if self._leases is None:
            return {}
        versions, (read_from, shares) = self._versions, self._shares
        if read_from != versions:
            with self._lock:
                live = self._registry.live(self._leases.active)
            now = shares_of(live) if self._leases.has_polled else shares
            self._shares = (versions, shares if now == shares else now)
        return self._shares[1]

    @property
    def _versions(self) -> tuple[int, int]:
        return self._registry.version, self._leases.polls if self._leases is not None else 0

    def why_held(self, queue: str) -> str | None:
        """Return why the workers of a queue start nothing for now; None if one of them may start a task."""
        leases = [lease for lease in self._renewed_leases() if queue in lease.queues]
        first = next(iter(leases), None)
        if first is None or any(lease.waits is None for lease in leases) or self.serving(queue) > len(leases):
            return None
        return f"worker {first.name} waits: {first.waits}"

    def names(self) -> frozenset[str]:
        """Return the names of the workers that replied lately."""
        with self._lock:
            return self._registry.names()

    def serving(self, queue: str) -> int:
        """Return how many workers consume from a queue."""
        leases = self._renewed_leases()
        with self._lock:
            return self._registry.serving(queue, leases)

    def query_all(self) -> None:
        """Query all workers in the next round: someone must know of every worker without a lease."""
        self._query_all_requested = True

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _run_round(self) -> bool:
        if self._closed.is_set():
            return False
        try:
            with self._session.connect() as connection:
                with self._lock:
                    self._registry.restart_timers(time.monotonic())
                while not (self._closed.is_set() or self._session.is_outdated):
                    self._query_workers(connection)
                    self._closed.wait(INTERVAL if self.names() else FIRST_INTERVAL)
        except Exception as error:
            if not self._session.is_broker_error(error):
                raise
            self._record_failure(error)
            self._closed.wait(INTERVAL)
        return True

    def _renewed_leases(self) -> list[Lease]:
        """Return the leases of the workers that are alive without doubt."""
        if self._leases is None or not self._leases.has_polled:
            return []
        return [lease for lease, has_renewed in self._leases.active if has_renewed]

    def _query_workers(self, connection: Any) -> None:
        """Make one round of requests. If the broker fails meanwhile, drop no worker, because no worker could reply."""
        leased = {lease.name for lease in self._renewed_leases()}
        others = self.names() - leased
        self._note_starts(connection)
        is_due = self._query_all_requested or self._rounds_after_start or time.monotonic() >= self._query_all_at
        queries_all = is_due or len(others) >= len(leased)
        if queries_all:
            self._query_all_requested = False
            self._rounds_after_start = max(0, self._rounds_after_start - 1)
        self._leased, self._leased_replies = leased, 0
        for command, on_reply in (("stats", self._on_stats), ("active_queues", self._on_queues)):
            if self._closed.is_set():
                return
            if queries_all or others:
                names = None if queries_all else others
                ask_workers(self._app, connection, command, on_reply, timeout=REPLY_TIMEOUT, names=names)
        now = time.monotonic()
        if queries_all:
            self._query_all_at = now + min(MAX_REST, REST_PER_REPLY * self._leased_replies)
        with self._lock:
            self._registry.seen(leased, now)
            self._registry.round_ended(now)
        if line := self._breaker.record_success(now):
            logger.debug(line)

    def _note_starts(self, connection: Any) -> None:
        """Take note whether a worker has started since the last round: it may have no lease."""
        before, self._mailboxes = self._mailboxes, number_of_mailboxes(self._app, connection)
        if before is not None and self._mailboxes is not None and self._mailboxes > before:
            self._rounds_after_start = ROUNDS_AFTER_START

    def _record_failure(self, error: Exception) -> None:
        if line := self._breaker.record_failure(time.monotonic(), error):
            logger.log(level_of(error), line)

    def _on_stats(self, reply: Mapping[str, Any]) -> None:
        with self._lock:
            self._registry.stats_replied(reply, time.monotonic())
        self._count_reply(reply)

    def _on_queues(self, reply: Mapping[str, Any]) -> None:
        with self._lock:
            self._registry.queues_replied(reply, time.monotonic())
        self._count_reply(reply)

    def _count_reply(self, reply: Mapping[str, Any]) -> None:
        self._leased_replies += any(name in self._leased for name, _ in tables_of(reply))
