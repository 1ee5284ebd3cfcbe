"""Remove runs: first the run's row, so that no process can resume half a run, then the rest.

the run ─► its tasks, events and folder, in batches ─► free pages of the file, back to the operating system

If this process is killed, the next `remove_leftovers` removes the rest.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Delete, delete, func, select

from celeriac.errors import LedgerUnavailable
from celeriac.ledger.database import Database
from celeriac.ledger.idle_runs import delete_expired
from celeriac.ledger.limits import driver_of
from celeriac.ledger.owner import Owner
from celeriac.ledger.schema import EARLIER_EVENTS, INPUTS, OWNERS, RUNS, TASKS, UNACKNOWLEDGED_EVENTS
from celeriac.ledger.transactions import data_folder, retry_until
from celeriac.ledger.views import RunState, RunView

BATCH_SIZE = 2_000  # rows deleted in one transaction
PAGES_PER_BATCH = 1_000  # pages of the file given back in one transaction
INCREMENTAL = 2  # SQLite's auto_vacuum mode that can give back some pages at a time
FOREVER = float("inf")
LOCK_TIMEOUT = 30.0  # seconds to wait for the transactions of other processes
TABLES_OF_RUNS = (TASKS, EARLIER_EVENTS, UNACKNOWLEDGED_EVENTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneFilter:
    """The conditions for runs to remove. A run must meet all of them."""

    older_than: float = 0.0
    """Seconds since their end, or since the last change of an interrupted run."""

    keep: int = 0
    """How many of the latest runs stay in any case."""

    include_in_flight: bool = False
    """Whether runs with tasks in flight with a broker are removed, too."""


@dataclass(frozen=True, slots=True)
class SkippedRun:
    """A run that meets the conditions, but must stay."""

    run: RunView
    reason: str
    """The end of a sentence about the run, such as "is running in process 12"."""


def choose_runs(runs: Sequence[RunView], conditions: PruneFilter) -> tuple[list[RunView], list[SkippedRun]]:
    """Return the runs to remove, and the runs that meet the conditions but must stay. `runs` has the latest first."""
    now = time.time()
    chosen: list[RunView] = []
    skipped: list[SkippedRun] = []
    for run in runs[conditions.keep :]:
        is_old = run.state is not RunState.RUNNING and now - (run.created + run.duration) >= conditions.older_than
        if conditions.older_than and not is_old:
            continue
        if (reason := reason_to_keep(run, conditions)) is not None:
            skipped.append(SkippedRun(run, reason))
        else:
            chosen.append(run)
    return chosen, skipped


def reason_to_keep(run: RunView, conditions: PruneFilter) -> str | None:
    """Return why a run must stay, or None if it may be removed."""
    if run.state is RunState.RUNNING:
        return f"is running in {run.owner}"
    if run.state is RunState.SUBMITTED:
        return "has not begun"
    if run.counts.in_flight and run.on_workers and not conditions.include_in_flight:
        return f"has {run.counts.in_flight:,} tasks that may still be in flight with a broker"
    return None


def remove_run(database: Database, owner: Owner, run: RunView, *, until: float = FOREVER) -> SkippedRun | None:
    """Remove a run. If another process has resumed it meanwhile, the run stays and is returned. At the monotonic time
    `until`, the rest is left to `remove_leftovers`.

    Raises `LedgerUnavailable` and `LedgerBroken`.
    """

    def delete_row(connection: Connection) -> str | None:
        if connection.execute(select(RUNS.c.id).where(RUNS.c.id == run.id)).first() is None:
            return None
        if (live_owner := owner.take(connection, run.id)) is None:
            connection.execute(delete(RUNS).where(RUNS.c.id == run.id))
            if database.has_all_tables:
                delete_inputs(connection, run.id)
        return live_owner

    if (live_owner := retry_until(lambda: database.write_in_turn(delete_row), LOCK_TIMEOUT)) is not None:
        return SkippedRun(run, f"is running in {live_owner}")
    remove_rows_and_folder(database, run.id, until)
    return None


def remove_leftovers(database: Database, *, until: float = FOREVER) -> None:
    """Remove rows and folders without a run, and dead owners without runs. Stop at the monotonic time `until`."""
    retry_until(lambda: database.write_in_turn(delete_idle_owners), LOCK_TIMEOUT)
    if database.has_all_tables:
        retry_until(lambda: database.write_in_turn(delete_leftover_inputs), LOCK_TIMEOUT)
    with database.reading() as connection:
        runs = set(connection.execute(select(RUNS.c.id)).scalars())
        removed = {run for table in TABLES_OF_RUNS for run in run_ids_in(connection, table) if run not in runs}
    for run in removed:
        remove_rows_and_folder(database, run, until)
    for folder in run_folders(database):
        number = folder.name.removeprefix("run-")
        if number.isdecimal() and not run_exists(database, int(number)):
            shutil.rmtree(folder, ignore_errors=True)


def delete_idle_owners(connection: Connection) -> None:
    """Delete the dead owners that own no run."""
    delete_expired(connection, OWNERS.c.id.not_in(select(RUNS.c.owner).where(RUNS.c.owner.is_not(None))))


def delete_inputs(connection: Connection, run: int) -> None:
    """Delete the inputs of a run."""
    connection.execute(delete(INPUTS).where(INPUTS.c.run == run))


def delete_leftover_inputs(connection: Connection) -> None:
    """Delete the inputs of runs that a Celeriac has removed that does not know this table."""
    connection.execute(delete(INPUTS).where(INPUTS.c.run.not_in(select(RUNS.c.id))))


def run_ids_in(connection: Connection, table: Any) -> Iterator[int]:
    """Yield the runs that have rows in a table. Reads one row per run."""
    last = -1
    while True:
        last = connection.execute(select(func.min(table.c.run)).where(table.c.run > last)).scalar()
        if last is None:
            return
        yield last


def run_exists(database: Database, run: int) -> bool:
    """Return whether there is such a run."""
    with database.reading() as connection:
        return connection.execute(select(RUNS.c.id).where(RUNS.c.id == run)).first() is not None


def remove_rows_and_folder(database: Database, run: int, until: float) -> None:
    """Remove the rows of a run in the other tables, in batches, and its folder."""
    for table in TABLES_OF_RUNS:
        column = table.c.key if table is TASKS else table.c.number
        next_rows = select(column).where(table.c.run == run).limit(BATCH_SIZE).scalar_subquery()
        batch = delete(table).where(table.c.run == run, column.in_(next_rows))
        delete_batch = partial(database.write_in_turn, partial(delete_rows, batch))
        while time.monotonic() < until and retry_until(delete_batch, LOCK_TIMEOUT):
            time.sleep(0)  # let other processes write in between
    if database.is_file:
        shutil.rmtree(data_folder(database.url) / f"run-{run}", ignore_errors=True)


def delete_rows(batch: Delete, connection: Connection) -> int:
    """Delete a batch of rows and return their number."""
    number: int = connection.execute(batch).rowcount
    return number


# — on disk —


def shrink_file(database: Database, *, until: float = FOREVER) -> None:
    """Give the free pages of a file back to the operating system. A server does that by itself. Stop at the monotonic
    time `until`."""
    if not database.is_file:
        return
    with database.reading() as connection:
        mode = connection.exec_driver_sql("PRAGMA auto_vacuum").scalar_one()
    if mode == INCREMENTAL:
        while time.monotonic() < until and retry_until(partial(free_pages, database), LOCK_TIMEOUT):
            time.sleep(0)  # let other processes write in between
    # A reader may block the checkpoint. Then the next call makes it.
    with contextlib.suppress(sqlite3.Error), database.reading() as connection:
        driver_of(connection).execute("PRAGMA wal_checkpoint(TRUNCATE)")


def free_pages(database: Database) -> bool:
    """Give back a batch of pages. Return whether there are more. Raises `LedgerUnavailable`."""
    with database.reading() as connection:
        driver = driver_of(connection)
        try:
            driver.executescript(f"PRAGMA incremental_vacuum({PAGES_PER_BATCH})")  # `execute` stops after one page
            return bool(driver.execute("PRAGMA freelist_count").fetchone()[0])
        except sqlite3.OperationalError as error:
            raise LedgerUnavailable(database.masked_url, f"cannot be used: {error}") from error


def disk_usage(database: Database) -> int | None:
    """Return the bytes of the ledger on this machine's disk. None for a server."""
    if not database.is_file:
        return None
    path = Path(str(database.engine.url.database))
    files = [path, path.with_name(path.name + "-wal")]
    files += [file for folder in run_folders(database) for file in folder.rglob("*")]
    return sum(file_size(file) for file in files)


def file_size(path: Path) -> int:
    """Return the bytes of a file, 0 if there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def run_folders(database: Database) -> list[Path]:
    """Return the folders that runs have beside a ledger in a file."""
    return sorted(data_folder(database.url).glob("run-*")) if database.is_file else []
