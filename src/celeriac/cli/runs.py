"""`celeriac runs`."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click

from celeriac.cli.formatting import format_seconds, format_time, on_one_line
from celeriac.cli.ledger_options import ledger_option, ledger_to_read
from celeriac.cli.messages import print_line
from celeriac.cli.options import config_option, exit_on_bad_input, json_option, take_tags
from celeriac.cli.run_view import INDENT, print_lines, run_facts, run_state
from celeriac.cli.tables import fill, output_width, table_lines
from celeriac.ledger.counts import Counts
from celeriac.ledger.fields import count_fields, run_fields
from celeriac.ledger.views import RunView, count_runs, list_runs

HEADINGS = {"never_ran": "never ran", "out": "in flight"}
"""Headings for counts that have another name in JSON."""

ALWAYS_SHOWN = ("tasks", "succeeded", "failed")
"""The counts that are shown even if they are 0 for each run."""


@click.command
@ledger_option
@config_option
@click.option(
    "--limit", type=click.IntRange(min=1), default=20, show_default=True, metavar="N", help="Only the latest N runs."
)
@click.option(
    "--tag", "tags", multiple=True, metavar="TAG", help="Only runs with this tag. Repeatable: with each of them."
)
@json_option
@exit_on_bad_input
def runs(ledger: str | None, config: str | None, limit: int, tags: tuple[str, ...], as_json: bool) -> None:
    """List the runs in the ledger, the latest first.

    Each line has the name, the owner or the state, the beginning, the duration, the number of tasks in each state, the
    tags, and the file. A run is "interrupted" if it has not ended and no process owns it: `celeriac run FILE --resume`
    and `celeriac retry` resume it. Times are local; in JSON they are seconds since the epoch.
    """
    with ledger_to_read(ledger, config) as opened:
        wanted = take_tags(tags, "--tag")
        views = list_runs(opened.database, limit=limit, tags=wanted)
        more = count_runs(opened.database, tags=wanted) - len(views) if len(views) == limit else 0
    if as_json:
        click.echo(json.dumps([run_fields(view) for view in views]))
        return
    print_runs(views)
    if more > 0:
        print_line(f"and {more:,} more: --limit {len(views) + more}")


def print_runs(views: Sequence[RunView]) -> None:
    counts = [count_fields(view.counts) for view in views]
    names = [name for name in count_fields(Counts()) if name in ALWAYS_SHOWN or any(each[name] for each in counts)]
    numbers = [HEADINGS.get(name, name) for name in names]
    has_tags = any(view.tags for view in views)
    rows = [
        (
            on_one_line(view.name),
            run_state(view),
            format_time(view.created),
            format_seconds(view.duration),
            *(f"{each[name]:,}" for name in names),
            *([on_one_line(", ".join(view.tags))] if has_tags else []),
            on_one_line(view.source or ""),
        )
        for view, each in zip(views, counts, strict=True)
    ]
    headings = ("run", "state", "began", "duration", *numbers, *(["tags"] if has_tags else []), "file")
    width = output_width()
    compact = (line for view in views for line in fill(run_facts(view), width, indent=INDENT))
    print_lines(table_lines(headings, rows, width=width, foldable=("tags", "file"), right=numbers, otherwise=compact))
