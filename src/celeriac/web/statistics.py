"""The statistics of one run: its tasks by state, its failures by reason, its ends over time.

One query reads each task of the run, which takes a second or two for a million. So it runs beside the requests, and
its result is shared: see `poller`. That of a run that has ended is read once.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec
from sqlalchemy import case, cast, func, select
from sqlalchemy.types import BigInteger

from celeriac.ledger.codec import stored_text
from celeriac.ledger.counts import Counts, counts_field, state_of, unrecorded_of
from celeriac.ledger.database import Database
from celeriac.ledger.schema import TASKS
from celeriac.ledger.statements import STARTED
from celeriac.ledger.views import RunView
from celeriac.task.state import State

MAX_STEPS = 120  # points of a graph
STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400, 43_200, 86_400)  # seconds


class Ends(msgspec.Struct, frozen=True, kw_only=True):
    """The tasks that ended in one step of time."""

    at: float
    """The beginning of the step."""

    succeeded: int = 0
    failed: int = 0
    other: int = 0
    """Revoked or skipped."""


class RunStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """A run in numbers."""

    measured: float
    """When they were read."""

    counts: Counts
    states: dict[str, int]
    """The number of tasks in each state."""

    failures: dict[str, int]
    """The number of failed tasks by reason, the most frequent first."""

    step: float
    """Seconds between two elements of `ends`."""

    ends: list[Ends]
    """Steps without an end are left out."""


def read_statistics(database: Database, run: RunView, total: int | None = None) -> RunStatistics:
    """Read the statistics of a run. Raises `LedgerError`."""
    now = time.time()
    step = step_for(max(0.0, (run.ended or now) - run.created))
    ran = case((TASKS.c.state == State.REVOKED, case((STARTED | (TASKS.c.attempt > 1), True), else_=False)), else_=True)
    bucket = case((TASKS.c.moved.between(0, 2.0**37), cast(TASKS.c.moved / step, BigInteger)), else_=0)
    columns = (TASKS.c.state, TASKS.c.reason, ran.label("ran"), bucket.label("bucket"))
    groups = select(*columns, func.count().label("number"), func.max(TASKS.c.moved).label("last"))
    query = groups.where(TASKS.c.run == run.id).group_by(TASKS.c.state, TASKS.c.reason, "ran", "bucket")
    with database.reading() as connection:
        rows = connection.execute(query).all()
    return statistics_of(rows, step, now, total)


def statistics_of(rows: list[Any], step: float, now: float, total: int | None) -> RunStatistics:
    """Return the statistics for the groups of tasks that have the same state, reason and step of time."""
    fields: dict[str, int] = {}
    states: dict[str, int] = {}
    failures: dict[str, int] = {}
    ends: dict[int, dict[str, int]] = {}
    last_change = 0.0
    for row in rows:
        state = state_of(row.state)
        field = counts_field(state, has_run=bool(row.ran))
        fields[field] = fields.get(field, 0) + row.number
        states[state.value] = states.get(state.value, 0) + row.number
        last_change = max(last_change, float(row.last or 0))
        if state is State.FAILED:
            reason = stored_text(row.reason) or "unknown"
            failures[reason] = failures.get(reason, 0) + row.number
        if state.is_final:
            kind = {State.SUCCESS: "succeeded", State.FAILED: "failed"}.get(state, "other")
            in_step = ends.setdefault(int(row.bucket), {})
            in_step[kind] = in_step.get(kind, 0) + row.number
    counts = Counts(**fields, last_change=last_change or None)
    unrecorded = unrecorded_of(total, counts)
    return RunStatistics(
        measured=now,
        counts=msgspec.structs.replace(counts, waiting=counts.waiting + unrecorded),
        states=states,
        failures=dict(sorted(failures.items(), key=lambda item: -item[1])),
        step=step,
        ends=[Ends(at=bucket * step, **ends[bucket]) for bucket in sorted(ends)][-MAX_STEPS * 2 :],
    )


def step_for(duration: float) -> float:
    """Return the step of time for a graph of this many seconds."""
    return float(next((step for step in STEPS if step * MAX_STEPS >= duration), STEPS[-1]))
