"""Redis and Valkey: a batch in a few large writes.

    tasks ─► blanks, filled in ─► LPUSH key message message … ─┐
         └─► Celery and Kombu, one by one ─► their commands ───┴─► one write for 500 messages ─► replies ─► receipts

Kombu says which list a message goes to and what stands in it; see `message`. While the server works on one batch the
next is built. The first is written when the server has said that it listens, each other when the one before it was
answered. So what finds it away is `NotSent`, and only what breaks after a write is `Unsure`.
"""

from __future__ import annotations

import time
from binascii import b2a_base64
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import msgspec
from celery import Celery
from kombu.utils.json import dumps
from redis.exceptions import ResponseError

from celeriac.broker.connection import UNSENDABLE, BrokerConnection
from celeriac.broker.message import (
    MARK_ID,
    MARK_REPR,
    MARK_SIGNATURE,
    MessageBuilder,
    MessageTemplate,
    Published,
    filled_body,
)
from celeriac.broker.task_message import MAX_URGENCY, MessageFactory, TaskMessage, task_message
from celeriac.broker.template import Template
from celeriac.executor.interfaces import NotSent, Receipt, Sent, Unsure
from celeriac.task.task import Task

encode = msgspec.json.encode

CHUNK = 500  # messages that are written before their replies are waited for
PIECE = 256 * 1024  # bytes handed to the socket at once; each piece has the whole timeout


@dataclass(slots=True)
class Command:
    """What is written for one command, and the tasks that are with the broker once it has been carried out."""

    tasks: list[Task] = field(default_factory=list)
    head: bytes = b""
    """Of a push: the command and its key. How many words follow is put before it when it is written."""

    words: list[bytes] = field(default_factory=list)

    def wire(self) -> list[bytes]:
        return [b"*%d\r\n" % (2 + len(self.tasks)), self.head, *self.words] if self.head else self.words


@dataclass(slots=True)
class Batch:
    tasks: Sequence[Task]
    commands: list[Command] = field(default_factory=list)
    pushes: dict[bytes, Command] = field(default_factory=dict)
    """The push to which the next message for a list can be added."""

    tag: bytes = field(default_factory=lambda: str(uuid4())[:24].encode())
    """How the delivery tags of its messages begin: they are UUIDs that end in a number."""

    written: bool = False
    failed: Exception | None = None
    """Why it was not written, or not answered in full."""

    receipts: dict[str, Receipt] = field(default_factory=dict)
    """Of the tasks for which `failed` is not the answer."""

    def push(self, head: bytes, message: bytes, task: Task) -> None:
        """`message` ends in a line break that is not part of it."""
        command = self.pushes.get(head)
        if command is None:
            command = self.pushes[head] = Command(head=head)
            self.commands.append(command)
        command.words += b"$%d\r\n" % (len(message) - 2), message
        command.tasks.append(task)

    def add(self, commands: list[list[bytes]], task: Task) -> None:
        """What comes later is carried out later."""
        self.pushes.clear()
        self.commands += [Command(words=words) for words in commands]
        self.commands[-1].tasks.append(task)

    def without_receipt(self, task: Task) -> Receipt:
        failed = self.failed or RuntimeError("nobody answered for it")
        return Unsure(task, failed) if self.written else NotSent(task, failed)


@dataclass(slots=True)
class RedisTemplate:
    """A message as it is stored, with holes for the id, the arguments in words, the delivery tag, the body and a
    signature."""

    head: bytes
    form: Template


