"""Hand runs to `celeriac serve`: store the tasks in batches, complete the run with `total`, and watch it.

The process that submits a run owns it until the run is complete. If that process dies first, `celeriac prune` removes
the incomplete run.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from celeriac.ledger.codec import task_row
from celeriac.ledger.counts import Counts, encode_counts
from celeriac.ledger.database import Database
from celeriac.ledger.liveness import owner_label
from celeriac.ledger.many_rows import insert_rows
from celeriac.ledger.owner import Owner, is_alive
from celeriac.ledger.progress import report_written
from celeriac.ledger.run_pauses import paused_inputs, pauses_of, words_of
from celeriac.ledger.schema import OWNERS, RUNS, SUBMITTED, TASKS
from celeriac.ledger.transactions import retry_until
from celeriac.ledger.views import count_states
from celeriac.task.state import State
from celeriac.task.task import Task

BATCH_SIZE = 2_000  # tasks in one transaction: other processes write in between
SUBMIT_TIMEOUT = 20.0  # seconds to wait for a ledger that is unavailable


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmittedRun:
    """A submitted run that has not ended."""

    name: str
    owner: str | None
    """The label of its live owner."""

    states: Counter[State]
    """The number of its tasks in each state."""

    paused: str | None = None
    """What of it is paused, and by whom."""


def insert_submission(connection: Connection, owner: Owner, name: str, source: str | None) -> int:
    """Insert an incomplete run of this owner and return its id."""
    row = {"name": name, "source": source, "created": time.time(), "submitted": True, "owner": owner.id}
    run: int = connection.execute(insert(RUNS).values(**row)).inserted_primary_key[0]
    return run


def write_tasks(
    database: Database,
    owner: Owner,
    run: int,
    tasks: Sequence[Task],
    publish: Callable[[Connection], None] | None = None,
) -> None:
    """Store all tasks of a run, and then let services take it. If that fails, nothing of the run is left.

    `publish` takes part in the last transaction, and may refuse it by an exception.

    Raises `LedgerUnavailable`, `LedgerBroken`, and `LedgerLost` if another process considered this one dead and removed
    the run.
    """
    arrived = time.time()

    def write(rows: list[dict[str, Any]], connection: Connection) -> None:
        owner.renew_or_raise(connection)
        insert_rows(connection, TASKS, rows)

    def complete(connection: Connection) -> None:
        owner.renew_or_raise(connection)
        if publish is not None:
            publish(connection)
        values = {"total": len(tasks), "owner": None, "counts": encode_counts(Counts(waiting=len(tasks)))}
        # After a lost reply the run may be complete already, and a service may own it.
        is_incomplete = (RUNS.c.id == run, RUNS.c.total.is_(None))
        connection.execute(update(RUNS).where(*is_incomplete).values(**values))

    try:
        for start in range(0, len(tasks), BATCH_SIZE):
            batch = enumerate(tasks[start : start + BATCH_SIZE], start)
            rows = [task_row(run, str(task.key), place, task, arrived) for place, task in batch]
            retry_until(partial(database.write_in_turn, partial(write, rows)), SUBMIT_TIMEOUT)
            report_written(start + len(rows), database.on_progress)
        retry_until(partial(database.write_in_turn, complete), SUBMIT_TIMEOUT)
    except BaseException:  # Ctrl-C, too, must leave no incomplete run
        retry_until(lambda: database.write(lambda connection: remove_incomplete(connection, run)), SUBMIT_TIMEOUT)
        raise
    finally:
        report_written(None, database.on_progress)


def remove_incomplete(connection: Connection, run: int) -> None:
    """Remove the run, unless it is complete after all: then a service may own it."""
    incomplete = connection.execute(delete(RUNS).where(RUNS.c.id == run, RUNS.c.total.is_(None)))
    if incomplete.rowcount:
        connection.execute(delete(TASKS).where(TASKS.c.run == run))


def list_submitted(connection: Connection, *, has_inputs: bool) -> Iterator[SubmittedRun]:
    """Yield the submitted runs that have not ended, in the order of their submission. `has_inputs` says whether the
    ledger has the table of inputs."""
    owners = connection.execute(select(OWNERS)).all()
    alive = {owner.id: owner_label(owner) for owner in owners if is_alive(connection, owner)}
    columns = [*RUNS.c, paused_inputs()] if has_inputs else [*RUNS.c]
    for row in connection.execute(select(*columns).where(SUBMITTED).order_by(RUNS.c.id)).all():
        paused = words_of(pauses_of(row, None))
        states = count_states(connection, row.id)
        yield SubmittedRun(name=row.name, owner=alive.get(row.owner), states=states, paused=paused)
