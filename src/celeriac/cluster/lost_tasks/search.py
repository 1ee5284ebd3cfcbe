"""One search after another for tasks that may be in no place, or whose worker is dead.

A message moves while it is looked for: from its queue to a worker, and back when the worker goes. So the broker is
asked first and the workers then, and a task is in no place only when it was missed twice. A worker without a lease that
was heard lately and does not answer now may hold it: then nothing is concluded, and everybody is asked again.

What a worker has claimed is judged by its lease alone. To send again what nobody has claimed does no harm where workers
claim: should its message be found after all, one of the two is dropped.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from celery import Celery

from celeriac.backend.claims.lease_monitor import CLOSE_TIMEOUT, LeaseMonitor
from celeriac.broker.session import BrokerSession
from celeriac.cluster.lost_tasks.claimed import ClaimCheck
from celeriac.cluster.worker_registry import ANSWER_TIME, WorkerRegistry
from celeriac.executor.interfaces import LostTask
from celeriac.task.task import Task

logger = logging.getLogger(__name__)

PAUSE = 2.5  # seconds between two tries of one search; longer than Kombu takes from one place to another
TRIES = 30  # until a search is given up; the executor will ask for another
CHUNK = 500  # ids in one question to the workers
REST = 10  # times as long as the broker was busy answering: it has better to do than to read its long queues to us
NOWHERE = "neither the broker nor a worker has it any more"


class Broker(Protocol):
    """How one kind of broker is asked."""

    knows_which: bool
    """Whether it tells which messages it has, or only how many."""

    def may_hold(self, channel: Any, queues: Mapping[str, Collection[str]], *, delivered: bool) -> Iterable[str]:
        """Of the ids, listed by their queue, those that the broker has, or may have; with `delivered` those too that
        it has given to somebody who has not acknowledged them."""
        ...


@dataclass(frozen=True, slots=True)
class ScanRequest:
    queue_of: Mapping[str, str]
    """By id."""

    asked: float
    urgent: bool


class BrokerScan:
    """The executor's `Whereabouts`."""

    def __init__(
        self,
        app: Celery,
        broker: Broker,
        workers: WorkerRegistry,
        leases: LeaseMonitor | None,
        *,
        timeout: float,
        on_found: Callable[[], None],
    ) -> None:
        self._app, self._broker, self._workers, self._leases = app, broker, workers, leases
        self._on_found = on_found
        self._calls = BrokerSession(app, timeout=timeout)
        self._claimed = ClaimCheck(leases, self._find) if leases is not None else None
        self._searching = threading.Event()
        self._closed = False
        self._hurry = threading.Event()
        self._asked: SimpleQueue[ScanRequest | None] = SimpleQueue()
        self._found: SimpleQueue[Collection[LostTask]] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._asking = 0.0
        """Seconds that the broker was busy with this search."""

    @property
    def is_scanning(self) -> bool:
        return self._searching.is_set()

    @property
    def has_news(self) -> bool:
        return self._leases is not None and self._leases.has_news

    def scan(self, tasks: Iterable[Task], *, requested_at: float, urgent: bool = False) -> None:
        if self._leases is not None:
            self._leases.take_news()
        queue_of = {task.message_id: task.queue for task in tasks}
        if not queue_of:
            return
        self._searching.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="celeriac-whereabouts", daemon=True)
            self._thread.start()
        self._asked.put(ScanRequest(queue_of, requested_at, urgent))
        self._hurry.set()

    def take_lost(self) -> Collection[LostTask]:
        return () if self._found.empty() else self._found.get()

    def close(self) -> None:
        self._closed = True
        self._asked.put(None)
        self._hurry.set()
        if self._thread is not None:
            self._thread.join(CLOSE_TIMEOUT)

    def _work(self) -> None:
        while (wanted := self._newest()) is not None:
            self._search(wanted)
            self._wait(REST * self._asking)
            if self._asked.empty():
                self._searching.clear()

    def _newest(self) -> ScanRequest | None:
        asked = self._asked.get()
        self._hurry.clear()
        while asked is not None:
            try:
                asked = self._asked.get_nowait()
            except Empty:
                break
        return asked

    def _wait(self, seconds: float) -> None:
        """Or until something else is to be done."""
        self._hurry.wait(seconds)

    def _find(self, found: Collection[LostTask]) -> None:
        if found:
            self._found.put(found)
            self._on_found()

    def _search(self, wanted: ScanRequest) -> None:
        queue_of, misses, self._asking = wanted.queue_of, 0, 0.0
        if self._leases is not None:
            self._leases.wait_for_poll(PAUSE)
        for tries in range(TRIES):
            unclaimed = self._unclaimed(queue_of, anew=tries == 0)
            is_harmless = wanted.urgent and self._are_all_leased()
            missing = None
            if unclaimed is not None:
                missing = self._missing(unclaimed, delivered=is_harmless) if unclaimed else set()
            if self._closed or self._hurry.is_set():
                return
            if missing is not None:
                misses, queue_of = misses + 1, {task_id: queue_of[task_id] for task_id in missing}
                if misses == 2 or is_harmless:
                    self._find([LostTask(task_id, NOWHERE, requested_at=wanted.asked) for task_id in queue_of])
                    return
            if not queue_of:
                return
            self._wait(PAUSE)

    def _unclaimed(self, queue_of: Mapping[str, str], *, anew: bool) -> Mapping[str, str] | None:
        if self._claimed is None:
            return queue_of
        unclaimed = self._claimed.sift(queue_of, anew=anew)
        return None if unclaimed is None else {task_id: queue_of[task_id] for task_id in unclaimed}

    def _missing(self, queue_of: Mapping[str, str], *, delivered: bool = False) -> set[str] | None:
        """None if somebody did not answer. Where workers may not be asked, some without a lease may have any of them,
        and only what a dead one had received is known to be nobody's."""
        if not self._app.conf.worker_enable_remote_control:
            return self._dropped(queue_of)
        missing = set(queue_of)
        by_queue: dict[str, set[str]] = {}
        for task_id, queue in queue_of.items():
            by_queue.setdefault(queue, set()).add(task_id)
        without_lease = self._without_lease()
        are_all_leased = self._are_all_leased()
        try:
            with self._calls.connect() as connection:
                began = time.monotonic()
                with connection.channel() as channel:
                    held = set(self._broker.may_hold(channel, by_queue, delivered=delivered or not are_all_leased))
                missing -= held
                self._asking += time.monotonic() - began
                if are_all_leased:
                    has_again = held if self._broker.knows_which else set()
                    return missing | (self._dropped(queue_of) - has_again)
                in_hand = self._held(connection, sorted(missing), without_lease)
        except self._calls.connection_errors as error:
            logger.debug("the broker cannot be asked what it has: %s", error)
            return None
        return None if in_hand is None else (missing - in_hand) | self._dropped(queue_of)

    def _are_all_leased(self) -> bool:
        """Then all of them claim what they start, too."""
        return self._leases is not None and self._leases.knows_any and not self._without_lease()

    def _without_lease(self) -> frozenset[str]:
        """Workers that were heard lately and have none."""
        if self._leases is None:
            return self._workers.names()
        return self._workers.names() - self._leases.names()

    def _dropped(self, queue_of: Mapping[str, str]) -> set[str]:
        """What a worker had received that is dead now: whatever the broker may think it has of these."""
        suspects = self._leases.suspected() if self._leases is not None else []
        return {task_id for lease in suspects for task_id in lease.held} & queue_of.keys()

    def _held(self, connection: Any, ids: list[str], by: frozenset[str]) -> set[str] | None:
        """Of the ids, those that workers hold; None if one of `by` did not answer."""
        held: set[str] = set()
        for n in range(0, len(ids), CHUNK):
            answers = self._app.control.broadcast(
                "query_task",
                arguments={"ids": ids[n : n + CHUNK]},
                reply=True,
                timeout=ANSWER_TIME,
                connection=connection,
            )
            answered = {name: tasks for answer in answers or () for name, tasks in answer.items()}
            if silent := (by & self._workers.names()) - answered.keys():
                logger.debug("these workers do not say what they hold: %s", ", ".join(sorted(silent)))
                return None
            if not answered:
                break  # there is nobody to ask more of
            for tasks in answered.values():
                held.update(tasks if isinstance(tasks, Mapping) else ())
        return held
