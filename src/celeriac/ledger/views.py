"""Runs and their tasks, as people see them: what the ledger says, as plain values. Nothing is written here.

Tasks come in pages, each read by itself: who reads slowly holds up nobody, and a million of them need no memory.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from typing import Any

import msgspec
from sqlalchemy import Connection, Select, case, func, select

from celeriac.errors import InvalidConfig
from celeriac.ledger.codec import decode, decode_event, decode_task
from celeriac.ledger.database import Database
from celeriac.ledger.liveness import owner_label
from celeriac.ledger.owner import is_alive
from celeriac.ledger.schema import EARLIER_EVENTS, IN_FLIGHT, OWNERS, RUNS, TASKS
from celeriac.task.event import Event
from celeriac.task.result import Execution, Reason
from celeriac.task.state import State
from celeriac.task.task import Task

PAGE_SIZE = 10_000  # tasks
MAX_NAMES = 10_000  # that are looked through for one like the name that was given
MAX_KEYS = 1_000  # the same
EXECUTION = msgspec.json.Decoder(Execution)
STARTED = TASKS.c.execution.like('%"started":%')  # inside a text the quotes would be escaped


class RunState(StrEnum):
    """How a run stands."""

    SUBMITTED = "submitted"
    """Nobody has begun it."""

    RUNNING = "running"
    ENDED = "ended"
    INTERRUPTED = "interrupted"
    """It has not ended, and nobody who lives runs it."""


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """A run's tasks, by what became of them."""

    succeeded: int = 0
    failed: int = 0
    revoked: int = 0
    """Called back after they had begun."""

    never_ran: int = 0
    """Ended before they began."""

    waiting: int = 0
    in_flight: int = msgspec.field(default=0, name="out")
    last_change: float | None = msgspec.field(default=None, name="last_move")
    """Seconds since the epoch."""

    @property
    def tasks(self) -> int:
        return self.succeeded + self.failed + self.revoked + self.never_ran + self.unfinished

    @property
    def unfinished(self) -> int:
        return self.waiting + self.in_flight

    @property
    def done(self) -> int:
        return self.tasks - self.unfinished


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    id: int
    name: str
    source: str | None
    """The file it is of."""

    state: RunState
    owner: str | None
    """Who runs it now."""

    created: float
    """Seconds since the epoch."""

    ended: float | None
    output: str | None
    """The folder of its commands' output, if it ran on one machine."""

    counts: Counts

    @property
    def duration(self) -> float:
        """Seconds until its end, its last move if it was interrupted, or now."""
        if self.state is RunState.INTERRUPTED:
            return max(0.0, (self.counts.last_change or self.created) - self.created)
        return max(0.0, (self.ended or time.time()) - self.created)

    @property
    def all_succeeded(self) -> bool:
        return self.state is RunState.ENDED and self.counts.succeeded == self.counts.tasks


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskView:
    task: Task
    """With the attempt that it is at."""

    state: State
    arrived: float
    """Seconds since the epoch, as are `moved` and `not_before`."""

    changed_at: float
    not_before: float | None
    revoking: bool
    reason: Reason | None
    detail: str | None
    execution: Execution | None


# — runs —


def list_runs(store: Database, *, limit: int | None = None) -> list[RunView]:
    """The latest first. Raises `LedgerAway` and `LedgerBroken`, as all of these do."""
    with store.reading() as connection:
        rows = connection.execute(select_runs().limit(limit)).all()
        return [run_view(connection, row) for row in rows]


def count_runs(store: Database) -> int:
    with store.reading() as connection:
        number: int = connection.execute(select(func.count()).select_from(RUNS)).scalar_one()
    return number


def find_run(store: Database, name: str | None, *, counted: bool = True) -> RunView:
    """Of that name, or the latest. Counting takes a while with a large run that goes on; without it all counts are 0.

    Raises `InvalidConfig` if there is none.
    """
    wanted = select_runs().limit(1) if name is None else select_runs().where(RUNS.c.name == name)
    with store.reading() as connection:
        if (row := connection.execute(wanted).one_or_none()) is not None:
            return run_view(connection, row, counted=counted)
        if name is None:
            raise InvalidConfig(
                "run", f"there is none in {store.masked_url} yet", "run something first, or name another one"
            )
        names = connection.execute(select_runs().with_only_columns(RUNS.c.name).limit(MAX_NAMES)).scalars().all()
    raise InvalidConfig(
        f"run {name!r}", f"there is none in {store.masked_url}", suggest(name, names, "celeriac runs lists them")
    )


def reload(store: Database, run: RunView) -> RunView | None:
    """The same run, as it stands now; None if it was removed."""
    with store.reading() as connection:
        row = connection.execute(select_runs().where(RUNS.c.id == run.id)).one_or_none()
        return None if row is None else run_view(connection, row)


def select_runs() -> Select[Any]:
    its_owner = (OWNERS.c.host, OWNERS.c.boot_id, OWNERS.c.pid, OWNERS.c.process_started, OWNERS.c.until)
    joined = RUNS.outerjoin(OWNERS, OWNERS.c.id == RUNS.c.owner)
    return select(*RUNS.c, *its_owner).select_from(joined).order_by(RUNS.c.id.desc())


