"""One search after another for tasks that may be in no place.

A message moves while it is looked for: from its queue to a worker, and back when the worker goes. So the broker is
asked first and the workers then, and a task is nowhere only when it was missed twice. A worker that was heard lately
and does not answer now may hold it: then nothing is concluded, and everybody is asked again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from queue import SimpleQueue
from typing import Any, Protocol

from celery import Celery

from celeriac.broker_calls import BrokerCalls
from celeriac.capacity import ANSWER_TIME, LiveWorkers
from celeriac.task import Task

logger = logging.getLogger(__name__)

PAUSE = 2.0  # seconds between two tries of one search; longer than Kombu takes from one place to another
TRIES = 30  # until a search is given up; the executor will ask for another
CHUNK = 500  # ids in one question to the workers
REST = 10  # times as long as the broker was busy answering: it has better to do than to read its long queues to us


class Broker(Protocol):
    """How one kind of broker is asked."""

    def may_hold(self, channel: Any, queues: Mapping[str, Collection[str]]) -> Iterable[str]:
        """Of the ids, listed by their queue, those that the broker has, or may have."""
        ...


class Search:
    """The executor's `Whereabouts`."""

    def __init__(
        self,
        app: Celery,
        broker: Broker,
        workers: LiveWorkers,
        *,
        timeout: float,
        on_found: Callable[[], None],
    ) -> None:
        self._app, self._broker, self._workers = app, broker, workers
        self._on_found = on_found
        self._calls = BrokerCalls(app, timeout=timeout)
        self._searching = threading.Event()
        self._closed = threading.Event()
        self._asked: SimpleQueue[dict[str, str] | None] = SimpleQueue()
        self._found: SimpleQueue[Collection[str]] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._asking = 0.0
        """Seconds that the broker was busy with this search."""

    @property
    def busy(self) -> bool:
        return self._searching.is_set()

    def look_for(self, tasks: Iterable[Task]) -> None:
        queue_of = {task.message_id: task.queue for task in tasks}
        if self.busy or not queue_of:
            return
        self._searching.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="celeriac-whereabouts", daemon=True)
            self._thread.start()
        self._asked.put(queue_of)

    def nowhere(self) -> Collection[str]:
        return () if self._found.empty() else self._found.get()

    def close(self) -> None:
        self._closed.set()
        self._asked.put(None)
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        while (queue_of := self._asked.get()) is not None:
            missing = self._search(queue_of)
            if missing:
                self._found.put(missing)
                self._on_found()
            self._closed.wait(REST * self._asking)
            self._searching.clear()

    def _search(self, queue_of: Mapping[str, str]) -> Collection[str]:
        """Those that were missed twice; none if that could not be found out."""
        misses, self._asking = 0, 0.0
        for _ in range(TRIES):
            if not queue_of or self._closed.is_set():
                break
            missing = self._missing(queue_of)
            if missing is not None:
                misses, queue_of = misses + 1, {task_id: queue_of[task_id] for task_id in missing}
                if misses == 2:
                    return queue_of.keys()
            self._closed.wait(PAUSE if queue_of else 0)
        return ()

    def _missing(self, queue_of: Mapping[str, str]) -> set[str] | None:
        """None if somebody did not answer."""
        missing = set(queue_of)
        by_queue: dict[str, set[str]] = {}
        for task_id, queue in queue_of.items():
            by_queue.setdefault(queue, set()).add(task_id)
        try:
            with self._calls.connected() as connection:
                began = time.monotonic()
                with connection.channel() as channel:
                    missing.difference_update(self._broker.may_hold(channel, by_queue))
                self._asking += time.monotonic() - began
                held = self._held(connection, sorted(missing))
        except self._calls.away as error:
            logger.debug("the broker cannot be asked what it has: %s", error)
            return None
        return None if held is None else missing - held

    def _held(self, connection: Any, ids: list[str]) -> set[str] | None:
        """Of the ids, those that workers hold; None if a worker that was heard lately did not answer."""
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
            if silent := self._workers.names() - answered.keys():
                logger.debug("these workers do not say what they hold: %s", ", ".join(sorted(silent)))
                return None
            for tasks in answered.values():
                held.update(tasks if isinstance(tasks, Mapping) else ())
        return held
