"""Short exchanges with the broker, in a thread that may wait. Each has its own connection and a time limit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery import Celery

from celeriac.broker.app import transport_options
from celeriac.broker.broker_list import broker_list_of, connect_to_any
from celeriac.broker.client_errors import ClientErrors
from celeriac.errors import BrokerUnavailable, CeleriacError


class BrokerSession:
    """Opens connections to the app's broker."""

    def __init__(self, app: Celery, *, timeout: float) -> None:
        """`timeout`, in seconds, bounds one operation."""
        self._app, self._timeout = app, timeout
        never_opened = app.connection_for_write()
        self._options = transport_options(never_opened.transport.driver_type, timeout)
        self._errors = ClientErrors(never_opened)
        self._brokers = broker_list_of(app)
        self._url = self._brokers.current

    def connect(self) -> Any:
        """Return an open connection, which is a context manager. Raise an error of the broker."""
        connection, self._url = connect_to_any(self._app, timeout=self._timeout, transport_options=self._options)
        return connection

    @property
    def is_outdated(self) -> bool:
        """Whether the app has changed to another broker since the last `connect`."""
        return self._url != self._brokers.current

    def is_broker_error(self, error: BaseException) -> bool:
        """Return whether an error is the broker's: it does not answer, or refuses."""
        return self._errors.problem_of(error) is not None

    @contextmanager
    def open(self) -> Iterator[Any]:
        """Open a connection for callers that can do nothing without a broker.

        Raise `BrokerUnavailable` in place of an error of the broker, also for one that is raised in the block.
        """
        try:
            with self.connect() as connection:
                yield connection
        except CeleriacError:
            raise
        except Exception as error:
            if not self.is_broker_error(error):
                raise
            raise BrokerUnavailable(str(self._brokers), error) from None
