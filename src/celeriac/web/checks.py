"""The checks of the servers that a process needs."""

from __future__ import annotations

from contextlib import closing
from functools import cache

from celery import Celery
from sqlalchemy import select

from celeriac.backend.claims import claims_for
from celeriac.broker.app import app_for
from celeriac.broker.session import BrokerSession
from celeriac.config.settings import Connection
from celeriac.errors import BackendUnavailable
from celeriac.ledger.database import Database
from celeriac.ledger.schema import VERSION_TABLE
from celeriac.server_errors import is_server_error
from celeriac.web.health import HealthCheck
from celeriac.web.site import Sources


def source_checks(sources: Sources) -> list[HealthCheck]:
    """Return the checks of the ledger, the broker and the result backend that a server reads."""
    checks = []
    if (ledger := sources.ledger) is not None:
        checks.append(HealthCheck("ledger", lambda: ledger_problem(ledger)))
    if (connection := sources.connection) is not None:
        checks.append(HealthCheck("broker", lambda: broker_problem(connection)))
        checks.append(HealthCheck("backend", lambda: backend_problem(connection)))
    return checks


def ledger_problem(ledger: Database) -> None:
    """Read the ledger. Raises `LedgerError`."""
    ledger.read(lambda connection: connection.execute(select(VERSION_TABLE.c.version)).scalar())


def broker_problem(connection: Connection) -> None:
    """Connect to the broker. Raises `BrokerUnavailable`."""
    with BrokerSession(cached_app(connection), timeout=connection.operation_timeout).open():
        pass


def backend_problem(connection: Connection) -> None:
    """Read the leases, if the result backend can hold them. Raises `BackendUnavailable`."""
    claims = claims_for(cached_app(connection), timeout=connection.operation_timeout)
    if claims is None:
        return
    with closing(claims):
        try:
            claims.leases()
        except Exception as error:
            if not is_server_error(error):
                raise
            raise BackendUnavailable(error) from None


@cache
def cached_app(connection: Connection) -> Celery:
    """Return the Celery app of a connection: it is made once."""
    return app_for(connection)
