"""Runs and their tasks as plain values, for readers. This module writes nothing.

Tasks are read page by page, each in a transaction of its own: a slow reader blocks no writer, and a million tasks need
no more memory than a page.
"""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from itertools import islice
from typing import Any

import msgspec
from sqlalchemy import Connection, Select, func, select

from celeriac.errors import InvalidConfig
from celeriac.ledger.codec import (
    MalformedRow,
    decode,
    decode_state,
    decode_task,
    decoding,
    event_of,
    readable,
    stored_text,
    stored_time,
)
from celeriac.ledger.counts import Counts, count_tasks, state_of, unrecorded_of
from celeriac.ledger.database import Database
from celeriac.ledger.inputs import folder_of_output
from celeriac.ledger.liveness import owner_label
from celeriac.ledger.owner import is_alive
from celeriac.ledger.run_pauses import WHOLE, paused_inputs, pauses_of, words_of
from celeriac.ledger.run_tags import has_tags, tagged_inputs, tags_of, with_all_tags
from celeriac.ledger.schema import EARLIER_EVENTS, OWNERS, RUNS, TASKS
from celeriac.ledger.where.condition import Condition
from celeriac.ledger.where.fields import RowValues
from celeriac.task.event import Event
from celeriac.task.result import Execution, Reason
from celeriac.task.state import State
from celeriac.task.task import Task

PAGE_SIZE = 10_000  # tasks
MAX_NAMES = 10_000  # names compared for a suggestion
MAX_START = 1_000  # characters: SQLite refuses to search for very long ones
MAX_KEYS = 1_000  # keys compared for a suggestion
EXECUTION = msgspec.json.Decoder(Execution)


class RunState(StrEnum):
    """The state of a run."""

    SUBMITTED = "submitted"
    """No process has started it."""

    RUNNING = "running"
    ENDED = "ended"
    INTERRUPTED = "interrupted"
    """It has not ended and has no live owner."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """A run."""

    id: int
    name: str
    source: str | None
    """The file of its tasks."""

    state: RunState
    owner: str | None
    """The label of its live owner."""

    created: float
    """Seconds since the epoch."""

    ended: float | None
    output: str | None
    """The folder with its commands' output, on the machine of its owner; None if workers elsewhere keep it."""

    on_workers: bool = True
    """Whether workers elsewhere run its commands, so that tasks may be in flight without its owner."""

    counts: Counts
    is_submitted: bool = False
    """Whether services run it, and its owner reads requests from the ledger."""

    tags: tuple[str, ...] = ()
    paused: str | None = None
    """What of it is paused, and by whom."""

    is_paused: bool = False
    """Whether it is paused as a whole."""

    paused_queues: tuple[str, ...] = ()
    """The queues of it that are paused one by one."""

    unrecorded: int = 0
    """How many of the waiting tasks are only in the run's file: it was interrupted, or they are not due yet."""

    @property
    def duration(self) -> float:
        """Seconds from its creation to its end, to its last change if it was interrupted, or to now."""
        if self.state is RunState.INTERRUPTED:
            return max(0.0, (self.counts.last_change or self.created) - self.created)
        return max(0.0, (self.ended or time.time()) - self.created)

    @property
    def all_succeeded(self) -> bool:
        """Whether the run has ended and each task succeeded."""
        return self.state is RunState.ENDED and self.counts.succeeded == self.counts.tasks


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskView:
    """A task and its state."""

    task: Task
    """With its current attempt."""

    state: State
    arrived: float
    """Seconds since the epoch, like `changed_at` and `not_before`."""

    changed_at: float
    not_before: float | None
    revoking: bool
    reason: Reason | None
    detail: str | None
    execution: Execution | None
    place: int = 0
    """Its place in the run, from 0."""

    def last_event(self, number: int = 0) -> Event:
        """Return the event that has brought the task into its state, with that number."""
        return Event(
            key=self.task.key,
            state=self.state,
            when=self.changed_at,
            id=self.task.message_id,
            attempt=self.task.attempt,
            reason=self.reason,
            detail=self.detail,
            execution=self.execution,
            number=number,
        )


# — runs —


def list_runs(database: Database, *, limit: int | None = None, tags: Collection[str] = ()) -> list[RunView]:
    """Return the runs that have each of the tags, the latest first.

    Raises `LedgerUnavailable` and `LedgerBroken`, like each function of this module that takes a database.
    """
    with database.reading() as connection:
        return [run_view(connection, row) for row in matching_runs(database, connection, tags, limit)]


