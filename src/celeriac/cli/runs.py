"""`celeriac runs`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from celeriac.cli.formatting import format_seconds, format_time, on_one_line
from celeriac.cli.ledger_options import ledger_option, ledger_to_read
from celeriac.cli.options import config_option, exit_on_bad_input, json_option
from celeriac.cli.run_view import run_state
from celeriac.cli.tables import new_console, new_table
from celeriac.ledger.views import Counts, RunView, count_runs, list_runs

HEADINGS = {"never_ran": "never ran", "out": "in flight"}
"""Headings for counts that have another name in JSON."""

PIPE_WIDTH = 200  # columns


@click.command
@ledger_option
@config_option
@click.option(
    "--limit", type=click.IntRange(min=1), default=20, show_default=True, metavar="N", help="Only the latest N runs."
)
@json_option
@exit_on_bad_input
def runs(ledger: str | None, config: str | None, limit: int, as_json: bool) -> None:
    """List the runs in the ledger, the latest first.

    Each line has the name, the owner or the state, the beginning, the duration, the number of tasks in each state, and
    the file. A run is "interrupted" if it has not ended and no process owns it: `celeriac run FILE --resume` and
    `celeriac retry` resume it. Times are local; in JSON they are seconds since the epoch.
    """
    with ledger_to_read(ledger, config) as opened:
        views = list_runs(opened.database, limit=limit)
        more = count_runs(opened.database) - len(views)
    if as_json:
        click.echo(json.dumps([run_fields(view) for view in views]))
        return
    print_runs(views)
    if more > 0:
        click.echo(f"and {more:,} more: --limit {len(views) + more}", err=True)


def run_fields(view: RunView) -> dict[str, Any]:
    return {
        "run": view.name,
        "file": view.source,
        "state": view.state.value,
        "owner": view.owner,
        "began": view.created,
        "ended": view.ended,
        "duration": round(view.duration, 3),
        **count_fields(view.counts),
    }


def count_fields(counts: Counts) -> dict[str, int]:
    return {
        "tasks": counts.tasks,
        "succeeded": counts.succeeded,
        "failed": counts.failed,
        "revoked": counts.revoked,
        "never_ran": counts.never_ran,
        "waiting": counts.waiting,
        "out": counts.in_flight,
    }


def print_runs(views: Sequence[RunView]) -> None:
    table = new_table("run", "state", "began", "duration")
    for name in count_fields(Counts()):
        table.add_column(HEADINGS.get(name, name), justify="right")
    table.add_column("file", overflow="fold")
    for view in views:
        facts = (on_one_line(view.name), run_state(view), format_time(view.created), format_seconds(view.duration))
        numbers = (f"{number:,}" for number in count_fields(view.counts).values())
        table.add_row(*facts, *numbers, on_one_line(view.source or ""))
    new_console(pipe_width=PIPE_WIDTH).print(table)
