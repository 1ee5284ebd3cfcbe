"""Plan to run tasks of a run again, from the ledger alone.

succeeded        ─► done, unless its key is given
ended otherwise  ─► queued as a new task
unfinished       ─► left to `CeleryExecutor.recover`; unchanged if the filter does not name it
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from celeriac.errors import InvalidConfig
from celeriac.ledger.codec import readable
from celeriac.ledger.counts import IN_FLIGHT
from celeriac.ledger.database import Database
from celeriac.ledger.progress import counted
from celeriac.ledger.resume import Plan, dependency_states, new_task_of
from celeriac.ledger.run_writer import FETCH_SIZE
from celeriac.ledger.schema import TASKS, UNFINISHED
from celeriac.ledger.views import RunView, find_task
from celeriac.ledger.where.condition import Condition
from celeriac.task.state import State
from celeriac.task.task import Task

SUCCESS = State.SUCCESS.value
FAILED = State.FAILED.value


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryFilter:
    """Which tasks run again: all that did not succeed, or fewer."""

    failed: bool = False
    """Only the failed ones."""

    keys: Collection[str] = ()
    """Only these, in any final state."""

    where: Condition | None = None
    """Only those of them that meet this condition."""

    @property
    def is_partial(self) -> bool:
        """Whether other tasks than those that are named stay as they are."""
        return bool(self.keys) or self.failed or self.where is not None

    @property
    def resumed_keys(self) -> Collection[str] | None:
        """The unfinished tasks that the executor resumes; None for all."""
        return frozenset(self.keys) if self.is_partial else None

    def matches(self, row: Any) -> bool:
        """Return whether the task of a row, which has ended, runs again."""
        if self.keys:
            return row.key in self.keys
        is_named = row.state == FAILED if self.failed else row.state != SUCCESS
        return is_named and (self.where is None or self.where.matches(row))


def check_retry(database: Database, run: RunView, retry: RetryFilter, *, outlives: bool) -> None:
    """Raise `InvalidConfig` for a key that the run does not have, for a run that has not recorded all of its tasks, and
    for tasks in flight elsewhere: see `check_location`."""
    if run.unrecorded and not retry.is_partial:
        problem = f"{run.unrecorded:,} of its {run.counts.tasks:,} tasks are not recorded: it was ended before"
        raise InvalidConfig(f"run {run.name!r}", problem, f"resume it with celeriac run --resume {run.source}")
    states = [find_task(database, run, key).state for key in retry.keys]
    in_flight = sum(state in IN_FLIGHT for state in states) if retry.is_partial else run.counts.in_flight
    check_location(run, in_flight, outlives=outlives)


def check_location(run: RunView, in_flight: int, *, outlives: bool) -> None:
    """Raise `InvalidConfig` if tasks are in flight elsewhere: with a broker, although this process runs its tasks
    itself, or the other way round. `outlives` says whether tasks in flight outlive this process: with a broker they do.
    """
    if in_flight and not outlives and run.on_workers:
        problem = f"{in_flight:,} of its tasks may still be in flight with a broker"
        raise InvalidConfig(f"run {run.name!r}", problem, "name the broker with --broker")
    if in_flight and outlives and not run.on_workers:
        problem = f"{in_flight:,} of its tasks were started on one machine, without a broker"
        raise InvalidConfig(f"run {run.name!r}", problem, "resume it on that machine, with --local")


def plan_retry(database: Database, run: int, retry: RetryFilter) -> Plan:
    """Return the plan. Raises `LedgerUnavailable` and `LedgerBroken`."""
    tasks = list(tasks_to_queue(database, run, retry))
    plan = Plan(tasks=tasks, total=len(tasks))
    resumed = retry.resumed_keys
    with database.reading() as connection:
        plan.ended = dependency_states(connection, run, plan.tasks)
        unfinished = connection.execute(select(TASKS.c.key).where(TASKS.c.run == run, UNFINISHED)).scalars()
        plan.unfinished = sum(resumed is None or key in resumed for key in unfinished)
    return plan


def tasks_to_queue(database: Database, run: int, retry: RetryFilter) -> Iterator[Task]:
    """Yield a new task for each task that runs again, in the order in which the tasks were queued."""
    ended = select(TASKS).where(TASKS.c.run == run, ~UNFINISHED).order_by(TASKS.c.place)
    if not retry.keys:
        ended = ended.where(TASKS.c.state == FAILED if retry.failed else TASKS.c.state != SUCCESS)
    if retry.where is not None:
        ended = ended.where(*retry.where.conditions())
    with database.reading() as connection:
        rows = counted(connection.execution_options(yield_per=FETCH_SIZE).execute(ended), database.on_progress)
        yield from readable((row for row in rows if retry.matches(row)), new_task_of)
