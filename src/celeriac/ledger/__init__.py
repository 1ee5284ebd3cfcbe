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
shelf   the runs that `celeriac serve` owns  submit  runs that are left to it
cancel  calling back, whoever owns the run
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from sqlalchemy import false, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from celeriac.errors import InvalidConfig, LedgerUnavailable
from celeriac.ledger.cancel import cancel, task_states
from celeriac.ledger.codec import check_key, decode_event
from celeriac.ledger.database import Database, data_folder, retry_until
from celeriac.ledger.memory import MemoryLedger
from celeriac.ledger.owned_runs import OwnedRuns, count_states
from celeriac.ledger.owner import Owner
from celeriac.ledger.resume import Plan, plan_resume, plan_resume_of_unchanged
from celeriac.ledger.run_writer import RunLedger
from celeriac.ledger.schema import EARLIER_EVENTS, RUNS, TASKS, UNFINISHED
from celeriac.ledger.submit import SUBMIT_TIMEOUT, SubmittedRun, insert_submission, list_submitted, write_tasks
from celeriac.ledger.views import count_tasks, encode_counts
from celeriac.task.event import Event
from celeriac.task.state import State
from celeriac.task.task import Task

__all__ = ["MemoryLedger", "RunLedger", "RunName", "SqlLedger"]


class RunName(NamedTuple):
    id: int
    name: str


