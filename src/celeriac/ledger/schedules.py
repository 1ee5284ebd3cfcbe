"""Remember which due times of schedules were handled, and make their runs: each exactly once.

The tasks of a run are stored first, under a name that no reader asks for. One transaction then takes the due time,
gives the run its name and completes it. So of several services one makes it, and none is made by halves: what a killed
service leaves is an incomplete run, which a prune removes, and the due time is still to be handled.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from uuid import uuid4

from msgspec import Struct
from sqlalchemy import Column, Connection, Float, MetaData, String, Table, insert, inspect, select, update

from celeriac.errors import InvalidConfig
from celeriac.ledger.database import Database, lock_schema
from celeriac.ledger.run_store import RunStore
from celeriac.ledger.schema import ROW_ID, RUNS
from celeriac.ledger.submit import SUBMIT_TIMEOUT, insert_submission, write_tasks
from celeriac.ledger.transactions import RowExists, retry_until
from celeriac.ledger.views import RunView, find_run
from celeriac.task.task import Task

SCHEDULES = Table(
    "celeriac_schedule",
    MetaData(),
    Column("name", String(255), primary_key=True),
    Column("handled", Float(53), nullable=False),
    Column("run", ROW_ID),
)
"""A ledger has this table once a service with schedules has used it."""


class AlreadyHandled(Exception):
    """Another service has handled the due time."""


class StoredSchedule(Struct, frozen=True, kw_only=True):
    """A schedule as the ledger has it."""

    handled: float
    """The last due time that was handled, in seconds since the epoch."""

    run: str | None
    """The name of its last run; None if there is none any more."""

    has_ended: bool
    ended: float | None


def last_runs(database: Database) -> dict[str, RunView]:
    """Return the last run of each schedule that a service has made one for, if the ledger still has it.

    Raises `LedgerUnavailable` and `LedgerBroken`.
    """
    last = select(SCHEDULES.c.name, RUNS.c.name.label("run")).join(RUNS, RUNS.c.id == SCHEDULES.c.run)
    with database.reading() as connection:
        rows = connection.execute(last).all() if inspect(connection).has_table(SCHEDULES.name) else []
    found: dict[str, RunView] = {}
    for row in rows:
        with suppress(InvalidConfig):  # it was removed meanwhile
            found[row.name] = find_run(database, row.run)
    return found


class ScheduleStore:
    """The schedules in a ledger. Each method may raise `LedgerUnavailable` and `LedgerBroken`."""

    def __init__(self, ledger: RunStore) -> None:
        self._ledger, self._database = ledger, ledger.database
        self._write(create_table)

    def _write(self, change: Callable[[Connection], object]) -> None:
        retry_until(lambda: self._database.write_in_turn(change), SUBMIT_TIMEOUT)

    def read(self, name: str) -> StoredSchedule:
        """Return a schedule. One that is new has handled all times up to now."""
        columns = select(SCHEDULES.c.handled, RUNS.c.name, RUNS.c.ended).outerjoin(RUNS, RUNS.c.id == SCHEDULES.c.run)
        with self._database.reading() as connection:
            row = connection.execute(columns.where(SCHEDULES.c.name == name)).one_or_none()
        if row is not None:
            has_ended = row.name is None or row.ended is not None
            return StoredSchedule(handled=row.handled, run=row.name, has_ended=has_ended, ended=row.ended)
        try:
            now = time.time()
            self._write(lambda connection: connection.execute(insert(SCHEDULES).values(name=name, handled=now)))
        except RowExists:  # another service was first
            return self.read(name)
        return StoredSchedule(handled=now, run=None, has_ended=True, ended=None)

    def pass_over(self, name: str, until: float) -> bool:
        """Record that due times get no run. Return False if another service has handled the last of them."""
        try:
            self._write(partial(take_time, name, until, None))
        except AlreadyHandled:
            return False
        return True

    def make_run(self, name: str, due: float, run_name: str, source: str, tasks: Sequence[Task]) -> bool:
        """Make the run of a due time. Return False if another service has handled it, or a run has this name."""
        owner = retry_until(lambda: self._ledger.owner, SUBMIT_TIMEOUT)
        create = partial(insert_submission, owner=owner, name=f"{run_name}.{uuid4().hex}", source=source)
        run = retry_until(lambda: self._database.write_in_turn(create), SUBMIT_TIMEOUT)

        def publish(connection: Connection) -> None:
            take_time(name, due, run, connection)
            connection.execute(update(RUNS).where(RUNS.c.id == run).values(name=run_name))

        try:
            write_tasks(self._database, owner, run, tasks, publish)
        except AlreadyHandled:
            return False
        except RowExists:
            self.pass_over(name, due)
            return False
        return True


def create_table(connection: Connection) -> None:
    lock_schema(connection)
    SCHEDULES.create(connection, checkfirst=True)


def take_time(name: str, due: float, run: int | None, connection: Connection) -> None:
    """Record that a due time is handled. Raise `AlreadyHandled` if it was before."""
    values = {"handled": due} | ({} if run is None else {"run": run})
    is_open = (SCHEDULES.c.name == name, SCHEDULES.c.handled < due)
    if connection.execute(update(SCHEDULES).where(*is_open).values(**values)).rowcount != 1:
        raise AlreadyHandled
