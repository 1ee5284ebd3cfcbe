"""A proxy that reads the requests of clients, and answers some of them with an error in place of the server.

    client ─► request ─► rule: none        ─► server
                         rule: an action   ─► the action, then the server
                         rule: a refusal   ─► the refusal goes back; the server sees nothing of the request

Redis, PostgreSQL and RabbitMQ are understood as far as the clients of the tests speak to them. A request is one line of
bytes: the words of a Redis command, the text of an SQL statement, or the name and arguments of an AMQP method.
"""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import ClassVar, Protocol, Self

from tests.support.proxy import Proxy

EVERYTHING = rb""


@dataclass(frozen=True)
class RedisError:
    """An error reply."""

    text: str


@dataclass(frozen=True)
class SqlError:
    """An error of PostgreSQL. With `closes` it ends the session."""

    state: str
    text: str
    closes: bool = False


@dataclass(frozen=True)
class AmqpError:
    """The close of a channel, or with `closes` of the connection."""

    code: int
    text: str
    closes: bool = False


Refusal = RedisError | SqlError | AmqpError


class Side(Enum):
    CLIENT = auto()
    SERVER = auto()
    NONE = auto()
    """No reply: the connection is cut."""


Pieces = Iterator[tuple[Side, bytes]]
"""The bytes to send, and the side that gets them."""

Judge = Callable[[bytes], Refusal | None]
"""Returns the refusal of a request; None lets it pass."""


class Conversation(Protocol):
    """One connection."""

    def on_request(self, data: bytes, judge: Judge) -> Pieces:
        """Take bytes of the client."""
        ...

    def on_reply(self, data: bytes) -> Pieces:
        """Take bytes of the server."""
        ...


class RefusingProxy(Proxy):
    """Forward each request to the server, until a rule says otherwise. Rules may be made by any thread."""

    def __init__(self, server_port: int, conversation: Callable[[], Conversation]) -> None:
        self._conversation = conversation
        self._conversations: dict[socket.socket, Conversation] = {}
        """By the socket of the client."""

        self._refusals: list[tuple[re.Pattern[bytes], Refusal]] = []
        self._action: tuple[re.Pattern[bytes], Callable[[], bool]] | None = None
        super().__init__(server_port)

    def __enter__(self) -> Self:
        return self

    def refuse(self, pattern: bytes, refusal: Refusal) -> None:
        """Answer each request that contains the pattern with a refusal."""
        self._refusals = [*self._refusals, (re.compile(pattern, re.DOTALL), refusal)]

    def before(self, pattern: bytes, action: Callable[[], bool]) -> None:
        """Before the next request that contains the pattern is handled, call `action` in the proxy's thread. If it
        returns False, call it again before the next such request."""
        self._action = (re.compile(pattern, re.DOTALL), action)

    def allow(self) -> None:
        """Delete all rules."""
        self._refusals, self._action = [], None

    def _judge(self, request: bytes) -> Refusal | None:
        if self._action is not None and self._action[0].search(request):
            rule, self._action = self._action, None
            if not rule[1]():
                self._action = rule
        return next((refusal for pattern, refusal in self._refusals if pattern.search(request)), None)

    def _pass_on(self, source: socket.socket) -> None:
        super()._pass_on(source)
        self._conversations = {client: known for client, known in self._conversations.items() if client in self._pairs}

    def _send(self, source: socket.socket, data: bytes) -> None:
        is_client = source in self._clients
        client, server = (source, self._pairs[source]) if is_client else (self._pairs[source], source)
        if client not in self._conversations:
            self._conversations[client] = self._conversation()
        conversation = self._conversations[client]
        for side, piece in conversation.on_request(data, self._judge) if is_client else conversation.on_reply(data):
            if side is Side.NONE:
                raise ConnectionAbortedError
            (client if side is Side.CLIENT else server).sendall(piece)


# — Redis —


class RedisConversation:
    """Put a script in place of a refused command: the server then gives the error, after the replies that are due."""

    def __init__(self) -> None:
        self._unread = b""

    def on_request(self, data: bytes, judge: Judge) -> Pieces:
        self._unread += data
        while (end := command_end(self._unread)) is not None:
            command, self._unread = self._unread[:end], self._unread[end:]
            refusal = judge(b" ".join(words_of(command)))
            if isinstance(refusal, RedisError):
                words = [b"EVAL", b"return redis.error_reply(ARGV[1])", b"0", refusal.text.encode()]
                command = b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)
            yield Side.SERVER, command

    def on_reply(self, data: bytes) -> Pieces:
        yield Side.CLIENT, data


