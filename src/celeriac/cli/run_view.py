"""A run and its tasks, once they are found: how they look, however many they are."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Iterable, Iterator
from itertools import chain, islice
from typing import Any

import click
import msgspec

from celeriac.cli.formatting import many, on_one_line, seconds
from celeriac.cli.ledger_options import how_it_stands, time_to_the_second
from celeriac.cli.listing import fields_of
from celeriac.ledger.codec import encode
from celeriac.ledger.database import Database
from celeriac.ledger.views import Counts, RunState, RunView, TaskView, list_tasks, reload
from celeriac.task.state import State

LOOK = 1.0  # seconds between two looks at a run that is followed
SHARE = 10  # how many times as long as a look took nobody looks again
SURE = 2  # looks in a row at which nobody runs it
PLAIN_INTERVAL = 5.0  # seconds between two lines, where there is no terminal
MEASURED = 1_000  # tasks, by which the width of the columns is chosen
WIDEST = 60  # columns of one column
BATCH = 500  # lines in one write
TITLES = ("key", "state", "attempt", "end", "host", "took", "started")


def show_run(store: Database, run: RunView, states: Collection[State], limit: int | None, *, as_json: bool) -> None:
    tasks = list_tasks(store, run.id, states=states, limit=limit)
    if as_json:
        write_lines(encode(fields_of_task(task)) for task in tasks)
        return
    click.echo(head_of(run))
    write_lines(columns(map(cells_of, tasks)))


def write_lines(lines: Iterable[str]) -> None:
    left = iter(lines)
    while some := list(islice(left, BATCH)):
        click.echo("\n".join(some))


def head_of(run: RunView) -> str:
    facts = [run.name, how_it_stands(run), in_words(run.counts)]
    facts += [f"began {time_to_the_second(run.created)}", seconds(run.duration)]
    facts += [run.source] if run.source is not None else []
    return on_one_line("  ".join(facts))


def in_words(counts: Counts) -> str:
    said = [f"{counts.succeeded:,} succeeded", f"{counts.failed:,} failed"]
    others = (("revoked", "called back"), ("never_ran", "never ran"), ("in_flight", "out"), ("waiting", "waiting"))
    said += [f"{number:,} {word}" for name, word in others if (number := getattr(counts, name))]
    return f"{many(counts.tasks, 'task')}: {', '.join(said)}"


# — following —


def follow_run(store: Database, run: RunView) -> RunView:
    """Return once nobody runs it any more: as it stands then."""
    line = Line()
    seen_interrupted = 0
    while run.state is not RunState.ENDED:
        # A run that has just begun has no owner for a moment.
        seen_interrupted = seen_interrupted + 1 if run.state is RunState.INTERRUPTED else 0
        if seen_interrupted == SURE:
            break
        line.say(f"{run.name}: {run.counts.done:,}/{run.counts.tasks:,} done, {in_words(run.counts)}")
        before = time.monotonic()
        if (now := reload(store, run)) is None:
            break
        time.sleep(max(LOOK, SHARE * (time.monotonic() - before)))  # a ledger tells nobody that it has changed
        run = now
    line.end()
    return run


class Line:
    """One that is written anew on a terminal; elsewhere one now and then. On standard error."""

    def __init__(self) -> None:
        self._rewrites = sys.stderr.isatty()
        self._next = float("-inf")

    def say(self, words: str) -> None:
        now = time.monotonic()
        if self._rewrites:
            click.echo(f"\r\x1b[2K{on_one_line(words)}", err=True, nl=False)
        elif now >= self._next:
            self._next = now + PLAIN_INTERVAL
            click.echo(on_one_line(words), err=True)

    def end(self) -> None:
        if self._rewrites:
            click.echo("\r\x1b[2K", err=True, nl=False)


# — tasks —


def cells_of(seen: TaskView) -> tuple[str, ...]:
    execution = seen.execution
    took = execution.duration if execution is not None else None
    started = execution.started if execution is not None else None
    cells = (
        str(seen.task.key),
        seen.state.value,
        str(seen.task.attempt),
        end_of(seen),
        execution.host if execution is not None else "",
        "" if took is None else seconds(took),
        "" if started is None else time_to_the_second(started),
    )
    return tuple(map(on_one_line, cells))


def end_of(seen: TaskView) -> str:
    """How it ended, or how its last attempt did."""
    if seen.detail:
        return seen.detail
    return seen.reason.value if seen.reason is not None else ""


def columns(rows: Iterator[tuple[str, ...]]) -> Iterator[str]:
    """Lined up by the first of them: the rest may be too many to wait for."""
    from rich.cells import cell_len

    first = [TITLES, *islice(rows, MEASURED)]
    widths = [min(WIDEST, max(map(cell_len, column))) for column in zip(*first, strict=True)]
    for row in chain(first, rows):
        padded = (cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(padded).rstrip()


def fields_of_task(seen: TaskView) -> dict[str, Any]:
    """All that is known of it, as flat as it can be; without what nobody said."""
    execution: dict[str, Any] = {} if seen.execution is None else msgspec.to_builtins(seen.execution)
    fields = {
        **fields_of(seen.task),
        "state": seen.state.value,
        "id": seen.task.message_id,
        "attempt": seen.task.attempt,
        "arrived": seen.arrived,
        "moved": seen.changed_at,
        "not_before": seen.not_before,
        "reason": seen.reason and seen.reason.value,
        "detail": seen.detail,
        **execution,
    }
    return {name: value for name, value in fields.items() if value is not None}
