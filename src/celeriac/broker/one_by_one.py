"""Publish the messages of a batch one by one, over one connection: for every broker that Celery supports."""

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
    """A `Publisher` that ignores the urgency of a message, because each kind of broker has other priorities. The
    options of the message can set a priority."""

    def __init__(self, app: Celery, *, message_factory: MessageFactory = task_message) -> None:
        self._app, self._message_factory = app, message_factory
        self._connection = BrokerConnection(app)
        self._producer: Any = None

    def publish(self, tasks: Sequence[Task], *, timeout: float) -> Iterator[Receipt]:
        until = time.monotonic() + timeout
        failure: Exception | None = None
        for task in tasks:
            if failure is None and time.monotonic() >= until:
                failure = TimeoutError(f"the broker took more than {timeout:g} s")
            if failure is not None:
                yield NotSent(task, failure)
                continue
            try:
                self._open(timeout)
            except self._connection.errors as error:
                failure = error
                yield NotSent(task, error)
                continue
            try:
                send(self._app, self._producer, self._message_factory(task), task.message_id)
            except self._connection.errors as error:
                failure = error
                self._connection.fail(error)
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
