"""The submitted runs that one process owns, as one executor writes them: a `Ledger` of several runs.

news: is there anything to take, has anybody asked for anything?
take ─► Taken ─► load, a piece at a time ─► CeleryExecutor.go_on_with ─► write: one transaction for all runs
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

from sqlalchemy import Connection, bindparam, delete, exists, func, or_, select, update

from celeriac.config.lease import RENEWAL_INTERVAL
from celeriac.errors import InvalidTask, LedgerUnavailable
from celeriac.executor.interfaces import LedgerBatch, UnfinishedTask
from celeriac.ledger.codec import encode_event, record_row, unfinished_task
from celeriac.ledger.database import Database
from celeriac.ledger.owner import Owner, is_alive
from celeriac.ledger.resume import MAX_KEYS
from celeriac.ledger.run_writer import UPDATE_TASK_STATE, insert_rows
from celeriac.ledger.schema import (
    CONTROL_REQUESTS,
    EARLIER_EVENTS,
    IN_FLIGHT,
    OWNERS,
    RUNS,
    SUBMITTED,
    TASKS,
    UNFINISHED,
)
from celeriac.task.event import Event
from celeriac.task.state import State
from celeriac.task.task import Task, TaskKey

MAX_RUNS = 100  # taken at a time
BATCH_SIZE = 2_000  # tasks that are loaded at a time
LOAD_TIMEOUT = 5.0  # seconds: what is out is looked for among all that has not ended
FINAL = [state for state in State if state.is_final]

NUMBERS = update(RUNS).where(RUNS.c.id == bindparam("of_run")).values(number=bindparam("last"))


class RunKey(NamedTuple):
    """The key of a task among those of all runs."""

    run: str
    """The run's name."""

    key: str

    def __str__(self) -> str:
        return f"{self.run}/{self.key}"

    def __repr__(self) -> str:
        return repr(str(self))


@dataclass(slots=True, eq=False)
class OwnedRun:
    """A run of the shelf."""

    id: int
    name: str
    number_offset: int
    """What is added to the executor's numbers: above all that the run's earlier owners gave."""

    total: int
    """How many tasks it has."""

    previous_owner: str | None
    """Who owned it and was dead."""

    loaded: int = 0
    """How many of them had not ended when they were loaded."""

    ended: Counter[State] = field(default_factory=Counter)
    """How many of those have since, in each state, as far as that is written down."""

    is_loaded: bool = False
    is_loading_waiting: bool = False
    load_position: tuple[int, int] | None = None
    """Up to where it is loaded: priority and place, of what is out or of what waits."""

    loaded_in_flight: set[str] = field(default_factory=set)
    """Keys, while it is being loaded: what was out may wait by now."""

    @property
    def unfinished(self) -> int:
        return self.loaded - self.ended.total()


class ControlRequest(NamedTuple):
    """What somebody asked of the owner of a run: to call back one task, or all of them."""

    id: int
    run: str
    key: str | None


@dataclass(frozen=True, slots=True)
class PendingWork:
    requests: list[ControlRequest] = field(default_factory=list)
    has_idle_runs: bool = False


