"""Publish to RabbitMQ: write a batch, then wait for all of its confirms.

    tasks ─► templates, filled in ─► frames, frames, … ─► socket ─► RabbitMQ
    receipts ◄──────────── ack, nack, return ◄─────────────────────────┘

py-amqp opens the connection, declares, and reads; the frames of many messages are written at once. A message that was
written and not confirmed in time is `Unsure`. It is not written again while its connection lives: RabbitMQ reads it
later (after an alarm, for example), and its confirm then decides. When RabbitMQ has read only a part of a write, the
next call writes the rest first.
"""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from amqp.exceptions import ChannelError, MessageNacked
from celery import Celery

from celeriac.broker.amqp_frames import FrameWriter
from celeriac.broker.connection import BrokerConnection
from celeriac.broker.message import MessageBuilder, UnsendableMessages, fill_body
from celeriac.broker.task_message import MessageFactory, TaskMessage, task_message
from celeriac.errors import BrokerBlocked, QueueRefused
from celeriac.executor.interfaces import NotSent, Receipt, Sent, Unsure
from celeriac.task.task import Task

BATCH_SIZE = 1_000  # messages written before their confirms are waited for
WRITE_SIZE = 64 * 1024  # bytes written before RabbitMQ is asked whether it is blocked
CONFIRM_TIMEOUT = 60.0  # seconds that a connection may owe a confirm without being blocked; then it is dropped


@dataclass(slots=True)
class Write:
    """Messages that are written together."""

    frames: list[bytes] = field(default_factory=list)
    size: int = 0
    ids: list[tuple[str, int]] = field(default_factory=list)
    """Each task id with its number of messages: one, and one more if the app sends "task-sent" events."""

    def add(self, task_id: str, messages: list[bytes]) -> None:
        self.frames += messages
        self.size += sum(map(len, messages))
        self.ids.append((task_id, len(messages)))


