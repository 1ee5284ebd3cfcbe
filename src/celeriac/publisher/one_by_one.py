"""Sends a batch over one connection, a message at a time: works on every broker that Celery knows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from celery import Celery
from celery.utils.nodenames import anon_nodename
from kombu.exceptions import KombuError, OperationalError

from celeriac.app import TASK_NAME, message_of, transport_options
from celeriac.interfaces import NotSent, Receipt, Sent, Unsure
from celeriac.task import Task

UNSENDABLE = (KombuError, TypeError, ValueError)
"""What Celery raises before anything is written, for a message that nobody could send."""


def own_queue(task: Task) -> dict[str, Any]:
    return {"queue": task.queue}


class OneByOnePublisher:
    """Keeps one connection, and opens another when that breaks."""

    def __init__(self, app: Celery, *, route: Callable[[Task], dict[str, Any]] = own_queue) -> None:
        """`route` gives the options of `apply_async` that say where a task goes: queue, priority."""
        self._app, self._route = app, route
        self._producer: Any = None
        connection = app.connection_for_write()  # not opened: asked for the errors of its client
        self._away = (OperationalError, OSError, *connection.connection_errors, *connection.channel_errors)
        self._driver_type = connection.transport.driver_type
        self._origin = anon_nodename()

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
                producer = self._connected(timeout)
            except self._away as error:
                broken = error
                yield NotSent(task, error)
                continue
            try:
                self._send(task, producer)
            except self._away as error:
                broken = error
                self.close()
                yield Unsure(task, error)
            except UNSENDABLE as error:
                yield NotSent(task, error, transient=False)
            else:
                yield Sent(task)

    def close(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.connection.collect()

    def _send(self, task: Task, producer: Any) -> None:
        """As `apply_async` would, less what it does for a caller who waits for one result."""
        amqp, args = self._app.amqp, (message_of(task),)
        options = amqp.router.route(self._route(task), TASK_NAME, args, {})
        message = amqp.create_task_message(
            task.message_id,
            TASK_NAME,
            args,
            {},
            root_id=task.id,
            argsrepr=f"({task.key!r},)",  # shown in logs and events: the command and its secrets stay out
            kwargsrepr="{}",
            reply_to=self._app.thread_oid,
            origin=self._origin,
            ignore_result=False,
        )
        amqp.send_task_message(producer, TASK_NAME, message, retry=False, **options)

    def _connected(self, timeout: float) -> Any:
        if self._producer is None:
            options = transport_options(self._driver_type, timeout)
            connection = self._app.connection_for_write(connect_timeout=timeout, transport_options=options)
            connection.ensure_connection(max_retries=0, timeout=timeout)
            self._producer = self._app.amqp.Producer(connection, auto_declare=False)
        return self._producer
