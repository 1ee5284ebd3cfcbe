"""A control channel on a broker, for callers on any machine.

    mailbox ─► acknowledgement, at once ─► RequestQueue ─► executor ─► RequestQueue ─► replies

If no message arrives for a while, the server sends a message to itself, because a dead connection may raise no error.
See `connection_monitor`.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import uuid4

import msgspec
from celery import Celery

from celeriac.broker.session import BrokerSession
from celeriac.control.connection_monitor import ConnectionMonitor
from celeriac.control.mailbox import ECHO, METHOD, broadcast, is_answerable, mailbox_on, send_reply
from celeriac.control.request_queue import RequestQueue
from celeriac.control.wire import ReplyMessage, RequestMessage, addressed, decode_request, encode_reply, executor_name
from celeriac.executor.circuit_breaker import CircuitBreaker, level_of
from celeriac.executor.requests import ErrorReply, Reply
from celeriac.log_lines import logger_for
from celeriac.surviving_loop import SurvivingLoop

logger = logger_for(__name__)

ERROR_DELAY = 0.05  # seconds after a malformed message
RECONNECT_DELAY = 1.0  # seconds between two attempts to connect; constant, because callers do not wait long


class BrokerControlServer:
    """Serves callers from its creation until `close`, in its own thread."""

    def __init__(self, app: Celery, *, wake: Callable[[], None], timeout: float) -> None:
        """`wake` ends the executor's `wait`. `timeout`, in seconds, bounds one operation on the broker."""
        self.requests = RequestQueue(wake=wake)
        self._session = BrokerSession(app, timeout=timeout)
        self._circuit = CircuitBreaker(
            "the broker",
            first_delay=RECONNECT_DELAY,
            effect="this executor receives no control requests",
        )
        self._executor = executor_name()
        self._name = ""
        self._monitor = ConnectionMonitor(time.monotonic())
        self._closed = threading.Event()
        self._thread = SurvivingLoop("celeriac-control", self._run_round, wait=self._closed.wait)
        self._thread.start()

    def stop(self) -> None:
        """Begin to close. The replies that are ready are still sent, if the broker is available."""
        self._closed.set()

    def close(self) -> None:
        self.stop()
        self._thread.join()

    def _run_round(self) -> bool:
        if self._closed.is_set():
            return False
        try:
            with self._session.connect() as connection:
                self._serve(connection)
        except Exception as error:
            if not self._session.is_broker_error(error):
                raise
            if line := self._circuit.record_failure(time.monotonic(), error):
                logger.log(level_of(error), line)
            self._closed.wait(self._circuit.retry_at - time.monotonic())
        return True

    def _serve(self, connection: Any) -> None:
        """Serve callers until `close`, or until the connection is dead or another broker is used.

        Use a new name for each connection: RabbitMQ may still hold the queue of a lost connection.
        """
        mailbox, channel = mailbox_on(connection), connection.channel()
        self._name = f"{self._executor}-{uuid4().hex[:8]}"
        self._monitor = ConnectionMonitor(time.monotonic())
        node = mailbox.Node(self._name, channel=channel)
        with node.listen(callback=partial(self._on_message, channel)):
            if line := self._circuit.record_success(time.monotonic()):
                logger.debug(line)
            while not (
                self._closed.is_set() or self._session.is_outdated or self._monitor.is_dead(now := time.monotonic())
            ):
                if self._monitor.needs_echo(now):
                    self._monitor.record_echo(now)
                    broadcast(mailbox, channel, {"method": ECHO, "destination": [self._name]})
                guard = self._thread.survivor.guard(self._session.is_broker_error, delay=ERROR_DELAY)
                with contextlib.suppress(TimeoutError), guard:  # a malformed message must not end the channel
                    connection.drain_events(timeout=self._monitor.poll_timeout(now))
                self._send_replies(channel)
            self._send_replies(channel)

    def _on_message(self, channel: Any, body: Any, message: Any = None) -> None:
        self._monitor.record_message(time.monotonic())
        if not isinstance(body, dict) or body.get("method") != METHOD or not is_answerable(body):
            return
        acknowledgement = ReplyMessage(
            executor=self._executor, channel=self._name, is_acknowledgement=True, is_last=False
        )
        send_reply(channel, body, msgspec.to_builtins(acknowledgement))
        request = decode_request(lambda: msgspec.convert(body.get("arguments"), RequestMessage))
        request = addressed(request, self._executor)
        if isinstance(request, ErrorReply):
            self._send(channel, body, request)
        else:
            self._monitor.record_request(time.monotonic())
            self.requests.put(request, body)

    def _send_replies(self, channel: Any) -> None:
        for request, reply in self.requests.take_replies():
            with self._thread.survivor.guard(self._session.is_broker_error):  # so that the other replies are sent
                self._send(channel, request.reply_to, reply)

    def _send(self, channel: Any, message: Any, reply: Reply) -> None:
        encoded = encode_reply(reply, executor=self._executor, channel=self._name)
        send_reply(channel, message, msgspec.to_builtins(encoded))