class OwnedRuns:
    """Empty at first. Not to be shared between executors."""

    lease: float | None = RENEWAL_INTERVAL

    def __init__(self, store: Database, owner: Owner, output: Path | None = None) -> None:
        """`output` is where what commands write is kept on this machine."""
        self._store, self._owner, self._output = store, owner, output
        self._runs: dict[str, OwnedRun] = {}
        self._ended: list[OwnedRun] = []
        self._may_have_taken = False
        """Whether a transaction of whose success nobody heard may have made runs ours."""

    # — what an executor asks of it —

    def check(self, task: Task) -> None:
        raise InvalidTask("key", f"{task.key!r} is of no run that was submitted", "submit it to the ledger")

    def write(self, page: LedgerBatch) -> None:
        standings = {key: it for each, it in page.records.items() if (key := run_key(each)).run in self._runs}
        events = [event for event in page.events if not event.state.is_final and run_key(event.key).run in self._runs]
        runs = {self._runs[key.run].id: self._runs[key.run] for key in (*standings, *(run_key(e.key) for e in events))}
        rows = [record_row(self._runs[key.run].id, key.key, standing) for key, standing in standings.items()]
        moves = [self._row(event) for event in events]
        ends = Counter((key.run, it.state) for key, it in standings.items() if it.state.is_final)
        over = [
            run
            for run in runs.values()
            if run.is_loaded and run.unfinished <= sum(ends[run.name, state] for state in FINAL)
        ]

        def transaction(connection: Connection) -> None:
            self._owner.renew_or_raise(connection)
            if not runs:
                return
            # A run may have ended by a transaction of whose success we never heard, and be another's by now.
            its = select(RUNS.c.id).where(RUNS.c.id.in_(list(runs)), RUNS.c.owner == self._owner.id)
            ours = set(connection.execute(its.order_by(RUNS.c.id).with_for_update()).scalars())
            if changed := [row for row in rows if row["of_run"] in ours]:
                connection.execute(UPDATE_TASK_STATE, changed)
            insert_rows(connection, EARLIER_EVENTS, [row for row in moves if row["run"] in ours])
            if ours:
                numbers = [
                    {"of_run": each, "last": runs[each].number_offset + page.last_number} for each in sorted(ours)
                ]
                connection.execute(NUMBERS, numbers)
            for run in over:
                end_if_done(connection, run.id, self._owner.id)

        self._store.write(transaction)
        for (name, state), number in ends.items():
            self._runs[name].ended[state] += number
        for run in over:
            self._release(run)

    def unfinished(self) -> Iterable[UnfinishedTask]:
        return ()

    def numbers(self) -> tuple[int, int]:
        return 0, 0

    def unacknowledged(self) -> Iterable[Event]:
        return ()

    # — what its owner asks of it —

    @property
    def runs(self) -> Iterable[OwnedRun]:
        return self._runs.values()

    def get(self, name: str) -> OwnedRun | None:
        return self._runs.get(name)

    def take_ended(self) -> list[OwnedRun]:
        """Those that have ended since the last call, and are no longer owned."""
        ended, self._ended = self._ended, []
        return ended

    def pending_work(self) -> PendingWork:
        """Changes nothing. Raises `LedgerAway` and `LedgerBroken`."""

        def question(connection: Connection) -> PendingWork:
            orders = select(CONTROL_REQUESTS.c.id, RUNS.c.name, CONTROL_REQUESTS.c.key).join(
                RUNS, RUNS.c.id == CONTROL_REQUESTS.c.run
            )
            asked = connection.execute(
                orders.where(RUNS.c.owner == self._owner.id).order_by(CONTROL_REQUESTS.c.id)
            ).all()
            owners = connection.execute(select(OWNERS).where(OWNERS.c.id != self._owner.id)).all()
            alive = [self._owner.id, *(row.id for row in owners if is_alive(connection, row))]
            nobody = or_(RUNS.c.owner.is_(None), RUNS.c.owner.not_in(alive))
            idle = connection.execute(select(RUNS.c.id).where(SUBMITTED, nobody).limit(1)).first()
            return PendingWork([ControlRequest(*each) for each in asked], idle is not None or self._may_have_taken)

        return self._store.read(question)

    def take(self, *, from_dead: bool) -> list[OwnedRun]:
        """Own what nobody owns, of what was submitted. Raises `LedgerAway`, `LedgerLost` and `LedgerBroken`."""

        def transaction(connection: Connection) -> list[OwnedRun]:
            taken = []
            maybe = self._may_have_taken
            for row, owner in self._owner.take_idle(connection, MAX_RUNS, from_dead=from_dead, include_own=maybe):
                if row.name not in self._runs:
                    taken.append(OwnedRun(row.id, row.name, row.number, row.total, owner))
            if taken and self._output is not None:
                output = update(RUNS).where(RUNS.c.id.in_([run.id for run in taken])).values(output=str(self._output))
                connection.execute(output)
            return taken

        try:
            taken = self._store.write(transaction)
        except LedgerUnavailable:
            self._may_have_taken = True
            raise
        self._may_have_taken = False
        self._runs.update((run.name, run) for run in taken)
        return taken

    def load(self, run: OwnedRun) -> list[UnfinishedTask]:
        """The next tasks of it that have not ended: first what is out, then what waits, the most urgent first. Sets
        `is_loaded` with the last of them. Raises `LedgerAway` and `LedgerBroken`."""

        def question(connection: Connection) -> list[Any]:
            return waiting_rows(connection, run) if run.is_loading_waiting else in_flight_rows(connection, run)

        rows = self._store.read(question, LOAD_TIMEOUT)
        is_last = len(rows) < BATCH_SIZE
        run.load_position = (rows[-1].priority, rows[-1].place) if rows and not is_last else None
        if run.is_loading_waiting:
            rows = [row for row in rows if row.key not in run.loaded_in_flight]
            run.is_loaded = is_last
        else:
            run.loaded_in_flight.update(row.key for row in rows)
            run.is_loading_waiting = is_last
        if run.is_loaded:
            run.loaded_in_flight.clear()
        run.loaded += len(rows)
        return [unfinished_task_of_run(run.name, row) for row in rows]

    def dependency_states(self, run: OwnedRun, tasks: Iterable[Task]) -> dict[TaskKey, State]:
        """How those of its tasks ended that these need and that have. Raises `LedgerAway` and `LedgerBroken`."""
        needed = sorted({run_key(need).key for task in tasks for need in task.needs})

        def question(connection: Connection) -> dict[TaskKey, State]:
            ended: dict[TaskKey, State] = {}
            for start in range(0, len(needed), MAX_KEYS):
                its = (TASKS.c.run == run.id, TASKS.c.key.in_(needed[start : start + MAX_KEYS]), ~UNFINISHED)
                rows = connection.execute(select(TASKS.c.key, TASKS.c.state).where(*its))
                ended.update((RunKey(run.name, row.key), State(row.state)) for row in rows)
            return ended

        return self._store.read(question, LOAD_TIMEOUT)

    def end_run(self, run: OwnedRun) -> None:
        """Of which nothing is left. Raises `LedgerAway`, `LedgerLost` and `LedgerBroken`."""

        def transaction(connection: Connection) -> None:
            self._owner.renew_or_raise(connection)
            end_if_done(connection, run.id, self._owner.id)

        self._store.write(transaction)
        self._release(run)

    def acknowledge(self, orders: Iterable[ControlRequest]) -> None:
        """Raises `LedgerAway`, `LedgerLost` and `LedgerBroken`."""
        ids = [order.id for order in orders]

        def transaction(connection: Connection) -> None:
            self._owner.renew_or_raise(connection)
            connection.execute(delete(CONTROL_REQUESTS).where(CONTROL_REQUESTS.c.id.in_(ids)))

        self._store.write(transaction)

    def _release(self, run: OwnedRun) -> None:
        del self._runs[run.name]
        self._ended.append(run)

    def _row(self, event: Event) -> dict[str, Any]:
        key = run_key(event.key)
        run = self._runs[key.run]
        return {"run": run.id, "number": run.number_offset + event.number, "key": key.key, "event": encode_event(event)}