class AmqpPublisher:
    """A `Publisher` that writes frames to py-amqp's socket, and counts the confirms."""

    def __init__(self, app: Celery, *, message_factory: MessageFactory = task_message) -> None:
        self._app, self._message_factory = app, message_factory
        self._connection = BrokerConnection(
            app,
            confirm_publish=False,  # else py-amqp waits for each confirm
            heartbeat=0,  # between two batches no thread would answer a heartbeat
            on_blocked=self._on_blocked,
            on_unblocked=self._on_unblocked,
            socket_settings=socket_settings(app),
        )
        self._unsendable = UnsendableMessages()
        self._builder: MessageBuilder
        self._frames: FrameWriter
        self._channel: Any = None
        self._reset()

    def publish(self, tasks: Sequence[Task], *, timeout: float) -> Iterator[Receipt]:
        until = time.monotonic() + timeout
        for start in range(0, len(tasks), BATCH_SIZE):
            yield from self._publish(tasks[start : start + BATCH_SIZE], until, timeout)

    def close(self) -> None:
        self._connection.close()
        self._reset()

    def _publish(self, tasks: Sequence[Task], until: float, timeout: float) -> list[Receipt]:
        written: set[str] = set()
        refusals: dict[str, Receipt] = {}
        failure: Exception = TimeoutError(f"the broker took more than {timeout:g} s")
        try:
            self._open(timeout)
            self._write(tasks, written, refusals, until)
            self._wait_for_confirms(written | {task.message_id for task in tasks} & self._unconfirmed.keys(), until)
        except Exception as error:
            if not self._connection.is_broker_error(error):
                raise
            failure = error
            self._fail(error)
        if self._blocked:
            failure = BrokerBlocked()
        receipts = [self._receipt(task, refusals, written, failure) for task in tasks]
        self._record(receipts, failure if self._blocked else None)
        return receipts

    def _record(self, receipts: Sequence[Receipt], refusal: Exception | None) -> None:
        """Take note of refused queues, which are logged once."""
        refused: dict[str, Exception] = {}
        for receipt in receipts:
            if isinstance(receipt, NotSent) and isinstance(receipt.error, QueueRefused):
                refused[receipt.task.queue] = receipt.error
        accepted = {receipt.task.queue for receipt in receipts if isinstance(receipt, Sent)}
        self._connection.record(accepted, refused, refusal or next(iter(refused.values()), None))

    def _receipt(self, task: Task, refusals: dict[str, Receipt], written: set[str], failure: Exception) -> Receipt:
        message_id = task.message_id
        if message_id in refusals:
            return refusals[message_id]
        if message_id in self._confirms:
            error = self._confirms.pop(message_id)
            return Sent(task) if error is None else NotSent(task, error)
        if message_id in written or message_id in self._unconfirmed:
            return Unsure(task, failure)
        return NotSent(task, failure)

    # — writing —

    def _open(self, timeout: float) -> None:
        channel, is_new = self._connection.open(timeout)
        if not is_new and not self._is_alive():
            self._connection.drop()
            channel, is_new = self._connection.open(timeout)
        if is_new:
            self._reset()
            self._channel = channel
            self._frames = FrameWriter(channel)
            self._open_builder()
            channel.events["basic_ack"].add(self._on_ack)
            channel.events["basic_nack"].add(self._on_nack)
            channel.events["basic_return"].add(self._on_return)
            channel.confirm_select()

    def _open_builder(self) -> None:
        """Give the builder its own channel: RabbitMQ closes a channel whose declaration it refuses."""
        channel = self._channel.connection.channel()
        self._builder = MessageBuilder(self._app, channel, priority_of=lambda urgency: urgency)

    def _is_alive(self) -> bool:
        """Return whether the connection is open, and no confirm is overdue."""
        try:
            self._read_pending()
        except Exception as error:
            if not self._connection.is_broker_error(error):
                raise
            return False
        is_late = time.monotonic() - self._last_confirm >= CONFIRM_TIMEOUT
        return not self._unconfirmed or self._blocked or not is_late

    def _read_pending(self) -> None:
        """Read what RabbitMQ has sent: late confirms, and whether it is blocked."""
        try:
            while True:
                self._channel.connection.drain_events(timeout=0)
        except TimeoutError:
            pass  # all is read

    def _write(self, tasks: Sequence[Task], written: set[str], refusals: dict[str, Receipt], until: float) -> None:
        """Write all tasks except those written by an earlier call. Give each refused task a receipt."""
        refused_queues: dict[Any, QueueRefused] = {}
        write = Write()
        for task in tasks:
            task_id = task.message_id
            if task_id in self._unconfirmed or task_id in self._confirms:
                continue
            if not write.frames and not self._send(until):
                return
            queue: Any = task.queue
            try:
                message = self._message_factory(task)
                queue = message.options.get("queue")
                if queue in refused_queues:
                    refusals[task_id] = NotSent(task, refused_queues[queue])
                    continue
                write.add(task_id, self._encode(message, task_id))
            except ChannelError as error:
                if self._channel.connection is None:  # RabbitMQ has closed the publishing channel
                    raise
                refused_queues[queue] = QueueRefused.from_reply(error, str(queue))
                refusals[task_id] = NotSent(task, refused_queues[queue])
                self._open_builder()
            except Exception as error:
                if self._connection.is_broker_error(error):
                    raise
                refusals[task_id] = self._unsendable.receipt(task, error)
            if write.size >= WRITE_SIZE:
                self._begin(write, written)
                write = Write()
        if write.frames and self._send(until):
            self._begin(write, written)
        self._send(until)

    def _encode(self, message: TaskMessage, task_id: str) -> list[bytes]:
        """Return the frames of each message: the task's, and the "task-sent" event's if the app sends such events."""
        template = self._builder.template(message, self._frames.compile)
        if template is not None and template.compiled is not None:
            try:
                body = fill_body(template, message)
                return [template.compiled.fill(task_id, message.argsrepr, body, message.signature or "")]
            except UnicodeEncodeError:
                pass
        built = self._builder.build(message, task_id)
        return [self._frames.frames(published, mandatory=number == 0) for number, published in enumerate(built)]

    def _begin(self, write: Write, written: set[str]) -> None:
        """Take these bytes as the next to send. From now on RabbitMQ may have the messages."""
        if not self._unconfirmed:
            self._last_confirm = time.monotonic()
        for task_id, messages in write.ids:
            self._id_of_tag[self._messages_written + 1] = task_id
            self._unconfirmed[task_id] = self._messages_written + 1
            self._messages_written += messages
            written.add(task_id)
        self._unsent = memoryview(b"".join(write.frames))

    def _send(self, until: float) -> bool:
        """Send the bytes that are left. Return whether all are sent and more may be sent."""
        transport = self._channel.connection.transport
        while self._unsent and not self._blocked and (seconds_left := until - time.monotonic()) > 0:
            try:
                with transport.having_timeout(seconds_left) as sock:
                    sent = sock.send(self._unsent[:WRITE_SIZE])
            except TimeoutError:
                return False
            self._unsent = self._unsent[sent:]
            self._read_pending()
        return not self._unsent and not self._blocked and time.monotonic() < until

    # — confirms —

    def _wait_for_confirms(self, ids: set[str], until: float) -> None:
        while not self._unconfirmed.keys().isdisjoint(ids):
            try:
                self._channel.connection.drain_events(timeout=max(0.0, until - time.monotonic()))
            except TimeoutError:
                return

    def _on_ack(self, tag: int, multiple: bool) -> None:
        self._confirm(tag, multiple, None)

    def _on_nack(self, tag: int, multiple: bool) -> None:
        self._confirm(tag, multiple, MessageNacked())

    def _on_return(self, error: Exception, exchange: str, routing_key: str, message: Any) -> None:
        """Take note of a message that reached no queue. Its confirm follows."""
        self._returned[message.properties["correlation_id"]] = error
        self._builder.reset()  # the queue was deleted after it was declared

    def _confirm(self, tag: int, multiple: bool, error: Exception | None) -> None:
        self._last_confirm = time.monotonic()
        while multiple and (first := next(iter(self._id_of_tag), tag)) < tag:
            self._confirm_one(first, error)
        self._confirm_one(tag, error)

    def _confirm_one(self, tag: int, error: Exception | None) -> None:
        message_id = self._id_of_tag.pop(tag, None)
        if message_id is not None and self._unconfirmed.get(message_id) == tag:
            del self._unconfirmed[message_id]
            self._confirms[message_id] = self._returned.pop(message_id, error)

    # — the connection —

    def _on_blocked(self, _: str) -> None:
        self._blocked = True

    def _on_unblocked(self) -> None:
        self._blocked = False

    def _fail(self, error: Exception) -> None:
        """Drop the connection. Its missing confirms will not arrive."""
        self._connection.fail(error)
        self._blocked = False
        self._unconfirmed.clear()
        self._id_of_tag.clear()

    def _reset(self) -> None:
        """Reset the state for a new connection."""
        self._blocked = False
        self._unsent = memoryview(b"")
        """The rest of a write of which RabbitMQ has read only a part."""

        self._messages_written: int = 0
        self._last_confirm = 0.0
        """When the last confirm came, or the first unconfirmed message was written, on the monotonic clock."""

        self._id_of_tag: dict[int, str] = {}
        """The task ids of the missing confirms, by delivery tag."""

        self._unconfirmed: dict[str, int] = {}
        """The delivery tags of the missing confirms, by task id."""

        self._confirms: dict[str, Exception | None] = {}
        """The errors of the confirms that have arrived, by task id, until a receipt is made; None is an ack."""

        self._returned: dict[str, Exception] = {}
        """The errors of messages that reached no queue, by task id, until their confirms arrive."""


def socket_settings(app: Celery) -> dict[int, int]:
    """Return the app's socket settings without py-amqp's TCP_USER_TIMEOUT: with it Linux closes a connection whose
    data is unread for a second, and an alarm of RabbitMQ lasts longer."""
    settings = {socket.TCP_USER_TIMEOUT: 0} if sys.platform == "linux" else {}
    return {**settings, **app.conf.broker_transport_options.get("socket_settings", {})}
