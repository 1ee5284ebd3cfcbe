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
from celeriac.ledger.database import Store, retry_until
from celeriac.ledger.owner import Owner, delete_expired
from celeriac.ledger.schema import EVENTS, MOVES, OWNERS, RUNS, TASKS
from celeriac.ledger.views import RunState, RunView

CHUNK = 2_000  # rows of one transaction
PAGES = 1_000  # of the file, given back in one transaction
INCREMENTAL = 2  # what SQLite calls a file that can give pages back a few at a time
PATIENCE = 30.0  # seconds that others' transactions are waited for
BELONGINGS = (TASKS, MOVES, EVENTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneFilter:
    """Which runs are to go: those that all of it fits."""

    older_than: float = 0.0
    """Seconds since their end, or since the last move of one that was interrupted."""

    keep: int = 0
    """How many of the latest stay, whatever they are."""

    out_too: bool = False
    """Also runs with tasks that are still out with a broker."""


@dataclass(frozen=True, slots=True)
class SkippedRun:
    """A run that would go, but must not."""

    run: RunView
    why: str


def choose(runs: Sequence[RunView], wanted: PruneFilter) -> tuple[list[RunView], list[SkippedRun]]:
    """`runs` are the latest first. Answers which are to go, and which must stay all the same."""
    now = time.time()
    going: list[RunView] = []
    kept: list[SkippedRun] = []
    for run in runs[wanted.keep :]:
        is_old = run.state is not RunState.RUNNING and now - (run.created + run.took) >= wanted.older_than
        if wanted.older_than and not is_old:
            continue
        if (why := why_it_stays(run, wanted)) is not None:
            kept.append(SkippedRun(run, why))
        else:
            going.append(run)
    return going, kept


def why_it_stays(run: RunView, wanted: PruneFilter) -> str | None:
    if run.state is RunState.RUNNING:
        return f"is at work in {run.owner}"
    if run.state is RunState.SUBMITTED:
        return "has not begun"
    if run.counts.out and run.output is None and not wanted.out_too:
        return f"has {run.counts.out:,} tasks that may still be out with a broker"
    return None


def remove(store: Store, owner: Owner, run: RunView) -> SkippedRun | None:
    """Remove a run. If somebody has gone on with it meanwhile it stays, and who that is, is said.

    Raises `LedgerAway` and `LedgerBroken`.
    """

    def forget(connection: Connection) -> str | None:
        if connection.execute(select(RUNS.c.id).where(RUNS.c.id == run.id)).first() is None:
            return None
        if (other := owner.take(connection, run.id)) is None:
            connection.execute(delete(RUNS).where(RUNS.c.id == run.id))
        return other

    if (other := retry_until(lambda: store.write(forget), PATIENCE)) is not None:
        return SkippedRun(run, f"is at work in {other}")
    remove_belongings(store, run.id)
    return None


def sweep(store: Store) -> None:
    """Remove what belongs to no run, and the dead who own none."""
    retry_until(lambda: store.write(bury_idle), PATIENCE)
    with store.reading() as connection:
        runs = set(connection.execute(select(RUNS.c.id)).scalars())
        orphans = {run for table in BELONGINGS for run in numbers_in(connection, table) if run not in runs}
    for run in orphans:
        remove_belongings(store, run)
    for folder in folders_of(store):
        number = folder.name.removeprefix("run-")
        if number.isdecimal() and not is_run(store, int(number)):
            shutil.rmtree(folder, ignore_errors=True)


def bury_idle(connection: Connection) -> None:
    delete_expired(connection, OWNERS.c.id.not_in(select(RUNS.c.owner).where(RUNS.c.owner.is_not(None))))


def numbers_in(connection: Connection, table: Any) -> Iterator[int]:
    """The runs that have rows there, without reading them all."""
    last = -1
    while True:
        last = connection.execute(select(func.min(table.c.run)).where(table.c.run > last)).scalar()
        if last is None:
            return
        yield last


def is_run(store: Store, run: int) -> bool:
    with store.reading() as connection:
        return connection.execute(select(RUNS.c.id).where(RUNS.c.id == run)).first() is not None


def remove_belongings(store: Store, run: int) -> None:
    for table in BELONGINGS:
        name = table.c.key if table is TASKS else table.c.number
        some = select(name).where(table.c.run == run).limit(CHUNK).scalar_subquery()
        chunk = delete(table).where(table.c.run == run, name.in_(some))
        while retry_until(partial(store.write, partial(rows_deleted, chunk)), PATIENCE):
            time.sleep(0)  # whoever waits to write comes in between
    if (folder := folder_of(store, run)) is not None:
        shutil.rmtree(folder, ignore_errors=True)


def rows_deleted(chunk: Delete, connection: Connection) -> int:
    number: int = connection.execute(chunk).rowcount
    return number


# — on disk —


def give_back(store: Store) -> None:
    """What no row needs, to the file system: a file that is as large as it needs to be. A server does that itself."""
    if not store.is_file:
        return
    with store.reading() as connection:
        can = connection.exec_driver_sql("PRAGMA auto_vacuum").scalar_one()
    if can == INCREMENTAL:
        while retry_until(partial(give_pages_back, store), PATIENCE):
            time.sleep(0)  # as above
    with contextlib.suppress(sqlite3.Error), store.reading() as connection:  # what is still read goes another time
        driver_of(connection).execute("PRAGMA wal_checkpoint(TRUNCATE)")


def give_pages_back(store: Store) -> bool:
    """Whether there are more. Raises `LedgerAway`."""
    with store.reading() as connection:
        driver = driver_of(connection)
        try:
            driver.executescript(f"PRAGMA incremental_vacuum({PAGES})")  # `execute` would stop after the first page
            return bool(driver.execute("PRAGMA freelist_count").fetchone()[0])
        except sqlite3.OperationalError as error:
            raise LedgerUnavailable(store.shown, f"cannot be used: {error}") from error


def driver_of(connection: Connection) -> sqlite3.Connection:
    driver: Any = connection.connection.driver_connection
    of_sqlite: sqlite3.Connection = driver
    return of_sqlite


def size_of(store: Store) -> int | None:
    """Bytes on this machine's disk. None for a server's."""
    path = path_of(store)
    if path is None:
        return None
    files = [path.with_name(path.name + end) for end in ("", "-wal")]
    files += [file for folder in folders_of(store) for file in folder.rglob("*")]
    return sum(size_of_file(file) for file in files)


def size_of_file(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def path_of(store: Store) -> Path | None:
    return Path(str(store.engine.url.database)) if store.is_file else None


def folders_of(store: Store) -> list[Path]:
    """What runs keep beside a ledger in a file."""
    path = path_of(store)
    return [] if path is None else sorted(path.with_name(path.name + ".d").glob("run-*"))


def folder_of(store: Store, run: int) -> Path | None:
    path = path_of(store)
    return None if path is None else path.with_name(path.name + ".d") / f"run-{run}"