def unfinished_task_of_run(name: str, row: Any) -> UnfinishedTask:
    found = unfinished_task(RunKey(name, row.key), row)
    if not found.task.needs:
        return found
    return replace(found, task=replace(found.task, needs=tuple(RunKey(name, str(need)) for need in found.task.needs)))


def run_key(key: TaskKey) -> RunKey:
    return cast(RunKey, key)


def count_states(connection: Connection, run: int) -> Counter[State]:
    wanted = select(TASKS.c.state, func.count()).where(TASKS.c.run == run).group_by(TASKS.c.state)
    return Counter({State(state): number for state, number in connection.execute(wanted)})


def end_if_done(connection: Connection, run: int, owner: int) -> None:
    """If all of its tasks have, the run has ended, and nobody owns it."""
    left = exists().where(TASKS.c.run == run, UNFINISHED)
    ended = update(RUNS).where(RUNS.c.id == run, RUNS.c.owner == owner, ~left)
    connection.execute(ended.values(ended=time.time(), owner=None))
    connection.execute(delete(CONTROL_REQUESTS).where(CONTROL_REQUESTS.c.run == run, ~left))


def in_flight_rows(connection: Connection, run: OwnedRun) -> list[Any]:
    after = -1 if run.load_position is None else run.load_position[1]
    wanted = select(TASKS).where(TASKS.c.run == run.id, UNFINISHED, TASKS.c.state.in_(IN_FLIGHT), TASKS.c.place > after)
    return list(connection.execute(wanted.order_by(TASKS.c.place).limit(BATCH_SIZE)))


def waiting_rows(connection: Connection, run: OwnedRun) -> list[Any]:
    """In two steps, each of which an index has in order."""
    waiting = select(TASKS).where(TASKS.c.run == run.id, UNFINISHED, TASKS.c.state == State.WAITING.value)
    rows: list[Any] = []
    if run.load_position is not None:
        priority, place = run.load_position
        equals = waiting.where(TASKS.c.priority == priority, TASKS.c.place > place).order_by(TASKS.c.place)
        rows += connection.execute(equals.limit(BATCH_SIZE))
        waiting = waiting.where(TASKS.c.priority < priority)
    if len(rows) < BATCH_SIZE:
        less = waiting.order_by(TASKS.c.priority.desc(), TASKS.c.place)
        rows += connection.execute(less.limit(BATCH_SIZE - len(rows)))
    return rows
