"""Pages of a run's tasks, with filters. Each page reads a bounded number of rows, however large the run is.

    a filter of unfinished states ─► by priority, in the order in which the tasks start: the index has only these tasks
    any other filter              ─► in the order in which the tasks were queued

A filter may match few tasks. So a search ends after `SEARCH_TIME`, and returns the place from which it goes on.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import ColumnElement, Connection, Select, select

from celeriac.ledger.codec import encode, readable
from celeriac.ledger.database import Database
from celeriac.ledger.schema import TASKS, UNFINISHED
from celeriac.ledger.views import TaskView, task_view
from celeriac.ledger.where.condition import Condition
from celeriac.task.state import State
from celeriac.task.task import DEFAULT_QUEUE
from celeriac.web.errors import WebError

MAX_LIMIT = 1_000  # tasks of one page
BATCH_SIZE = 2_000  # rows of one query
SEARCH_TIME = 0.03  # seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFilter:
    """Which tasks of a run are shown."""

    states: Collection[State] = ()
    """All if there are none."""

    queue: str | None = None
    text: str | None = None
    """A part of the key, in upper or lower case."""

    where: Condition | None = None

    @property
    def is_unfinished(self) -> bool:
        """Whether only tasks that have not ended match."""
        return bool(self.states) and not any(state.is_final for state in self.states)


class QueueOfTask(msgspec.Struct):
    """The queue in a stored task."""

    queue: str = DEFAULT_QUEUE


QUEUE = msgspec.json.Decoder(QueueOfTask)


class Position(NamedTuple):
    """The last task that was searched."""

    place: int
    priority: int | None = None
    """None where tasks are in the order of their places."""

    def __str__(self) -> str:
        return str(self.place) if self.priority is None else f"{self.place}@{self.priority}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskPage:
    """Some tasks of a run, in order."""

    tasks: Sequence[TaskView]
    next: str | None
    """The position from which the search goes on; None if it has reached the end."""

    searched: int
    """The number of tasks that were searched."""


def parse_position(text: str, *, by_priority: bool) -> Position:
    """Return the position that an earlier page has named. Raises `WebError`."""
    place, at, priority = text.partition("@")
    try:
        position = Position(int(place), int(priority) if at else None)
    except ValueError:
        position = Position(-1)
    if (position.priority is not None) is not by_priority or not 0 <= position.place < 2**63:
        raise WebError(f"after: {text!r} is not a position of this list; give the `next` of its last page")
    if position.priority is not None and not -(2**31) <= position.priority < 2**31:
        raise WebError(f"after: {text!r} is not a position of this list; give the `next` of its last page")
    return position


def read_task_page(database: Database, run: int, wanted: TaskFilter, *, after: str | None, limit: int) -> TaskPage:
    """Return the next tasks that match. Raises `WebError` for an unknown position, and `LedgerError`."""
    by_priority = wanted.is_unfinished
    position = None if after is None else parse_position(after, by_priority=by_priority)
    found: list[TaskView] = []
    searched, until = 0, time.monotonic() + SEARCH_TIME
    conditions = conditions_of(wanted)
    with database.reading() as connection:
        while True:
            is_any = not conditions and wanted.queue is None and wanted.where is None
            size = limit - len(found) if is_any else BATCH_SIZE
            chunk = read_chunk(connection, run, position, by_priority=by_priority, size=size)
            rows = matching_rows(connection, run, conditions, chunk, position, by_priority=by_priority)
            for row, view in decoded(row for row in rows if is_wanted(row, wanted)):
                found.append(view)
                if len(found) == limit:
                    return TaskPage(tasks=found, next=str(position_of(row, by_priority=by_priority)), searched=searched)
            searched += len(chunk)
            if len(chunk) < size:
                return TaskPage(tasks=found, next=None, searched=searched)
            position = position_of(chunk[-1], by_priority=by_priority)
            if time.monotonic() >= until:
                return TaskPage(tasks=found, next=str(position), searched=searched)


def is_wanted(row: Any, wanted: TaskFilter) -> bool:
    """Return whether a task meets what the database does not check."""
    return is_of_queue(row, wanted.queue) and (wanted.where is None or wanted.where.matches(row))


def is_of_queue(row: Any, queue: str | None) -> bool:
    """Return whether a task belongs to a queue. One that cannot be decoded does not, and is left out in any case."""
    if queue is None:
        return True
    with suppress(msgspec.MsgspecError, RecursionError):
        return QUEUE.decode(row.payload).queue == queue
    return False


def decoded(rows: Iterable[Any]) -> Iterator[tuple[Any, TaskView]]:
    """Yield the readable rows with their tasks."""
    for row in rows:
        for view in readable([row], task_view):
            yield row, view


def conditions_of(wanted: TaskFilter) -> list[ColumnElement[bool]]:
    """Return the conditions that the database checks."""
    conditions: list[ColumnElement[bool]] = []
    if wanted.states:
        conditions.append(TASKS.c.state.in_([state.value for state in wanted.states]))
    if wanted.text:
        conditions.append(TASKS.c.key.icontains(wanted.text, autoescape=True))
    if wanted.queue not in (None, DEFAULT_QUEUE):  # a default is not stored
        conditions.append(TASKS.c.payload.contains(f'"queue":{encode(wanted.queue)}', autoescape=True))
    return conditions if wanted.where is None else [*conditions, *wanted.where.conditions()]


def position_of(row: Any, *, by_priority: bool) -> Position:
    return Position(row.place, row.priority if by_priority else None)


def read_chunk(connection: Connection, run: int, after: Position | None, *, by_priority: bool, size: int) -> list[Any]:
    """Return the places and priorities of the next tasks."""
    rows: list[Any] = []
    for query in ordered(select(TASKS.c.place, TASKS.c.priority), run, after, by_priority=by_priority):
        if len(rows) < size:
            rows += connection.execute(query.limit(size - len(rows))).all()
    return rows


def matching_rows(
    connection: Connection,
    run: int,
    conditions: Sequence[ColumnElement[bool]],
    chunk: Sequence[Any],
    after: Position | None,
    *,
    by_priority: bool,
) -> Iterator[Any]:
    """Yield the whole rows of a chunk that meet the conditions, as the caller needs them."""
    if not chunk:
        return
    last = chunk[-1]
    for query in ordered(select(TASKS), run, after, by_priority=by_priority):
        up_to = [TASKS.c.place <= last.place]
        if by_priority:
            up_to = [(TASKS.c.priority > last.priority) | ((TASKS.c.priority == last.priority) & up_to[0])]
        yield from connection.execute(query.where(*up_to, *conditions).limit(len(chunk)))


def ordered(columns: Select[Any], run: int, after: Position | None, *, by_priority: bool) -> list[Select[Any]]:
    """Return the queries of the tasks after a position. Each reads its rows in the order of an index."""
    tasks = columns.where(TASKS.c.run == run)
    if not by_priority:
        place = -1 if after is None else after.place
        return [tasks.where(TASKS.c.place > place).order_by(TASKS.c.place)]
    tasks = tasks.where(UNFINISHED)
    in_order = (TASKS.c.priority.desc(), TASKS.c.place)
    if after is None:
        return [tasks.order_by(*in_order)]
    same = tasks.where(TASKS.c.priority == after.priority, TASKS.c.place > after.place).order_by(TASKS.c.place)
    return [same, tasks.where(TASKS.c.priority < after.priority).order_by(*in_order)]