class RedisPublisher:
    def __init__(self, app: Celery, *, message_factory: MessageFactory = task_message) -> None:
        self._app, self._message_factory = app, message_factory
        self._connection = BrokerConnection(app)
        self._builder: MessageBuilder
        self._channel: Any = None
        self._client: Any = None
        self._own: Any = None
        """A client with one connection, which is written to and read from here."""

        self._unread = False
        """Whether replies are awaited."""

    def publish(self, tasks: Sequence[Task], *, timeout: float) -> Iterator[Receipt]:
        until = time.monotonic() + timeout
        if self._unread:
            self._drop()
        before: Batch | None = None
        for first in range(0, len(tasks), CHUNK):
            batch = Batch(tasks[first : first + CHUNK])
            self._build(batch, before, timeout)
            if before is not None:
                yield from self._answers(before)
                batch.failed = batch.failed or before.failed
            if batch.failed is None and time.monotonic() >= until:
                batch.failed = TimeoutError(f"the broker took more than {timeout:g} s")
            self._write(batch)
            before = batch
        if before is not None:
            yield from self._answers(before)

    def close(self) -> None:
        self._connection.close()

    def _open(self, timeout: float) -> None:
        """A connection that answers, or owes an answer."""
        self._channel, is_new = self._connection.open(timeout)
        if is_new:
            self._builder = MessageBuilder(self._app, self._channel, priority_of=lambda level: MAX_URGENCY - level)
            with self._channel.conn_or_acquire() as client:  # Kombu makes one for every message, all on one pool
                self._client = client
            self._own = client.client()
        elif not self._unread:
            self._own.connection.send_command("PING")
            self._own.connection.read_response()

    def _drop(self) -> None:
        self._connection.drop()
        self._unread = False

    def _lost(self, error: Exception) -> None:
        self._connection.lost(error)
        self._unread = False

    # — building —

    def _build(self, batch: Batch, before: Batch | None, timeout: float) -> None:
        try:
            self._open(timeout)
            for number, task in enumerate(batch.tasks):
                try:
                    self._add(batch, number, task)
                except self._connection.away:
                    raise
                except UNSENDABLE as error:
                    batch.receipts[task.message_id] = NotSent(task, error, transient=False)
        except self._connection.away as error:
            if before is not None:
                self._read(before)
            self._lost(error)
            batch.failed = error

    def _add(self, batch: Batch, number: int, task: Task) -> None:
        call = self._message_factory(task)
        blank = self._builder.template(call, self._form)
        if blank is not None and blank.form is not None:
            try:
                message = fill(blank, call, task.message_id, b'"%b%012x"' % (batch.tag, number))
            except UnicodeEncodeError:
                pass
            else:
                batch.push(blank.form.head, message, task)
                return
        published = self._builder.build(call, task.message_id)
        pack = self._own.connection.pack_command
        batch.add([pack(*words) for one in published for words in self._commands(one)], task)

    def _commands(self, published: Published) -> list[list[Any]]:
        """What Kombu does to the server to publish this."""
        channel, recorder = self._channel, Recorder(self._channel)
        channel.conn_or_acquire = recorder.conn_or_acquire
        try:
            channel.basic_publish(published.message, exchange=published.exchange, routing_key=published.routing_key)
        finally:
            del channel.conn_or_acquire
        with self._client.pipeline(transaction=False) as pipeline:  # whose keys may bear a prefix
            for words in recorder.commands:
                pipeline.execute_command(*words)
            return [list(words) for words, _ in pipeline.command_stack]

    def _form(self, blank: MessageTemplate) -> RedisTemplate | None:
        published = blank.published
        properties = published.message["properties"]
        match self._commands(published):
            case [["LPUSH", key, text]] if properties["body_encoding"] == "base64":
                values = MARK_ID, MARK_REPR, properties["delivery_tag"], published.message["body"], MARK_SIGNATURE
                head = b"".join(self._own.connection.pack_command("LPUSH", key)).removeprefix(b"*2\r\n")
                return RedisTemplate(
                    head, Template.cut(f"{text}\r\n".encode(), [dumps(value).encode() for value in values])
                )
        return None

    # — with the server —

    def _write(self, batch: Batch) -> None:
        if batch.failed is not None or not batch.commands:
            return
        self._unread = batch.written = True
        words = (word for command in batch.commands for word in command.wire())
        try:
            self._own.connection.send_packed_command(joined(words))
        except self._connection.away as error:
            self._lost(error)
            batch.failed = error

    def _read(self, batch: Batch) -> None:
        """The replies; once."""
        try:
            while batch.commands and batch.written and batch.failed is None:
                reply = self._reply()
                for task in batch.commands.pop(0).tasks:
                    batch.receipts[task.message_id] = Sent(task) if reply is None else NotSent(task, reply)
        except self._connection.away as error:
            self._lost(error)
            batch.failed = error
        self._unread = False

    def _reply(self) -> Exception | None:
        """What Redis said against the command."""
        refused: Exception | None = None
        try:
            self._own.connection.read_response()
        except ResponseError as error:
            refused = error
        return refused

    def _answers(self, batch: Batch) -> list[Receipt]:
        self._read(batch)
        return [batch.receipts.get(task.message_id) or batch.without_receipt(task) for task in batch.tasks]


@dataclass(slots=True)
class Recorder:
    """A client of Redis that reads for real, and writes down what it is told to write."""

    channel: Any
    commands: list[list[Any]] = field(default_factory=list)

    @contextmanager
    def conn_or_acquire(self, client: Any = None) -> Iterator[Any]:
        with type(self.channel).conn_or_acquire(self.channel, client) as self._real:
            yield self

    _real: Any = None

    def lpush(self, *words: Any) -> None:
        self.commands.append(["LPUSH", *words])

    def pexpire(self, *words: Any) -> None:
        self.commands.append(["PEXPIRE", *words])

    def publish(self, *words: Any) -> None:
        self.commands.append(["PUBLISH", *words])

    @contextmanager
    def pipeline(self) -> Iterator[Any]:
        yield self

    def execute(self) -> None:
        """Later, with all the others."""

    def smembers(self, key: str) -> Any:
        return self._real.smembers(key)


def fill(blank: MessageTemplate, call: TaskMessage, task_id: str, tag: bytes) -> bytes:
    """Raises `UnicodeEncodeError` for text that is not Unicode."""
    body = b2a_base64(filled_body(blank, call), newline=False)
    values = encode(task_id), encode(call.argsrepr), tag, b'"%b"' % body, encode(call.signature)
    filled: bytes = blank.form.form.filled(values)
    return filled


def joined(words: Iterable[bytes]) -> Iterator[bytes]:
    """The same in pieces as large as they may be."""
    piece: list[bytes] = []
    size = 0
    for word in words:
        piece.append(word)
        size += len(word)
        if size >= PIECE:
            yield b"".join(piece)
            piece, size = [], 0
    yield b"".join(piece)