def command_end(data: bytes) -> int | None:
    """Return the length of the first command; None if its end has not come."""
    head, found, _ = data.partition(b"\r\n")
    if not found:
        return None
    at = len(head) + 2
    if not data.startswith(b"*"):
        return at  # an inline command
    for _ in range(int(head[1:])):
        line_end = data.find(b"\r\n", at)
        if line_end < 0:
            return None
        at = line_end + 2 + int(data[at + 1 : line_end]) + 2
    return at if at <= len(data) else None


def words_of(command: bytes) -> Iterator[bytes]:
    at = command.index(b"\r\n") + 2
    if not command.startswith(b"*"):
        yield command.strip()
    while at < len(command):
        line_end = command.index(b"\r\n", at)
        length = int(command[at + 1 : line_end])
        yield command[line_end + 2 : line_end + 2 + length]
        at = line_end + 2 + length + 2


# — PostgreSQL —


class SqlConversation:
    """Answer a refused statement, and skip the messages that belong to it. A new session is the request `connect`."""

    STARTUP = 196_608
    ENCRYPTION = (80_877_103, 80_877_104)  # TLS, and GSSAPI

    def __init__(self) -> None:
        self._unread = self._unread_reply = b""
        self._has_started = False
        self._statements: dict[bytes, bytes] = {}
        """The text of each prepared statement, by name."""

        self._is_judged = False
        """Whether the statement of the messages up to the next Sync was judged."""

        self._refused: SqlError | None = None
        self._status = b"I"
        """I outside a transaction, T inside one, E inside a failed one."""

    def on_request(self, data: bytes, judge: Judge) -> Pieces:
        self._unread += data
        while message := self._next_message():
            if not self._has_started:
                yield from self._on_first(message, judge)
            else:
                yield from self._on_message(message, judge)

    def on_reply(self, data: bytes) -> Pieces:
        self._unread_reply += data
        while len(self._unread_reply) >= 5:
            size = 1 + int.from_bytes(self._unread_reply[1:5], "big")
            if len(self._unread_reply) < size:
                break
            if self._unread_reply.startswith(b"Z"):
                self._status = self._unread_reply[5:6]
            self._unread_reply = self._unread_reply[size:]
        yield Side.CLIENT, data

    def _next_message(self) -> bytes:
        """Return the next message; nothing if its end has not come."""
        kind = 1 if self._has_started else 0  # the first messages have no byte for their kind
        if len(self._unread) < kind + 4:
            return b""
        size = kind + int.from_bytes(self._unread[kind : kind + 4], "big")
        if len(self._unread) < size:
            return b""
        message, self._unread = self._unread[:size], self._unread[size:]
        return message

    def _on_first(self, message: bytes, judge: Judge) -> Pieces:
        code = int.from_bytes(message[4:8], "big")
        if code in self.ENCRYPTION:
            yield Side.CLIENT, b"N"
            return
        if code == self.STARTUP:
            self._has_started = True
            refusal = judge(b"connect")
            if isinstance(refusal, SqlError):
                yield Side.CLIENT, sql_error(refusal, "FATAL")
                yield Side.NONE, b""
        yield Side.SERVER, message

    def _on_message(self, message: bytes, judge: Judge) -> Pieces:
        kind = message[:1]
        statement = self._statement(message)
        if statement is not None and not self._is_judged:
            refusal = judge(statement)
            self._refused = refusal if isinstance(refusal, SqlError) else None
            self._is_judged = kind != b"Q"
        if self._refused is None:
            yield Side.SERVER, message
        elif kind in (b"Q", b"S"):
            if self._refused.closes:
                yield Side.CLIENT, sql_error(self._refused, "FATAL")
                yield Side.NONE, b""
            self._status = b"I" if self._status == b"I" else b"E"
            yield Side.CLIENT, sql_error(self._refused, "ERROR") + b"Z\x00\x00\x00\x05" + self._status
            self._refused = None
        if kind == b"S":
            self._is_judged = False

    def _statement(self, message: bytes) -> bytes | None:
        """Return the text of the statement that a message names."""
        match message[:1]:
            case b"Q":
                return message[5:-1]
            case b"P":
                name, text, _ = message[5:].split(b"\x00", 2)
                self._statements[name] = text
                return text
            case b"B":
                _, name, _ = message[5:].split(b"\x00", 2)
                return self._statements.get(name, b"")
        return None


def sql_error(refusal: SqlError, severity: str) -> bytes:
    fields = {"S": severity, "V": severity, "C": refusal.state, "M": refusal.text}
    body = b"".join(name.encode() + value.encode() + b"\x00" for name, value in fields.items()) + b"\x00"
    return b"E" + (4 + len(body)).to_bytes(4, "big") + body


