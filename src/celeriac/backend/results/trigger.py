"""The trigger in PostgreSQL that announces each stored result: a NOTIFY with the task's id.

worker: INSERT or UPDATE in Celery's table ─► COMMIT ─► trigger ─► NOTIFY ─► `ResultNotifications` in each executor

A notification is a hint, and a store must never fail or wait because of it. So the trigger sends none if the queue of
notifications is half full, and its own errors are ignored. PostgreSQL lets commits with a notification wait for each
other: with 16 writers and fsync that takes 60 % of their throughput. So no commit has one while another one has.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Any

from sqlalchemy import Connection, Engine, Table
from sqlalchemy.dialects import postgresql

TRIGGER = "celeriac_notify_result"
"""The name of the trigger, and of its function in the schema of the table."""

CHANNEL = "celeriac_result"
LOCKS = 0x43656C65
"""The first number of the advisory locks. The second is one of the two below."""

CREATE_LOCK = 0
NOTIFY_LOCK = 1
"""Held by a transaction with a notification, until it has committed."""

MAX_QUEUE_USAGE = 0.5  # of the queue of notifications, whose overflow makes a commit fail
IDENTIFIERS = postgresql.dialect(paramstyle="named").identifier_preparer
"""Quotes names. That of a driver would double each %."""

LOCK_TIMEOUT = 200  # ms; other writers wait while CREATE TRIGGER waits for those before it

STATE = """
SELECT to_regclass(%(table)s) IS NOT NULL,
       EXISTS (SELECT FROM pg_trigger WHERE tgrelid = to_regclass(%(table)s) AND tgname = %(trigger)s),
       EXISTS (SELECT FROM pg_trigger WHERE tgrelid = to_regclass(%(table)s) AND tgname = %(trigger)s
               AND tgenabled <> 'D')
"""
SCHEMA = "SELECT relnamespace::regnamespace::text FROM pg_class WHERE oid = to_regclass(%(table)s)"
RIGHTS = """
SELECT has_table_privilege(oid, 'TRIGGER') AND has_schema_privilege(relnamespace, 'CREATE')
FROM pg_class WHERE oid = to_regclass(%(table)s)
"""
FUNCTION = """
CREATE OR REPLACE FUNCTION {schema}.{trigger}() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
    IF pg_notification_queue_usage() < {max_usage} AND pg_try_advisory_xact_lock({locks}, {lock}) THEN
        PERFORM pg_notify('{channel}', NEW.task_id);
    END IF;
    RETURN NULL;
EXCEPTION WHEN OTHERS THEN
    RETURN NULL;
END $$
"""
CREATE = """
CREATE CONSTRAINT TRIGGER {trigger} AFTER INSERT OR UPDATE ON {table}
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
WHEN (NEW.status IS DISTINCT FROM 'PENDING') EXECUTE FUNCTION {schema}.{trigger}()
"""


class TriggerState(Enum):
    NO_TABLE = auto()
    """Celery has not created its table yet."""

    MISSING = auto()
    DISABLED = auto()
    """A person has disabled it."""

    PRESENT = auto()


class ResultTrigger:
    """The trigger on the table of one backend."""

    def __init__(self, table: Table, *, max_queue_usage: float = MAX_QUEUE_USAGE) -> None:
        self.table = IDENTIFIERS.format_table(table)
        self._max_queue_usage = max_queue_usage

    def state(self, connection: Connection) -> TriggerState:
        has_table, exists, is_enabled = self._row(connection, STATE)
        if not has_table:
            return TriggerState.NO_TABLE
        if not exists:
            return TriggerState.MISSING
        return TriggerState.PRESENT if is_enabled else TriggerState.DISABLED

    def may_create(self, connection: Connection) -> bool:
        """Return whether this role may create the trigger. The table must exist."""
        return bool(self._row(connection, RIGHTS)[0])

    def create(self, engine: Engine) -> None:
        """Create the trigger, unless another executor has just done so. Raise the errors of the driver.

        Give up if a transaction that writes to the table does not end soon.
        """
        with engine.begin() as connection:
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT}")
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCKS}, {CREATE_LOCK})")
            if self.state(connection) is not TriggerState.MISSING:
                return
            (schema,) = self._row(connection, SCHEMA)
            for statement in self.statements(schema):
                connection.exec_driver_sql(statement.replace("%", "%%"))

    def statements(self, schema: str) -> list[str]:
        """Return the statements that create it, for a table in this schema."""
        names = {"schema": schema, "trigger": TRIGGER, "table": self.table, "channel": CHANNEL}
        limits = {"locks": LOCKS, "lock": NOTIFY_LOCK, "max_usage": self._max_queue_usage}
        return [text.strip().format(**names, **limits) for text in (FUNCTION, CREATE)]

    def _row(self, connection: Connection, statement: str) -> Any:
        names = {"table": self.table, "trigger": TRIGGER}
        wanted = {name: value for name, value in names.items() if f"%({name})s" in statement}
        return connection.exec_driver_sql(statement, wanted).one()
