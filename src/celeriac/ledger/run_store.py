"""The operations of commands and services on the runs of a ledger."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar, Unpack
from weakref import WeakSet

from sqlalchemy import Connection, false, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from celeriac.config.ledger_keep import LedgerKeep
from celeriac.errors import InvalidConfig, LedgerUnavailable
from celeriac.executor.interfaces import NO_TRAITS, LedgerTraits
from celeriac.ledger.cancel import cancel, task_states
from celeriac.ledger.codec import check_key
from celeriac.ledger.database import Database, OpenOptions, data_folder, retry_until
from celeriac.ledger.inputs import NO_INPUTS, RunInputs, read_inputs, write_inputs
from celeriac.ledger.keep import Removed, apply_limits
from celeriac.ledger.owned_runs import OwnedRuns
from celeriac.ledger.owner import Owner
from celeriac.ledger.requeue import reprioritise, requeue
from celeriac.ledger.resume import FileJobs, Plan, keep_recorded_keys, plan_resume, plan_resume_of_unchanged
from celeriac.ledger.retry import RetryFilter, check_location, check_retry, plan_retry
from celeriac.ledger.run_lookup import look_up_run
from celeriac.ledger.run_writer import RunLedger
from celeriac.ledger.schema import RUNS, TASKS, UNFINISHED
from celeriac.ledger.submit import SUBMIT_TIMEOUT, SubmittedRun, insert_submission, list_submitted, write_tasks
from celeriac.ledger.views import Counts, count_states, count_tasks, encode_counts, find_run, unrecorded_of
from celeriac.task.state import State
from celeriac.task.task import Task, TaskKey

TOUCH = "UPDATE celeriac_ledger SET version = version"

T = TypeVar("T")

NAME = "name"  # what an error names if a run has the name already


class RunRef(NamedTuple):
    """A run: its row id and its name."""

    id: int
    name: str


class RunStore:
    """The runs of one ledger. Use it as a context manager, or call `close`. It belongs to one process.

    Each method may raise `LedgerUnavailable` and `LedgerBroken`.
    """

    def __init__(self, url: str, **options: Unpack[OpenOptions]) -> None:
        """Open the ledger of an SQLAlchemy URL such as `sqlite:///PATH`. Raises as `Database` does."""
        self.database = Database(url, **options)
        self._owner: Owner | None = None
        self._open_runs: WeakSet[RunLedger] = WeakSet()

    def check_writable(self) -> None:
        """Raise `LedgerUnavailable` if the ledger refuses writes."""
        self.database.write_in_turn(lambda connection: connection.exec_driver_sql(TOUCH))

    # — ownership —

    @property
    def owner(self) -> Owner:
        """The owner in whose name this process writes; registered at first use."""
        if self._owner is None:
            self._owner = Owner(self.database)
        return self._owner

    def reset_owner(self) -> None:
        """Drop an owner that was declared dead: the next write registers a new one."""
        self._owner = None

    def release_all(self) -> None:
        """Give up the ownership of all runs. If the ledger is unavailable, others take over when the lease expires."""
        owner, self._owner = self._owner, None
        if owner is not None:
            self.database.write(owner.release_all)

    def owned_runs(self, output: Path | None = None) -> OwnedRuns:
        """Return an empty set of submitted runs that this process can take. `output` is the folder for the output of
        their commands."""
        return OwnedRuns(self.database, self.owner, output)

    def close(self) -> None:
        """Give up all runs and close the connections. If the ledger is unavailable, the lease expires instead."""
        with suppress(LedgerUnavailable):
            self.release_all()
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # — create, open and close a run —

    def create_run(
        self,
        name: str,
        source: str | None = None,
        content: str | None = None,
        total: int | None = None,
        inputs: Mapping[str, Any] | None = None,
    ) -> int:
        """Create a run and return its id. `source` is its file, `content` and `total` are as in `set_content`, and
        `inputs` has the fields of `RunInputs`. Raises `InvalidConfig` if the name is taken."""
        row = {"name": name, "source": source, "created": time.time(), "content": content, "total": total}

        def transaction(connection: Connection) -> int:
            run: int = connection.execute(insert(RUNS).values(**row)).inserted_primary_key[0]
            if inputs is not None and self.database.has_all_tables:
                write_inputs(connection, run, RunInputs(**inputs))
            return run

        try:
            return self.database.write_in_turn(transaction)
        except IntegrityError:
            raise name_taken(name) from None

    def inputs_of(self, run: int) -> RunInputs:
        """Return the inputs of a run; the defaults if the ledger has none."""
        if not self.database.has_all_tables:
            return NO_INPUTS
        with self.database.reading() as connection:
            return read_inputs(connection, run)

    def set_inputs(self, run: int, inputs: Mapping[str, Any]) -> None:
        """Store the inputs of a run: the fields of `RunInputs`."""
        if self.database.has_all_tables:
            self.database.write_in_turn(lambda connection: write_inputs(connection, run, RunInputs(**inputs)))

    def create_named_run(self, wanted: str, *, is_given: bool, create: Callable[[str], int]) -> RunRef:
        """Create a run under a free name, also while other processes use the same name. Raises what `create` raises."""
        while True:
            name = self.free_name(wanted, is_given=is_given)
            try:
                return RunRef(create(name), name)
            except InvalidConfig as error:
                if is_given or error.setting != NAME:
                    raise

    def free_name(self, wanted: str, *, is_given: bool) -> str:
        """Return a name that no run has: `wanted`, or `wanted` with a number. A name that the user gave stays as it
        is."""
        if is_given:
            return wanted
        with self.database.reading() as connection:
            similar = select(RUNS.c.name).where(RUNS.c.name.startswith(wanted, autoescape=True))
            taken = set(connection.execute(similar).scalars())
        names = itertools.chain([wanted], (f"{wanted}-{number}" for number in itertools.count(2)))
        return next(name for name in names if name not in taken)

    def open_run(
        self,
        run: int,
        name: str,
        *,
        keeps_events: bool,
        only: Collection[str] | None = None,
        traits: LedgerTraits = NO_TRAITS,
    ) -> RunLedger:
        """Take a run and open it for an executor. With `only`, the executor resumes the unfinished tasks of these keys
        and no others. Raises `InvalidConfig` while another executor has the run."""
        owner = self.owner
        if (live_owner := self.database.write_in_turn(lambda connection: owner.take(connection, run))) is not None:
            raise InvalidConfig(f"run {name!r}", f"is running in {live_owner}", "wait for its end, or name another run")
        opened = RunLedger(
            self.database,
            owner,
            run,
            keeps_events=keeps_events,
            only=only,
            traits=traits,
            on_close=self._close_after,
        )
        self._open_runs.add(opened)
        return opened

    def apply_limits(self, keep: LedgerKeep, *, present: int | None) -> Removed:
        """Remove the runs that exceed a limit, except the `present` one. Raises `LedgerError`."""
        return apply_limits(self.database, self.owner, keep, present=present)

    def close_run(self, run: RunLedger, revoked: Iterable[Task] = (), detail: str = "") -> int:
        """Give up the ownership of a run. The run has ended if all its tasks have.

        Of the `revoked` tasks, those that are not recorded yet are recorded with this detail. Return the number of the
        run's tasks that are not recorded, because they were interrupted before. Raises `LedgerError`.
        """
        counts, missing = self._count_recorded(run.run)
        if missing and revoked:
            run.add_revoked(revoked, detail)
            counts, missing = self._count_recorded(run.run)
        ended = None if missing or counts.unfinished else time.time()
        is_ours = (RUNS.c.id == run.run, RUNS.c.owner == run.owner.id)
        values = {"owner": None, "ended": ended, "counts": encode_counts(counts)}
        self.database.write_in_turn(
            lambda connection: connection.execute(update(RUNS).where(*is_ours).values(**values))
        )
        return missing

    def _count_recorded(self, run: int) -> tuple[Counts, int]:
        """Count the tasks of a run, and those that are not recorded. It takes a second for a large run."""
        with self.database.reading() as connection:
            counts = count_tasks(connection, run)
            total = connection.execute(select(RUNS.c.total).where(RUNS.c.id == run)).scalar()
        return counts, unrecorded_of(total, counts)

    def _close_after(self, run: RunLedger) -> None:
        """Close a run, and with the last open run the connections. The next use opens them again."""
        with suppress(LedgerUnavailable):
            self.close_run(run)
        self._open_runs.discard(run)
        if not self._open_runs:
            self.close()

    # — a run's row —

    def find_run(self, name: str) -> int | None:
        """Return the id of the run of this name; None if there is none."""
        with self.database.reading() as connection:
            run: int | None = connection.execute(select(RUNS.c.id).where(RUNS.c.name == name)).scalar()
        return run

    def latest_run_of(self, source: str) -> RunRef | None:
        """Return the latest run of a file, without the submitted ones."""
        runs = select(RUNS.c.id, RUNS.c.name).where(RUNS.c.source == source, RUNS.c.submitted == false())
        with self.database.reading() as connection:
            row = connection.execute(runs.order_by(RUNS.c.id.desc()).limit(1)).one_or_none()
        return None if row is None else RunRef(row.id, row.name)

    def has_ended(self, run: int) -> bool:
        """Return whether the run has ended."""
        with self.database.reading() as connection:
            return connection.execute(select(RUNS.c.ended).where(RUNS.c.id == run)).scalar() is not None

    def set_output(self, run: int, folder: Path | None) -> None:
        """Store the folder of this machine that holds the output of the run's commands."""
        output = None if folder is None else str(folder)
        self.database.write_in_turn(lambda c: c.execute(update(RUNS).where(RUNS.c.id == run).values(output=output)))

    def set_content(self, run: int, content: str | None, total: int | None) -> None:
        """Store the digest of the run's file, if the run has no other tasks. It is complete with `total` tasks."""
        values = {"content": content, "total": total}
        self.database.write_in_turn(lambda c: c.execute(update(RUNS).where(RUNS.c.id == run).values(**values)))

    def is_of(self, run: int, content: str) -> tuple[bool, bool]:
        """Return whether the run is of the file of this digest, and whether it then has all tasks of the file, and no
        others."""
        number = select(func.count()).where(TASKS.c.run == run).scalar_subquery()
        with self.database.reading() as connection:
            row = connection.execute(select(RUNS.c.content, RUNS.c.total, number).where(RUNS.c.id == run)).one()
        return row[0] == content, (row[0], row[1]) == (content, row[2])

    def run_folder(self, run: int) -> Path:
        """Return the folder of this machine for the files of a run."""
        return data_folder(self.database.url) / f"run-{run}"

    # — a run's tasks —

    def count_states(self, run: int) -> Counter[State]:
        """Return the number of tasks in each state."""
        with self.database.reading() as connection:
            return count_states(connection, run)

    def count_in_flight(self, run: int) -> int:
        """Return how many tasks were in flight when their executor last wrote."""
        in_flight = select(func.count()).where(TASKS.c.run == run, UNFINISHED, TASKS.c.state != State.WAITING.value)
        with self.database.reading() as connection:
            return int(connection.execute(in_flight).scalar_one())

    def is_done(self, run: RunLedger) -> bool:
        """Return whether all tasks of the run have ended."""
        unfinished = select(TASKS.c.key).where(TASKS.c.run == run.run, UNFINISHED).limit(1)
        with self.database.reading() as connection:
            return connection.execute(unfinished).first() is None

    def task_states(self, run: int, keys: Collection[str]) -> dict[str, tuple[State, str | None]]:
        """Return the state and the detail of each of these tasks. Unknown keys are left out."""
        with self.database.reading() as connection:
            return task_states(connection, run, keys)

    def plan_resume(self, run: int, jobs: FileJobs, *, failed: bool, outlives: bool) -> Plan:
        """Plan to resume a run whose file was read: see `celeriac.ledger.resume`."""
        return plan_resume(self.database, run, jobs, failed=failed, outlives=outlives)

    def keep_recorded_keys(self, run: int, tasks: Collection[Task], numbered: Collection[TaskKey]) -> list[Task]:
        """Return the tasks of a changed file with the keys that the run has: see `celeriac.ledger.resume`."""
        return keep_recorded_keys(self.database, run, tasks, numbered)

    def plan_resume_of_unchanged(self, run: int, *, failed: bool) -> Plan:
        """Plan to resume a run whose file has not changed: see `celeriac.ledger.resume`."""
        return plan_resume_of_unchanged(self.database, run, failed=failed)

    def check_resume(self, run: RunRef, *, outlives: bool) -> None:
        """Raise `InvalidConfig` if tasks of the run may be in flight elsewhere. `outlives` says whether the tasks that
        are started now outlive this process."""
        view = find_run(self.database, run.name, counted=False)
        check_location(view, self.count_in_flight(run.id), outlives=outlives)

    def check_retry(self, name: str | None, retry: RetryFilter, *, outlives: bool) -> RunRef:
        """Return the run that `name` means here, or the latest. Raise `InvalidConfig` if there is none, or if `retry`
        does not fit it."""
        run = look_up_run(self.database, name)
        check_retry(self.database, run, retry, outlives=outlives)
        return RunRef(run.id, run.name)

    def plan_retry(self, run: int, retry: RetryFilter) -> Plan:
        """Plan to retry tasks of a run: see `celeriac.ledger.retry`."""
        return plan_retry(self.database, run, retry)

    def cancel(self, run: int, name: str, keys: Collection[str] | None) -> str | None:
        """Cancel tasks of a run: see `celeriac.ledger.cancel`."""
        return self._change(lambda connection: cancel(connection, run, name, keys))

    def requeue(self, run: int, name: str, retry: RetryFilter) -> int:
        """Queue tasks of a run again for services: see `celeriac.ledger.requeue`."""
        return self._change(lambda connection: requeue(connection, run, name, retry))

    def reprioritise(self, run: int, name: str, key: str, priority: int, *, asked_by: str) -> bool:
        """Change the priority of a waiting task of a run without an owner: see `celeriac.ledger.requeue`."""
        return self._change(lambda connection: reprioritise(connection, run, name, key, priority, asked_by))

    def _change(self, change: Callable[[Connection], T]) -> T:
        """Change a run in one transaction. Waits for other writers up to `SUBMIT_TIMEOUT`."""

        def transaction() -> T:
            with self.database.writing() as connection:
                return change(connection)

        return retry_until(lambda: self.database.in_turn(transaction), SUBMIT_TIMEOUT)

    # — runs for a service —

    def submit(
        self,
        name: str,
        source: str | None,
        tasks: Sequence[Task],
        *,
        is_given: bool,
        inputs: Mapping[str, Any] | None = None,
    ) -> str:
        """Store tasks as a new run for the services of this ledger, and return the run's name. `inputs` has the fields
        of `RunInputs`.

        If `name` is taken, a number is added to it; if the user gave it, `InvalidConfig` is raised. Raises
        `InvalidTask`, too.
        """
        for task in tasks:
            check_key(task.key)
        run = self.create_named_run(
            name, is_given=is_given, create=lambda free: self._create_submission(free, source, inputs)
        )
        write_tasks(self.database, self.owner, run.id, tasks)
        return run.name

    def submitted_runs(self) -> list[SubmittedRun]:
        """Return the submitted runs that have not ended, in the order of their submission."""
        with self.database.reading() as connection:
            return list(list_submitted(connection))

    def _create_submission(self, name: str, source: str | None, inputs: Mapping[str, Any] | None) -> int:
        if inputs is not None and not self.database.has_all_tables:
            raise InvalidConfig(
                "ledger", "an older Celeriac made it: it has no place for notices", "give it that table"
            )

        def create(connection: Connection) -> int:
            run = insert_submission(connection, owner, name, source)
            if inputs is not None:
                write_inputs(connection, run, RunInputs(**inputs))
            return run

        try:
            owner = retry_until(lambda: self.owner, SUBMIT_TIMEOUT)
            return retry_until(lambda: self.database.write_in_turn(create), SUBMIT_TIMEOUT)
        except IntegrityError:
            raise name_taken(name) from None


def name_taken(name: str) -> InvalidConfig:
    """Return the error for a name that another run has."""
    return InvalidConfig(NAME, f"there is already a run {name!r}", "give another name")
