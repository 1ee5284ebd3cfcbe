"""RabbitMQ: a batch is written, then all of its confirms are waited for.

    tasks ─► blanks, filled in ─► frames, frames, … ─► socket ─► RabbitMQ
    receipts ◄──────────── ack, nack, return ◄─────────────────────┘

py-amqp opens the connection, declares, and reads; the frames of many messages are written at once. What was written and
not confirmed in time is `Unsure`, and not written again as long as its connection lives: RabbitMQ reads it when it
reads again (after an alarm, for one), and its confirm is then the answer. Of a piece that it took in part, the rest is
kept and goes first the next time.
"""

from __future__ import annotations

import socket
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from amqp.exceptions import MessageNacked, PreconditionFailed
from celery import Celery

from celeriac.broker.amqp_frames import FrameWriter
from celeriac.broker.connection import UNSENDABLE, BrokerConnection
from celeriac.broker.message import MessageBuilder, filled_body
from celeriac.broker.task_message import MessageFactory, TaskMessage, task_message
from celeriac.errors import BrokerBlocked, QueueRefused
from celeriac.executor.interfaces import NotSent, Receipt, Sent, Unsure
from celeriac.task.task import Task

CHUNK = 1_000  # messages written before their confirms are waited for
PIECE = 64 * 1024  # bytes written before a look whether RabbitMQ still wants more
PATIENCE = 60.0  # seconds that a connection may owe a confirm without being blocked; then it is given up


@dataclass(slots=True)
class Piece:
    """Messages that are written together."""

    frames: list[bytes] = field(default_factory=list)
    size: int = 0
    ids: list[tuple[str, int]] = field(default_factory=list)
    """Of each task, and how many messages it takes: one, and the event that it was sent, if that is wanted."""

    def add(self, task_id: str, messages: list[bytes]) -> None:
        self.frames += messages
        self.size += sum(map(len, messages))
        self.ids.append((task_id, len(messages)))


