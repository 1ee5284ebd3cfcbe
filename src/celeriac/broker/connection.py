"""One long-lived connection to the broker, with a deadline for each operation.

During an outage a thread waits for the broker. The caller gets an error at once, so that its heartbeat stays fast. A
broker that answers and refuses is not waited for: the next message that is published shows whether it still refuses.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from celery import Celery

from celeriac.broker.app import transport_options
from celeriac.broker.broker_list import broker_list_of, connect, connect_to_any
from celeriac.broker.client_errors import ClientErrors
from celeriac.executor.circuit_breaker import CircuitBreaker
from celeriac.log_lines import logger_for
from celeriac.server_errors import ServerProblem
from celeriac.surviving_loop import SurvivingLoop

logger = logger_for(__name__)

FIRST_PROBE_DELAY = 0.1  # seconds from the failure until the first probe
MAX_PROBE_DELAY = 2.0  # seconds between two probes


class BrokerConnection:
    """A connection that is opened again after each failure, as soon as the broker answers a probe."""

    def __init__(self, app: Celery, **options: Any) -> None:
        """`options` override the transport options of the app."""
        self._app, self._options = app, options
        self._connection: Any = None
        self._channel: Any = None
        never_opened = app.connection_for_write()  # only for the broker's URL and the errors of its client
        self._errors = ClientErrors(never_opened)
        self._driver_type = never_opened.transport.driver_type
        self._timeout = 0.0
        self._brokers = broker_list_of(app)
        self._url = self._brokers.current
        self._outage = OutageProbe(str(self._brokers), self._probe, self._errors)

    def problem_of(self, error: BaseException) -> ServerProblem | None:
        """Return what an error means; None if it is not the broker's but that of a message."""
        return self._errors.problem_of(error)

    def is_broker_error(self, error: BaseException) -> bool:
        """Return whether an error is the broker's, and not that of a message."""
        return self.problem_of(error) is not None

    def open(self, timeout: float) -> tuple[Any, bool]:
        """Return a channel, and whether it is a new one. `timeout`, in seconds, bounds each operation on it.

        Raise an error of the broker; during an outage at once.
        """
        if self._outage.error is not None:
            raise self._outage.error
        is_current = self._url == self._brokers.current
        if self._connection is not None and self._connection.connected and is_current:
            return self._channel, False
        self.drop()
        self._timeout = timeout
        try:
            self._connection, self._channel = self._connect()
        except Exception as error:
            if not self.is_broker_error(error):
                raise
            if self._brokers.has_several:
                self._outage.begin(error)  # the probe tries the others, also after a refusal
            else:
                self.fail(error)
            raise
        return self._channel, True

    def fail(self, error: Exception) -> None:
        """Drop the connection after an error of the broker. If the broker did not answer, wait for it."""
        self.drop()
        if self._errors.problem_of(error) is ServerProblem.UNREACHABLE:
            self._outage.begin(error)
        else:
            self._outage.refuse(error)

    def record(self, accepted: Collection[str], refused: Collection[str], refusal: Exception | None) -> None:
        """Take note of the queues for which the broker accepted messages, and of those for which it refused one."""
        if refusal is not None:
            self._outage.refuse(refusal, refused)
        elif accepted:
            self._outage.accept(accepted)

    def drop(self) -> None:
        """Close the socket without a message to the broker, which may not read it."""
        connection, self._connection, self._channel = self._connection, None, None
        if connection is not None:
            connection.collect()

    def close(self) -> None:
        self._outage.stop()
        self.drop()

    def _connect(self) -> tuple[Any, Any]:
        """Connect to the broker that is used. The others are tried by the probe, because the caller may not wait."""
        self._url = self._brokers.current
        connection = connect(self._app, self._url, timeout=self._timeout, transport_options=self._transport_options)
        try:
            return connection, connection.channel()  # a round trip: the broker answers
        except BaseException:
            connection.collect()
            raise

    @property
    def _transport_options(self) -> dict[str, Any]:
        return {**transport_options(self._driver_type, self._timeout), **self._options}

    def _probe(self) -> None:
        """Find a broker that answers, and use it."""
        options = self._transport_options
        connection, _ = connect_to_any(self._app, timeout=self._timeout, transport_options=options)
        try:
            connection.channel()
        finally:
            connection.collect()


class OutageProbe:
    """The time during which the broker does not answer, or refuses. It is logged once at its start and at its end.

    A broker that does not answer is probed, in a thread. A probe can only connect. So the end of a refusal is logged
    when a message is accepted; and so is the end of an outage that began again directly after a probe.
    """

    def __init__(self, broker: str, probe: Callable[[], None], errors: ClientErrors) -> None:
        """`broker` is its URL without the password. `probe` raises an error while the broker does not answer."""
        self._probe, self._errors = probe, errors
        self._breaker = CircuitBreaker(
            broker, first_delay=FIRST_PROBE_DELAY, max_delay=MAX_PROBE_DELAY, effect="tasks wait"
        )
        self._stopped = threading.Event()
        self._refused: set[str] = set()
        """The queues whose messages were refused and not accepted since."""

        self._needs_message = False
        """Whether only an accepted message ends the outage."""

        self._is_unproven = False
        """Whether the end of the last outage was logged after a probe, and no message was accepted since."""

        self.error: Exception | None = None
        """The error after which the broker is probed; None while messages may be published."""

    def begin(self, error: Exception) -> None:
        """Take note that the broker does not answer, and probe it, unless it is being probed."""
        if self.error is not None:
            return
        self.error = error
        self._needs_message |= self._is_unproven
        self._log(self._breaker.record_failure(time.monotonic(), error))
        self._stopped = threading.Event()
        run_round = partial(self._run_round, self._stopped)
        SurvivingLoop("celeriac-broker-probe", run_round, wait=self._stopped.wait).start()

    def refuse(self, error: Exception, queues: Collection[str] = ()) -> None:
        """Take note of a refusal; if it concerns messages, of their queues."""
        self._needs_message = True
        self._refused.update(queues)
        self._log(self._breaker.record_failure(time.monotonic(), error))

    def accept(self, queues: Collection[str]) -> None:
        """Take note that messages of these queues were accepted."""
        self._refused.difference_update(queues)
        if not self._refused:
            self._needs_message = self._is_unproven = False
            self._log(self._breaker.record_success(time.monotonic()))

    def stop(self) -> None:
        """Stop probing."""
        self._stopped.set()

    def _run_round(self, stopped: threading.Event) -> bool:
        if not stopped.wait(max(0.0, self._breaker.retry_at - time.monotonic())):
            try:
                self._probe()
            except Exception as error:
                if self._errors.problem_of(error) is None:
                    raise
                self._log(self._breaker.record_failure(time.monotonic(), error))
                return True
            self._end_after_probe()
        self.error = None
        return False

    def _end_after_probe(self) -> None:
        if not self._needs_message:
            self._is_unproven = True
            self._log(self._breaker.record_success(time.monotonic()))

    def _log(self, line: str | None) -> None:
        if line is not None:
            logger.warning(line)
