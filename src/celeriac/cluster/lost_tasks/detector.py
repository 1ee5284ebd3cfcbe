"""Look for lost tasks in a thread. The thread sends the requests of a `Scan` to claims, broker and workers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from itertools import chain
from queue import SimpleQueue
from typing import Any, Protocol

from celery import Celery

from celeriac.backend.claims.lease_monitor import CLOSE_TIMEOUT, LeaseMonitor
from celeriac.broker.session import BrokerSession
from celeriac.cluster.lost_tasks.amqp_queues import AmqpQueues
from celeriac.cluster.lost_tasks.claim_check import ClaimCheck
from celeriac.cluster.lost_tasks.redis_queues import RedisQueues
from celeriac.cluster.lost_tasks.scan import (
    RETRY_DELAY,
    Finish,
    QueryWorkers,
    ReadClaims,
    ReadQueues,
    Scan,
    ScanRequest,
    Wait,
    WorkerView,
)
from celeriac.cluster.worker_monitor import WorkerMonitor
from celeriac.cluster.worker_questions import ask_workers
from celeriac.cluster.worker_registry import REPLY_TIMEOUT
from celeriac.executor.circuit_breaker import CircuitBreaker, level_of
from celeriac.executor.interfaces import LostTask
from celeriac.log_lines import logger_for
from celeriac.surviving_loop import SurvivingLoop
from celeriac.task.task import Task

logger = logger_for(__name__)

REST_FACTOR = 10  # after a scan the thread pauses for this many times the seconds that the broker was busy
UNSEARCHED = "lost tasks cannot be looked for"
MISSING = "neither the broker nor a worker has it any more"


class BrokerQueues(Protocol):
    """Reads the messages of one kind of broker."""

    lists_ids: bool
    """Whether the broker lists the ids of its messages. If False, it only counts them."""

    def find(self, channel: Any, ids_of_queue: Mapping[str, Collection[str]], *, with_delivered: bool) -> Iterable[str]:
        """Yield the ids of the tasks that the broker has, or may have.

        With `with_delivered` this includes messages that were delivered and not acknowledged.
        """
        ...


def lost_task_detector_for(
    app: Celery,
    *,
    workers: WorkerMonitor,
    leases: LeaseMonitor | None,
    timeout: float,
    on_found: Callable[[], None],
) -> ThreadedLostTaskDetector | None:
    """Return the detector for the app's broker. Return None if the broker cannot be queried, or if neither leases nor
    remote control show which tasks workers hold.

    `timeout`, in seconds, bounds one operation on the broker. The thread calls `on_found` when `take_lost` has new
    tasks.
    """
    if leases is None and not app.conf.worker_enable_remote_control:
        return None
    queues: BrokerQueues
    match app.connection_for_write().transport.driver_type:
        case "redis":
            queues = RedisQueues()
        case "amqp":
            queues = AmqpQueues(workers)
        case _:
            return None
    return ThreadedLostTaskDetector(
        app, queues=queues, workers=workers, leases=leases, timeout=timeout, on_found=on_found
    )


def request_for(tasks: Iterable[Task], requested_at: float, *, urgent: bool) -> ScanRequest:
    return ScanRequest({task.message_id: task.queue for task in tasks}, requested_at, urgent)


class ThreadedLostTaskDetector:
    """A `LostTaskDetector` with one thread, which makes one scan after another."""

    def __init__(
        self,
        app: Celery,
        *,
        queues: BrokerQueues,
        workers: WorkerMonitor,
        leases: LeaseMonitor | None,
        timeout: float,
        on_found: Callable[[], None],
    ) -> None:
        self._app, self._queues, self._workers, self._leases = app, queues, workers, leases
        self._on_found = on_found
        self._session = BrokerSession(app, timeout=timeout)
        self._breaker = CircuitBreaker("the broker", first_delay=RETRY_DELAY, effect=UNSEARCHED)
        self._claim_check = ClaimCheck(leases, on_lost=self._report) if leases is not None else None
        self._lost: SimpleQueue[Collection[LostTask]] = SimpleQueue()
        self._thread: SurvivingLoop | None = None
        self._changed = threading.Condition()
        """Guards `_request`, `_is_scanning` and `_is_closed`."""

        self._request: Callable[[], ScanRequest] | None = None
        """Makes the newest request, until the thread takes it."""

        self._is_scanning = self._is_closed = False

    @property
    def is_scanning(self) -> bool:
        return self._is_scanning

    @property
    def has_news(self) -> bool:
        return self._leases is not None and self._leases.has_news

    def scan(self, tasks: Iterable[Task], *, requested_at: float, urgent: bool = False) -> None:
        if self._leases is not None:
            self._leases.take_news()
        tasks = iter(tasks)
        first = next(tasks, None)
        if first is None:
            return
        if self._thread is None:
            self._thread = SurvivingLoop("celeriac-lost-tasks", self._run_round, wait=self._wait)
            self._thread.start()
        with self._changed:
            # With 100,000 tasks in flight a heartbeat would take longer for this than for all else.
            self._request = partial(request_for, chain((first,), tasks), requested_at, urgent=urgent)
            self._is_scanning = True
            self._changed.notify()

    def take_lost(self) -> Collection[LostTask]:
        return () if self._lost.empty() else self._lost.get()

    def is_held(self, message_id: str) -> bool:
        live = self._leases.live() if self._leases is not None else ()
        return any(message_id in lease.running or message_id in lease.held for lease in live)

    def close(self) -> None:
        """End the thread. Do not wait long for a request under way."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(CLOSE_TIMEOUT)

    # — the thread —

    def _run_round(self) -> bool:
        make_request = self._take_request()
        if make_request is None:
            return False
        try:
            request = make_request()
            scan = Scan(
                request,
                lists_ids=self._queues.lists_ids,
                can_query_workers=bool(self._app.conf.worker_enable_remote_control),
            )
            self._run_scan(scan, request)
            self._wait(REST_FACTOR * scan.broker_seconds)  # reading long queues keeps the broker from other work
        finally:
            with self._changed:
                self._is_scanning = self._request is not None
        return True

    def _take_request(self) -> Callable[[], ScanRequest] | None:
        with self._changed:
            self._changed.wait_for(self._is_interrupted)
            make_request, self._request = self._request, None
            return None if self._is_closed else make_request

    def _wait(self, seconds: float) -> None:
        """Wait for that time, or until there is a new request."""
        with self._changed:
            self._changed.wait_for(self._is_interrupted, seconds)

    def _is_interrupted(self) -> bool:
        return self._is_closed or self._request is not None

    def _run_scan(self, scan: Scan, request: ScanRequest) -> None:
        """Run a scan until it ends or until there is a new request."""
        if self._leases is not None:
            self._leases.wait_for_poll(RETRY_DELAY)
        has_queried = False
        while not self._is_interrupted():
            match scan.next_step():
                case ReadClaims(ids, is_first):
                    unclaimed = self._read_unclaimed(ids, is_first=is_first)
                    if unclaimed and not has_queried:
                        self._workers.query_all()  # a new worker without a lease may hold any task without a claim
                        has_queried = True
                    scan.claims_read(unclaimed, self._view())
                case ReadQueues() | QueryWorkers():
                    self._query_broker(scan)
                case Wait(seconds):
                    self._wait(seconds)
                    scan.resume()
                case Finish(ids):
                    self._report([LostTask(task_id, MISSING, requested_at=request.requested_at) for task_id in ids])
                    return

    def _read_unclaimed(self, ids: Collection[str], *, is_first: bool) -> Collection[str] | None:
        if self._claim_check is None:
            return ids
        return self._claim_check.unclaimed(ids, is_first=is_first)

    def _view(self) -> WorkerView:
        names = self._workers.names()
        if self._leases is None:
            return WorkerView(names, frozenset(), knows_leases=False, suspected_ids=frozenset())
        return WorkerView(
            names,
            self._leases.names(),
            knows_leases=self._leases.knows_any,
            suspected_ids=frozenset(task_id for lease in self._leases.suspected() for task_id in lease.held),
        )

    def _query_broker(self, scan: Scan) -> None:
        """Make the requests of one round that need the broker, on one connection."""
        try:
            with self._session.connect() as connection:
                while isinstance(step := scan.next_step(), ReadQueues | QueryWorkers):
                    match step:
                        case ReadQueues(ids_of_queue, with_delivered):
                            began = time.monotonic()
                            found = self._read_queues(connection, ids_of_queue, with_delivered=with_delivered)
                            scan.queues_read(found, self._view(), seconds=time.monotonic() - began)
                        case QueryWorkers(ids):
                            scan.workers_replied(self._query_workers(connection, ids), self._view())
        except Exception as error:
            if not self._session.is_broker_error(error):
                raise
            if line := self._breaker.record_failure(time.monotonic(), error):
                logger.log(level_of(error), line)
            scan.broker_failed()
        else:
            if line := self._breaker.record_success(time.monotonic()):
                logger.debug(line)

    def _read_queues(
        self, connection: Any, ids_of_queue: Mapping[str, Collection[str]], *, with_delivered: bool
    ) -> set[str]:
        with connection.channel() as channel:
            return set(self._queues.find(channel, ids_of_queue, with_delivered=with_delivered))

    def _query_workers(self, connection: Any, ids: Collection[str]) -> Mapping[str, Collection[str]]:
        """Return the ids that each worker holds, as far as workers reply in time."""
        replies: dict[str, Any] = {}
        arguments = {"ids": list(ids)}
        ask_workers(self._app, connection, "query_task", replies.update, timeout=REPLY_TIMEOUT, arguments=arguments)
        return {name: tuple(tasks) if isinstance(tasks, Mapping) else () for name, tasks in replies.items()}

    def _report(self, lost: Collection[LostTask]) -> None:
        if lost:
            self._lost.put(lost)
            self._on_found()
