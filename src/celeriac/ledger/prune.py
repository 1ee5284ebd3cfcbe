"""Runs that are removed: first the run itself, so that nobody can go on with half of it, then what belonged to it.

the run ─► its tasks, moves and ends, some at a time ─► what is nobody's any more goes back to the system

What was left when this was killed, the next one removes.
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
from celeriac.ledger.database import Database, retry_until
from celeriac.ledger.owner import Owner, delete_expired
from celeriac.ledger.schema import EARLIER_EVENTS, OWNERS, RUNS, TASKS, UNACKNOWLEDGED_EVENTS
from celeriac.ledger.views import RunState, RunView

BATCH_SIZE = 2_000  # rows of one transaction
PAGES_PER_BATCH = 1_000  # of the file, given back in one transaction
INCREMENTAL = 2  # what SQLite calls a file that can give pages back a few at a time
LOCK_TIMEOUT = 30.0  # seconds that others' transactions are waited for
TABLES_OF_RUNS = (TASKS, EARLIER_EVENTS, UNACKNOWLEDGED_EVENTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneFilter:
    """Which runs are to go: those that all of it fits."""

    older_than: float = 0.0
    """Seconds since their end, or since the last move of one that was interrupted."""

    keep: int = 0
    """How many of the latest stay, whatever they are."""

    include_in_flight: bool = False
    """Also runs with tasks that are still out with a broker."""


@dataclass(frozen=True, slots=True)
class SkippedRun:
    """A run that would go, but must not."""

    run: RunView
    reason: str


def choose_runs(runs: Sequence[RunView], wanted: PruneFilter) -> tuple[list[RunView], list[SkippedRun]]:
    """`runs` are the latest first. Answers which are to go, and which must stay all the same."""
    now = time.time()
    going: list[RunView] = []
    kept: list[SkippedRun] = []
    for run in runs[wanted.keep :]:
        is_old = run.state is not RunState.RUNNING and now - (run.created + run.duration) >= wanted.older_than
        if wanted.older_than and not is_old:
            continue
        if (why := reason_to_keep(run, wanted)) is not None:
            kept.append(SkippedRun(run, why))
        else:
            going.append(run)
    return going, kept


def reason_to_keep(run: RunView, wanted: PruneFilter) -> str | None:
    if run.state is RunState.RUNNING:
        return f"is running in {run.owner}"
    if run.state is RunState.SUBMITTED:
        return "has not begun"
    if run.counts.in_flight and run.output is None and not wanted.include_in_flight:
        return f"has {run.counts.in_flight:,} tasks that may still be in flight with a broker"
    return None


def remove_run(store: Database, owner: Owner, run: RunView) -> SkippedRun | None:
    """Remove a run. If somebody has gone on with it meanwhile it stays, and who that is, is said.

    Raises `LedgerAway` and `LedgerBroken`.
    """

    def forget(connection: Connection) -> str | None:
        if connection.execute(select(RUNS.c.id).where(RUNS.c.id == run.id)).first() is None:
            return None
        if (other := owner.take(connection, run.id)) is None:
            connection.execute(delete(RUNS).where(RUNS.c.id == run.id))
        return other

    if (other := retry_until(lambda: store.write(forget), LOCK_TIMEOUT)) is not None:
        return SkippedRun(run, f"is running in {other}")
    remove_rows_and_folder(store, run.id)
    return None


def remove_leftovers(store: Database) -> None:
    """Remove what belongs to no run, and the dead who own none."""
    retry_until(lambda: store.write(delete_idle_owners), LOCK_TIMEOUT)
    with store.reading() as connection:
        runs = set(connection.execute(select(RUNS.c.id)).scalars())
        orphans = {run for table in TABLES_OF_RUNS for run in run_ids_in(connection, table) if run not in runs}
    for run in orphans:
        remove_rows_and_folder(store, run)
    for folder in run_folders(store):
        number = folder.name.removeprefix("run-")
        if number.isdecimal() and not run_exists(store, int(number)):
            shutil.rmtree(folder, ignore_errors=True)


def delete_idle_owners(connection: Connection) -> None:
    delete_expired(connection, OWNERS.c.id.not_in(select(RUNS.c.owner).where(RUNS.c.owner.is_not(None))))


def run_ids_in(connection: Connection, table: Any) -> Iterator[int]:
    """The runs that have rows there, without reading them all."""
    last = -1
    while True:
        last = connection.execute(select(func.min(table.c.run)).where(table.c.run > last)).scalar()
        if last is None:
            return
        yield last


def run_exists(store: Database, run: int) -> bool:
    with store.reading() as connection:
        return connection.execute(select(RUNS.c.id).where(RUNS.c.id == run)).first() is not None


def remove_rows_and_folder(store: Database, run: int) -> None:
    for table in TABLES_OF_RUNS:
        name = table.c.key if table is TASKS else table.c.number
        some = select(name).where(table.c.run == run).limit(BATCH_SIZE).scalar_subquery()
        chunk = delete(table).where(table.c.run == run, name.in_(some))
        while retry_until(partial(store.write, partial(delete_rows, chunk)), LOCK_TIMEOUT):
            time.sleep(0)  # whoever waits to write comes in between
    if (folder := run_folder(store, run)) is not None:
        shutil.rmtree(folder, ignore_errors=True)


def delete_rows(chunk: Delete, connection: Connection) -> int:
    number: int = connection.execute(chunk).rowcount
    return number


# — on disk —


def shrink_file(store: Database) -> None:
    """What no row needs, to the file system: a file that is as large as it needs to be. A server does that itself."""
    if not store.is_file:
        return
    with store.reading() as connection:
        can = connection.exec_driver_sql("PRAGMA auto_vacuum").scalar_one()
    if can == INCREMENTAL:
        while retry_until(partial(free_pages, store), LOCK_TIMEOUT):
            time.sleep(0)  # as above
    with contextlib.suppress(sqlite3.Error), store.reading() as connection:  # what is still read goes another time
        driver_of(connection).execute("PRAGMA wal_checkpoint(TRUNCATE)")


def free_pages(store: Database) -> bool:
    """Whether there are more. Raises `LedgerAway`."""
    with store.reading() as connection:
        driver = driver_of(connection)
        try:
            driver.executescript(f"PRAGMA incremental_vacuum({PAGES_PER_BATCH})")  # `execute` stops after one page
            return bool(driver.execute("PRAGMA freelist_count").fetchone()[0])
        except sqlite3.OperationalError as error:
            raise LedgerUnavailable(store.masked_url, f"cannot be used: {error}") from error


def driver_of(connection: Connection) -> sqlite3.Connection:
    driver: Any = connection.connection.driver_connection
    of_sqlite: sqlite3.Connection = driver
    return of_sqlite


def disk_usage(store: Database) -> int | None:
    """Bytes on this machine's disk. None for a server's."""
    path = database_file(store)
    if path is None:
        return None
    files = [path.with_name(path.name + end) for end in ("", "-wal")]
    files += [file for folder in run_folders(store) for file in folder.rglob("*")]
    return sum(file_size(file) for file in files)


def file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def database_file(store: Database) -> Path | None:
    return Path(str(store.engine.url.database)) if store.is_file else None


def run_folders(store: Database) -> list[Path]:
    """What runs keep beside a ledger in a file."""
    path = database_file(store)
    return [] if path is None else sorted(path.with_name(path.name + ".d").glob("run-*"))


def run_folder(store: Database, run: int) -> Path | None:
    path = database_file(store)
    return None if path is None else path.with_name(path.name + ".d") / f"run-{run}"
