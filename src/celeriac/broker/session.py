"""Short talks with the broker, from a thread that may wait: a connection of its own, and a bound on each step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery import Celery

from celeriac.broker.app import errors_of, transport_options
from celeriac.errors import BrokerUnavailable


class BrokerSession:
    def __init__(self, app: Celery, *, timeout: float) -> None:
        """`timeout`, in seconds, bounds one operation."""
        self._app, self._timeout = app, timeout
        never_opened = app.connection_for_write()
        self._options = transport_options(never_opened.transport.driver_type, timeout)
        self.connection_errors = errors_of(never_opened)
        self._broker = never_opened.as_uri()

    def connect(self) -> Any:
        """An open connection, to be used as a context manager. Raises one of `away`."""
        connection = self._app.connection_for_write(connect_timeout=self._timeout, transport_options=self._options)
        try:
            connection.ensure_connection(max_retries=0, timeout=self._timeout)
        except self.connection_errors:
            connection.collect()
            raise
        return connection

    @contextmanager
    def open(self) -> Iterator[Any]:
        """The same, for who has nothing to do without a broker. Raises `BrokerAway`, at whatever step it goes."""
        try:
            with self.connect() as connection:
                yield connection
        except self.connection_errors as error:
            raise BrokerUnavailable(self._broker, error) from None
