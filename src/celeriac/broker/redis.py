"""Publish to Redis and Valkey: a batch in a few large writes.

    tasks ─► template, filled in ─► LPUSH key message message … ─┐
         └─► Celery and Kombu, one by one ─► their commands ─────┴─► one write for 500 messages ─► replies ─► receipts

Kombu decides to which list a message goes and what is stored there; see `message`. While the server works on one batch,
the next one is built. The first batch is written after the server has answered a PING, each later batch after the
server has answered the previous one. So an outage that is found before a write gives `NotSent`, and only an outage that
begins after the write gives `Unsure`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import msgspec
from celery import Celery
from kombu.utils.json import dumps

from celeriac.broker.connection import BrokerConnection
from celeriac.broker.message import (
    ARGSREPR_PLACEHOLDER,
    ID_PLACEHOLDER,
    SIGNATURE_PLACEHOLDER,
    MessageBuilder,
    MessageTemplate,
    Published,
    UnsendableMessages,
    fill_body,
)
from celeriac.broker.task_message import MAX_URGENCY, MessageFactory, TaskMessage, task_message
from celeriac.broker.template import Template
from celeriac.executor.interfaces import NotSent, Receipt, Sent, Unsure
from celeriac.server_errors import ServerProblem
from celeriac.task.task import Task, TaskKey

encode = msgspec.json.encode

BATCH_SIZE = 500  # messages that are written before their replies are read
WRITE_SIZE = 256 * 1024  # bytes in one call of the socket; each call may take the whole timeout


@dataclass(slots=True)
class Command:
    """One command for Redis, and the tasks whose messages are at the broker after the command."""

    tasks: list[Task] = field(default_factory=list)
    head: bytes = b""
    """For an LPUSH: the command and its key. `encoded` puts the number of arguments before them."""

    arguments: list[bytes] = field(default_factory=list)

    def encoded(self) -> list[bytes]:
        """Return the bytes of the command, in pieces."""
        return [b"*%d\r\n" % (2 + len(self.tasks)), self.head, *self.arguments] if self.head else self.arguments


@dataclass(slots=True)
class Batch:
    """Tasks whose messages are written together."""

    tasks: Sequence[Task]
    commands: list[Command] = field(default_factory=list)
    pushes: dict[bytes, Command] = field(default_factory=dict)
    """By head, the LPUSH that takes the next message for its list."""

    tag: bytes = field(default_factory=lambda: str(uuid4())[:24].encode())
    """The beginning of the delivery tags of its messages: they are UUIDs that end in a number."""

    written: bool = False
    failure: Exception | None = None
    """The reason why the batch was not written, or not answered in full."""

    refused: dict[str, Exception] = field(default_factory=dict)
    """The queues of which a message was refused, each with the reply."""

    receipts: dict[TaskKey, Receipt] = field(default_factory=dict)
    """The receipts by key. `failure` decides about the tasks without one."""

    def push(self, head: bytes, message: bytes, task: Task) -> None:
        """Add a message to a list. `message` ends in a line break that does not belong to it."""
        command = self.pushes.get(head)
        if command is None:
            command = self.pushes[head] = Command(head=head)
            self.commands.append(command)
        command.arguments += b"$%d\r\n" % (len(message) - 2), message
        command.tasks.append(task)

    def add(self, commands: list[list[bytes]], task: Task) -> None:
        """Add the commands of a message that Kombu has built. Later messages are pushed after it, so that each list
        keeps its order."""
        self.pushes.clear()
        self.commands += [Command(arguments=arguments) for arguments in commands]
        self.commands[-1].tasks.append(task)

    def refuse(self, task: Task, error: Exception) -> None:
        """Take note that Redis has refused the message of a task."""
        self.refused[task.queue] = error
        self.receipts[task.key] = NotSent(task, error)

    def receipt(self, task: Task) -> Receipt:
        receipt = self.receipts.get(task.key)
        if receipt is not None:
            return receipt
        failure = self.failure or RuntimeError("Redis sent no reply for this message")
        return Unsure(task, failure) if self.written else NotSent(task, failure)


@dataclass(slots=True)
class RedisTemplate:
    """An LPUSH of a message, with gaps for the id, the argsrepr, the delivery tag, the body and the signature."""

    head: bytes
    template: Template

    def fill(self, template: MessageTemplate, message: TaskMessage, task_id: str, tag: bytes) -> bytes:
        """Return the message. Raise `UnicodeEncodeError` for text with lone surrogates."""
        body = encode(fill_body(template, message))  # bytes become base64, in two thirds of the time of `binascii`
        values = encode(task_id), encode(message.argsrepr), tag, body, encode(message.signature)
        return self.template.fill(values)


class RedisPublisher:
    """A `Publisher` that writes commands to its own connection, and reads the replies."""

    def __init__(self, app: Celery, *, message_factory: MessageFactory = task_message) -> None:
        self._app, self._message_factory = app, message_factory
        self._connection = BrokerConnection(app)
        self._builder: MessageBuilder
        self._channel: Any = None
        self._kombu_client: Any = None
        self._client: Any = None
        """A client with a single connection, which is written to and read from here."""

        self._unread = False
        """Whether replies have not been read yet."""

        self._unsendable = UnsendableMessages()

    def publish(self, tasks: Sequence[Task], *, timeout: float) -> Iterator[Receipt]:
        until = time.monotonic() + timeout
        if self._unread:
            self._drop()
        previous: Batch | None = None
        for start in range(0, len(tasks), BATCH_SIZE):
            batch = Batch(tasks[start : start + BATCH_SIZE])
            self._build(batch, previous, timeout)
            if previous is not None:
                yield from self._receipts(previous)
                batch.failure = batch.failure or previous.failure
            if batch.failure is None and time.monotonic() >= until:
                batch.failure = TimeoutError(f"the broker took more than {timeout:g} s")
            self._write(batch)
            previous = batch
        if previous is not None:
            yield from self._receipts(previous)

    def close(self) -> None:
        self._connection.close()

    def _open(self, timeout: float) -> None:
        """Open a connection if there is none. Check that it answers, unless replies are still due on it."""
        self._channel, is_new = self._connection.open(timeout)
        if is_new:
            self._builder = MessageBuilder(self._app, self._channel, priority_of=lambda urgency: MAX_URGENCY - urgency)
            with self._channel.conn_or_acquire() as client:  # Kombu makes a client for every message, all on one pool
                self._kombu_client = client
            self._client = client.client()
        elif not self._unread:
            self._client.connection.send_command("PING")
            self._client.connection.read_response()

    def _drop(self) -> None:
        self._connection.drop()
        self._unread = False

    def _fail(self, batch: Batch, error: Exception) -> None:
        """Drop the connection: the rest of a batch cannot be written, or its replies cannot be read."""
        if not self._connection.is_broker_error(error):
            raise error
        self._connection.fail(error)
        self._unread = False
        batch.failure = error

    # — building —

    def _build(self, batch: Batch, previous: Batch | None, timeout: float) -> None:
        try:
            self._open(timeout)
            for number, task in enumerate(batch.tasks):
                if task.queue in batch.refused:
                    batch.refuse(task, batch.refused[task.queue])
                    continue
                try:
                    self._add(batch, number, task)
                except Exception as error:
                    match self._connection.problem_of(error):
                        case ServerProblem.UNREACHABLE:
                            raise
                        case None:
                            batch.receipts[task.key] = self._unsendable.receipt(task, error)
                        case _:  # the queue cannot be declared
                            batch.refuse(task, error)
        except Exception as error:  # noqa: BLE001 - `_fail` raises what is not the broker's
            if previous is not None:
                self._read(previous)
            self._fail(batch, error)

    def _add(self, batch: Batch, number: int, task: Task) -> None:
        message = self._message_factory(task)
        template = self._builder.template(message, self._compile)
        if template is not None and template.compiled is not None:
            compiled: RedisTemplate = template.compiled
            try:
                filled = compiled.fill(template, message, task.message_id, b'"%b%012x"' % (batch.tag, number))
            except UnicodeEncodeError:
                pass
            else:
                batch.push(compiled.head, filled, task)
                return
        pack = self._client.connection.pack_command
        built = self._builder.build(message, task.message_id)
        batch.add([pack(*command) for published in built for command in self._commands(published)], task)

    def _commands(self, published: Published) -> list[list[Any]]:
        """Return the commands by which Kombu publishes a message."""
        channel, recorder = self._channel, CommandRecorder(self._channel)
        channel.conn_or_acquire = recorder.conn_or_acquire
        try:
            channel.basic_publish(published.message, exchange=published.exchange, routing_key=published.routing_key)
        finally:
            del channel.conn_or_acquire
        with self._kombu_client.pipeline(transaction=False) as pipeline:  # it adds the key prefix, if there is one
            for command in recorder.commands:
                pipeline.execute_command(*command)
            return [list(command) for command, _ in pipeline.command_stack]

    def _compile(self, template: MessageTemplate) -> RedisTemplate | None:
        published = template.published
        properties = published.message["properties"]
        match self._commands(published):
            case [["LPUSH", key, text]] if properties["body_encoding"] == "base64":
                placeholders = (
                    ID_PLACEHOLDER,
                    ARGSREPR_PLACEHOLDER,
                    properties["delivery_tag"],
                    published.message["body"],
                    SIGNATURE_PLACEHOLDER,
                )
                head = b"".join(self._client.connection.pack_command("LPUSH", key)).removeprefix(b"*2\r\n")
                encoded = [dumps(placeholder).encode() for placeholder in placeholders]
                return RedisTemplate(head, Template.parse(f"{text}\r\n".encode(), encoded))
        return None

    # — writing and reading —

    def _write(self, batch: Batch) -> None:
        if batch.failure is not None or not batch.commands:
            return
        self._unread = batch.written = True
        pieces = (piece for command in batch.commands for piece in command.encoded())
        try:
            self._client.connection.send_packed_command(joined(pieces))
        except Exception as error:  # noqa: BLE001 - `_fail` raises what is not the broker's
            self._fail(batch, error)

    def _read(self, batch: Batch) -> None:
        """Read the replies, unless they were read before."""
        accepted: set[str] = set()
        try:
            while batch.commands and batch.written and batch.failure is None:
                error_reply = self._read_reply()
                for task in batch.commands.pop(0).tasks:
                    if error_reply is None:
                        accepted.add(task.queue)
                        batch.receipts[task.key] = Sent(task)
                    else:
                        batch.refuse(task, error_reply)
        except Exception as error:  # noqa: BLE001 - `_fail` raises what is not the broker's
            self._fail(batch, error)
        self._connection.record(accepted, batch.refused.keys(), next(iter(batch.refused.values()), None))
        self._unread = False

    def _read_reply(self) -> Exception | None:
        """Return the error if Redis has refused a command; None if Redis has executed it."""
        refusal: Exception | None = None
        try:
            self._client.connection.read_response()
        except self._channel.ResponseError as error:  # the class comes from Kombu: redis-py need not be installed
            refusal = error
        return refusal

    def _receipts(self, batch: Batch) -> list[Receipt]:
        self._read(batch)
        return [batch.receipt(task) for task in batch.tasks]


@dataclass(slots=True)
class CommandRecorder:
    """Takes the place of a Redis client: it reads from the server, and records the commands that write."""

    channel: Any
    commands: list[list[Any]] = field(default_factory=list)
    _client: Any = None

    @contextmanager
    def conn_or_acquire(self, client: Any = None) -> Iterator[Any]:
        with type(self.channel).conn_or_acquire(self.channel, client) as self._client:
            yield self

    def lpush(self, *arguments: Any) -> None:
        self.commands.append(["LPUSH", *arguments])

    def pexpire(self, *arguments: Any) -> None:
        self.commands.append(["PEXPIRE", *arguments])

    def publish(self, *arguments: Any) -> None:
        self.commands.append(["PUBLISH", *arguments])

    @contextmanager
    def pipeline(self) -> Iterator[Any]:
        yield self

    def execute(self) -> None:
        """Do nothing: the commands are written later, with all the others."""

    def smembers(self, key: str) -> Any:
        return self._client.smembers(key)


def joined(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the same bytes in pieces of about `WRITE_SIZE`."""
    pending: list[bytes] = []
    size = 0
    for piece in pieces:
        pending.append(piece)
        size += len(piece)
        if size >= WRITE_SIZE:
            yield b"".join(pending)
            pending, size = [], 0
    yield b"".join(pending)
