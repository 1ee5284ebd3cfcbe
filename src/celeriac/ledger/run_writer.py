"""One run of a ledger, written by one executor: an implementation of `executor.interfaces.Ledger`."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import cache
from importlib import import_module
from itertools import islice
from types import TracebackType
from typing import Any, Self

from sqlalchemy import Connection, bindparam, delete, func, select, update

from celeriac.config.lease import RENEWAL_INTERVAL
from celeriac.errors import LedgerBroken
from celeriac.executor.interfaces import NO_TRAITS, LedgerBatch, LedgerTraits, RevokedWaiting, UnfinishedTask
from celeriac.ledger.cancel import key_conditions
from celeriac.ledger.codec import check_key, encode_event, event_of, readable, record_row, task_row, unfinished_task
from celeriac.ledger.database import Database
from celeriac.ledger.many_rows import execute_many
from celeriac.ledger.owner import Owner
from celeriac.ledger.progress import counted
from celeriac.ledger.schema import EARLIER_EVENTS, RUNS, TASKS, UNACKNOWLEDGED_EVENTS, UNFINISHED
from celeriac.task.event import Event
from celeriac.task.result import Reason
from celeriac.task.state import State
from celeriac.task.task import Task

FETCH_SIZE = 10_000  # rows in one fetch
RECORD_COLUMNS = (
    "state",
    "priority",
    "attempt",
    "lost",
    "moved",
    "not_before",
    "revoking",
    "reason",
    "detail",
    "execution",
)

UPDATE_TASK_STATE = (
    update(TASKS)
    .where(TASKS.c.run == bindparam("of_run"), TASKS.c.key == bindparam("of_key"))
    .values({name: bindparam(name) for name in RECORD_COLUMNS})
)


class RunLedger:
    """One run, opened by `SqlLedger.open_run`. Use it as a context manager, or call `close`."""

    lease: float | None = RENEWAL_INTERVAL

    def __init__(
        self,
        database: Database,
        owner: Owner,
        run: int,
        *,
        keeps_events: bool,
        only: Collection[str] | None = None,
        traits: LedgerTraits = NO_TRAITS,
        on_close: Callable[[RunLedger], None],
    ) -> None:
        """With `keeps_events`, each final event is kept until the caller acknowledges it. With `only`, the executor
        resumes the unfinished tasks of these keys; the others stay as they are. `on_close`
        gives up the ownership."""
        self._database, self.owner, self.run, self._keeps_events = database, owner, run, keeps_events
        self._only, self.traits, self._on_close = only, traits, on_close
        self._is_closed = False
        with database.reading() as connection:
            last = connection.execute(select(func.max(TASKS.c.place)).where(TASKS.c.run == run)).scalar()
        self._next_place = 0 if last is None else self._whole_number(last, "place") + 1
        self._acknowledged = self.numbers()[1]

    def check(self, task: Task) -> None:
        check_key(task.key)

    def write(self, batch: LedgerBatch) -> None:
        queued = [task_row(self.run, str(task.key), place, task, arrived) for task, arrived, place in batch.queued]
        records = [record_row(self.run, str(key), record) for key, record in batch.records.items()]
        earlier = [self._event_row(event) for event in batch.events if not event.state.is_final]
        ends = [self._event_row(event) for event in batch.events if event.state.is_final and self._keeps_events]

        def transaction(connection: Connection) -> None:
            self.owner.renew_or_raise(connection)
            numbers = {"number": batch.last_number, "acknowledged": batch.acknowledged}
            connection.execute(update(RUNS).where(RUNS.c.id == self.run).values(**numbers))
            insert_rows(connection, TASKS, queued, replace=True)
            if records:
                execute_many(connection, UPDATE_TASK_STATE, records)
            if batch.revoked_waiting is not None:
                self._revoke_waiting(connection, batch.revoked_waiting)
            insert_rows(connection, EARLIER_EVENTS, earlier)
            insert_rows(connection, UNACKNOWLEDGED_EVENTS, ends)
            if batch.acknowledged > self._acknowledged:
                columns = UNACKNOWLEDGED_EVENTS.c
                acknowledged = (columns.run == self.run, columns.number <= batch.acknowledged)
                connection.execute(delete(UNACKNOWLEDGED_EVENTS).where(*acknowledged))

        self._database.write(transaction)
        self._acknowledged = batch.acknowledged

    def add_revoked(self, tasks: Iterable[Task], detail: str) -> None:
        """Store tasks as revoked, if the run has no such tasks. Many are in one transaction; other processes write in
        between."""
        now = time.time()
        changes = {"state": State.REVOKED.value, "reason": Reason.REVOKED.value, "detail": detail, "moved": now}
        remaining = iter(tasks)
        while batch := list(islice(remaining, FETCH_SIZE)):
            rows = [task_row(self.run, str(task.key), self.next_place(), task, now) | changes for task in batch]

            def transaction(connection: Connection, rows: list[dict[str, Any]] = rows) -> None:
                self.owner.renew_or_raise(connection)
                insert_rows(connection, TASKS, rows)

            self._database.write_in_turn(transaction)

    def next_place(self, number: int = 1) -> int:
        place = self._next_place
        self._next_place += number
        return place

    def _revoke_waiting(self, connection: Connection, revoked: RevokedWaiting) -> None:
        """End all waiting tasks, in a few statements."""
        waiting = update(TASKS).where(TASKS.c.run == self.run, UNFINISHED, TASKS.c.state == State.WAITING.value)
        ended = waiting.values(
            state=State.REVOKED.value,
            reason=Reason.REVOKED.value,
            detail=revoked.detail,
            moved=revoked.when,
            execution=None,
            not_before=None,
            revoking=False,
        )
        for condition in key_conditions(self._only):
            connection.execute(ended.where(*condition))

    def unfinished(self) -> Iterator[UnfinishedTask]:
        unfinished = select(TASKS).where(TASKS.c.run == self.run, UNFINISHED).order_by(TASKS.c.place)
        with self._database.reading() as connection:
            found = connection.execution_options(yield_per=FETCH_SIZE).execute(unfinished)
            rows = counted(found, self._database.on_progress)
            wanted = (row for row in rows if self._only is None or row.key in self._only)
            yield from readable(wanted, lambda row: unfinished_task(row.key, row))

    def numbers(self) -> tuple[int, int]:
        with self._database.reading() as connection:
            row = connection.execute(select(RUNS.c.number, RUNS.c.acknowledged).where(RUNS.c.id == self.run)).one()
        return self._whole_number(row.number, "number"), self._whole_number(row.acknowledged, "acknowledged")

    def _whole_number(self, value: object, column: str) -> int:
        """Return a value that the ledger needs to go on. Raises `LedgerBroken`."""
        if not isinstance(value, int):
            raise LedgerBroken(self._database.masked_url, f"is damaged: {column} of a run is {value!r}")
        return value

    def unacknowledged(self) -> Iterable[Event]:
        columns = UNACKNOWLEDGED_EVENTS.c
        events = select(UNACKNOWLEDGED_EVENTS).where(columns.run == self.run).order_by(columns.number)
        with self._database.reading() as connection:
            return list(readable(connection.execute(events), event_of))

    def close(self) -> None:
        """Give up the run, so that another executor can open it. The run has ended if all its tasks have.

        The last open run of a ledger closes the connections, too. If the ledger is unavailable, nothing is written and
        the lease expires. Does nothing when called again.
        """
        if not self._is_closed:
            self._is_closed = True
            self._on_close(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _event_row(self, event: Event) -> dict[str, Any]:
        return {"run": self.run, "number": event.number, "key": str(event.key), "event": encode_event(event)}


def insert_into(table: Any, dialect: str) -> Any:
    """Return an insert that can handle conflicts. Imports only the module of the dialect in use."""
    return import_module(f"sqlalchemy.dialects.{dialect}").insert(table)


@cache
def insertion(table: Any, dialect: str, *, replace: bool) -> Any:
    """Return the statement of `insert_rows`."""
    statement = insert_into(table, dialect)
    if not replace:
        return statement.on_conflict_do_nothing()
    values = {column.name: statement.excluded[column.name] for column in table.columns if not column.primary_key}
    return statement.on_conflict_do_update(index_elements=list(table.primary_key), set_=values)


def insert_rows(connection: Connection, table: Any, rows: list[dict[str, Any]], *, replace: bool = False) -> None:
    """Insert rows. A row that exists already stays, or is replaced."""
    if rows:
        execute_many(connection, insertion(table, connection.dialect.name, replace=replace), rows)
