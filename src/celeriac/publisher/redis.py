"""Redis and Valkey: a batch in a few pipelined writes.

    tasks ─► blanks, filled in ─► LPUSH key message message … ─┐
         └─► Celery and Kombu, one by one ─► their commands ───┴─► one pipeline for 500 messages ─► receipts

Kombu says which list a message goes to and what stands in it; see `message`. Before a batch is written the server is
asked whether it listens. So what finds it away is `NotSent`, and only what breaks after a write is `Unsure`.
"""

from __future__ import annotations

import time
from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import msgspec
from celery import Celery
from kombu.utils.json import dumps

from celeriac.interfaces import NotSent, Receipt, Sent, Unsure
from celeriac.publisher.call import MOST_URGENT, Call, CallOf, call_of
from celeriac.publisher.connection import UNSENDABLE, BrokerConnection
from celeriac.publisher.message import MARK_ID, MARK_REPR, Blank, MessageBuilder, Published, filled_body
from celeriac.task import Task

CHUNK = 500  # messages in one pipeline


@dataclass(slots=True)
class Write:
    """One command, and the tasks that are with the broker once it has been carried out."""

    words: list[Any]
    tasks: list[Task]


@dataclass(slots=True)
class Filler:
    """The stored form of a message, cut where something is filled in."""

    key: str
    pieces: list[bytes]
    blanks: list[str]
    """What belongs between the pieces: "id", "words", "tag" or "body"."""


class RedisPublisher:
    def __init__(self, app: Celery, *, call_of: CallOf = call_of) -> None:
        self._app, self._call_of = app, call_of
        self._connection = BrokerConnection(app)
        self._builder: MessageBuilder
        self._channel: Any = None
        self._client: Any = None

    def publish(self, tasks: Sequence[Task], *, timeout: float) -> Iterator[Receipt]:
        until = time.monotonic() + timeout
        for first in range(0, len(tasks), CHUNK):
            chunk = tasks[first : first + CHUNK]
            if time.monotonic() >= until:
                error = TimeoutError(f"the broker took more than {timeout:g} s")
                yield from (NotSent(task, error) for task in chunk)
            else:
                yield from self._publish(chunk, timeout)

    def close(self) -> None:
        self._connection.close()

    def _publish(self, tasks: Sequence[Task], timeout: float) -> list[Receipt]:
        writes: list[Write] = []
        refused: dict[str, Receipt] = {}
        try:
            self._open(timeout)
            for task in tasks:
                try:
                    self._write(task, writes)
                except self._connection.away:
                    raise
                except UNSENDABLE as error:
                    refused[task.message_id] = NotSent(task, error, transient=False)
        except self._connection.away as error:
            self._connection.lost(error)
            return [NotSent(task, error) for task in tasks]
        answers = self._carry_out(writes) | refused
        return [answers[task.message_id] for task in tasks]

    def _open(self, timeout: float) -> None:
        """A connection that answers."""
        self._channel, is_new = self._connection.open(timeout)
        if is_new:
            self._builder = MessageBuilder(self._app, self._channel)
            with self._channel.conn_or_acquire() as client:  # Kombu makes one for every message, all on one pool
                self._client = client
        else:
            self._client.ping()

    def _write(self, task: Task, writes: list[Write]) -> None:
        call = self._call_of(task)
        if call.level is not None:
            call = call.at_priority(MOST_URGENT - call.level)  # Celery's Redis transport: 0 is the most urgent
        blank = self._builder.blank(call, self._filler)
        if blank is not None and blank.filler is not None:
            try:
                message = fill(blank, call, task.message_id)
            except UnicodeEncodeError:
                pass
            else:
                push(writes, blank.filler.key, message, task)
                return
        commands = [c for one in self._builder.build(call, task.message_id) for c in self._commands(one)]
        writes.extend(Write(words, []) for words in commands[:-1])
        writes.append(Write(commands[-1], [task]))

    def _commands(self, published: Published) -> list[list[Any]]:
        """What Kombu does to the server to publish this."""
        channel, recorder = self._channel, Recorder(self._channel)
        channel.conn_or_acquire = recorder.conn_or_acquire
        try:
            channel.basic_publish(published.message, exchange=published.exchange, routing_key=published.routing_key)
        finally:
            del channel.conn_or_acquire
        return recorder.commands

    def _filler(self, published: Published) -> Filler | None:
        """None if there is more to do for such a message than to push it onto one list."""
        match self._commands(published):
            case [["LPUSH", key, text]] if published.message["properties"]["body_encoding"] == "base64":
                marks = {
                    dumps(MARK_ID): "id",
                    dumps(MARK_REPR): "words",
                    dumps(published.message["properties"]["delivery_tag"]): "tag",
                    dumps(published.message["body"]): "body",
                }
                return Filler(key, *cut(text, marks))
        return None

    def _carry_out(self, writes: list[Write]) -> dict[str, Receipt]:
        try:
            with self._client.pipeline(transaction=False) as pipeline:
                for write in writes:
                    pipeline.execute_command(*write.words)
                replies = pipeline.execute(raise_on_error=False)
        except self._connection.away as error:
            self._connection.lost(error)
            return {task.message_id: Unsure(task, error) for write in writes for task in write.tasks}
        return {
            task.message_id: NotSent(task, reply) if isinstance(reply, Exception) else Sent(task)
            for write, reply in zip(writes, replies, strict=True)
            for task in write.tasks
        }


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


def push(writes: list[Write], key: str, message: bytes, task: Task) -> None:
    """Neighbours for one list become one command."""
    if writes and writes[-1].words[:2] == ["LPUSH", key]:
        writes[-1].words.append(message)
        writes[-1].tasks.append(task)
    else:
        writes.append(Write(["LPUSH", key, message], [task]))


def cut(text: str, marks: dict[str, str]) -> tuple[list[bytes], list[str]]:
    """The text around the marks, and which blank stands after each piece but the last."""
    pieces, blanks = [], []
    while found := [(at, mark) for mark in marks if (at := text.find(mark)) >= 0]:
        at, mark = min(found)
        pieces.append(text[:at].encode())
        blanks.append(marks[mark])
        text = text[at + len(mark) :]
    return [*pieces, text.encode()], blanks


def fill(blank: Blank, call: Call, task_id: str) -> bytes:
    """Raises `UnicodeEncodeError` for text that is not Unicode."""
    filler: Filler = blank.filler
    encode = msgspec.json.encode
    values = {
        "id": encode(task_id),
        "words": encode(call.argsrepr),
        "tag": b'"%s"' % str(uuid4()).encode(),
        "body": b'"%s"' % b64encode(filled_body(blank, call)),
    }
    text = [filler.pieces[0]]
    for name, piece in zip(filler.blanks, filler.pieces[1:], strict=True):
        text += values[name], piece
    return b"".join(text)
