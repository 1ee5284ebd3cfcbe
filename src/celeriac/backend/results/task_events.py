"""Hints from Celery's own task events, for result backends that do not say by themselves what was stored.

worker (worker_send_task_events) ─► exchange celeryev ─► a queue of ours, gone with its connection ─► ids

Works on Redis, Valkey and RabbitMQ. A worker of a Celery before 5.7 with a pool of threads loses some of its events
(two threads share a buffer): while one is about, hints are taken as they come and nothing is promised.
"""

from __future__ import annotations

import heapq
import re
import time
from collections.abc import Collection, Iterator
from typing import Any
from uuid import uuid4

from celery import Celery
from celery.events.event import get_exchange
from kombu import Queue
from kombu.exceptions import KombuError

from celeriac.broker.app import transport_options

BROADCASTING = {"redis", "amqp"}
SETTLE = (0.1, 1.0, 5.0)  # seconds: a worker says that a task has started just before it stores that, mostly at once
KEEPS_ALL_EVENTS = (5, 7)  # the Celery whose workers do
TICK = 1.0  # seconds between two looks at a silent connection
HEARTBEAT = 10  # seconds, RabbitMQ: a connection that is silent for longer is dead
MOST_QUEUED = 100_000  # events on the broker that we have not taken; of more, the oldest are dropped
QUEUE_EXPIRES = 60.0  # seconds until the broker removes a queue whose reader is gone


class TaskEvents:
    """Until a worker's first event of a task has come nobody knows whether workers send any, so that until then nothing
    is promised. Heartbeats come from every worker, and say which Celery it has."""

    def __init__(self, app: Celery, *, timeout: float) -> None:
        """`timeout`, in seconds, bounds each step of connecting."""
        self._app, self._timeout = app, timeout
        self._loses_some = False
        connection = app.connection_for_read()  # not opened: asked for the errors of its client
        self._driver = connection.transport.driver_type
        self.errors = (KombuError, OSError, *connection.connection_errors, *connection.channel_errors)

    def listen(self) -> Iterator[Collection[str] | None]:
        with self._connect() as connection, connection.channel() as channel:
            heard = Heard()
            queue = self._queue(connection)
            with connection.Consumer([queue], channel=channel, callbacks=[heard.on_message], no_ack=True):
                while True:
                    try:
                        connection.drain_events(timeout=heard.next_due(TICK))
                    except TimeoutError:
                        self._check(connection, channel)
                    if heard.loses_some and not self._loses_some:
                        self._loses_some = True
                        return  # what was promised no longer holds; the next connection promises nothing
                    if heard.first and not self._loses_some:
                        yield None
                        heard.first = False
                    yield heard.take()

    def _connect(self) -> Any:
        options = transport_options(self._driver, self._timeout)
        if self._driver == "amqp":
            options.pop("read_timeout")  # silence is no failure: heartbeats tell
        connection = self._app.connection_for_read(
            connect_timeout=self._timeout, transport_options=options, heartbeat=HEARTBEAT
        )
        connection.ensure_connection(max_retries=0, timeout=self._timeout)
        return connection

    def _queue(self, connection: Any) -> Queue:
        return Queue(
            f"{self._app.conf.event_queue_prefix}.celeriac.{uuid4()}",
            exchange=get_exchange(connection, name=self._app.conf.event_exchange),
            routing_key="#",
            durable=False,
            exclusive=True,
            auto_delete=True,
            expires=QUEUE_EXPIRES,
            max_length=MOST_QUEUED,
        )

    def _check(self, connection: Any, channel: Any) -> None:
        """Raises one of `errors` if the broker is gone."""
        if self._driver == "amqp":
            connection.heartbeat_check()
        elif self._driver == "redis":
            channel.client.ping()


def task_events(app: Celery, *, timeout: float) -> TaskEvents | None:
    """None for a broker that cannot tell one message to many."""
    if app.connection_for_read().transport.driver_type not in BROADCASTING:
        return None
    return TaskEvents(app, timeout=timeout)


class Heard:
    """Ids out of events."""

    def __init__(self) -> None:
        self.first = False
        self.loses_some = False
        """Whether a worker was heard that does not send every event."""

        self._came = False
        self._ids: set[str] = set()
        self._settling: list[tuple[float, str]] = []

    def on_message(self, body: Any, _: Any) -> None:
        for event in body if isinstance(body, list) else [body]:
            kind = str(event.get("type")) if isinstance(event, dict) else ""
            if kind.startswith("task-") and isinstance(event.get("uuid"), str):
                self._on_task(kind, event["uuid"])
            elif kind == "worker-heartbeat" and version_of(str(event.get("sw_ver"))) < KEEPS_ALL_EVENTS:
                self.loses_some = True

    def _on_task(self, kind: str, task_id: str) -> None:
        if not self._came:
            self.first = self._came = True
        if kind == "task-started":
            for seconds in SETTLE:
                heapq.heappush(self._settling, (time.monotonic() + seconds, task_id))
        else:
            self._ids.add(task_id)

    def next_due(self, most: float) -> float:
        """Seconds until something has settled, `most` at most."""
        return min(most, max(0.001, self._settling[0][0] - time.monotonic())) if self._settling else most

    def take(self) -> set[str]:
        ids, self._ids = self._ids, set()
        while self._settling and self._settling[0][0] <= time.monotonic():
            ids.add(heapq.heappop(self._settling)[1])
        return ids


def version_of(text: str) -> tuple[int, ...]:
    """ "5.7.0rc1" is (5, 7); what cannot be read is no version at all."""
    found = re.match(r"(\d+)\.(\d+)", text)
    return tuple(map(int, found.groups())) if found else ()
