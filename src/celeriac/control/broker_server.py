"""A desk on a broker, for an executor whose users are anywhere.

mailbox ─► "I am here", at once ─► Tray ─► executor ─► Tray ─► its answers

After some silence it sends a message to itself, which all others hear too: one that does not come back tells of a
connection that died in silence.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import uuid4

import msgspec
from celery import Celery

from celeriac.broker.session import BrokerSession
from celeriac.control.mailbox import ECHO, METHOD, is_answerable, mailbox_on, reply, send
from celeriac.control.request_queue import RequestQueue
from celeriac.control.wire import ReplyMessage, RequestMessage, decode_request, encode_reply
from celeriac.executor.requests import ErrorReply, Reply

logger = logging.getLogger(__name__)

PAUSE = 1.0  # seconds between two tries while the broker is away
LISTEN = 0.2  # seconds for one message to come
LISTEN_FOR_EXECUTOR = 0.02  # seconds; the same while the executor may answer any moment
ANSWERS_SOON = 2.0  # seconds after a request
ECHO_INTERVAL = 5.0  # seconds of silence, and between two messages to itself
DEAF = 15.0  # seconds without any message until the connection counts as dead


class BrokerControlServer:
    """Listens from the first moment on, in a thread of its own, until `close`."""

    def __init__(self, app: Celery, *, wake: Callable[[], None], timeout: float) -> None:
        """`wake` ends the executor's `wait`. `timeout`, in seconds, bounds one operation on the broker."""
        self.tray = RequestQueue(wake=wake)
        self._calls = BrokerSession(app, timeout=timeout)
        self._executor = f"{os.getpid()}@{socket.gethostname()}"
        self._name = ""
        self._heard = self._asked = self._echoed = float("-inf")
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="celeriac-desk", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Begin to close. What has been answered still gets out, if the broker is there."""
        self._closed.set()

    def close(self) -> None:
        self.stop()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                with self._calls.connect() as connection:
                    self._serve(connection)
            except self._calls.connection_errors as error:
                logger.debug("nobody can be heard: %s", error)
                self._closed.wait(PAUSE)

    def _serve(self, connection: Any) -> None:
        """Under a new name each time: RabbitMQ may still hold the queue of a connection that was lost."""
        mailbox, channel = mailbox_on(connection), connection.channel()
        self._name = f"{self._executor}-{uuid4().hex[:8]}"
        self._heard = time.monotonic()
        node = mailbox.Node(self._name, channel=channel)
        with node.listen(callback=partial(self._on_message, channel)):
            while not self._closed.is_set() and time.monotonic() - self._heard < DEAF:
                self._echo(mailbox, channel)
                with contextlib.suppress(TimeoutError):
                    soon = time.monotonic() - self._asked < ANSWERS_SOON
                    connection.drain_events(timeout=LISTEN_FOR_EXECUTOR if soon else LISTEN)
                self._send_replies(channel)
            self._send_replies(channel)

    def _on_message(self, channel: Any, body: Any, message: Any = None) -> None:
        self._heard = time.monotonic()
        if not isinstance(body, dict) or body.get("method") != METHOD or not is_answerable(body):
            return
        here = ReplyMessage(executor=self._executor, channel=self._name, is_acknowledgement=True, is_last=False)
        self._reply(channel, body, here)
        request = decode_request(lambda: msgspec.convert(body.get("arguments"), RequestMessage))
        if isinstance(request, ErrorReply):
            self._reply(channel, body, self._answer(request))
        else:
            self._asked = time.monotonic()
            self.tray.put(request, body)

    def _send_replies(self, channel: Any) -> None:
        for asked, said in self.tray.replies():
            self._reply(channel, asked.reply_to, self._answer(said))

    def _answer(self, said: Reply) -> ReplyMessage:
        return encode_reply(said, executor=self._executor, channel=self._name)

    def _reply(self, channel: Any, message: Any, said: ReplyMessage) -> None:
        reply(channel, message, msgspec.to_builtins(said))

    def _echo(self, mailbox: Any, channel: Any) -> None:
        now = time.monotonic()
        if now - max(self._heard, self._echoed) >= ECHO_INTERVAL:
            self._echoed = now
            send(mailbox, channel, {"method": ECHO, "destination": [self._name]})
