"""RabbitMQ: a batch is written, then all of its confirms are waited for.

    tasks ─► blanks, filled in ─► basic.publish, basic.publish, … ─► drain: ack, nack, return ─► receipts

What was written and not confirmed in time is `Unsure`, and not written again as long as its connection lives: RabbitMQ
reads it when it reads again (after an alarm, for one), and its confirm is then the answer.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from amqp import Message
from amqp.exceptions import MessageNacked, PreconditionFailed
from celery import Celery

from celeriac.errors import BrokerBlocked, QueueRefused
from celeriac.interfaces import NotSent, Receipt, Sent, Unsure
from celeriac.publisher.call import Call, CallOf, call_of
from celeriac.publisher.connection import UNSENDABLE, BrokerConnection
from celeriac.publisher.message import Blank, MessageBuilder, Published, filled_body
from celeriac.task import Task

CHUNK = 1_000  # messages written before their confirms are waited for
PATIENCE = 60.0  # seconds that a connection may owe a confirm without being blocked; then it is given up


class AmqpPublisher:
    def __init__(self, app: Celery, *, call_of: CallOf = call_of) -> None:
        self._app, self._call_of = app, call_of
        self._connection = BrokerConnection(
            app,
            confirm_publish=False,  # which would wait for each
            heartbeat=0,  # nobody would answer between two batches
            on_blocked=self._on_blocked,
            on_unblocked=self._on_unblocked,
        )
        self._builder: MessageBuilder
        self._channel: Any = None
        self._forget_connection()

    def publish(self, tasks: Sequence[Task], *, timeout: float) -> Iterator[Receipt]:
        until = time.monotonic() + timeout
        for first in range(0, len(tasks), CHUNK):
            yield from self._publish(tasks[first : first + CHUNK], until, timeout)

    def close(self) -> None:
        self._connection.close()
        self._forget_connection()

    def _publish(self, tasks: Sequence[Task], until: float, timeout: float) -> list[Receipt]:
        written: set[str] = set()
        answers: dict[str, Receipt] = {}
        failed: Exception = TimeoutError(f"the broker took more than {timeout:g} s")
        try:
            self._open(timeout)
            for task, messages in self._prepare(tasks, answers, timeout):
                if self._blocked:
                    failed = BrokerBlocked()
                elif time.monotonic() < until:
                    self._write(task, messages)
                    written.add(task.message_id)
            owed = written | {task.message_id for task in tasks if task.message_id in self._owed}
            self._wait_for_confirms(owed, until)
        except self._connection.away as error:
            failed = error
            self._lost(error)
        return [self._receipt(task, answers, written, failed) for task in tasks]

    def _receipt(self, task: Task, answers: dict[str, Receipt], written: set[str], failed: Exception) -> Receipt:
        message_id = task.message_id
        if message_id in answers:
            return answers[message_id]
        if message_id in self._answered:
            error = self._answered.pop(message_id)
            return Sent(task) if error is None else NotSent(task, error)
        if message_id in written or message_id in self._owed:
            return Unsure(task, BrokerBlocked() if self._blocked else failed)
        return NotSent(task, failed)

    # — writing —

    def _open(self, timeout: float) -> None:
        channel, is_new = self._connection.open(timeout)
        if not is_new and not self._is_alive():
            self._connection.drop()
            channel, is_new = self._connection.open(timeout)
        if is_new:
            self._forget_connection()
            self._channel = channel
            self._builder = MessageBuilder(self._app, channel)
            channel.events["basic_ack"].add(self._on_ack)
            channel.events["basic_nack"].add(self._on_nack)
            channel.events["basic_return"].add(self._on_return)
            channel.confirm_select()

    def _is_alive(self) -> bool:
        """Whether the broker has not hung up since, and confirms what it was sent. Late confirms are heard here."""
        try:
            self._channel.connection.drain_events(timeout=0)
        except TimeoutError:
            pass  # nothing to hear
        except self._connection.away:
            return False
        return not self._owed or self._blocked or time.monotonic() - self._heard < PATIENCE

    def _prepare(
        self, tasks: Sequence[Task], answers: dict[str, Receipt], timeout: float
    ) -> list[tuple[Task, list[Published]]]:
        """The messages to write: of all tasks but those that were written and are owed an answer."""
        prepared = []
        refused: dict[Any, QueueRefused] = {}
        for task in tasks:
            if task.message_id in self._owed or task.message_id in self._answered:
                continue
            call = self._call_of(task)
            queue = call.options.get("queue")
            if queue in refused:
                answers[task.message_id] = NotSent(task, refused[queue])
                continue
            try:
                prepared.append((task, self._messages(call, task.message_id)))
            except PreconditionFailed as error:  # over which RabbitMQ has closed the channel
                refused[queue] = QueueRefused(str(queue), error.reply_text)
                answers[task.message_id] = NotSent(task, refused[queue])
                self._connection.drop()
                self._open(timeout)
            except self._connection.away:
                raise
            except UNSENDABLE as error:
                answers[task.message_id] = NotSent(task, error, transient=False)
        return prepared

    def _write(self, task: Task, messages: list[Published]) -> None:
        if not self._owed:
            self._heard = time.monotonic()
        for number, (message, exchange, routing_key) in enumerate(messages):
            self._written += 1
            if number == 0:  # what follows is the event that it was sent, if that is wanted
                self._tags[self._written] = task.message_id
                self._owed[task.message_id] = self._written
            self._channel.basic_publish(message, exchange=exchange, routing_key=routing_key, mandatory=number == 0)

    def _messages(self, call: Call, task_id: str) -> list[Published]:
        if call.level is not None:
            call = call.at_priority(call.level)
        blank = self._builder.blank(call, lambda published: published)
        if blank is not None:
            try:
                return [fill(blank, call, task_id)]
            except UnicodeEncodeError:
                pass
        return self._builder.build(call, task_id)

    # — confirms —

    def _wait_for_confirms(self, written: set[str], until: float) -> None:
        while not self._owed.keys().isdisjoint(written):
            try:
                self._channel.connection.drain_events(timeout=max(0.0, until - time.monotonic()))
            except TimeoutError:
                return

    def _on_ack(self, tag: int, multiple: bool) -> None:
        self._settle(tag, multiple, None)

    def _on_nack(self, tag: int, multiple: bool) -> None:
        self._settle(tag, multiple, MessageNacked())

    def _on_return(self, error: Exception, exchange: str, routing_key: str, message: Any) -> None:
        """No queue took it. Its confirm follows."""
        self._returned[message.properties["correlation_id"]] = error
        self._builder.forget()  # the queue was deleted since it was declared

    def _settle(self, tag: int, multiple: bool, error: Exception | None) -> None:
        self._heard = time.monotonic()
        while multiple and (first := next(iter(self._tags), tag)) < tag:
            self._settle_one(first, error)
        self._settle_one(tag, error)

    def _settle_one(self, tag: int, error: Exception | None) -> None:
        message_id = self._tags.pop(tag, None)
        if message_id is not None and self._owed.get(message_id) == tag:
            del self._owed[message_id]
            self._answered[message_id] = self._returned.pop(message_id, error)

    # — the connection —

    def _on_blocked(self, _: str) -> None:
        self._blocked = True

    def _on_unblocked(self) -> None:
        self._blocked = False

    def _lost(self, error: Exception) -> None:
        """What it owed, it will not say any more."""
        self._connection.lost(error)
        self._owed.clear()
        self._tags.clear()

    def _forget_connection(self) -> None:
        self._blocked = False
        self._written = 0
        self._heard = 0.0
        """When a confirm last came, or the first of those owed was written."""

        self._tags: dict[int, str] = {}
        """Which task each confirm is about."""

        self._owed: dict[str, int] = {}
        """Tasks that wait for a confirm, and the tag it will bear."""

        self._answered: dict[str, Exception | None] = {}
        """Confirms that have come, until they are told."""

        self._returned: dict[str, Exception] = {}


def fill(blank: Blank, call: Call, task_id: str) -> Published:
    """Raises `UnicodeEncodeError` for text that is not Unicode."""
    marked, exchange, routing_key = blank.published
    properties = {**marked.properties, "correlation_id": task_id}
    properties["application_headers"] = {
        **marked.properties["application_headers"],
        "id": task_id,
        "root_id": task_id,
        "argsrepr": call.argsrepr,
    }
    return Published(Message(filled_body(blank, call), **properties), exchange, routing_key)
