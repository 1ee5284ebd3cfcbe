"""Plan to resume a run: compare the tasks of its file with their state in the ledger.

in the ledger                 in the file   plan
succeeded                     the same      done
failed                        the same      done; with `failed`, queued as a new task
unfinished                    the same      left to `CeleryExecutor.recover`; its other fields are updated
skipped, revoked              the same      queued as a new task; it may be skipped again
any                           changed       queued as a new task; refused while in flight
none                          new           queued
unfinished                    missing       cancelled

If no byte of the file has changed, the file need not be read: the ledger has its tasks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from msgspec.structs import replace
from sqlalchemy import Connection, Update, bindparam, func, select, update

from celeriac.errors import InvalidConfig
from celeriac.ledger.codec import decode_task, digest_of, encode_payload, readable
from celeriac.ledger.counts import IN_FLIGHT
from celeriac.ledger.database import Database
from celeriac.ledger.line_identity import keep_keys
from celeriac.ledger.progress import counted, report_written
from celeriac.ledger.run_writer import FETCH_SIZE
from celeriac.ledger.schema import TASKS
from celeriac.task.result import Reason
from celeriac.task.state import State
from celeriac.task.task import Task, TaskKey, new_task_id

FINAL = {state.value for state in State if state.is_final}
MAX_KEYS = 500  # keys in one query
BATCH_SIZE = 2_000  # rows that one transaction updates
MAX_KEYS_SHOWN = 3  # keys in a message

COMPARED = (TASKS.c.key, TASKS.c.digest, TASKS.c.state, TASKS.c.payload, TASKS.c.priority)
UPDATE_TASK = (
    update(TASKS)
    .where(TASKS.c.run == bindparam("of_run"), TASKS.c.key == bindparam("of_key"))
    .values({name: bindparam(name) for name in ("payload", "priority")})
)
REVOKE_TASK = (
    update(TASKS)
    .where(TASKS.c.run == bindparam("of_run"), TASKS.c.key == bindparam("of_key"))
    .values(state=State.REVOKED.value, reason=Reason.REVOKED.value, detail="it is no longer in the file")
)


class FileJobs(Protocol):
    """The jobs of a file."""

    @property
    def needed(self) -> Collection[TaskKey]:
        """The keys of the jobs that others need."""
        ...

    def __len__(self) -> int: ...
    def find(self, key: TaskKey) -> Task | None: ...


@dataclass(slots=True, kw_only=True)
class Plan:
    """The tasks of a run that are to be queued, and the numbers of the others."""

    tasks: Collection[Task] = ()
    """To be queued, if the file was not read: in its order."""

    not_queued: set[TaskKey] = field(default_factory=set)
    """The jobs that are not queued, if the file was read."""

    had_succeeded: int = 0
    had_failed: int = 0
    """Failed tasks that are not queued."""

    unfinished: int = 0
    total: int
    """The number of tasks that the run has from now on."""

    is_file: bool = True
    """Whether these are the tasks of the file, and no others."""

    to_cancel: list[TaskKey] = field(default_factory=list)
    """Tasks in flight that the file no longer has: to be cancelled once they are recovered."""

    ended: dict[TaskKey, State] = field(default_factory=dict)
    """The final states of the tasks that are not queued, but on which queued tasks may depend."""


@dataclass(slots=True)
class Comparison:
    """Compares the rows of a run, one by one, with the tasks of its file."""

    run: int
    jobs: FileJobs
    failed: bool
    """Whether failed tasks run again."""

    outlives: bool
    """Whether tasks in flight outlive their executor."""

    plan: Plan = field(default_factory=lambda: Plan(total=0))
    updates: list[dict[str, Any]] = field(default_factory=list)
    """For `UPDATE_TASK`."""

    revoked: list[dict[str, Any]] = field(default_factory=list)
    """For `REVOKE_TASK`."""

    changed: list[TaskKey] = field(default_factory=list)
    """Tasks that changed in the file while in flight."""

    removed: int = 0
    """How many tasks the file no longer has."""

    def add(self, row: Any) -> None:
        """Compare one row, with the columns `COMPARED`."""
        key, digest, state, payload, priority = row
        task = self.jobs.find(key)
        is_in_flight = self.outlives and state in IN_FLIGHT
        if task is None:
            self._add_removed(key, state, is_in_flight=is_in_flight)
        elif digest_of(task) != digest:
            if is_in_flight:
                self.changed.append(key)
        elif state in FINAL:
            self._add_ended(key, state)
        else:
            self._add_unfinished(task, payload, priority)

    def _add_removed(self, key: TaskKey, state: str, *, is_in_flight: bool) -> None:
        self.removed += 1
        if is_in_flight:
            self.plan.to_cancel.append(key)
        elif state not in FINAL:
            self.revoked.append({"of_run": self.run, "of_key": key})

    def _add_ended(self, key: TaskKey, state: str) -> None:
        if key in self.jobs.needed:
            self.plan.ended[key] = State(state)
        if state == State.SUCCESS:
            self.plan.had_succeeded += 1
            self.plan.not_queued.add(key)
        elif state == State.FAILED and not self.failed:
            self.plan.had_failed += 1
            self.plan.not_queued.add(key)

    def _add_unfinished(self, task: Task, payload: str, priority: int) -> None:
        self.plan.unfinished += 1
        self.plan.not_queued.add(task.key)
        if (new_payload := encode_payload(task)) != payload or task.priority != priority:
            changes = {"payload": new_payload, "priority": task.priority}
            self.updates.append({"of_run": self.run, "of_key": task.key, **changes})


def keep_recorded_keys(
    database: Database, run: int, tasks: Collection[Task], numbered: Collection[TaskKey]
) -> list[Task]:
    """Return the tasks of a changed file with the keys that the run has. `numbered` are the keys of the tasks that have
    none of their own: see `celeriac.ledger.line_identity`. Raises `LedgerUnavailable` and `LedgerBroken`."""
    with database.reading() as connection:
        keys = select(TASKS.c.key, TASKS.c.digest).where(TASKS.c.run == run)
        rows = counted(connection.execution_options(yield_per=FETCH_SIZE).execute(keys), database.on_progress)
        return keep_keys(tasks, numbered, ((row.key, row.digest) for row in rows))


def plan_resume(database: Database, run: int, jobs: FileJobs, *, failed: bool, outlives: bool) -> Plan:
    """Return the plan for a file that was read, and update the unfinished tasks of the run.

    With `failed`, failed tasks run again. `outlives` says whether tasks in flight outlive their executor. Raises
    `InvalidConfig` for a task that changed while in flight, `LedgerUnavailable` and `LedgerBroken`.
    """
    comparison = Comparison(run, jobs, failed, outlives)
    with database.reading() as connection:
        rows = connection.execution_options(yield_per=FETCH_SIZE).execute(select(*COMPARED).where(TASKS.c.run == run))
        for row in counted(rows, database.on_progress):
            comparison.add(row)
    check_unchanged(comparison.changed)
    write_batches(database, UPDATE_TASK, comparison.updates)
    write_batches(database, REVOKE_TASK, comparison.revoked)
    plan = comparison.plan
    plan.total, plan.is_file = len(jobs) + comparison.removed, not comparison.removed
    return plan


def write_batches(database: Database, statement: Update, rows: list[dict[str, Any]]) -> None:
    """Update rows, many in one transaction. Other processes write in between."""
    for start in range(0, len(rows), BATCH_SIZE):
        batch = rows[start : start + BATCH_SIZE]
        database.write_in_turn(partial(Connection.execute, statement=statement, parameters=batch))
        report_written(start + len(batch), database.on_progress)
    report_written(None, database.on_progress)


def check_unchanged(changed: list[TaskKey]) -> None:
    """Raise `InvalidConfig` if tasks changed in the file while in flight."""
    if changed:
        keys = ", ".join(map(repr, changed[:MAX_KEYS_SHOWN])) + (", …" if len(changed) > MAX_KEYS_SHOWN else "")
        problem = f"{keys} changed in the file while the earlier version is still in flight"
        raise InvalidConfig("--resume", problem, "cancel it or wait for its end first, or give it another key")


def plan_resume_of_unchanged(database: Database, run: int, *, failed: bool) -> Plan:
    """Return the plan for a file that has not changed, from the ledger alone.

    Raises `LedgerUnavailable` and `LedgerBroken`.
    """
    queued_states = FINAL - {State.SUCCESS.value}
    if not failed:
        queued_states.discard(State.FAILED.value)
    with database.reading() as connection:
        counts = select(TASKS.c.state, func.count()).where(TASKS.c.run == run).group_by(TASKS.c.state)
        number_of: dict[str, int] = dict(connection.execute(counts).all())
        rows = select(TASKS).where(TASKS.c.run == run, TASKS.c.state.in_(queued_states)).order_by(TASKS.c.place)
        found = counted(connection.execution_options(yield_per=FETCH_SIZE).execute(rows), database.on_progress)
        tasks = list(readable(found, new_task_of))
        ended = {} if not any(task.needs for task in tasks) else dependency_states(connection, run, tasks)
    return Plan(
        tasks=tasks,
        ended=ended,
        had_succeeded=number_of.get(State.SUCCESS, 0),
        had_failed=0 if failed else number_of.get(State.FAILED, 0),
        unfinished=sum(number for state, number in number_of.items() if state not in FINAL),
        total=sum(number_of.values()),
    )


def dependency_states(connection: Connection, run: int, tasks: Collection[Task]) -> dict[TaskKey, State]:
    """Return the final states of the dependencies of these tasks, except dependencies that are among the tasks."""
    needs = {need for task in tasks for need in task.needs}.difference(task.key for task in tasks)
    return final_states(connection, run, map(str, needs))


def final_states(connection: Connection, run: int, keys: Iterable[str]) -> dict[TaskKey, State]:
    """Return the states of the tasks with these keys that have ended."""
    sorted_keys = sorted(keys)
    ended: dict[TaskKey, State] = {}
    for start in range(0, len(sorted_keys), MAX_KEYS):
        batch = TASKS.c.key.in_(sorted_keys[start : start + MAX_KEYS])
        rows = connection.execute(select(TASKS.c.key, TASKS.c.state).where(TASKS.c.run == run, batch))
        ended.update((row.key, State(row.state)) for row in rows if row.state in FINAL)
    return ended


def new_task_of(row: Any) -> Task:
    """Return a new task that runs the same command."""
    return replace(decode_task(row.key, row), id=new_task_id(), attempt=1, lost=0)
