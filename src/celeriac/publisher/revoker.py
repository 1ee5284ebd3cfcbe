"""Calls tasks back through Celery's own remote control."""

from __future__ import annotations

import logging
from collections.abc import Collection

from celery import Celery

from celeriac.broker_calls import BrokerCalls

logger = logging.getLogger(__name__)


class ControlRevoker:
    """Workers that are up forget these tasks before they start them. What runs already is left to its worker: ours end
    it, unless they are told that it may go on."""

    def __init__(self, app: Celery, *, timeout: float) -> None:
        """`timeout`, in seconds, bounds one call."""
        self._app, self._calls = app, BrokerCalls(app, timeout=timeout)

    def revoke(self, ids: Collection[str], *, unless_started: bool = False) -> None:
        try:
            with self._calls.connected() as connection:
                self._app.control.revoke(list(ids), connection=connection, unless_started=unless_started)
        except self._calls.away as error:
            logger.warning("%d tasks could not be revoked: the broker is away: %s", len(ids), error)
