"""The operations of commands and services on the runs of a ledger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar, Unpack

from sqlalchemy import Connection, false, func, select, update

from celeriac.errors import InvalidConfig
from celeriac.ledger.cancel import cancel, task_states
from celeriac.ledger.codec import check_key
from celeriac.ledger.database import Database, OpenOptions
from celeriac.ledger.inputs import NO_INPUTS, RunInputs, read_inputs, write_inputs
from celeriac.ledger.owned_runs import OwnedRuns
from celeriac.ledger.requeue import reprioritise, requeue
from celeriac.ledger.resume import FileJobs, Plan, keep_recorded_keys, plan_resume, plan_resume_of_unchanged
from celeriac.ledger.retry import RetryFilter, check_location, check_retry, plan_retry
from celeriac.ledger.run_lookup import look_up_run
from celeriac.ledger.run_pauses import ChangedPauses, change_pauses
from celeriac.ledger.run_recorder import RunRecorder, RunRef, name_taken
from celeriac.ledger.schema import RUNS, TASKS, UNFINISHED
from celeriac.ledger.submit import SUBMIT_TIMEOUT, SubmittedRun, insert_submission, list_submitted, write_tasks
from celeriac.ledger.transactions import RowExists, retry_until
from celeriac.ledger.views import count_states, find_run
from celeriac.task.state import State
from celeriac.task.task import Task, TaskKey

T = TypeVar("T")


class RunStore(RunRecorder):
    """The runs of one ledger. Use it as a context manager, or call `close`. It belongs to one process.

    Each method may raise `LedgerUnavailable` and `LedgerBroken`.
    """

    database: Database

    def __init__(self, url: str, **options: Unpack[OpenOptions]) -> None:
        """Open the ledger of an SQLAlchemy URL such as `sqlite:///PATH`. Raises as `Database` does."""
        super().__init__(Database(url, **options))

    # — ownership —

    def reset_owner(self) -> None:
        """Drop an owner that was declared dead: the next write registers a new one."""
        self._owner = None

    def owned_runs(self, output: str | None = None) -> OwnedRuns:
        """Return an empty set of submitted runs that this process can take. `output` is the folder for the output of
        their commands."""
        return OwnedRuns(self.database, self.owner, output)

    def inputs_of(self, run: int) -> RunInputs:
        """Return the inputs of a run; the defaults if the ledger has none."""
        if not self.database.has_all_tables:
            return NO_INPUTS
        with self.database.reading() as connection:
            return read_inputs(connection, run)

    # — a run's row —

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

    def output_of(self, run: RunRef) -> str | None:
        """Return the folder with the output of a run."""
        return find_run(self.database, run.name, counted=False).output

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

    def change_pauses(
        self, run: int, queues: Collection[str], *, asked_by: str, resume: bool, owner: str | None = None
    ) -> ChangedPauses:
        """Pause a run or queues of it, or resume them: see `celeriac.ledger.run_pauses`. Raises `InvalidConfig`."""
        if not self.database.has_all_tables:
            raise InvalidConfig("ledger", "an older Celeriac made it: it has no place for pauses", "use a new ledger")
        return self._change(
            lambda connection: change_pauses(connection, run, queues, asked_by=asked_by, resume=resume, owner=owner)
        )

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
            return list(list_submitted(connection, has_inputs=self.database.has_all_tables))

    def _create_submission(self, name: str, source: str | None, inputs: Mapping[str, Any] | None) -> int:
        if inputs is not None and not self.database.has_all_tables:
            raise InvalidConfig(
                "ledger", "an older Celeriac made it: it has no place for notices and tags", "give it that table"
            )

        def create(connection: Connection) -> int:
            run = insert_submission(connection, owner, name, source)
            if inputs is not None:
                write_inputs(connection, run, RunInputs(**inputs))
            return run

        try:
            owner = retry_until(lambda: self.owner, SUBMIT_TIMEOUT)
            return retry_until(lambda: self.database.write_in_turn(create), SUBMIT_TIMEOUT)
        except RowExists:
            raise name_taken(name) from None
