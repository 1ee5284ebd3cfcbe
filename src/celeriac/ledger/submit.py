"""Runs that are left to `celeriac serve`: written down piece by piece, complete with `total`, and watched.

Until it is complete a run is owned by who writes it; when that one is dead, it is for `celeriac prune`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from celeriac.ledger.codec import task_row
from celeriac.ledger.database import Database, retry_until
from celeriac.ledger.liveness import owner_label
from celeriac.ledger.owned_runs import count_states
from celeriac.ledger.owner import Owner, is_alive
from celeriac.ledger.run_writer import insert_rows
from celeriac.ledger.schema import OWNERS, RUNS, SUBMITTED, TASKS
from celeriac.ledger.views import Counts, encode_counts
from celeriac.task.state import State
from celeriac.task.task import Task

BATCH_SIZE = 2_000  # tasks in one transaction: others write in between
SUBMIT_TIMEOUT = 20.0  # seconds for a ledger that others are writing, or that is away


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmittedRun:
    """A run that was submitted, as it stands."""

    name: str
    owner: str | None
    """Who works on it."""

    states: Counter[State]
    """How many of its tasks are in each."""


def insert_submission(connection: Connection, owner: Owner, name: str, source: str | None) -> int:
    row = {"name": name, "source": source, "created": time.time(), "submitted": True, "owner": owner.id}
    run: int = connection.execute(insert(RUNS).values(**row)).inserted_primary_key[0]
    return run


def write_tasks(store: Database, owner: Owner, run: int, tasks: Sequence[Task]) -> None:
    """All of them; only then the run is there for others. Of a run that could not be written nothing is left. Raises
    `LedgerAway`, `LedgerBroken`, and `LedgerLost` if this process was taken for dead and its run removed."""
    arrived = time.time()

    def write(rows: list[dict[str, Any]], connection: Connection) -> None:
        owner.renew_or_raise(connection)
        insert_rows(connection, TASKS, rows)

    def complete(connection: Connection) -> None:
        owner.renew_or_raise(connection)
        values = {"total": len(tasks), "owner": None, "counts": encode_counts(Counts(waiting=len(tasks)))}
        its = (RUNS.c.id == run, RUNS.c.total.is_(None))  # else this was done before, and it may be another's by now
        connection.execute(update(RUNS).where(*its).values(**values))

    try:
        for start in range(0, len(tasks), BATCH_SIZE):
            piece = enumerate(tasks[start : start + BATCH_SIZE], start)
            rows = [task_row(run, str(task.key), place, task, arrived) for place, task in piece]
            retry_until(partial(store.write, partial(write, rows)), SUBMIT_TIMEOUT)
        retry_until(partial(store.write, complete), SUBMIT_TIMEOUT)
    except BaseException:  # Ctrl-C too leaves no half of a run
        retry_until(lambda: store.write(lambda connection: remove_incomplete(connection, run)), SUBMIT_TIMEOUT)
        raise


def remove_incomplete(connection: Connection, run: int) -> None:
    """Unless it is complete, after all: then it may be somebody's."""
    incomplete = connection.execute(delete(RUNS).where(RUNS.c.id == run, RUNS.c.total.is_(None)))
    if incomplete.rowcount:
        connection.execute(delete(TASKS).where(TASKS.c.run == run))


def list_submitted(connection: Connection) -> Iterator[SubmittedRun]:
    """Those that have not ended, in the order they were submitted."""
    alive = {row.id: owner_label(row) for row in connection.execute(select(OWNERS)).all() if is_alive(connection, row)}
    for row in connection.execute(select(RUNS).where(SUBMITTED).order_by(RUNS.c.id)).all():
        yield SubmittedRun(name=row.name, owner=alive.get(row.owner), states=count_states(connection, row.id))
