"""Keep a ledger below its limits: remove old runs, and the oldest ones of a large file.

A run that is running, waits for a service, or may have tasks with a broker stays, and so does the latest one. The work
ends after `MAX_TIME`: the next run goes on with it.
"""

from __future__ import annotations

import time

from sqlalchemy import Connection

from celeriac.config.ledger_keep import LedgerKeep
from celeriac.errors import InvalidConfig
from celeriac.ledger.database import Database
from celeriac.ledger.limits import Removed, is_too_large
from celeriac.ledger.owner import Owner
from celeriac.ledger.prune import PruneFilter, choose_runs, remove_leftovers, remove_run, shrink_file
from celeriac.ledger.schema import RUNS
from celeriac.ledger.transactions import data_folder
from celeriac.ledger.views import RunView, run_view, select_runs

MAX_TIME = 5.0  # seconds
ANNOUNCED = "keep-announced"


def apply_limits(database: Database, owner: Owner, keep: LedgerKeep, *, present: int | None) -> Removed:
    """Remove the runs that exceed a limit, except the `present` run. Raises `LedgerError`."""
    removed, until = Removed(), time.monotonic() + MAX_TIME
    with database.reading() as connection:
        candidates = [] if keep.seconds is None else runs_before(connection, time.time() - keep.seconds)
    conditions = PruneFilter(older_than=keep.seconds or 0.0)
    chosen = [run for run in choose_runs(candidates, conditions)[0] if run.id != present]
    while time.monotonic() < until and chosen:
        remove(database, owner, chosen.pop(), removed, until)
    if is_too_large(database, keep):
        with database.reading() as connection:
            candidates = runs_before(connection, time.time())
        chosen = [run for run in choose_runs(candidates, PruneFilter(keep=1))[0] if run.id != present]
    while time.monotonic() < until and chosen and is_too_large(database, keep):
        remove(database, owner, chosen.pop(), removed, until)
    if removed.runs:
        remove_leftovers(database, until=until)
        shrink_file(database, until=until)
        removed.is_first = note_announced(database)
    return removed


def remove(database: Database, owner: Owner, run: RunView, removed: Removed, until: float) -> None:
    """Remove a run, unless another process has resumed it meanwhile."""
    if remove_run(database, owner, run, until=until) is None:
        removed.runs.append(run)


def runs_before(connection: Connection, before: float) -> list[RunView]:
    """Return the runs that were created before a time, the latest first."""
    rows = connection.execute(select_runs().where(RUNS.c.created < before)).all()
    return [run_view(connection, row) for row in rows]


def note_announced(database: Database) -> bool:
    """Record that the user was told. Return whether that is new."""
    try:
        path = data_folder(database.url) / ANNOUNCED
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(exist_ok=False)
    except (OSError, InvalidConfig):
        return False
    return True
