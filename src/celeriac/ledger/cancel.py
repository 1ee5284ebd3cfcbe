"""Calls back tasks of a run through the ledger, whoever works on it.

its owner lives ─► an order, which the owner carries out within a second or two
nobody owns it  ─► here: what waits is REVOKED, what is out is marked, so that the next owner calls it back
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, delete, exists, insert, select, update

from celeriac.errors import InvalidConfig
from celeriac.ledger.liveness import owner_label
from celeriac.ledger.owner import is_alive
from celeriac.ledger.schema import CONTROL_REQUESTS, IN_FLIGHT, OWNERS, RUNS, TASKS, UNFINISHED
from celeriac.task.result import Reason
from celeriac.task.state import State

MAX_KEYS = 500  # keys in one statement
CANCEL = "cancel"


def cancel(connection: Connection, run: int, name: str, keys: Collection[str] | None) -> str | None:
    """Tasks of these keys, or all of them. Answers who was asked to do it; None if it has been done.

    Raises `InvalidConfig` if the owner takes no orders.
    """
    owner, submitted = connection.execute(select(RUNS.c.owner, RUNS.c.submitted).where(RUNS.c.id == run)).one()
    if owner is not None:
        row = connection.execute(select(OWNERS).where(OWNERS.c.id == owner).with_for_update()).one_or_none()
        if row is not None and is_alive(connection, row):
            if not submitted:
                problem = f"run {name!r} is running in {owner_label(row)}, which takes no orders through the ledger"
                raise InvalidConfig("--run", problem, "give the KEY without --run")
            insert_requests(connection, run, keys)
            return owner_label(row)
        # It may be frozen: once its row is gone it starts nothing more of what is called back here.
        connection.execute(delete(OWNERS).where(OWNERS.c.id == owner))
    ours = update(RUNS).where(RUNS.c.id == run, RUNS.c.owner.is_not_distinct_from(owner)).values(owner=None)
    if connection.execute(ours).rowcount != 1:  # somebody has taken it meanwhile
        insert_requests(connection, run, keys)
        return "its new owner"
    revoke_tasks(connection, run, keys)
    connection.execute(update(RUNS).where(RUNS.c.id == run).values(counts=None))
    return None


def insert_requests(connection: Connection, run: int, keys: Collection[str] | None) -> None:
    asked = {"run": run, "what": CANCEL, "asked": time.time()}
    rows = [{**asked, "key": None}] if keys is None else [{**asked, "key": key} for key in keys]
    connection.execute(insert(CONTROL_REQUESTS), rows)


def revoke_tasks(connection: Connection, run: int, keys: Collection[str] | None) -> None:
    now = time.time()
    revoked = {
        "state": State.REVOKED.value,
        "reason": Reason.REVOKED.value,
        "detail": "revoked while it waited",
        "moved": now,
        "not_before": None,
    }
    for these in key_conditions(keys):
        its = (TASKS.c.run == run, UNFINISHED, *these)
        waits = TASKS.c.state == State.WAITING.value
        connection.execute(update(TASKS).where(*its, waits).values(**revoked))
        connection.execute(update(TASKS).where(*its, TASKS.c.state.in_(IN_FLIGHT)).values(revoking=True))
    left = exists().where(TASKS.c.run == run, UNFINISHED)
    connection.execute(update(RUNS).where(RUNS.c.id == run, RUNS.c.ended.is_(None), ~left).values(ended=now))


def key_conditions(keys: Collection[str] | None) -> Iterator[Sequence[Any]]:
    """Conditions, each for some of the keys."""
    if keys is None:
        yield ()
        return
    named = list(keys)
    for start in range(0, len(named), MAX_KEYS):
        yield (TASKS.c.key.in_(named[start : start + MAX_KEYS]),)


def task_states(connection: Connection, run: int, keys: Collection[str]) -> dict[str, tuple[State, str | None]]:
    """Where tasks stand, and why; those of no such key are left out."""
    columns = select(TASKS.c.key, TASKS.c.state, TASKS.c.detail).where(TASKS.c.run == run)
    rows = (row for these in key_conditions(keys) for row in connection.execute(columns.where(*these)))
    return {row.key: (State(row.state), row.detail) for row in rows}
