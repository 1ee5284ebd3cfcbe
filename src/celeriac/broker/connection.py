"""One long-lived connection to the broker, with a deadline for each operation.

During an outage a thread waits for the broker. The caller gets an error at once, so that its heartbeat stays fast.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

from celery import Celery
from celery.exceptions import QueueNotFound
from kombu.exceptions import KombuError

from celeriac.broker.app import connection_errors_of, transport_options
from celeriac.errors import describe_error
from celeriac.executor.circuit_breaker import CircuitBreaker
from celeriac.surviving_loop import SurvivingLoop

logger = logging.getLogger(__name__)

FIRST_PROBE_DELAY = 0.1  # seconds from the failure until the first probe
MAX_PROBE_DELAY = 2.0  # seconds between two probes
UNSENDABLE = (KombuError, QueueNotFound, TypeError, ValueError)
"""The errors that Celery raises, before it writes anything, for a message that can never be sent."""


class BrokerConnection:
    """A connection that is opened again after each failure, as soon as the broker answers a probe."""

    def __init__(self, app: Celery, **options: Any) -> None:
        """`options` override the transport options of the app."""
        self._app, self._options = app, options
        self._connection: Any = None
        self._channel: Any = None
        never_opened = app.connection_for_write()  # only for the broker's URL and the errors of its client
        errors = connection_errors_of(never_opened)
        # Kombu lists KeyError for its own poller.
        self.errors = tuple(error for error in errors if error is not KeyError)
        self._driver_type = never_opened.transport.driver_type
        self._timeout = 0.0
        self._outage = OutageProbe(never_opened.as_uri(), self._probe, self.errors)

    def open(self, timeout: float) -> tuple[Any, bool]:
        """Return a channel, and whether it is a new one. `timeout`, in seconds, bounds each operation on it.

        Raise one of `errors`; during an outage at once.
        """
        if self._outage.error is not None:
            raise self._outage.error
        if self._connection is not None and self._connection.connected:
            return self._channel, False
        self.drop()
        self._timeout = timeout
        try:
            self._connection, self._channel = self._connect()
        except self.errors as error:
            self._outage.begin(error)
            raise
        return self._channel, True

    def fail(self, error: Exception) -> None:
        """Drop the connection and begin an outage: the broker did not answer in time."""
        self.drop()
        self._outage.begin(error)

    def drop(self) -> None:
        """Close the socket without a message to the broker, which may not read it."""
        connection, self._connection, self._channel = self._connection, None, None
        if connection is not None:
            connection.collect()

    def close(self) -> None:
        self._outage.stop()
        self.drop()

    def _connect(self) -> tuple[Any, Any]:
        options = {**transport_options(self._driver_type, self._timeout), **self._options}
        connection = self._app.connection_for_write(connect_timeout=self._timeout, transport_options=options)
        try:
            connection.ensure_connection(max_retries=0, timeout=self._timeout)
            return connection, connection.channel()  # a round trip: the broker answers
        except self.errors:
            connection.collect()
            raise

    def _probe(self) -> None:
        self._connect()[0].collect()


class OutageProbe:
    """Probes an unavailable broker, in a thread that ends with the outage."""

    def __init__(self, broker: str, probe: Callable[[], None], errors: tuple[type[Exception], ...]) -> None:
        """`broker` is its URL without the password. `probe` raises one of `errors` while the broker is unavailable."""
        self._broker, self._probe, self._errors = broker, probe, errors
        self._stopped = threading.Event()
        self.error: Exception | None = None
        """The error that began the outage; None while there is no outage."""

    def begin(self, error: Exception) -> None:
        """Begin an outage, unless one is going on."""
        if self.error is not None:
            return
        self.error = error
        breaker = CircuitBreaker(
            self._broker,
            first_delay=FIRST_PROBE_DELAY,
            max_delay=MAX_PROBE_DELAY,
            random=Random(),
            effect="tasks wait",
        )
        logger.warning(breaker.record_failure(time.monotonic(), describe_error(error)))
        self._stopped = threading.Event()
        run_round = partial(self._run_round, breaker, self._stopped)
        SurvivingLoop("celeriac-broker-probe", run_round, wait=self._stopped.wait).start()

    def stop(self) -> None:
        """Stop probing."""
        self._stopped.set()

    def _run_round(self, breaker: CircuitBreaker, stopped: threading.Event) -> bool:
        if not stopped.wait(max(0.0, breaker.retry_at - time.monotonic())):
            try:
                self._probe()
            except self._errors as error:
                breaker.record_failure(time.monotonic(), describe_error(error))
                return True
            logger.warning(breaker.record_success(time.monotonic()))
        self.error = None
        return False