class SqlLedger:
    """Use as a context manager, or call `close`. One ledger object belongs to one process."""

    def __init__(self, url: str, *, timeout: float = 2.0, must_exist: bool = False, read_only: bool = False) -> None:
        """`url` is SQLAlchemy's, such as sqlite:///PATH. `timeout`, in seconds, bounds a write to a server.

        Makes the ledger if there is none, unless it `must_exist`; one that is opened `read_only` must, and need not be
        writable. Raises `InvalidConfig`, `LedgerAway`, `LedgerBroken`.
        """
        self.database = Database(url, timeout=timeout, must_exist=must_exist, read_only=read_only)
        self._owner: Owner | None = None

    @property
    def owner(self) -> Owner:
        """Of what this process writes."""
        if self._owner is None:
            self._owner = Owner(self.database)
        return self._owner

    def open_run(self, name: str, *, keeps_events: bool = True) -> RunLedger:
        """The run of that name, for an executor to write; made if there is none. With `keeps_events` each end is kept
        until it was acknowledged: see `CeleryExecutor.read_events`.

        Raises `InvalidConfig` while another executor has it.
        """
        run = self.find_run(name)
        return self.open(self.create_run(name) if run is None else run, name, keeps_events=keeps_events)

    def open(self, run: int, name: str, *, keeps_events: bool, only: Collection[str] | None = None) -> RunLedger:
        """With `only`, of what has not ended these keys are gone on with. Raises `InvalidConfig` while another executor
        has it."""
        owner = self.owner
        if (other := self.database.write(lambda connection: owner.take(connection, run))) is not None:
            raise InvalidConfig(f"run {name!r}", f"is at work in {other}", "wait for its end, or name another run")
        return RunLedger(self.database, owner, run, keeps_events=keeps_events, only=only)

    def find_run(self, name: str) -> int | None:
        with self.database.reading() as connection:
            run: int | None = connection.execute(select(RUNS.c.id).where(RUNS.c.name == name)).scalar()
        return run

    def latest_run_of(self, source: str) -> RunName | None:
        """The last run of a file, of those that were not submitted."""
        wanted = select(RUNS.c.id, RUNS.c.name).where(RUNS.c.source == source, RUNS.c.submitted == false())
        with self.database.reading() as connection:
            row = connection.execute(wanted.order_by(RUNS.c.id.desc()).limit(1)).one_or_none()
        return None if row is None else RunName(row.id, row.name)

    def create_run(self, name: str, source: str | None = None) -> int:
        """Raises `InvalidConfig` if the name is taken."""
        row = {"name": name, "source": source, "created": time.time()}
        try:
            run: int = self.database.write(lambda c: c.execute(insert(RUNS).values(**row)).inserted_primary_key[0])
        except IntegrityError:
            raise name_taken(name) from None
        return run

    def free_name(self, wanted: str, *, is_given: bool) -> str:
        """One that no run has: with a number behind it if need be, unless it is given."""
        if is_given:
            return wanted
        with self.database.reading() as connection:
            alike = select(RUNS.c.name).where(RUNS.c.name.startswith(wanted, autoescape=True))
            taken = set(connection.execute(alike).scalars())
        names = itertools.chain([wanted], (f"{wanted}-{number}" for number in itertools.count(2)))
        return next(name for name in names if name not in taken)

    def submit(self, name: str, source: str | None, tasks: Sequence[Task], *, is_given: bool) -> str:
        """Leave tasks to whoever serves this ledger, as a run of that name, or of one like it unless the name is given.
        Answers its name. Raises `InvalidConfig` if it is taken, `InvalidTask`, `LedgerAway` and `LedgerBroken`."""
        for task in tasks:
            check_key(task.key)
        run, called = self.create_named_run(name, is_given=is_given, create=lambda free: self._submission(free, source))
        write_tasks(self.database, self.owner, run, tasks)
        return called

    def create_named_run(self, wanted: str, *, is_given: bool, create: Callable[[str], int]) -> RunName:
        """A run of `new_name`, also where others are about to use the same name. Raises what `make` does."""
        while True:
            name = self.free_name(wanted, is_given=is_given)
            try:
                return RunName(create(name), name)
            except InvalidConfig:
                if is_given:
                    raise

    def _submission(self, name: str, source: str | None) -> int:
        try:
            owner = retry_until(lambda: self.owner, SUBMIT_TIMEOUT)
            begin = partial(insert_submission, owner=owner, name=name, source=source)
            return retry_until(lambda: self.database.write(begin), SUBMIT_TIMEOUT)
        except IntegrityError:
            raise name_taken(name) from None

    def owned_runs(self, output: Path | None = None) -> OwnedRuns:
        """For the submitted runs that this process takes. `output` is where it keeps what their commands write."""
        return OwnedRuns(self.database, self.owner, output)

    def reset_owner(self) -> None:
        """As another owner: what this one had is another's now, or will be."""
        self._owner = None

    def cancel(self, run: int, name: str, keys: Collection[str] | None) -> str | None:
        """See `celeriac.ledger.cancel`. Waits as long as it takes."""

        def transaction() -> str | None:
            with self.database.writing() as connection:
                return cancel(connection, run, name, keys)

        return retry_until(transaction, SUBMIT_TIMEOUT)

    def count_states(self, run: int) -> Counter[State]:
        """How many of its tasks are in each."""
        with self.database.reading() as connection:
            return count_states(connection, run)

    def task_states(self, run: int, keys: Collection[str]) -> dict[str, tuple[State, str | None]]:
        with self.database.reading() as connection:
            return task_states(connection, run, keys)

    def has_ended(self, run: int) -> bool:
        with self.database.reading() as connection:
            return connection.execute(select(RUNS.c.ended).where(RUNS.c.id == run)).scalar() is not None

    def submitted_runs(self) -> list[SubmittedRun]:
        """The runs that were submitted and have not ended."""
        with self.database.reading() as connection:
            return list(list_submitted(connection))

    def earlier_events(self, run: int, key: str | None = None) -> list[Event]:
        """What is no longer told by where its tasks stand: the attempts that another one followed, in order."""
        its = (
            [EARLIER_EVENTS.c.run == run] if key is None else [EARLIER_EVENTS.c.run == run, EARLIER_EVENTS.c.key == key]
        )
        with self.database.reading() as connection:
            rows = connection.execute(select(EARLIER_EVENTS).where(*its).order_by(EARLIER_EVENTS.c.number))
            return [decode_event(row.key, row.number, row.event) for row in rows]

    def set_output(self, run: int, folder: Path | None) -> None:
        """Where its commands' output is kept on this machine."""
        output = None if folder is None else str(folder)
        self.database.write(lambda c: c.execute(update(RUNS).where(RUNS.c.id == run).values(output=output)))

    def has_tasks_of(self, run: int, content: str) -> bool:
        """Whether all tasks of a file of that content are in the run, and no others."""
        number = select(func.count()).where(TASKS.c.run == run).scalar_subquery()
        with self.database.reading() as connection:
            row = connection.execute(select(RUNS.c.content, RUNS.c.total, number).where(RUNS.c.id == run)).one()
        return (row[0], row[1]) == (content, row[2])

    def set_content(self, run: int, content: str | None, total: int | None) -> None:
        """What file it is of; known to be all of it once so many tasks are in it."""
        values = {"content": content, "total": total}
        self.database.write(lambda c: c.execute(update(RUNS).where(RUNS.c.id == run).values(**values)))

    def plan_resume_of_unchanged(self, run: int, *, failed: bool) -> Plan:
        """See `celeriac.ledger.resume`."""
        return plan_resume_of_unchanged(self.database, run, failed=failed)

    def plan_resume(self, run: int, tasks: Collection[Task], *, failed: bool, outlives: bool) -> Plan:
        """See `celeriac.ledger.resume`."""
        return plan_resume(self.database, run, tasks, failed=failed, outlives=outlives)

    def count_in_flight(self, run: int) -> int:
        """How many of its tasks were out when its executor last wrote."""
        wanted = select(func.count()).where(TASKS.c.run == run, UNFINISHED, TASKS.c.state != State.WAITING.value)
        with self.database.reading() as connection:
            return int(connection.execute(wanted).scalar_one())

    def is_done(self, book: RunLedger) -> bool:
        """Whether all of its tasks have ended."""
        wanted = select(TASKS.c.key).where(TASKS.c.run == book.run, UNFINISHED).limit(1)
        with self.database.reading() as connection:
            return connection.execute(wanted).first() is None

    def close_run(self, book: RunLedger) -> None:
        """Its executor lets go of it. If it is done it has ended. Raises `LedgerAway`."""
        with self.database.reading() as connection:  # a second for a large run: not in the transaction that writes
            counts = count_tasks(connection, book.run)
        ended = None if counts.unfinished else time.time()
        its = (RUNS.c.id == book.run, RUNS.c.owner == self.owner.id)
        values = {"owner": None, "ended": ended, "counts": encode_counts(counts)}
        self.database.write(lambda connection: connection.execute(update(RUNS).where(*its).values(**values)))

    def run_folder(self, run: int) -> Path:
        """Where what belongs to a run is kept on this machine."""
        return data_folder(self.database.url) / f"run-{run}"

    def release_all(self) -> None:
        """Own nothing any more. Raises `LedgerAway`: then others take over when the lease has ended."""
        owner, self._owner = self._owner, None
        if owner is not None:
            self.database.write(owner.release_all)

    def close(self) -> None:
        """A ledger that is away is told nothing: what it has for alive will be taken for dead in time."""
        with suppress(LedgerUnavailable):
            self.release_all()
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def name_taken(name: str) -> InvalidConfig:
    return InvalidConfig("name", f"there is a run called {name!r} already", "give another name")