class AmqpPublisher:
    def __init__(self, app: Celery, *, message_factory: MessageFactory = task_message) -> None:
        self._app, self._message_factory = app, message_factory
        self._connection = BrokerConnection(
            app,
            confirm_publish=False,  # which would wait for each
            heartbeat=0,  # nobody would answer between two batches
            on_blocked=self._on_blocked,
            on_unblocked=self._on_unblocked,
            socket_settings=socket_settings(app),
        )
        self._builder: MessageBuilder
        self._frames: FrameWriter
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
            self._write(tasks, written, answers, until)
            self._wait_for_confirms(written | {task.message_id for task in tasks} & self._owed.keys(), until)
        except self._connection.away as error:
            failed = error
            self._lost(error)
        if self._blocked:
            failed = BrokerBlocked()
        return [self._receipt(task, answers, written, failed) for task in tasks]

    def _receipt(self, task: Task, answers: dict[str, Receipt], written: set[str], failed: Exception) -> Receipt:
        message_id = task.message_id
        if message_id in answers:
            return answers[message_id]
        if message_id in self._answered:
            error = self._answered.pop(message_id)
            return Sent(task) if error is None else NotSent(task, error)
        if message_id in written or message_id in self._owed:
            return Unsure(task, failed)
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
            self._frames = FrameWriter(channel)
            self._new_builder()
            channel.events["basic_ack"].add(self._on_ack)
            channel.events["basic_nack"].add(self._on_nack)
            channel.events["basic_return"].add(self._on_return)
            channel.confirm_select()

    def _new_builder(self) -> None:
        """It declares on a channel of its own, which RabbitMQ closes over a queue of another kind."""
        self._builder = MessageBuilder(self._app, self._channel.connection.channel(), priority_of=lambda level: level)

    def _is_alive(self) -> bool:
        """Whether the broker has not hung up since, and confirms what it was sent."""
        try:
            self._hear()
        except self._connection.away:
            return False
        return not self._owed or self._blocked or time.monotonic() - self._heard < PATIENCE

    def _hear(self) -> None:
        """What RabbitMQ has said: late confirms, and whether it is blocked."""
        try:
            while True:
                self._channel.connection.drain_events(timeout=0)
        except TimeoutError:
            pass  # nothing more to hear

    def _write(self, tasks: Sequence[Task], written: set[str], answers: dict[str, Receipt], until: float) -> None:
        """All tasks but those that were written and are owed an answer; those that were refused get one."""
        refused: dict[Any, QueueRefused] = {}
        piece = Piece()
        for task in tasks:
            task_id = task.message_id
            if task_id in self._owed or task_id in self._answered:
                continue
            if not piece.frames and not self._send(until):
                return
            call = self._message_factory(task)
            queue = call.options.get("queue")
            if queue in refused:
                answers[task_id] = NotSent(task, refused[queue])
                continue
            try:
                piece.add(task_id, self._messages(call, task_id))
            except PreconditionFailed as error:
                if self._channel.connection is None:  # it is this channel that was closed
                    raise
                refused[queue] = QueueRefused(str(queue), error.reply_text)
                answers[task_id] = NotSent(task, refused[queue])
                self._new_builder()
            except self._connection.away:
                raise
            except (*UNSENDABLE, struct.error) as error:
                answers[task_id] = NotSent(task, error, transient=False)
            if piece.size >= PIECE:
                self._hand_over(piece, written)
                piece = Piece()
        if piece.frames and self._send(until):
            self._hand_over(piece, written)
        self._send(until)

    def _messages(self, call: TaskMessage, task_id: str) -> list[bytes]:
        blank = self._builder.template(call, self._frames.form)
        if blank is not None and blank.form is not None:
            try:
                return [blank.form.filled(task_id, call.argsrepr, filled_body(blank, call), call.signature or "")]
            except UnicodeEncodeError:
                pass
        built = self._builder.build(call, task_id)
        return [self._frames.frames(message, mandatory=number == 0) for number, message in enumerate(built)]

    def _hand_over(self, piece: Piece, written: set[str]) -> None:
        """From here on it may be with RabbitMQ."""
        if not self._owed:
            self._heard = time.monotonic()
        for task_id, messages in piece.ids:
            self._tags[self._written + 1] = task_id
            self._owed[task_id] = self._written + 1
            self._written += messages
            written.add(task_id)
        self._unsent = memoryview(b"".join(piece.frames))

    def _send(self, until: float) -> bool:
        """Send what is unsent. Answers whether RabbitMQ has taken it, and may be given more."""
        transport = self._channel.connection.transport
        while self._unsent and not self._blocked and (left := until - time.monotonic()) > 0:
            try:
                with transport.having_timeout(left) as sock:
                    sent = sock.send(self._unsent[:PIECE])
            except TimeoutError:
                return False
            self._unsent = self._unsent[sent:]
            self._hear()
        return not self._unsent and not self._blocked and time.monotonic() < until

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
        self._blocked = False
        self._owed.clear()
        self._tags.clear()

    def _forget_connection(self) -> None:
        self._blocked = False
        self._unsent = memoryview(b"")
        """What is left of a piece that RabbitMQ has not taken whole."""

        self._written: int = 0
        self._heard = 0.0
        """When a confirm last came, or the first of those owed was written."""

        self._tags: dict[int, str] = {}
        """Which task each confirm is about."""

        self._owed: dict[str, int] = {}
        """Tasks that wait for a confirm, and the tag it will bear."""

        self._answered: dict[str, Exception | None] = {}
        """Confirms that have come, until they are told."""

        self._returned: dict[str, Exception] = {}


def socket_settings(app: Celery) -> dict[int, int]:
    """py-amqp has Linux cut a connection whose data lies unread for a second: any alarm takes longer."""
    settings = {socket.TCP_USER_TIMEOUT: 0} if sys.platform == "linux" else {}
    return {**settings, **app.conf.broker_transport_options.get("socket_settings", {})}
