"""Changes from PostgreSQL itself: LISTEN for the notifications of a trigger on Celery's table.

The executor creates the trigger if it is missing and its role may. Otherwise Celery's task events name the changes.
`trigger` explains why some notifications are not sent. So this feed never counts as complete.
"""

from __future__ import annotations

import selectors
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

from celery import Celery
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from celeriac.backend.results.database import make_engine
from celeriac.backend.results.trigger import CHANNEL, TRIGGER, ResultTrigger, TriggerState
from celeriac.config.postgres import driver_of
from celeriac.errors import describe_error
from celeriac.log_lines import logger_for
from celeriac.server_errors import is_server_error

logger = logger_for(__name__)

POLL_INTERVAL = 1.0  # seconds
NO_TABLE_INTERVAL = 1.0  # seconds between two checks whether Celery has created its table
CHECK_INTERVAL = 60.0  # seconds between two checks whether the trigger is there; this also tests the connection


class ResultNotifications:
    """A `ChangeSource`."""

    reports_refusals = False  # the reader uses the same server, by the same role

    def __init__(self, app: Celery, *, timeout: float) -> None:
        """`timeout`, in seconds, bounds connecting."""
        self._backend, self._timeout = app.backend, timeout
        self._reported: str | None = None

    def is_server_error(self, error: BaseException) -> bool:
        return is_server_error(error)

    def listen(self) -> Iterator[Collection[str] | None]:
        engine = make_engine(self._backend, self._timeout)
        try:
            yield from self._listen(engine)
        finally:
            engine.dispose()

    def _listen(self, engine: Engine) -> Iterator[Collection[str]]:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            if is_pooled(connection):
                self._report("a pooler is before the server, which loses notifications")
            else:
                yield from self._notifications(connection, ResultTrigger(self._backend.task_cls.__table__))
        while True:  # behind a pooler: without a connection
            time.sleep(POLL_INTERVAL)  # the feed ends at its next yield
            yield ()

    def _notifications(self, connection: Connection, trigger: ResultTrigger) -> Iterator[Collection[str]]:
        is_listening, next_check = False, 0.0
        driver: Any = connection.connection.driver_connection
        with selectors.DefaultSelector() as selector:
            selector.register(driver, selectors.EVENT_READ)
            while True:
                if time.monotonic() >= next_check:
                    state = self._ensure(connection, trigger, is_listening=is_listening)
                    is_listening = is_listening or state is TriggerState.PRESENT
                    interval = NO_TABLE_INTERVAL if state is TriggerState.NO_TABLE else CHECK_INTERVAL
                    next_check = time.monotonic() + interval
                selector.select(POLL_INTERVAL)
                yield TAKE[connection.dialect.driver](driver)

    def _ensure(self, connection: Connection, trigger: ResultTrigger, *, is_listening: bool) -> TriggerState:
        """Create the trigger if it is missing, and listen if it is there. Return its state."""
        try:
            state = trigger.state(connection)
            if state is TriggerState.MISSING:
                trigger.create(connection.engine)
                state = trigger.state(connection)
            if state is TriggerState.PRESENT and not is_listening:
                connection.exec_driver_sql(f"LISTEN {CHANNEL}")
                logger.debug("the trigger %s on %s announces stored results", TRIGGER, trigger.table)
        except DBAPIError as error:
            if error.connection_invalidated:
                raise
            self._report(describe_error(error.orig or error))
            return TriggerState.MISSING
        if state is TriggerState.DISABLED:
            self._report(f"the trigger {TRIGGER} on {trigger.table} is disabled")
        return state

    def _report(self, reason: str) -> None:
        """Log why there are no notifications, once for each reason."""
        if reason != self._reported:
            self._reported = reason
            logger.info("PostgreSQL announces no results, so only Celery's task events do: %s", reason)


def notifications_for(app: Celery, timeout: float) -> ResultNotifications | None:
    """Return the source for the app's database; None if it is no PostgreSQL, or if its driver is not known here."""
    return ResultNotifications(app, timeout=timeout) if driver_of(app.backend.url) in TAKE else None


def is_pooled(connection: Connection) -> bool:
    """Return whether a pooler such as PgBouncer is before the server: it gives clients process ids of its own."""
    driver: Any = connection.connection.driver_connection
    process = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
    return bool(driver.info.backend_pid != process)


def take_from_psycopg(driver: Any) -> set[str]:
    """Return the ids that have arrived. Raise an error of the driver if the connection is lost."""
    driver.pgconn.consume_input()
    ids = set()
    while (notification := driver.pgconn.notifies()) is not None:
        ids.add(notification.extra.decode(errors="replace"))  # no executor has an id that is not UTF-8
    return ids


def take_from_psycopg2(driver: Any) -> set[str]:
    """Do the same with the older driver."""
    driver.poll()
    taken, driver.notifies = driver.notifies, []
    return {notification.payload for notification in taken}


TAKE: dict[str | None, Callable[[Any], set[str]]] = {"psycopg": take_from_psycopg, "psycopg2": take_from_psycopg2}
"""By driver."""
