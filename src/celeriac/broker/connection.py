"""One long-lived connection to the broker, every operation of which ends in time."""

from __future__ import annotations

from typing import Any

from celery import Celery
from celery.exceptions import QueueNotFound
from kombu.exceptions import KombuError

from celeriac.broker.app import errors_of, transport_options
from celeriac.broker.outage import Outage

UNSENDABLE = (KombuError, QueueNotFound, TypeError, ValueError)
"""What Celery raises before anything is written, for a message that nobody could send."""


class BrokerConnection:
    def __init__(self, app: Celery, **options: Any) -> None:
        """`options` go over the transport options of the app."""
        self._app, self._options = app, options
        self._connection: Any = None
        self._channel: Any = None
        never_opened = app.connection_for_write()  # asked for its name and the errors of its client
        errors = errors_of(never_opened)
        self.away = tuple(error for error in errors if error is not KeyError)  # Kombu counts it, for a poller's sake
        self._driver_type = never_opened.transport.driver_type
        self._timeout = 0.0
        self.outage = Outage(never_opened.as_uri(), self._look, self.away)

    def open(self, timeout: float) -> tuple[Any, bool]:
        """A channel, and whether it is a new one. `timeout`, in seconds, bounds each operation on it.

        Raises one of `away`.
        """
        if self.outage.error is not None:
            raise self.outage.error
        if self._connection is not None and self._connection.connected:
            return self._channel, False
        self.drop()
        self._timeout = timeout
        try:
            self._connection, self._channel = self._connected()
        except self.away as error:
            self.outage.begin(error)
            raise
        return self._channel, True

    def lost(self, error: Exception) -> None:
        """The broker did not answer, or not in time."""
        self.drop()
        self.outage.begin(error)

    def drop(self) -> None:
        """Let go of the connection without a word to the broker, which may not be listening."""
        connection, self._connection, self._channel = self._connection, None, None
        if connection is not None:
            connection.collect()

    def close(self) -> None:
        self.outage.close()
        self.drop()

    def _connected(self) -> tuple[Any, Any]:
        options = {**transport_options(self._driver_type, self._timeout), **self._options}
        connection = self._app.connection_for_write(connect_timeout=self._timeout, transport_options=options)
        try:
            connection.ensure_connection(max_retries=0, timeout=self._timeout)
            return connection, connection.channel()  # a round trip: somebody is listening
        except self.away:
            connection.collect()
            raise

    def _look(self) -> None:
        self._connected()[0].collect()