# — RabbitMQ —


class AmqpConversation:
    """Close the channel, or the connection, of a refused method."""

    METHODS: ClassVar = {
        (10, 40): b"connection.open",
        (20, 10): b"channel.open",
        (40, 10): b"exchange.declare",
        (50, 10): b"queue.declare",
        (50, 20): b"queue.bind",
        (60, 10): b"basic.qos",
        (60, 20): b"basic.consume",
        (60, 40): b"basic.publish",
        (60, 80): b"basic.ack",
        (60, 90): b"basic.reject",
        (60, 120): b"basic.nack",
        (85, 10): b"confirm.select",
    }
    CLOSE_CONNECTION, CLOSED_CONNECTION, CLOSE_CHANNEL, CLOSED_CHANNEL = (10, 50), (10, 51), (20, 40), (20, 41)
    METHOD_FRAME = 1
    HEADER_SIZE = 8  # bytes of the protocol's name, before the first frame

    def __init__(self) -> None:
        self._unread = self._unread_reply = b""
        self._has_started = self._is_closed = False
        self._closed_by_us: set[int] = set()
        """Channels that the client has been told to be closed, and has not confirmed."""

        self._closed_to_server: set[int] = set()
        """Channels that the server has been asked to close, and has not confirmed."""

    def on_request(self, data: bytes, judge: Judge) -> Pieces:
        self._unread += data
        if not self._has_started and len(self._unread) >= self.HEADER_SIZE:
            self._has_started = True
            yield Side.SERVER, self._unread[: self.HEADER_SIZE]
            self._unread = self._unread[self.HEADER_SIZE :]
        if self._has_started:
            frames, self._unread = split_frames(self._unread)
            for frame in frames:
                yield from self._on_frame(frame, judge)

    def on_reply(self, data: bytes) -> Pieces:
        self._unread_reply += data
        frames, self._unread_reply = split_frames(self._unread_reply)
        for frame in frames:
            channel = channel_of(frame)
            if channel in self._closed_to_server:
                if method_of(frame) == self.CLOSED_CHANNEL:
                    self._closed_to_server.discard(channel)
            elif not self._is_closed:
                yield Side.CLIENT, frame

    def _on_frame(self, frame: bytes, judge: Judge) -> Pieces:
        channel, method = channel_of(frame), method_of(frame)
        if self._is_closed:
            if method == self.CLOSED_CONNECTION:
                yield Side.NONE, b""
            return
        if channel in self._closed_by_us:
            if method == self.CLOSED_CHANNEL:
                self._closed_by_us.discard(channel)
            return
        name = self.METHODS.get(method) if method is not None else None
        refusal = judge(name + b" " + frame[11:-1]) if name is not None else None
        if not isinstance(refusal, AmqpError):
            yield Side.SERVER, frame
        elif refusal.closes:
            self._is_closed = True
            yield Side.CLIENT, close_frame(0, self.CLOSE_CONNECTION, refusal, method)
        else:
            self._closed_by_us.add(channel)
            self._closed_to_server.add(channel)
            yield Side.SERVER, close_frame(channel, self.CLOSE_CHANNEL, AmqpError(200, "closed"), None)
            yield Side.CLIENT, close_frame(channel, self.CLOSE_CHANNEL, refusal, method)


def split_frames(data: bytes) -> tuple[list[bytes], bytes]:
    """Return the complete frames, and the rest."""
    frames, at = [], 0
    while len(data) >= at + 7:
        end = at + 8 + int.from_bytes(data[at + 3 : at + 7], "big")
        if len(data) < end:
            break
        frames.append(data[at:end])
        at = end
    return frames, data[at:]


def channel_of(frame: bytes) -> int:
    return int.from_bytes(frame[1:3], "big")


def method_of(frame: bytes) -> tuple[int, int] | None:
    """Return class and method of a frame; None if it carries content, or is a heartbeat."""
    if frame[0] != AmqpConversation.METHOD_FRAME:
        return None
    class_id, method_id = struct.unpack(">HH", frame[7:11])
    return class_id, method_id


def close_frame(channel: int, close: tuple[int, int], error: AmqpError, method: tuple[int, int] | None) -> bytes:
    """Return a frame that closes a channel or a connection because of a method."""
    text = error.text.encode()
    payload = struct.pack(">HHHB", *close, error.code, len(text)) + text + struct.pack(">HH", *(method or (0, 0)))
    return struct.pack(">BHI", AmqpConversation.METHOD_FRAME, channel, len(payload)) + payload + b"\xce"
