"""Cancel tasks of a run through the ledger.

the run has a live owner ─► a request, which the owner handles within a second or two
the run has no owner     ─► waiting tasks become REVOKED here, tasks in flight are marked for the next owner
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, delete, exists, insert, select, update

from celeriac.errors import InvalidConfig
from celeriac.ledger.codec import stored_text
from celeriac.ledger.counts import IN_FLIGHT, state_of
from celeriac.ledger.liveness import owner_label
from celeriac.ledger.owner import is_alive
from celeriac.ledger.schema import CONTROL_REQUESTS, OWNERS, RUNS, TASKS, UNFINISHED
from celeriac.task.result import Reason
from celeriac.task.state import State

MAX_KEYS = 500  # keys in one statement
CANCEL = "cancel"


class TakesNoRequests(InvalidConfig):
    """The live owner of a run reads no requests from the ledger. It can only be asked itself."""

    def __init__(self, run: str, owner: str) -> None:
        problem = f"run {run!r} is running in {owner}, which takes no requests through the ledger"
        super().__init__("--run", problem, "give the KEY without --run")
        self.owner = owner


def cancel(connection: Connection, run: int, name: str, keys: Collection[str] | None) -> str | None:
    """Cancel the tasks of these keys, or all tasks. Return the label of the owner that will do it; None if it is done.

    Raises `TakesNoRequests`.
    """
    owner, submitted = connection.execute(select(RUNS.c.owner, RUNS.c.submitted).where(RUNS.c.id == run)).one()
    if owner is not None:
        row = connection.execute(select(OWNERS).where(OWNERS.c.id == owner).with_for_update()).one_or_none()
        if row is not None and is_alive(connection, row):
            if not submitted:
                raise TakesNoRequests(name, owner_label(row))
            insert_requests(connection, run, keys)
            return owner_label(row)
        # The owner may be frozen and wake up later. Without its row, it cannot start these tasks then.
        connection.execute(delete(OWNERS).where(OWNERS.c.id == owner))
    unowned = update(RUNS).where(RUNS.c.id == run, RUNS.c.owner.is_not_distinct_from(owner)).values(owner=None)
    if connection.execute(unowned).rowcount != 1:  # another process has taken the run meanwhile
        insert_requests(connection, run, keys)
        return "its new owner"
    revoke_tasks(connection, run, keys)
    connection.execute(update(RUNS).where(RUNS.c.id == run).values(counts=None))
    return None


def insert_requests(connection: Connection, run: int, keys: Collection[str] | None) -> None:
    """Ask the owner to cancel the tasks of these keys; with None all tasks."""
    request = {"run": run, "what": CANCEL, "asked": time.time()}
    rows = [{**request, "key": None}] if keys is None else [{**request, "key": key} for key in keys]
    if rows:  # without rows, a statement inserts one of defaults
        connection.execute(insert(CONTROL_REQUESTS), rows)


def revoke_tasks(connection: Connection, run: int, keys: Collection[str] | None) -> None:
    """Revoke waiting tasks and mark tasks in flight, for these keys or all. End the run if all its tasks have ended."""
    now = time.time()
    revoked = {
        "state": State.REVOKED.value,
        "reason": Reason.REVOKED.value,
        "detail": "revoked while it waited",
        "moved": now,
        "not_before": None,
    }
    for batch in key_conditions(keys):
        conditions = (TASKS.c.run == run, UNFINISHED, *batch)
        waits = TASKS.c.state == State.WAITING.value
        connection.execute(update(TASKS).where(*conditions, waits).values(**revoked))
        connection.execute(update(TASKS).where(*conditions, TASKS.c.state.in_(IN_FLIGHT)).values(revoking=True))
    unfinished = exists().where(TASKS.c.run == run, UNFINISHED)
    connection.execute(update(RUNS).where(RUNS.c.id == run, RUNS.c.ended.is_(None), ~unfinished).values(ended=now))


def key_conditions(keys: Collection[str] | None) -> Iterator[Sequence[Any]]:
    """Yield the conditions of batches of keys; one empty condition for all tasks."""
    if keys is None:
        yield ()
        return
    all_keys = list(keys)
    for start in range(0, len(all_keys), MAX_KEYS):
        yield (TASKS.c.key.in_(all_keys[start : start + MAX_KEYS]),)


def task_states(connection: Connection, run: int, keys: Collection[str]) -> dict[str, tuple[State, str | None]]:
    """Return the state and the detail of each task. Unknown keys are left out."""
    columns = select(TASKS.c.key, TASKS.c.state, TASKS.c.detail).where(TASKS.c.run == run)
    rows = (row for batch in key_conditions(keys) for row in connection.execute(columns.where(*batch)))
    return {row.key: (state_of(row.state), stored_text(row.detail)) for row in rows}
