"""Changes from Celery's own task events, for result backends that do not report changes themselves.

worker (worker_send_task_events) ─► exchange celeryev ─► our queue, deleted with its connection ─► ids

Works on Redis, Valkey and RabbitMQ. A worker with a Celery before 5.7 and a pool of threads loses some of its events,
because two threads share a buffer. While such a worker exists, the events are still used as hints, but the feed is
never complete.
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

from celeriac.broker.app import transport_options
from celeriac.broker.broker_list import broker_list_of, connect_to_any
from celeriac.broker.client_errors import ClientErrors
from celeriac.surviving_loop import Survivor

FANOUT_TRANSPORTS = {"redis", "amqp"}
SETTLE_DELAYS = (0.1, 1.0, 5.0)  # seconds: a worker sends task-started just before it stores STARTED
MIN_RELIABLE_VERSION = (5, 7)  # of Celery: from here on no worker loses events
ERROR_DELAY = 0.05  # seconds after a malformed event
POLL_INTERVAL = 1.0  # seconds between two checks of a silent connection
HEARTBEAT = 10  # seconds, RabbitMQ: a connection that is silent for longer is dead
MAX_QUEUE_LENGTH = 100_000  # unread events on the broker; beyond that the broker drops the oldest ones
QUEUE_EXPIRES = 60.0  # seconds until the broker removes a queue without a reader


class TaskEvents:
    """A `ChangeSource`.

    The feed is complete only after the first task event: before that, the workers may not send task events at all. The
    heartbeats of a worker contain its version of Celery.
    """

    reports_refusals = True

    def __init__(self, app: Celery, *, timeout: float) -> None:
        """`timeout`, in seconds, bounds each step of connecting."""
        self._app, self._timeout = app, timeout
        self._survivor = Survivor("celeriac-change-feed")
        self._may_lose_events = False
        self._brokers = broker_list_of(app, for_read=True)
        self._url = self._brokers.current
        connection = app.connection_for_read()  # not opened: only for the errors of its client
        self._driver = connection.transport.driver_type
        self._errors = ClientErrors(connection)

    def is_server_error(self, error: BaseException) -> bool:
        return self._errors.problem_of(error) is not None

    def listen(self) -> Iterator[Collection[str] | None]:
        with self._connect() as connection, connection.channel() as channel:
            events = EventCollector()
            queue = self._queue(connection)
            consumer = connection.Consumer([queue], channel=channel, callbacks=[events.on_message], no_ack=True)
            consumer.on_decode_error = ignore_undecodable
            with consumer:
                while True:
                    try:
                        guard = self._survivor.guard(self.is_server_error, delay=ERROR_DELAY)
                        with guard:  # a malformed event must not end the feed
                            connection.drain_events(timeout=events.seconds_until_due(POLL_INTERVAL))
                    except TimeoutError:
                        self._check(connection, channel)
                    if events.may_lose_events and not self._may_lose_events:
                        self._may_lose_events = True
                        return  # the promise of an earlier None no longer holds; the next connection yields no None
                    if events.is_first and not self._may_lose_events:
                        yield None
                        events.is_first = False
                    yield events.take()

    def _connect(self) -> Any:
        options = transport_options(self._driver, self._timeout)
        if self._driver == "amqp":
            options.pop("read_timeout")  # a time without events is no failure: heartbeats detect a dead connection
        connection, self._url = connect_to_any(
            self._app, timeout=self._timeout, for_read=True, transport_options=options, heartbeat=HEARTBEAT
        )
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
            max_length=MAX_QUEUE_LENGTH,
        )

    def _check(self, connection: Any, channel: Any) -> None:
        """Raise an error of the broker if the connection is lost, or if the app has changed to another broker."""
        if self._url != self._brokers.current:
            raise ConnectionResetError("another broker is used now")
        if self._driver == "amqp":
            connection.heartbeat_check()
        elif self._driver == "redis":
            channel.client.ping()


def ignore_undecodable(message: Any, error: Exception) -> None:
    """Drop an event that Kombu cannot decode: the others are read."""


def task_events_for(app: Celery, timeout: float) -> TaskEvents | None:
    """Return the source for the app's broker; None for a broker that cannot send one message to many readers."""
    if app.connection_for_read().transport.driver_type not in FANOUT_TRANSPORTS:
        return None
    return TaskEvents(app, timeout=timeout)


class EventCollector:
    """Collects the ids in task events."""

    def __init__(self) -> None:
        self.is_first = False
        """Whether the first task event has arrived and was not handled yet."""

        self.may_lose_events = False
        """Whether a worker that loses events has sent a heartbeat."""

        self._has_task_event = False
        self._ids: set[str] = set()
        self._settling: list[tuple[float, str]] = []

    def on_message(self, body: Any, _: Any) -> None:
        for event in body if isinstance(body, list) else [body]:
            kind = str(event.get("type")) if isinstance(event, dict) else ""
            if kind.startswith("task-") and isinstance(event.get("uuid"), str):
                self._on_task(kind, event["uuid"])
            elif kind == "worker-heartbeat" and parse_version(str(event.get("sw_ver"))) < MIN_RELIABLE_VERSION:
                self.may_lose_events = True

    def _on_task(self, kind: str, task_id: str) -> None:
        if not self._has_task_event:
            self.is_first = self._has_task_event = True
        if kind == "task-started":
            for seconds in SETTLE_DELAYS:
                heapq.heappush(self._settling, (time.monotonic() + seconds, task_id))
        else:
            self._ids.add(task_id)

    def seconds_until_due(self, max_seconds: float) -> float:
        """Return the seconds until a settle delay ends, at most `max_seconds`."""
        if not self._settling:
            return max_seconds
        return min(max_seconds, max(0.001, self._settling[0][0] - time.monotonic()))

    def take(self) -> set[str]:
        """Return the ids that changed since the last call, and those whose settle delay has ended."""
        ids, self._ids = self._ids, set()
        while self._settling and self._settling[0][0] <= time.monotonic():
            ids.add(heapq.heappop(self._settling)[1])
        return ids


def parse_version(text: str) -> tuple[int, ...]:
    """Return (5, 7) for "5.7.0rc1", and () for a text without a version."""
    numbers = re.match(r"(\d+)\.(\d+)", text)
    return tuple(map(int, numbers.groups())) if numbers else ()
