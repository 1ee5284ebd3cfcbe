"""Kombu's transports, guarded: a message that cannot be decoded, or that makes its consumer raise, affects no other.

Redis     BRPOP ─► size ─► JSON ─► envelope ─► Kombu's message ─► consumer
RabbitMQ  frames ─► properties ─► Kombu's message ─► consumer

Without this module, an exception at any arrow ends the worker. RabbitMQ then gives the message to the next worker. No
message is decompressed here: the gate decides about that.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from errno import ECONNABORTED
from functools import partial
from queue import Empty
from typing import Any, Protocol

from amqp.exceptions import AMQPError
from amqp.method_framing import frame_handler
from kombu.message import Message
from kombu.utils.encoding import bytes_to_str

from celeriac.server_errors import is_server_error
from celeriac.worker.gate import envelope_problem

HEADER_FRAME = 2
HEADER_START = struct.Struct(">HxxQ")
"""A header frame of AMQP begins with the class of the method and the size of the body."""

NO_PROPERTIES = b"\0\0"


class BadMessageHandler(Protocol):
    """Takes the messages that cannot be delivered. `size` is in bytes."""

    max_item_size: int
    """The largest message on Redis, in bytes, with its envelope."""

    def refuse(self, why: str, *, queue: str, size: int | None = None) -> None:
        """Record a message that no consumer can take."""
        ...

    def refuse_too_large(self, item: bytes, *, queue: str) -> bytes | None:
        """Record a message that is too large. Return a small one that ends its task; None if it has no usable id."""
        ...

    def on_error(self, error: Exception, *, queue: str, size: int | None = None) -> None:
        """Record a message that made its consumer raise."""
        ...


def guard_connection(connection: Any, bad_messages: BadMessageHandler) -> None:
    """Guard each transport that a connection makes. Call it before the connection is opened."""
    make_transport = connection.create_transport

    def create_transport() -> Any:
        return guard_transport(make_transport(), bad_messages)

    connection.create_transport = create_transport
    guard_transport(connection.transport, bad_messages)


def guard_transport(transport: Any, bad_messages: BadMessageHandler) -> Any:
    if getattr(transport, "bad_messages", None) is None:
        transport.bad_messages = bad_messages
        if transport.driver_type == "redis":
            transport.Channel = guarded_redis_channel(transport.Channel, bad_messages)
        elif transport.driver_name == "py-amqp":
            transport.Connection = guarded_amqp_connection(transport.Connection, bad_messages)
    return transport


class WholeMessage(Message):  # type: ignore[misc]
    """Stands between a transport's message and Kombu's base class, which would decompress the body."""

    def __init__(self, body: Any = None, *, headers: Any = None, **options: Any) -> None:
        is_compressed = isinstance(headers, dict) and "compression" in headers
        others = {name: headers[name] for name in headers if name != "compression"} if is_compressed else headers
        super().__init__(body, headers=others, **options)
        if is_compressed:
            self.headers = headers


def whole_message(message_class: type) -> type:
    """Return a transport's class of messages, without decompression."""
    return type("Message", (message_class, WholeMessage), {})


# — Redis —


def guarded_redis_channel(channel_class: Any, bad_messages: BadMessageHandler) -> Any:
    class Channel(channel_class):  # type: ignore[misc]
        Message = whole_message(channel_class.Message)
        taken: tuple[bytes, bytes] | None = None
        """The list and the text of the message that was popped last."""

        def _create_client(self, asynchronous: bool = False) -> Any:
            client = super()._create_client(asynchronous)
            if asynchronous:
                client.parse_response = partial(self._read_reply, client.parse_response)
            return client

        def _read_reply(self, read: Callable[..., Any], connection: Any, command: str, **options: Any) -> Any:
            reply = read(connection, command, **options)
            if command != "BRPOP" or not reply:
                return reply
            self.taken = reply
            if len(reply[1]) <= bad_messages.max_item_size:
                return reply
            small = bad_messages.refuse_too_large(reply[1], queue=self.queue_taken())
            return None if small is None else (reply[0], small)

        def queue_taken(self) -> str:
            return bytes_to_str(self.taken[0]).rsplit(self.sep, 1)[0] if self.taken else ""

        def _brpop_read(self, **options: Any) -> Any:
            self.taken = None
            try:
                return super()._brpop_read(**options)
            except Empty:
                raise
            except Exception as error:
                if self.taken is None or is_server_error(error):
                    raise
                bad_messages.refuse("it is not JSON", queue=self.queue_taken(), size=len(self.taken[1]))
                return True

        def _receive(self) -> Any:
            try:
                return super()._receive()
            except Empty:
                raise
            except Exception as error:
                if is_server_error(error):
                    raise
                bad_messages.on_error(error, queue="")
                return True

        def basic_consume(self, queue: str, *args: Any, **options: Any) -> Any:
            consumed = super().basic_consume(queue, *args, **options)
            callbacks = self.connection._callbacks
            is_acked = not (options["no_ack"] if "no_ack" in options else args[0])
            callbacks[queue] = partial(self.deliver, callbacks[queue], queue, is_acked)
            return consumed

        def deliver(self, callback: Callable[[Any], object], queue: str, is_acked: bool, envelope: Any) -> None:
            if (problem := envelope_problem(envelope)) is not None:
                bad_messages.refuse(problem, queue=queue)
                return
            try:
                callback(envelope)
            except Exception as error:
                if is_server_error(error):
                    raise
                bad_messages.on_error(error, queue=queue, size=len(envelope["body"]))
                if is_acked:
                    self.qos.ack(envelope["properties"]["delivery_tag"])

    return Channel


# — RabbitMQ —


def guarded_amqp_connection(connection_class: Any, bad_messages: BadMessageHandler) -> Any:
    class Channel(connection_class.Channel):  # type: ignore[misc]
        Message = whole_message(connection_class.Channel.Message)

        def basic_consume(self, *args: Any, callback: Any = None, no_ack: bool = False, **options: Any) -> Any:
            guarded = None if callback is None else partial(self.deliver, callback, not no_ack)
            return super().basic_consume(*args, callback=guarded, no_ack=no_ack, **options)

        def deliver(self, callback: Callable[[Any], object], is_acked: bool, message: Any) -> None:
            try:
                callback(message)
            except Exception as error:
                if is_server_error(error):
                    raise
                queue = bytes_to_str(message.delivery_info["routing_key"])
                bad_messages.on_error(error, queue=queue, size=message.body_size)
                if is_acked:
                    self.basic_ack(message.delivery_tag)

    class Connection(connection_class):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "frame_handler": tolerant_frame_handler})

        def drain_events(self, *args: Any, **options: Any) -> Any:
            try:
                return super().drain_events(*args, **options)
            except AMQPError as error:
                error.errno = ECONNABORTED  # in the first read of a connection Celery ignores errors without a number
                raise

    Connection.Channel = Channel
    return Connection


def tolerant_frame_handler(connection: Any, callback: Callable[..., Any]) -> Callable[[Any], Any]:
    """Return py-amqp's handler of frames. Properties that it cannot decode are replaced by none."""
    is_delivered = False

    def deliver(*args: Any) -> Any:
        nonlocal is_delivered
        is_delivered = True
        return callback(*args)

    handle = frame_handler(connection, deliver)

    def on_frame(frame: Any) -> Any:
        nonlocal is_delivered
        is_delivered = False
        kind, channel, content = frame
        try:
            return handle(frame)
        except Exception:
            if kind != HEADER_FRAME or is_delivered:
                raise
            return handle((kind, channel, bytes(content[: HEADER_START.size]) + NO_PROPERTIES))

    return on_frame
