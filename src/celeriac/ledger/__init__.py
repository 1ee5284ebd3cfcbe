"""The executor's own durable memory: each task and each move, in SQLite or PostgreSQL.

    executor ─► bookkeeping ─► SqlBook.write: one transaction ─► tasks, moves, ends that nobody has acknowledged
             ◄─ recover     ◄─ SqlBook.unfinished ◄─┘

    ledger = SqlLedger("sqlite:///scheduler.db")
    executor = cluster.executor(ledger=ledger.book("nightly"))
    executor.recover()

schema  the tables and their versions        store   the database, and what can go wrong with it
row     tasks and events as text             owner   who may write
book    one run, as an executor writes it    runs    runs and tasks as people see them
resume  what of a file is to be run again    prune   runs that are removed
retry   what is, without its file            memory  a ledger without a database
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import Self

from sqlalchemy import insert, select, update
from sqlalchemy.exc import IntegrityError

from celeriac.errors import InvalidConfig
from celeriac.ledger.book import SqlBook
from celeriac.ledger.memory import MemoryLedger
from celeriac.ledger.owner import Owner
from celeriac.ledger.resume import Plan, plan_for
from celeriac.ledger.runs import count, counts_text
from celeriac.ledger.schema import RUNS
from celeriac.ledger.store import Store
from celeriac.task import Task

__all__ = ["MemoryLedger", "SqlBook", "SqlLedger"]


class SqlLedger:
    """Use as a context manager, or call `close`. One ledger object belongs to one process."""

    def __init__(self, url: str, *, timeout: float = 2.0, must_exist: bool = False, read_only: bool = False) -> None:
        """`url` is SQLAlchemy's, such as sqlite:///PATH. `timeout`, in seconds, bounds a write to a server.

        Makes the ledger if there is none, unless it `must_exist`; one that is opened `read_only` must, and need not be
        writable. Raises `InvalidConfig`, `LedgerAway`, `LedgerBroken`.
        """
        self.store = Store(url, timeout=timeout, must_exist=must_exist, read_only=read_only)
        self._owner: Owner | None = None

    @property
    def owner(self) -> Owner:
        """Of what this process writes."""
        if self._owner is None:
            self._owner = Owner(self.store)
        return self._owner

    def book(self, name: str, *, keeps_events: bool = True) -> SqlBook:
        """The run of that name, for an executor to write; made if there is none. With `keeps_events` each end is kept
        until it was acknowledged: see `CeleryExecutor.read_events`.

        Raises `InvalidConfig` while another executor has it.
        """
        run = self.run_named(name)
        return self.open(name, self.new_run(name) if run is None else run, keeps_events=keeps_events)

    def open(self, name: str, run: int, *, keeps_events: bool, only: Collection[str] | None = None) -> SqlBook:
        """With `only`, of what has not ended these keys are gone on with. Raises `InvalidConfig` while another executor
        has it."""
        owner = self.owner
        if (other := self.store.write(lambda connection: owner.take(connection, run))) is not None:
            raise InvalidConfig(f"run {name!r}", f"is at work in {other}", "wait for its end, or name another run")
        return SqlBook(self.store, owner, run, keeps_events=keeps_events, only=only)

    def run_named(self, name: str) -> int | None:
        with self.store.reading() as connection:
            run: int | None = connection.execute(select(RUNS.c.id).where(RUNS.c.name == name)).scalar()
        return run

    def latest_run_of(self, source: str) -> tuple[int, str] | None:
        """Number and name of the last run of a file."""
        wanted = select(RUNS.c.id, RUNS.c.name).where(RUNS.c.source == source).order_by(RUNS.c.id.desc()).limit(1)
        with self.store.reading() as connection:
            row = connection.execute(wanted).one_or_none()
        return None if row is None else (row.id, row.name)

    def new_run(self, name: str, source: str | None = None) -> int:
        """Raises `InvalidConfig` if the name is taken."""
        row = {"name": name, "source": source, "created": time.time()}
        try:
            run: int = self.store.write(lambda c: c.execute(insert(RUNS).values(**row)).inserted_primary_key[0])
        except IntegrityError:
            raise InvalidConfig("name", f"there is a run called {name!r} already", "give another name") from None
        return run

    def new_name(self, wanted: str, *, is_given: bool) -> str:
        """One that no run has: with a number behind it if need be, unless it is given."""
        if is_given:
            return wanted
        with self.store.reading() as connection:
            alike = select(RUNS.c.name).where(RUNS.c.name.startswith(wanted, autoescape=True))
            taken = set(connection.execute(alike).scalars())
        names = itertools.chain([wanted], (f"{wanted}-{number}" for number in itertools.count(2)))
        return next(name for name in names if name not in taken)

    def set_output(self, run: int, folder: Path | None) -> None:
        """Where its commands' output is kept on this machine."""
        output = None if folder is None else str(folder)
        self.store.write(lambda c: c.execute(update(RUNS).where(RUNS.c.id == run).values(output=output)))

    def plan(self, run: int, tasks: Collection[Task], *, failed: bool, outlives: bool) -> Plan:
        """See `celeriac.ledger.resume`."""
        return plan_for(self.store, run, tasks, failed=failed, outlives=outlives)

    def end(self, book: SqlBook) -> None:
        """Its executor is done. If all of its tasks have ended the run has, too."""

        with self.store.reading() as connection:  # of a large run that takes a second: not while others wait to write
            counts = count(connection, book.run)
        ended = None if counts.unfinished else time.time()
        its = (RUNS.c.id == book.run, RUNS.c.owner == self.owner.id)
        values = {"owner": None, "ended": ended, "counts": counts_text(counts)}
        self.store.write(lambda connection: connection.execute(update(RUNS).where(*its).values(**values)))

    def close(self) -> None:
        if self._owner is not None:
            self.store.write(self._owner.leave)
            self._owner = None
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
