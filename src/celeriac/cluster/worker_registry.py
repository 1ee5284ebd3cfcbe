"""Who is there to work: what their leases say, and what Celery's workers answer, asked again and again.

    leases ──────────────────────────────────────────────────┬─► how many tasks each queue's workers run at once
    broadcast "active_queues", "stats" ─► workers ─► replies ┘

Any Celery worker answers, ours or not; one that has not for a while is taken for dead. One that has a lease is counted
by that alone, once it was heard of in either way: a lease says at once that its worker drains, and within seconds that
it is silent.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from celery import Celery

from celeriac.backend.claims.lease_monitor import LeaseMonitor
from celeriac.broker.session import BrokerSession

logger = logging.getLogger(__name__)

INTERVAL = 1.0  # seconds between two rounds of questions
INTERVAL_ALONE = 0.1  # the same, while nobody has answered
ANSWER_TIME = 1.0  # seconds that workers have to answer
PATIENCE = 10.0  # seconds without an answer until a worker counts as dead


@dataclass(slots=True)
class WorkerInfo:
    queues: tuple[str, ...] | None = None
    at_once: int = 0
    heard: float = 0.0
    """When it last answered, in seconds of the monotonic clock."""


class WorkerRegistry:
    """The executor's `Capacity`. Asks from the first moment on, in a thread of its own, until `close`."""

    def __init__(self, app: Celery, *, leases: LeaseMonitor | None = None, timeout: float) -> None:
        """`timeout`, in seconds, bounds one operation on the broker."""
        self._app, self._calls, self._leases = app, BrokerSession(app, timeout=timeout), leases
        self._lock = threading.Lock()
        self._workers: dict[str, WorkerInfo] = {}
        self._asked = False
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="celeriac-live-workers", daemon=True)
        self._thread.start()

    def by_queue(self) -> Mapping[str, int] | None:
        at_work = self._leases.active if self._leases is not None else []
        with_lease = self._leases.names() if self._leases is not None else frozenset()
        with self._lock:
            leased = [lease for lease, has_renewed in at_work if has_renewed or lease.name in self._workers]
            others = [one for name, one in self._workers.items() if one.queues is not None and name not in with_lease]
            if not self._asked and not others and not leased:
                return None
        capacity: Counter[str] = Counter()
        for lease in leased:
            capacity.update(dict.fromkeys(lease.queues, lease.slots))
        for worker in others:
            capacity.update(dict.fromkeys(worker.queues or (), worker.at_once))
        return capacity

    def names(self) -> frozenset[str]:
        """The workers that were heard lately."""
        with self._lock:
            return frozenset(self._workers)

    def serving(self, queue: str) -> int:
        """How many of them serve a queue."""
        with self._lock:
            return sum(queue in (worker.queues or ()) for worker in self._workers.values())

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                with self._calls.connect() as connection:
                    self._give_time()
                    while not self._closed.is_set():
                        self._ask(connection)
                        self._closed.wait(INTERVAL if self._workers else INTERVAL_ALONE)
            except self._calls.connection_errors as error:
                logger.debug("the workers cannot be asked: %s", error)
                self._closed.wait(INTERVAL)

    def _ask(self, connection: Any) -> None:
        """What was known stays known while the broker is away: nobody can answer then."""
        broadcast = self._app.control.broadcast
        for question, on_answer in (("stats", self._on_stats), ("active_queues", self._on_queues)):
            if self._closed.is_set():
                return
            broadcast(question, reply=True, timeout=ANSWER_TIME, connection=connection, callback=on_answer)
        with self._lock:
            self._asked = True
            now = time.monotonic()
            self._workers = {name: one for name, one in self._workers.items() if now - one.heard < PATIENCE}

    def _give_time(self) -> None:
        """The broker was away for us and so for the workers: they must first find their way back."""
        with self._lock:
            for worker in self._workers.values():
                worker.heard = time.monotonic()

    def _on_stats(self, answer: Mapping[str, Any]) -> None:
        for name, stats in answer.items():
            pool = stats.get("pool", {}) if isinstance(stats, Mapping) else {}
            self._worker(name).at_once = int(pool.get("max-concurrency") or 1)

    def _on_queues(self, answer: Mapping[str, Any]) -> None:
        for name, queues in answer.items():
            if isinstance(queues, list):
                self._worker(name).queues = tuple(queue["name"] for queue in queues)

    def _worker(self, name: str) -> WorkerInfo:
        with self._lock:
            worker = self._workers.setdefault(name, WorkerInfo())
            worker.heard = time.monotonic()
            return worker
