"""One run of a ledger, written by one executor: an implementation of `executor.interfaces.Ledger`."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from celeriac.config.lease import RENEWAL_INTERVAL
from celeriac.errors import LedgerBroken
from celeriac.executor.interfaces import NO_TRAITS, LedgerBatch, LedgerTraits, RevokedWaiting, UnfinishedTask
from celeriac.ledger.codec import check_key, encode_event, event_of, readable, record_row, task_row, unfinished_task
from celeriac.ledger.owner import Owner
from celeriac.ledger.prepared import (
    DELETE_ACKNOWLEDGED,
    INSERT_EARLIER_EVENT,
    INSERT_TASK,
    INSERT_UNACKNOWLEDGED,
    REPLACE_TASK,
    REVOKE_WAITING,
    REVOKE_WAITING_TASK,
    SELECT_LAST_PLACE,
    SELECT_NUMBERS,
    SELECT_UNACKNOWLEDGED,
    SELECT_UNFINISHED,
    SET_NUMBERS,
    UPDATE_TASK_STATE,
)
from celeriac.ledger.progress import counted
from celeriac.ledger.transactions import AnyTransactions
from celeriac.task.event import Event
from celeriac.task.result import Reason
from celeriac.task.state import State
from celeriac.task.task import Task

if TYPE_CHECKING:
    from celeriac.ledger.statement import AnyConnection

FETCH_SIZE = 10_000  # rows in one fetch


class RunLedger:
    """One run, opened by `SqlLedger.open_run`. Use it as a context manager, or call `close`."""

    lease: float | None = RENEWAL_INTERVAL

    def __init__(
        self,
        database: AnyTransactions,
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
            last = SELECT_LAST_PLACE.scalar(connection, {"of_run": run})
        self._next_place = 0 if last is None else self._whole_number(last, "place") + 1
        self._acknowledged = self.numbers()[1]

    def check(self, task: Task) -> None:
        check_key(task.key)

    def write(self, batch: LedgerBatch) -> None:
        queued = [task_row(self.run, str(task.key), place, task, arrived) for task, arrived, place in batch.queued]
        records = [record_row(self.run, str(key), record) for key, record in batch.records.items()]
        earlier = [self._event_row(event) for event in batch.events if not event.state.is_final]
        ends = [self._event_row(event) for event in batch.events if event.state.is_final and self._keeps_events]

        def transaction(connection: AnyConnection) -> None:
            self.owner.renew_or_raise(connection)
            numbers = {"of_run": self.run, "number": batch.last_number, "acknowledged": batch.acknowledged}
            SET_NUMBERS.execute(connection, numbers)
            REPLACE_TASK.execute_many(connection, queued)
            UPDATE_TASK_STATE.execute_many(connection, records)
            if batch.revoked_waiting is not None:
                self._revoke_waiting(connection, batch.revoked_waiting)
            INSERT_EARLIER_EVENT.execute_many(connection, earlier)
            INSERT_UNACKNOWLEDGED.execute_many(connection, ends)
            if batch.acknowledged > self._acknowledged:
                DELETE_ACKNOWLEDGED.execute(connection, {"of_run": self.run, "last": batch.acknowledged})

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

            def transaction(connection: AnyConnection, rows: list[dict[str, Any]] = rows) -> None:
                self.owner.renew_or_raise(connection)
                INSERT_TASK.execute_many(connection, rows)

            self._database.write_in_turn(transaction)

    def next_place(self, number: int = 1) -> int:
        place = self._next_place
        self._next_place += number
        return place

    def _revoke_waiting(self, connection: AnyConnection, revoked: RevokedWaiting) -> None:
        """End all waiting tasks; with `only` those of its keys."""
        values = {"of_run": self.run, "detail": revoked.detail, "moved": revoked.when}
        if self._only is None:
            REVOKE_WAITING.execute(connection, values)
        else:
            REVOKE_WAITING_TASK.execute_many(connection, [{**values, "of_key": key} for key in self._only])

    def unfinished(self) -> Iterator[UnfinishedTask]:
        with self._database.reading() as connection:
            found = SELECT_UNFINISHED.rows(connection, {"of_run": self.run}, fetch_size=FETCH_SIZE)
            rows = counted(found, self._database.on_progress)
            wanted = (row for row in rows if self._only is None or row.key in self._only)
            yield from readable(wanted, lambda row: unfinished_task(row.key, row))

    def numbers(self) -> tuple[int, int]:
        with self._database.reading() as connection:
            row = SELECT_NUMBERS.execute(connection, {"of_run": self.run}).fetchone()
        number, acknowledged = row or (None, None)
        return self._whole_number(number, "number"), self._whole_number(acknowledged, "acknowledged")

    def _whole_number(self, value: object, column: str) -> int:
        """Return a value that the ledger needs to go on. Raises `LedgerBroken`."""
        if not isinstance(value, int):
            raise LedgerBroken(self._database.masked_url, f"is damaged: {column} of a run is {value!r}")
        return value

    def unacknowledged(self) -> Iterable[Event]:
        with self._database.reading() as connection:
            return list(readable(SELECT_UNACKNOWLEDGED.rows(connection, {"of_run": self.run}), event_of))

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
