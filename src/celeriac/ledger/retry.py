"""What of a run is to be run again, from the ledger alone.

had succeeded  ─► left, unless it is named
ended else     ─► queued, as a new task
had not ended  ─► what `CeleryExecutor.recover` goes on with; if others are asked for, it is left as it stands
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from sqlalchemy import select

from celeriac.errors import InvalidConfig
from celeriac.ledger.codec import decode_task
from celeriac.ledger.database import Database
from celeriac.ledger.resume import Plan, dependency_states
from celeriac.ledger.run_writer import FETCH_SIZE
from celeriac.ledger.schema import IN_FLIGHT, TASKS, UNFINISHED
from celeriac.ledger.views import RunView, find_task
from celeriac.task.state import State
from celeriac.task.task import Task, new_task_id

SUCCESS = State.SUCCESS.value
FAILED = State.FAILED.value


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryFilter:
    """Which tasks: all that did not succeed, or fewer."""

    failed: bool = False
    """Only those that failed."""

    keys: Collection[str] = ()
    """Only these, however they ended."""

    @property
    def resumed_keys(self) -> Collection[str] | None:
        """Of what has not ended; None is all of it."""
        return frozenset(self.keys) if self.keys or self.failed else None

    def matches(self, key: str, state: str) -> bool:
        if self.keys:
            return key in self.keys
        return state == FAILED if self.failed else state != SUCCESS


def check_retry(store: Database, run: RunView, retry: RetryFilter, *, outlives: bool) -> None:
    """Raises `InvalidConfig` for a key that the run does not have. Tasks that may be out with a broker must not be run
    by workers that end with this process: then `outlives` is False."""
    states = [find_task(store, run, key).state for key in retry.keys]
    out = sum(state in IN_FLIGHT for state in states) if retry.keys or retry.failed else run.counts.in_flight
    check_location(run, out, outlives=outlives)


def check_location(run: RunView, out: int, *, outlives: bool) -> None:
    """What is out must be gone on with where it is. Raises `InvalidConfig`."""
    if out and not outlives and run.output is None:
        problem = f"{out:,} of its tasks may still be out with a broker"
        raise InvalidConfig(f"run {run.name!r}", problem, "name it with --broker")
    if out and outlives and run.output is not None:
        problem = f"{out:,} of its tasks were started on one machine, without a broker"
        raise InvalidConfig(f"run {run.name!r}", problem, "go on with it there, with --local")


def plan_retry(store: Database, run: int, retry: RetryFilter) -> Plan:
    """Raises `LedgerAway` and `LedgerBroken`."""
    plan = Plan(tasks=list(tasks_to_queue(store, run, retry)))
    with store.reading() as connection:
        plan.ended = dependency_states(connection, run, plan.tasks)
        unfinished = connection.execute(select(TASKS.c.key).where(TASKS.c.run == run, UNFINISHED)).scalars()
        some = retry.resumed_keys
        plan.unfinished = sum(some is None or key in some for key in unfinished)
    return plan


def tasks_to_queue(store: Database, run: int, retry: RetryFilter) -> Iterator[Task]:
    """New tasks, in the order of the old ones."""
    ended = select(TASKS).where(TASKS.c.run == run, ~UNFINISHED).order_by(TASKS.c.place)
    if not retry.keys:
        ended = ended.where(TASKS.c.state == FAILED if retry.failed else TASKS.c.state != SUCCESS)
    with store.reading() as connection:
        for row in connection.execution_options(yield_per=FETCH_SIZE).execute(ended):
            if retry.matches(row.key, row.state):
                yield replace(decode_task(row.key, row), id=new_task_id(), attempt=1, lost=0)