def matching_runs(
    database: Database, connection: Connection, tags: Collection[str], limit: int | None, before: int | None = None
) -> list[Any]:
    """Return rows of `select_runs`: the latest runs with each of the tags that are older than the run `before`."""
    query = select_runs(database)
    if before is not None:
        query = query.where(RUNS.c.id < before)
    if not tags:
        return list(connection.execute(query.limit(limit)))
    if not database.has_all_tables:
        return []
    return list(with_all_tags(connection.execute(query.where(has_tags())), tags, limit))


def count_runs(database: Database, *, tags: Collection[str] = ()) -> int:
    """Return the number of runs that have each of the tags."""
    with database.reading() as connection:
        if tags:
            return len(matching_runs(database, connection, tags, None))
        number: int = connection.execute(select(func.count()).select_from(RUNS)).scalar_one()
    return number


def find_run(database: Database, name: str | None, *, counted: bool = True) -> RunView:
    """Return the run of this name, or the latest run. Counting the tasks of a large running run takes about a second;
    without `counted`, all counts are 0.

    Raises `InvalidConfig` if there is none.
    """
    query = select_runs(database)
    query = query.limit(1) if name is None else query.where(RUNS.c.name == name)
    with database.reading() as connection:
        if (row := connection.execute(query).one_or_none()) is not None:
            return run_view(connection, row, counted=counted)
        if name is None:
            problem = f"there is none in {database.masked_url} yet"
            raise InvalidConfig("run", problem, "run something first, or name another ledger")
        names = connection.execute(select_runs().with_only_columns(RUNS.c.name).limit(MAX_NAMES)).scalars().all()
    remedy = suggest(name, names, "celeriac runs lists the runs")
    raise InvalidConfig(f"run {name!r}", f"there is none in {database.masked_url}", remedy)


def reload(database: Database, run: RunView) -> RunView | None:
    """Return the run as it is now, or None if it was removed."""
    with database.reading() as connection:
        row = connection.execute(select_runs(database).where(RUNS.c.id == run.id)).one_or_none()
        return None if row is None else run_view(connection, row)


def select_runs(database: Database | None = None) -> Select[Any]:
    """Return a query of runs with their owners, the latest first; with the tags and pauses that a database has."""
    owner = (OWNERS.c.host, OWNERS.c.boot_id, OWNERS.c.pid, OWNERS.c.process_started, OWNERS.c.until)
    has_inputs = database is not None and database.has_all_tables
    tags = [tagged_inputs(), paused_inputs()] if has_inputs else []
    joined = RUNS.outerjoin(OWNERS, OWNERS.c.id == RUNS.c.owner)
    return select(*RUNS.c, *owner, *tags).select_from(joined).order_by(RUNS.c.id.desc())


def run_view(connection: Connection, row: Any, *, counted: bool = True) -> RunView:
    """Return the run of a row of `select_runs`."""
    has_live_owner = row.until is not None and is_alive(connection, row)
    owner = owner_label(row) if has_live_owner else None
    if row.ended is not None:
        state = RunState.ENDED
    elif has_live_owner:
        state = RunState.RUNNING
    else:
        waits_for_service = row.submitted and row.owner is None and row.total is not None
        state = RunState.SUBMITTED if waits_for_service else RunState.INTERRUPTED
    counts = stored_counts(connection, row) if counted else Counts()
    unrecorded = unrecorded_of(row.total, counts) if counted else 0
    pauses = pauses_of(row, owner) if state is not RunState.ENDED else {}
    folder, on_workers = folder_of_output(stored_text(row.output))
    return RunView(
        id=row.id,
        name=row.name,
        source=stored_text(row.source),
        state=state,
        owner=owner,
        created=stored_time(row.created) or 0.0,
        ended=stored_time(row.ended),
        output=folder,
        on_workers=on_workers,
        is_submitted=bool(row.submitted),
        counts=msgspec.structs.replace(counts, waiting=counts.waiting + unrecorded),
        tags=tags_of(row),
        paused=words_of(pauses),
        is_paused=WHOLE in pauses,
        paused_queues=tuple(queue for queue in pauses if queue != WHOLE),
        unrecorded=unrecorded,
    )


def stored_counts(connection: Connection, row: Any) -> Counts:
    """Return the counts that the last owner stored. Count now if there are none, or if they are malformed."""
    with suppress(msgspec.MsgspecError, RecursionError):
        if row.counts is not None:
            return msgspec.json.decode(row.counts, type=Counts)
    return count_tasks(connection, row.id)


def count_states(connection: Connection, run: int) -> Counter[State]:
    """Return the number of tasks of a run in each state."""
    groups = select(TASKS.c.state, func.count()).where(TASKS.c.run == run).group_by(TASKS.c.state)
    states: Counter[State] = Counter()
    for state, number in connection.execute(groups):
        states[state_of(state)] += number
    return states