def run_view(connection: Connection, row: Any, *, counted: bool = True) -> RunView:
    alive = row.until is not None and is_alive(connection, row)
    if row.ended is not None:
        state = RunState.ENDED
    elif alive:
        state = RunState.RUNNING
    else:
        is_left_to_others = row.submitted and row.owner is None and row.total is not None
        state = RunState.SUBMITTED if is_left_to_others else RunState.INTERRUPTED
    return RunView(
        id=row.id,
        name=row.name,
        source=row.source,
        state=state,
        owner=owner_label(row) if alive else None,
        created=row.created,
        ended=row.ended,
        output=row.output,
        counts=stored_counts(connection, row) if counted else Counts(),
    )


def stored_counts(connection: Connection, row: Any) -> Counts:
    """Put down by the last one who ran it, or counted now."""
    return count_tasks(connection, row.id) if row.counts is None else msgspec.json.decode(row.counts, type=Counts)


def count_tasks(connection: Connection, run: int) -> Counts:
    """Reads all of the run's tasks: about a second for a million."""
    ran = case((TASKS.c.state == State.REVOKED, case((STARTED | (TASKS.c.attempt > 1), True), else_=False)), else_=True)
    columns = (TASKS.c.state, ran.label("ran"), func.count().label("number"), func.max(TASKS.c.moved).label("last"))
    counted: dict[str, int] = {}
    last: float | None = None
    wanted = select(*columns).where(TASKS.c.run == run).group_by(TASKS.c.state, "ran")
    for state, has_run, number, moved in connection.execute(wanted):
        field = counts_field(State(state), has_run=has_run)
        counted[field] = counted.get(field, 0) + number
        last = moved if last is None else max(last, moved)
    return Counts(**counted, last_change=last)


def counts_field(state: State, *, has_run: bool) -> str:
    match state:
        case State.SUCCESS:
            return "succeeded"
        case State.FAILED:
            return "failed"
        case State.REVOKED if has_run:
            return "revoked"
        case State.WAITING:
            return "waiting"
        case _ if state in IN_FLIGHT:
            return "in_flight"
    return "never_ran"


def encode_counts(counts: Counts) -> str:
    return msgspec.json.encode(counts).decode()


# — tasks —


def list_tasks(
    store: Database, run: int, *, states: Collection[State] = (), limit: int | None = None
) -> Iterator[TaskView]:
    """In the order in which they were queued; those of these states, or all."""
    after, left = -1, limit
    while left is None or left > 0:
        size = PAGE_SIZE if left is None else min(PAGE_SIZE, left)
        wanted = select(TASKS).where(TASKS.c.run == run, TASKS.c.place > after).order_by(TASKS.c.place).limit(size)
        if states:
            wanted = wanted.where(TASKS.c.state.in_([state.value for state in states]))
        with store.reading() as connection:
            rows = connection.execute(wanted).all()
        yield from map(task_view, rows)
        if len(rows) < size:
            return
        after = rows[-1].place
        left = None if left is None else left - len(rows)


def find_task(store: Database, run: RunView, key: str) -> TaskView:
    """Raises `InvalidConfig` if the run has none."""
    with store.reading() as connection:
        row = connection.execute(select(TASKS).where(TASKS.c.run == run.id, TASKS.c.key == key)).one_or_none()
        if row is not None:
            return task_view(row)
        keys = {other for start in (key[:-1], key[:1]) for other in keys_starting_with(connection, run.id, start)}
    raise InvalidConfig(f"task {key!r}", f"run {run.name!r} has none", suggest(key, keys, "celeriac show lists them"))


def keys_starting_with(connection: Connection, run: int, start: str) -> Sequence[str]:
    alike = select(TASKS.c.key).where(TASKS.c.run == run, TASKS.c.key.startswith(start, autoescape=True))
    keys: Sequence[str] = connection.execute(alike.limit(MAX_KEYS)).scalars().all()
    return keys


def earlier_events(store: Database, run: int, key: str) -> list[Event]:
    """Attempts of the task that another one followed, in order."""
    wanted = select(EARLIER_EVENTS.c.number, EARLIER_EVENTS.c.event).where(
        EARLIER_EVENTS.c.run == run, EARLIER_EVENTS.c.key == key
    )
    with store.reading() as connection:
        rows = connection.execute(wanted.order_by(EARLIER_EVENTS.c.number)).all()
    return [decode_event(key, number, text) for number, text in rows]


def task_view(row: Any) -> TaskView:
    return TaskView(
        task=decode_task(row.key, row),
        state=State(row.state),
        arrived=row.arrived,
        changed_at=row.moved,
        not_before=row.not_before,
        revoking=bool(row.revoking),
        reason=None if row.reason is None else Reason(row.reason),
        detail=row.detail,
        execution=None if row.execution is None else decode(EXECUTION, row.execution),
    )


def suggest(name: str, names: Collection[str], otherwise: str) -> str:
    """What may have been meant."""
    alike = get_close_matches(name, names, n=3)
    return f"did you mean {' or '.join(alike)}?" if alike else otherwise
