"""One run of a ledger, as an executor writes it: a `Ledger`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import count
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, select, update

from celeriac.config.lease import RENEWAL_INTERVAL
from celeriac.executor.interfaces import LedgerBatch, UnfinishedTask
from celeriac.ledger.codec import check_key, decode_event, encode_event, record_row, task_row, unfinished_task
from celeriac.ledger.database import Database
from celeriac.ledger.owner import Owner
from celeriac.ledger.schema import EARLIER_EVENTS, RUNS, TASKS, UNACKNOWLEDGED_EVENTS, UNFINISHED
from celeriac.task.event import Event
from celeriac.task.task import Task

FETCH_SIZE = 10_000  # rows in one fetch

UPDATE_TASK_STATE = (
    update(TASKS)
    .where(TASKS.c.run == bindparam("of_run"), TASKS.c.key == bindparam("of_key"))
    .values({name: bindparam(name) for name in ("state", "priority", "attempt", "lost", "moved", "not_before")})
    .values({name: bindparam(name) for name in ("revoking", "reason", "detail", "execution")})
)


class RunLedger:
    """Opened by `SqlLedger.book`."""

    lease: float | None = RENEWAL_INTERVAL

    def __init__(
        self, store: Database, owner: Owner, run: int, *, keeps_events: bool, only: Collection[str] | None = None
    ) -> None:
        """With `keeps_events` each end is kept until the caller has acknowledged it. With `only`, of what has not ended
        these keys are gone on with, and the rest is left as it stands."""
        self._store, self._owner, self.run, self._keeps_events = store, owner, run, keeps_events
        self._only = only
        with store.reading() as connection:
            last = connection.execute(select(func.max(TASKS.c.place)).where(TASKS.c.run == run)).scalar()
        self._places = count(0 if last is None else last + 1)
        self._acknowledged = self.numbers()[1]

    def check(self, task: Task) -> None:
        check_key(task.key)

    def write(self, page: LedgerBatch) -> None:
        queued = [task_row(self.run, str(task.key), next(self._places), task, arrived) for task, arrived in page.queued]
        standings = [record_row(self.run, str(key), standing) for key, standing in page.records.items()]
        moves = [self._row(event) for event in page.events if not event.state.is_final]
        ends = [self._row(event) for event in page.events if event.state.is_final and self._keeps_events]

        def transaction(connection: Connection) -> None:
            self._owner.renew_or_raise(connection)
            numbers = {"number": page.last_number, "acknowledged": page.acknowledged}
            connection.execute(update(RUNS).where(RUNS.c.id == self.run).values(**numbers))
            insert_rows(connection, TASKS, queued, replace=True)
            if standings:
                connection.execute(UPDATE_TASK_STATE, standings)
            insert_rows(connection, EARLIER_EVENTS, moves)
            insert_rows(connection, UNACKNOWLEDGED_EVENTS, ends)
            if page.acknowledged > self._acknowledged:
                dealt_with = (
                    UNACKNOWLEDGED_EVENTS.c.run == self.run,
                    UNACKNOWLEDGED_EVENTS.c.number <= page.acknowledged,
                )
                connection.execute(delete(UNACKNOWLEDGED_EVENTS).where(*dealt_with))

        self._store.write(transaction)
        self._acknowledged = page.acknowledged

    def unfinished(self) -> Iterator[UnfinishedTask]:
        wanted = select(TASKS).where(TASKS.c.run == self.run, UNFINISHED).order_by(TASKS.c.place)
        with self._store.reading() as connection:
            for row in connection.execution_options(yield_per=FETCH_SIZE).execute(wanted):
                if self._only is None or row.key in self._only:
                    yield unfinished_task(row.key, row)

    def numbers(self) -> tuple[int, int]:
        with self._store.reading() as connection:
            row = connection.execute(select(RUNS.c.number, RUNS.c.acknowledged).where(RUNS.c.id == self.run)).one()
        return row.number, row.acknowledged

    def unacknowledged(self) -> Iterable[Event]:
        wanted = (
            select(UNACKNOWLEDGED_EVENTS)
            .where(UNACKNOWLEDGED_EVENTS.c.run == self.run)
            .order_by(UNACKNOWLEDGED_EVENTS.c.number)
        )
        with self._store.reading() as connection:
            return [decode_event(row.key, row.number, row.event) for row in connection.execute(wanted)]

    def _row(self, event: Event) -> dict[str, Any]:
        return {"run": self.run, "number": event.number, "key": str(event.key), "event": encode_event(event)}


def insert_into(table: Any, dialect: str) -> Any:
    """That of the dialect, which can say what to do with what is there. Only one of them is loaded."""
    if dialect == "postgresql":
        from sqlalchemy.dialects import postgresql

        return postgresql.insert(table)
    from sqlalchemy.dialects import sqlite

    return sqlite.insert(table)


def insert_rows(connection: Connection, table: Any, rows: list[dict[str, Any]], *, replace: bool = False) -> None:
    """Insert; what is there already is left, or replaced."""
    if not rows:
        return
    new = insert_into(table, connection.dialect.name)
    if replace:
        others = {column.name: new.excluded[column.name] for column in table.columns if not column.primary_key}
        new = new.on_conflict_do_update(index_elements=list(table.primary_key), set_=others)
    else:
        new = new.on_conflict_do_nothing()
    connection.execute(new, rows)