# — tasks —


def list_tasks(
    database: Database,
    run: int,
    *,
    states: Collection[State] = (),
    where: Condition | None = None,
    limit: int | None = None,
) -> Iterator[TaskView]:
    """Yield the tasks of these states, or all, that meet the condition, in the order in which they were queued."""
    size = PAGE_SIZE if limit is None or where is not None else min(PAGE_SIZE, limit)
    rows = task_rows(database, run, states, where, size)
    yield from islice(readable(rows, task_view), limit)


def task_rows(
    database: Database, run: int, states: Collection[State], where: Condition | None, size: int
) -> Iterator[Any]:
    """Yield the rows of tasks as `list_tasks` does. It reads `size` at a time."""
    after = -1
    query = select(TASKS).where(TASKS.c.run == run, *([] if where is None else where.conditions()))
    if states:
        query = query.where(TASKS.c.state.in_([state.value for state in states]))
    while True:
        with database.reading() as connection:
            rows = connection.execute(query.where(TASKS.c.place > after).order_by(TASKS.c.place).limit(size)).all()
        yield from rows if where is None else filter(where.matches, rows)
        if len(rows) < size:
            return
        after = rows[-1].place


def slowest_tasks(
    database: Database,
    run: int,
    number: int,
    *,
    states: Collection[State] = (),
    where: Condition | None = None,
    now: float | None,
) -> list[TaskView]:
    """Return the tasks whose last attempts took longest, the longest first. For `now` see `Condition`."""
    timed = ((RowValues(row, now).took, row) for row in task_rows(database, run, states, where, PAGE_SIZE))
    slow = heapq.nlargest(number, ((took, -row.place, row) for took, row in timed if took is not None))
    return list(readable((row for *_, row in slow), task_view))


def find_task(database: Database, run: RunView, key: str) -> TaskView:
    """Return the task of this key. Raises `InvalidConfig` if the run has none."""
    with database.reading() as connection:
        row = connection.execute(select(TASKS).where(TASKS.c.run == run.id, TASKS.c.key == key)).one_or_none()
        if row is not None:
            try:
                return task_view(row)
            except MalformedRow as malformed:
                remedy = "repair the ledger, or run the task again under another key"
                raise InvalidConfig(f"run {run.name!r}", str(malformed), remedy) from None
        keys = {
            other
            for start in (key[:-1][:MAX_START], key[:1])
            for other in keys_starting_with(connection, run.id, start)
        }
    raise InvalidConfig(
        f"task {key!r}", f"run {run.name!r} has none", suggest(key, keys, "celeriac show lists the tasks")
    )


def keys_starting_with(connection: Connection, run: int, start: str) -> Sequence[str]:
    """Return keys of the run's tasks, at most `MAX_KEYS`."""
    similar = select(TASKS.c.key).where(TASKS.c.run == run, TASKS.c.key.startswith(start, autoescape=True))
    keys: Sequence[str] = connection.execute(similar.limit(MAX_KEYS)).scalars().all()
    return keys


def earlier_events(database: Database, run: int, key: str | None = None) -> list[Event]:
    """Return the events of the earlier attempts of one task, or of all, in order. A task's row shows only the last."""
    columns = EARLIER_EVENTS.c
    conditions = [columns.run == run] if key is None else [columns.run == run, columns.key == key]
    with database.reading() as connection:
        rows = connection.execute(select(EARLIER_EVENTS).where(*conditions).order_by(columns.number)).all()
    return list(readable(rows, event_of))


def task_view(row: Any) -> TaskView:
    """Return the task of a row. Raise `MalformedRow`."""
    with decoding(row.key, "reason"):
        reason = None if row.reason is None else Reason(row.reason)
    with decoding(row.key, "execution"):
        execution = None if row.execution is None else decode(EXECUTION, row.execution)
    return TaskView(
        task=decode_task(row.key, row),
        state=decode_state(row),
        arrived=stored_time(row.arrived) or 0.0,
        changed_at=stored_time(row.moved) or 0.0,
        not_before=stored_time(row.not_before),
        revoking=bool(row.revoking),
        reason=reason,
        detail=stored_text(row.detail),
        execution=execution,
        place=row.place if isinstance(row.place, int) else 0,
    )


def suggest(name: str, names: Collection[str], otherwise: str) -> str:
    """Return a hint at similar names, or else `otherwise`."""
    similar = get_close_matches(name, names, n=3)
    return f"did you mean {' or '.join(similar)}?" if similar else otherwise
