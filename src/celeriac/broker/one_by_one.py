"""Sends a batch over one connection, a message at a time: works on every broker that Celery knows."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from celery import Celery

from celeriac.broker.connection import UNSENDABLE, BrokerConnection
from celeriac.broker.message import send
from celeriac.broker.task_message import MessageFactory, task_message
from celeriac.executor.interfaces import NotSent, Receipt, Sent, Unsure
from celeriac.task.task import Task


class OneByOnePublisher:
    """Says of urgency what the options of the call say: each kind of broker has words of its own for it."""

    def __init__(self, app: Celery, *, message_factory: MessageFactory = task_message) -> None:
        self._app, self._message_factory = app, message_factory
        self._connection = BrokerConnection(app)
        self._producer: Any = None

    def publish(self, tasks: Sequence[Task], *, timeout: float) -> Iterator[Receipt]:
        until = time.monotonic() + timeout
        broken: Exception | None = None
        for task in tasks:
            if broken is None and time.monotonic() >= until:
                broken = TimeoutError(f"the broker took more than {timeout:g} s")
            if broken is not None:
                yield NotSent(task, broken)
                continue
            try:
                self._open(timeout)
            except self._connection.away as error:
                broken = error
                yield NotSent(task, error)
                continue
            try:
                send(self._app, self._producer, self._message_factory(task), task.message_id)
            except self._connection.away as error:
                broken = error
                self._connection.lost(error)
                yield Unsure(task, error)
            except UNSENDABLE as error:
                yield NotSent(task, error, transient=False)
            else:
                yield Sent(task)

    def close(self) -> None:
        self._connection.close()

    def _open(self, timeout: float) -> None:
        channel, is_new = self._connection.open(timeout)
        if is_new:
            self._producer = self._app.amqp.Producer(channel, auto_declare=False)
