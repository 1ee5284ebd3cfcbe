"""Send a request to every executor on a broker."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from functools import partial
from typing import Any
from uuid import uuid4

import msgspec
from kombu import Consumer

from celeriac.control.mailbox import METHOD, broadcast, mailbox_on
from celeriac.control.wire import ReplyMessage, decode_reply, encode_request
from celeriac.executor.requests import Request, wait_of

ACKNOWLEDGEMENT_TIMEOUT = 1.0  # seconds; always waited in full, because the number of executors is unknown
POLL_TIMEOUT = 0.1  # seconds to wait for one message
REPLY_TIMEOUT = 10.0  # seconds for an executor to reply after it acknowledged


class BrokerControlClient:
    """A client for any number of requests over one connection."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._channel = connection.channel()
        self._mailbox = mailbox_on(connection)
        self._queue = self._mailbox.reply_queue(self._channel)

    def send_request(self, request: Request, *, timeout: float | None = None) -> Iterator[ReplyMessage]:
        """Yield each reply as it arrives. An executor that acknowledges and does not reply in time yields an error.
        `timeout`, in seconds, comes on top of the `wait` of the request; by default it is `REPLY_TIMEOUT`.

        Raise the errors of the broker's client library.
        """
        received: list[tuple[str, Any]] = []

        def on_message(body: Any, message: Any) -> None:
            received.append((message.headers.get("ticket", ""), body))

        with Consumer(self._channel, [self._queue], callbacks=[on_message], accept=["json"], no_ack=True):
            ticket = uuid4().hex
            reply_to = {"exchange": self._mailbox.reply_exchange.name, "routing_key": self._mailbox.oid}
            arguments = msgspec.to_builtins(encode_request(request))
            message = {"method": METHOD, "arguments": arguments, "ticket": ticket, "reply_to": reply_to}
            broadcast(self._mailbox, self._channel, message)
            timeout = REPLY_TIMEOUT if timeout is None else timeout
            yield from self._read_replies(received, ticket, timeout + wait_of(request))

    def _read_replies(self, received: list[tuple[str, Any]], ticket: str, timeout: float) -> Iterator[ReplyMessage]:
        started_at = time.monotonic()
        pending: dict[str, str] = {}
        """By control channel, the executors whose last reply has not arrived."""
        while (now := time.monotonic()) < started_at + ACKNOWLEDGEMENT_TIMEOUT or (
            pending and now < started_at + timeout
        ):
            with contextlib.suppress(TimeoutError):
                self._connection.drain_events(timeout=POLL_TIMEOUT)
            for reply_ticket, body in received:
                if reply_ticket != ticket:
                    continue
                reply = decode_reply(partial(msgspec.convert, body, ReplyMessage), channel="")
                if reply.is_last:
                    pending.pop(reply.channel, None)
                else:
                    pending[reply.channel] = reply.executor
                if not reply.is_acknowledgement:
                    yield reply
            received.clear()
        for channel, executor in pending.items():
            yield ReplyMessage(executor=executor, channel=channel, error=f"did not reply within {timeout:g} s")
