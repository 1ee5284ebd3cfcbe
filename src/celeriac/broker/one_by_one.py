"""Publish the messages of a batch one by one, over one connection: for every broker that Celery supports."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from celery import Celery

from celeriac.broker.connection import BrokerConnection
from celeriac.broker.message import UnsendableMessages, send
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
        self._unsendable = UnsendableMessages()

    def publish(self, tasks: Sequence[Task], *, timeout: float) -> Iterator[Receipt]:
        until = time.monotonic() + timeout
        failure: Exception | None = None
        for task in tasks:
            if failure is None and time.monotonic() >= until:
                failure = TimeoutError(f"the broker took more than {timeout:g} s")
            if failure is not None:
                yield NotSent(task, failure)
                continue
            receipt = self._publish(task, timeout)
            if not isinstance(receipt, Sent) and self._connection.is_broker_error(receipt.error):
                failure = receipt.error
            yield receipt

    def close(self) -> None:
        self._connection.close()

    def _publish(self, task: Task, timeout: float) -> Receipt:
        try:
            self._open(timeout)
        except Exception as error:
            if not self._connection.is_broker_error(error):
                raise
            return NotSent(task, error)
        try:
            send(self._app, self._producer, self._message_factory(task), task.message_id)
        except Exception as error:  # noqa: BLE001 - an error that is not the broker's is the message's
            if not self._connection.is_broker_error(error):
                return self._unsendable.receipt(task, error)
            self._connection.fail(error)
            return Unsure(task, error)
        self._connection.record([task.queue], (), None)
        return Sent(task)

    def _open(self, timeout: float) -> None:
        channel, is_new = self._connection.open(timeout)
        if is_new:
            self._producer = self._app.amqp.Producer(channel, auto_declare=False)
