"""A run and its tasks as text or JSON. A million tasks are printed as a stream."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Iterable
from itertools import islice

import click
from msgspec import Struct
from msgspec.structs import replace

from celeriac.cli.formatting import count, format_seconds, format_time, on_one_line
from celeriac.cli.standard_streams import check_readers
from celeriac.cli.status_line import StatusLine
from celeriac.cli.tables import fill, output_width, table_lines
from celeriac.ledger.codec import encode
from celeriac.ledger.counts import Counts
from celeriac.ledger.database import Database
from celeriac.ledger.fields import task_view_fields
from celeriac.ledger.views import RunState, RunView, TaskView, list_tasks, reload, slowest_tasks
from celeriac.ledger.where.condition import Condition
from celeriac.ledger.where.fields import seconds_taken
from celeriac.task.state import State

POLL_INTERVAL = 1.0  # seconds between two reads of a run
PAUSE_PER_READ = 10  # the pause is at least this many times as long as the read
MAX_UNOWNED_POLLS = 2  # consecutive: a run that has just begun has no owner for a moment
BATCH_SIZE = 500  # lines in one write
INDENT = "  "  # before the further lines of a run
HEADINGS = ("key", "state", "attempt", "reason", "host", "duration", "started")


class TaskSelection(Struct, frozen=True, kw_only=True):
    """The tasks of a run to show."""

    states: Collection[State] = ()
    where: Condition | None = None
    slowest: int | None = None
    """Only so many, the longest first."""

    limit: int | None = None

    def tasks(self, database: Database, run: RunView, now: float | None) -> Iterable[TaskView]:
        """Return the tasks. `now` is the time up to which tasks run or wait; None if no process has their run."""
        where = None if self.where is None else replace(self.where, now=now)
        if self.slowest is None:
            return list_tasks(database, run.id, states=self.states, where=where, limit=self.limit)
        return slowest_tasks(database, run.id, self.slowest, states=self.states, where=where, now=now)


def show_run(database: Database, run: RunView, selection: TaskSelection, *, as_json: bool) -> None:
    now = time.time() if run.owner is not None else None
    tasks = selection.tasks(database, run, now)
    if as_json:
        print_lines(encode(task_view_fields(task)) for task in tasks)
        return
    width = output_width()
    print_lines(fill(run_facts(run), width, indent=INDENT))
    cells = (task_cells(task, now) for task in tasks)
    print_lines(table_lines(HEADINGS, cells, width=width, foldable=("key", "reason", "host")))


def print_lines(lines: Iterable[str]) -> None:
    remaining = iter(lines)
    while batch := list(islice(remaining, BATCH_SIZE)):
        click.echo("\n".join(batch))


def run_facts(run: RunView) -> list[str]:
    facts = [run.name, run_state(run), describe_counts(run.counts)]
    facts += [f"began {format_time(run.created)}", format_seconds(run.duration)]
    facts += [f"tags {', '.join(run.tags)}"] if run.tags else []
    facts += [run.source] if run.source is not None else []
    return [on_one_line(fact) for fact in facts]


def run_state(run: RunView) -> str:
    """Return the owner of a run; its state if no process owns it. Then what is paused."""
    state = run.owner or run.state.value
    return state if run.paused is None else f"{state}, {run.paused}"


def describe_counts(counts: Counts) -> str:
    parts = [f"{counts.succeeded:,} succeeded", f"{counts.failed:,} failed"]
    other_counts = (
        (counts.revoked, "revoked"),
        (counts.never_ran, "never ran"),
        (counts.in_flight, "in flight"),
        (counts.waiting, "waiting"),
    )
    parts += [f"{number:,} {label}" for number, label in other_counts if number]
    return f"{count(counts.tasks, 'task')}: {', '.join(parts)}"


# — following —


def follow_run(database: Database, run: RunView) -> RunView:
    """Show the progress of a run. Return its last view once no process runs it."""
    status = StatusLine()
    unowned_polls = 0
    while run.state is not RunState.ENDED:
        unowned_polls = unowned_polls + 1 if run.state is RunState.INTERRUPTED else 0
        if unowned_polls == MAX_UNOWNED_POLLS:
            break
        check_readers(sys.stdout, sys.stderr)
        status.show(f"{run.name}: {run.counts.done:,}/{run.counts.tasks:,} done, {describe_counts(run.counts)}")
        started = time.monotonic()
        if (latest := reload(database, run)) is None:
            break
        # A ledger does not report changes.
        time.sleep(max(POLL_INTERVAL, PAUSE_PER_READ * (time.monotonic() - started)))
        run = latest
    status.clear()
    return run


# — tasks —


def task_cells(view: TaskView, now: float | None = None) -> tuple[str, ...]:
    execution = view.execution
    duration = execution.duration if execution is not None else None
    started = execution.started if execution is not None else None
    began = view.changed_at if started is None else started
    took = seconds_taken(view.state, began, duration, now)
    cells = (
        str(view.task.key),
        view.state.value,
        str(view.task.attempt),
        end_reason(view),
        execution.host if execution is not None else "",
        "" if took is None else format_seconds(took),
        "" if started is None else format_time(started),
    )
    return tuple(map(on_one_line, cells))


def end_reason(view: TaskView) -> str:
    """Return the reason for the end of a task, or of its last attempt."""
    if view.detail:
        return view.detail
    return view.reason.value if view.reason is not None else ""
