"""Short exchanges with the broker, in a thread that may wait. Each has its own connection and a time limit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery import Celery

from celeriac.broker.app import connection_errors_of, transport_options
from celeriac.errors import BrokerUnavailable


class BrokerSession:
    """Opens connections to the app's broker."""

    def __init__(self, app: Celery, *, timeout: float) -> None:
        """`timeout`, in seconds, bounds one operation."""
        self._app, self._timeout = app, timeout
        never_opened = app.connection_for_write()
        self._options = transport_options(never_opened.transport.driver_type, timeout)
        self.connection_errors = connection_errors_of(never_opened)
        """The errors that a connection raises when the broker is unavailable."""

        self._broker = never_opened.as_uri()

    def connect(self) -> Any:
        """Return an open connection, which is a context manager. Raise one of `connection_errors`."""
        connection = self._app.connection_for_write(connect_timeout=self._timeout, transport_options=self._options)
        try:
            connection.ensure_connection(max_retries=0, timeout=self._timeout)
        except self.connection_errors:
            connection.collect()
            raise
        return connection

    @contextmanager
    def open(self) -> Iterator[Any]:
        """Open a connection for callers that can do nothing without a broker.

        Raise `BrokerUnavailable` in place of any of `connection_errors`, also for those raised in the block.
        """
        try:
            with self.connect() as connection:
                yield connection
        except self.connection_errors as error:
            raise BrokerUnavailable(self._broker, error) from None
