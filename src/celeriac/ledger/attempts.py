"""The attempts of a run's tasks, for a reader of a whole run. They are read page by page, with few columns decoded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Select, or_, select

from celeriac.ledger.codec import (
    EVENT_DECODER,
    MalformedRow,
    decode,
    decoding,
    readable,
    stored_text,
    stored_time,
)
from celeriac.ledger.database import Database
from celeriac.ledger.progress import counted
from celeriac.ledger.schema import EARLIER_EVENTS, TASKS
from celeriac.ledger.views import EXECUTION, earlier_events
from celeriac.task.event import Event
from celeriac.task.result import Execution, Reason
from celeriac.task.state import State
from celeriac.task.task import DEFAULT_QUEUE, Command

PAGE_SIZE = 10_000  # rows


class Job(msgspec.Struct):
    """The fields of a stored task that a reader needs: one more field takes a second for a million tasks."""

    command: str | tuple[str, ...]
    queue: str = DEFAULT_QUEUE


JOB = msgspec.json.Decoder(Job)
STATES = {state.value: state for state in State}
REASONS = {reason.value: reason.value for reason in Reason}
COLUMNS = ("key", "run", "place", "payload", "state", "attempt", "moved", "reason", "detail", "execution")


class Attempt(NamedTuple):
    """One attempt of a task. A task that has not begun has one, too: its next."""

    key: str
    number: int
    state: State
    """The state of the task now; WAITING for an attempt that was followed by another."""

    reason: str | None
    detail: str | None
    changed_at: float
    """Seconds since the epoch."""

    execution: Execution | None
    command: Command | None = None
    """The command and the queue are unknown for an earlier attempt."""

    queue: str | None = None


def last_attempts(database: Database, run: int) -> Iterator[Attempt]:
    """Yield the last attempt of each task, in the order in which the tasks were queued.

    Raises `LedgerUnavailable` and `LedgerBroken`, like `earlier_attempts`.
    """
    columns = TASKS.c
    query = select(*(columns[name] for name in COLUMNS)).where(columns.run == run)
    rows = pages(database, query, columns.place, "place")
    return readable(counted(rows, database.on_progress), last_attempt)


def earlier_attempts(database: Database, run: int) -> Iterator[Attempt]:
    """Yield the attempts that ended and were followed by others, in the order of their ends."""
    columns = EARLIER_EVENTS.c
    rows = pages(database, select(EARLIER_EVENTS).where(columns.run == run), columns.number, "number")
    return (attempt for attempt in readable(rows, earlier_attempt) if attempt is not None)


def failed_attempts(database: Database, run: int) -> Iterator[Attempt]:
    """Yield the attempts that failed, in the order of the tasks, the first attempt of each first."""
    columns = TASKS.c
    names = (*(columns[name] for name in COLUMNS), columns.id)
    may_have = or_(columns.state == State.FAILED.value, columns.attempt > 1)
    query = select(*names).where(columns.run == run, may_have)
    for row in pages(database, query, columns.place, "place"):
        yield from attempts_before(database, run, row)
        yield from (last for last in readable([row[:-1]], last_attempt) if last.state is State.FAILED)


def attempts_before(database: Database, run: int, row: Any) -> Iterator[Attempt]:
    """Yield the attempts of a task's row that were followed by others. An earlier task of the run may have had its key,
    but not its id."""
    if row.attempt == 1:
        return
    for event in earlier_events(database, run, row.key):
        is_of_task = event.id == row.id or event.id.startswith(f"{row.id}.")
        if is_of_task and event.state is State.WAITING and event.priority is None:
            yield attempt_of(row.key, event)


def pages(database: Database, query: Select[Any], column: Any, name: str) -> Iterator[Any]:
    """Yield the rows of a query in the order of a column. Each page is a transaction of its own."""
    after = -1
    while True:
        with database.reading() as connection:
            rows = connection.execute(query.where(column > after).order_by(column).limit(PAGE_SIZE)).all()
        yield from rows
        if len(rows) < PAGE_SIZE:
            return
        after = getattr(rows[-1], name)


def last_attempt(row: Any) -> Attempt:
    """Return the attempt of a task's row. Raise `MalformedRow`."""
    key, _, _, payload, state, number, moved, reason, detail, execution = row
    try:  # one block for all columns: a block for each would take seconds for a million tasks
        job = decode(JOB, payload)
        return Attempt(
            key,
            number,
            STATES[state],
            None if reason is None else REASONS[reason],
            stored_text(detail),
            stored_time(moved) or 0.0,
            None if execution is None else decode(EXECUTION, execution),
            job.command,
            job.queue,
        )
    except Exception as error:  # noqa: BLE001 - a decoder can raise anything
        raise MalformedRow(key, "payload, state, reason or execution", error) from None


def earlier_attempt(row: Any) -> Attempt | None:
    """Return the attempt of the row of an event; None if no attempt followed, or none ended. Raise `MalformedRow`."""
    with decoding(row.key, "event"):
        event = decode(EVENT_DECODER, row.event)
    if event.state is not State.WAITING or event.priority is not None:
        return None
    return attempt_of(row.key, event)


def attempt_of(key: str, event: Event) -> Attempt:
    reason = None if event.reason is None else event.reason.value
    return Attempt(key, event.attempt, event.state, reason, event.detail, event.when, event.execution)
