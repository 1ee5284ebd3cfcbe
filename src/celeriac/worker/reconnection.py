"""Celery's consumer, which connects again after every error of the broker.

error of the event loop, or of a step of the start
    ─► the broker's: unavailable, refuses ─► BrokerLost ─► Celery gives the connection up ─► wait ─► connect again
    ─► refused before the worker was ready ─► InvalidConfig, QueueRefused: the worker ends
    ─► another error ─► before the worker was ready, it ends the worker; later it counts as a lost connection

Celery itself connects again only after errors of a connection. A refusal would end the worker, and all that it runs.
"""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

from amqp.exceptions import AMQPNotImplementedError, ChannelError, ConsumerCancelled
from celery.worker.consumer import Consumer

from celeriac.errors import QUEUE_NAME, InvalidConfig, QueueRefused, describe_error
from celeriac.server_errors import ServerProblem, problem_of, remedy_for
from celeriac.surviving_loop import Survivor
from celeriac.worker.celery_internals import has_accepted_task, raise_if_stopped, worker_of
from celeriac.worker.log import logger
from celeriac.worker.outage import ServerRetry

ACKNOWLEDGEMENT_TIMEOUT = re.compile(r"delivery acknowledgement on channel .* Timeout value used: (\d+) ms")
MAX_DELAY = 3.0  # seconds between two attempts to connect; up to half as many more with jitter
STOP_POLL_INTERVAL = 0.1  # seconds between two checks whether the worker has to stop
SETTLED_AFTER = 2.0  # seconds without an error until a connection counts as usable


class BrokerLost(ConnectionError):
    """The connection to the broker is given up. The cause is the error that made it unusable."""


class Blueprint(Consumer.Blueprint):  # type: ignore[misc]
    """The steps of the consumer, from the connection to the event loop."""

    # On quorum queues Celery would declare 28 queues for tasks with a delay. No message of ours has one.
    default_steps = tuple(step for step in Consumer.Blueprint.default_steps if not step.endswith(":DelayedDelivery"))

    def start(self, parent: Any) -> None:
        parent.run_steps(super().start)


class ReconnectingConsumer(Consumer):  # type: ignore[misc]
    """Celery's consumer. No error of the broker ends it once the worker was ready."""

    Blueprint = Blueprint

    def __init__(self, *args: Any, **options: Any) -> None:
        self.is_waiting = False
        """Whether the event loop stands still until the next attempt to connect."""

        self._failures = 0
        self._delay = 0.0
        self._ready_at: float | None = None
        self._has_settled = False
        self._survivor = Survivor("the event loop")
        super().__init__(*args, **options)
        self._outage = ServerRetry(f"the broker {worker_of(self).brokers}", "commands go on", max_delay=MAX_DELAY)

    def run_steps(self, start: Callable[[Any], None]) -> None:
        """Connect, and run the event loop until the worker stops. Raise `BrokerLost` if the broker cannot be used."""
        self._wait(self._delay)
        try:
            start(self)
        except Exception as error:
            self._ready_at = None
            self._raise_if_fatal(error)
            raise BrokerLost(describe_error(error)) from error

    def ensure_connected(self, conn: Any) -> Any:
        """Return the connection once it is established. Raise `InvalidConfig` if the first one is refused for good."""
        failures = 0
        while True:
            try:
                conn.ensure_connection(max_retries=0)
            except Exception as error:
                if problem_of(error) is None:
                    raise
                is_last = conn.completes_cycle(failures)
                failures += 1
                conn.maybe_switch_next()
                if is_last:
                    self._raise_if_refused(error, is_connected=False)
                    self._wait(self._outage.failed(error.__cause__ or error, failures))
            else:
                self.first_connection_attempt = False
                return conn

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        self._log_loss(exc.__cause__ or exc)
        with muted(logging.getLogger(Consumer.__module__)):  # Celery logs each loss again
            super().on_connection_error_after_connected(exc)

    def on_connection_error_before_connected(self, exc: Exception) -> None:
        self._log_loss(exc.__cause__ or exc)

    def on_ready(self) -> None:
        self._ready_at = time.monotonic()
        super().on_ready()

    def settle(self) -> None:
        """Take note that the connection works, if it has worked for a while. Safe in any thread."""
        ready_at = self._ready_at
        if ready_at is not None and time.monotonic() - ready_at >= SETTLED_AFTER:
            self._failures, self._delay, self._has_settled = 0, 0.0, True
            self._outage.ended()

    def _raise_if_fatal(self, error: Exception) -> None:
        """Raise the error that ends the worker, if this error does."""
        self._raise_if_refused(error, is_connected=True)
        if problem_of(error) is None and not isinstance(error, self.connection_errors):
            if not self._has_begun():
                raise error
            self._survivor.record(error)

    def _raise_if_refused(self, error: Exception, *, is_connected: bool) -> None:
        """Raise an error for the user if the broker refuses the worker before it was ready."""
        if problem_of(error) is not ServerProblem.REFUSED or self._has_begun():
            return
        if is_connected and isinstance(error, ChannelError | AMQPNotImplementedError):
            raise QueueRefused.from_reply(error) from None
        answer = describe_error(error.__cause__ or error).rstrip(".")
        problem = f"{worker_of(self).brokers} refuses: {answer}"
        raise InvalidConfig("broker", problem, remedy_for(error) or "see the log of the server") from None

    def _has_begun(self) -> bool:
        """Return whether a connection has worked for a while, or a task was accepted."""
        return worker_of(self).was_ready and (self._has_settled or has_accepted_task())

    def _log_loss(self, error: BaseException) -> None:
        is_closed_channel = isinstance(error, ChannelError | AMQPNotImplementedError)
        if is_closed_channel and problem_of(error) is ServerProblem.UNREACHABLE:
            logger.warning("%s", describe_closed_channel(error))  # a new channel is all that is needed
            return
        self._failures += 1
        reason = describe_closed_channel(error) if is_closed_channel else None
        if isinstance(error, ConsumerCancelled):  # its text names only an internal tag
            reason = "RabbitMQ ended a consumer, because its queue was deleted or is on a stopped node"
        self._delay = self._outage.failed(error, self._failures, reason)

    def _wait(self, seconds: float) -> None:
        """Wait, unless the worker has to stop: then raise `SystemExit`."""
        deadline = time.monotonic() + seconds
        self.is_waiting = True
        while (left := deadline - time.monotonic()) > 0:
            raise_if_stopped()
            time.sleep(min(left, STOP_POLL_INTERVAL))  # the request to stop is a flag of Celery's, without an event
        raise_if_stopped()
        self.is_waiting = False


def describe_closed_channel(error: Any) -> str:
    """Return one line about an error after which RabbitMQ closes a channel, with its real cause."""
    text = error.reply_text or ""
    if timeout := ACKNOWLEDGEMENT_TIMEOUT.search(text):
        return (
            f"RabbitMQ closed the channel, because a command took longer than its consumer_timeout of {timeout[1]} ms;"
            " the command goes on, and its message is dropped when it is delivered again"
        )
    if re.search(QUEUE_NAME, text) or AMQPNotImplementedError.code == error.reply_code:
        return str(QueueRefused.from_reply(error))
    return f"RabbitMQ closed the channel: {error}"


@contextlib.contextmanager
def muted(other: logging.Logger) -> Iterator[None]:
    """Drop what a logger logs inside the context."""
    before, other.disabled = other.disabled, True
    try:
        yield
    finally:
        other.disabled = before
