"""Asks the executors on a broker, all at once."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import msgspec
from kombu import Consumer

from celeriac.control.mailbox import METHOD, mailbox_on, send
from celeriac.control.wire import ReplyMessage, encode_request
from celeriac.executor.requests import CancelRequest, Request

GATHER = 1.0  # seconds for executors to say that they are there: nobody knows how many there are
LISTEN = 0.1  # seconds for one message to come
PATIENCE = 10.0  # seconds for those that are there to answer, besides what they were told to wait


class BrokerControlClient:
    """Ask as often as you like, over one connection."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._channel = connection.channel()
        self._mailbox = mailbox_on(connection)
        self._queue = self._mailbox.reply_queue(self._channel)

    def send_request(self, request: Request) -> Iterator[ReplyMessage]:
        """Each answer as it comes. Who is there and does not answer in time says so as an error.

        Raises what the broker's client does when the broker goes away.
        """
        heard: list[tuple[str, Any]] = []

        def on_message(body: Any, message: Any) -> None:
            heard.append((message.headers.get("ticket", ""), body))

        with Consumer(self._channel, [self._queue], callbacks=[on_message], accept=["json"], no_ack=True):
            ticket = uuid4().hex
            reply_to = {"exchange": self._mailbox.reply_exchange.name, "routing_key": self._mailbox.oid}
            asked = msgspec.to_builtins(encode_request(request))
            message = {"method": METHOD, "arguments": asked, "ticket": ticket, "reply_to": reply_to}
            send(self._mailbox, self._channel, message)
            patience = PATIENCE + (request.wait if isinstance(request, CancelRequest) else 0.0)
            yield from self._replies(heard, ticket, patience)

    def _replies(self, heard: list[tuple[str, Any]], ticket: str, patience: float) -> Iterator[ReplyMessage]:
        began = time.monotonic()
        owing: dict[str, str] = {}
        """By channel, the executors that have more to say."""
        while (now := time.monotonic()) < began + GATHER or (owing and now < began + patience):
            with contextlib.suppress(TimeoutError):
                self._connection.drain_events(timeout=LISTEN)
            for theirs, body in heard:
                if theirs != ticket:
                    continue
                reply = msgspec.convert(body, ReplyMessage)
                if reply.is_last:
                    owing.pop(reply.channel, None)
                else:
                    owing[reply.channel] = reply.executor
                if not reply.is_acknowledgement:
                    yield reply
            heard.clear()
        for channel, executor in owing.items():
            yield ReplyMessage(executor=executor, channel=channel, error=f"does not answer in {patience:g} s")
