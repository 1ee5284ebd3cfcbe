"""Calls tasks back through Celery's own remote control."""

from __future__ import annotations

import logging
from collections.abc import Collection

from celery import Celery
from kombu.exceptions import OperationalError

from celeriac.app import transport_options

logger = logging.getLogger(__name__)


class ControlRevoker:
    """Workers that are up forget these tasks before they start them. What runs already is left to its worker: ours end
    it, unless they are told that it may go on."""

    def __init__(self, app: Celery, *, timeout: float) -> None:
        """`timeout`, in seconds, bounds one call."""
        self._app, self._timeout = app, timeout
        connection = app.connection_for_write()  # not opened: asked for the errors of its client
        self._away = (OperationalError, OSError, *connection.connection_errors, *connection.channel_errors)
        self._options = transport_options(connection.transport.driver_type, timeout)

    def revoke(self, ids: Collection[str], *, unless_started: bool = False) -> None:
        try:
            with self._app.connection_for_write(
                connect_timeout=self._timeout, transport_options=self._options
            ) as connection:
                connection.ensure_connection(max_retries=0, timeout=self._timeout)
                self._app.control.revoke(list(ids), connection=connection, unless_started=unless_started)
        except self._away as error:
            logger.warning("%d tasks could not be revoked: the broker is away: %s", len(ids), error)
