"""What of a file is to be run when its run is resumed, beside what the ledger says of each task.

had succeeded, and is the same ─► left
had failed, and is the same    ─► left, or run again if that is wanted
had not ended, and is the same ─► what `CeleryExecutor.recover` goes on with
changed, new, called back      ─► queued, as a new task; skipped ones too, which may be skipped again
no longer in the file          ─► called back, if it had not ended

A file that is what it was to the last byte need not be read: then the ledger alone says all of this.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Connection, bindparam, func, select, update

from celeriac.errors import InvalidConfig
from celeriac.ledger.codec import decode_task, digest_of, encode_payload
from celeriac.ledger.database import Database
from celeriac.ledger.run_writer import FETCH_SIZE
from celeriac.ledger.schema import IN_FLIGHT, TASKS
from celeriac.task.result import Reason
from celeriac.task.state import State
from celeriac.task.task import Task, TaskKey, new_task_id

FINAL = {state.value for state in State if state.is_final}
MAX_KEYS = 500  # keys in one query
MAX_KEYS_SHOWN = 3  # named in a message

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


@dataclass(slots=True, kw_only=True)
class Plan:
    tasks: Collection[Task] = ()
    """To be queued, in the order of the file."""

    had_succeeded: int = 0
    had_failed: int = 0
    """Those that are left so."""

    unfinished: int = 0
    total: int | None = None
    """Of the run and the file, if they have the same tasks from now on."""

    to_cancel: list[TaskKey] = field(default_factory=list)
    """Out, and no longer in the file: to be called back once they were recovered."""

    ended: dict[TaskKey, State] = field(default_factory=dict)
    """How those that are left had ended, of which one that is to be run may be in need."""


def plan_resume(store: Database, run: int, tasks: Iterable[Task], *, failed: bool, outlives: bool) -> Plan:
    """With `failed`, what had failed is run again. `outlives` says whether what is out outlives its executor.

    Brings what has not ended up to date with the file. Raises `InvalidConfig` for a task that was changed while it is
    out, `LedgerAway` and `LedgerBroken`.
    """
    wanted = {task.key: task for task in tasks}
    total = len(wanted)
    plan = Plan()
    needed = {need for task in wanted.values() for need in task.needs}
    edits: list[dict[str, Any]] = []
    given_up: list[dict[str, Any]] = []
    changed: list[TaskKey] = []
    strangers = 0
    columns = (TASKS.c.key, TASKS.c.digest, TASKS.c.state, TASKS.c.payload, TASKS.c.priority)
    with store.reading() as connection:
        rows = connection.execution_options(yield_per=FETCH_SIZE).execute(select(*columns).where(TASKS.c.run == run))
        for key, digest, state, payload, priority in rows:
            task = wanted.get(key)
            is_out = outlives and state in IN_FLIGHT
            if task is None:
                strangers += 1
                if is_out:
                    plan.to_cancel.append(key)
                elif state not in FINAL:
                    given_up.append({"of_run": run, "of_key": key})
                continue
            is_same = digest_of(task) == digest
            if key in needed and is_same and state in FINAL:
                plan.ended[key] = State(state)
            if is_out and not is_same:
                changed.append(key)
            elif is_same and state not in FINAL:
                plan.unfinished += 1
                del wanted[key]
                if (now := encode_payload(task)) != payload or task.priority != priority:
                    edits.append({"of_run": run, "of_key": key, "payload": now, "priority": task.priority})
            elif is_same and state == State.SUCCESS:
                plan.had_succeeded += 1
                del wanted[key]
            elif is_same and state == State.FAILED and not failed:
                plan.had_failed += 1
                del wanted[key]
    if changed:
        named = ", ".join(map(repr, changed[:MAX_KEYS_SHOWN])) + (", …" if len(changed) > MAX_KEYS_SHOWN else "")
        problem = f"{named} changed in the file, and is still out as it was before"
        raise InvalidConfig("--resume", problem, "cancel it or wait for its end first, or give it another key")

    with store.writing() as connection:
        if edits:
            connection.execute(UPDATE_TASK, edits)
        if given_up:
            connection.execute(REVOKE_TASK, given_up)
    plan.tasks = wanted.values()
    plan.total = None if strangers else total
    return plan


def plan_resume_of_unchanged(store: Database, run: int, *, failed: bool) -> Plan:
    """Of a file whose tasks are all in the ledger as they are. Raises `LedgerAway` and `LedgerBroken`."""
    again = {state.value for state in State if state.is_final} - {State.SUCCESS.value}
    if not failed:
        again.discard(State.FAILED.value)
    with store.reading() as connection:
        counts = select(TASKS.c.state, func.count()).where(TASKS.c.run == run).group_by(TASKS.c.state)
        number_of: dict[str, int] = dict(connection.execute(counts).all())
        rows = select(TASKS).where(TASKS.c.run == run, TASKS.c.state.in_(again)).order_by(TASKS.c.place)
        tasks = [new_task_of(row) for row in connection.execution_options(yield_per=FETCH_SIZE).execute(rows)]
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
    """How the tasks ended that these need and that are not among them."""
    needed = {need for task in tasks for need in task.needs}.difference(task.key for task in tasks)
    keys = sorted(map(str, needed))
    ended: dict[TaskKey, State] = {}
    for start in range(0, len(keys), MAX_KEYS):
        some = TASKS.c.key.in_(keys[start : start + MAX_KEYS])
        rows = connection.execute(select(TASKS.c.key, TASKS.c.state).where(TASKS.c.run == run, some))
        ended.update((row.key, State(row.state)) for row in rows if row.state in FINAL)
    return ended


def new_task_of(row: Any) -> Task:
    """The same work, as a new task."""
    return replace(decode_task(row.key, row), id=new_task_id(), attempt=1, lost=0)
