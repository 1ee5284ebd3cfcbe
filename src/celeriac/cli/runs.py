"""`celeriac runs`: what the ledger remembers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from celeriac.cli.ledger_options import how_it_stands, ledger_option, ledger_to_read, time_to_the_second
from celeriac.cli.options import config_option, or_bad_input

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celeriac.ledger.views import RunView

SAME_NAMES = ("tasks", "succeeded", "failed", "revoked", "never_ran", "waiting")
COUNTS = {name: name for name in SAME_NAMES} | {"out": "in_flight"}
"""Keys of the JSON output, and the attributes of `Counts` that they show."""

WIDE = 200  # columns, where there is no terminal


@click.command(short_help="List the runs that the ledger remembers.")
@ledger_option
@config_option
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, metavar="N", help="The latest N.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@or_bad_input
def runs(ledger: str | None, config: str | None, limit: int, as_json: bool) -> None:
    """List the runs that the ledger remembers, the latest first.

    Each with its file, when it began, how long it took or has gone on, who runs it now, and what became of its tasks.
    A run is "interrupted" if it has not ended and nobody runs it: `celeriac run FILE --resume` and `celeriac retry` go
    on with it. Times are local; in JSON they are seconds since the epoch.
    """
    import json

    from celeriac.ledger.views import count_runs, list_runs

    with ledger_to_read(ledger, config) as opened:
        found = list_runs(opened.database, limit=limit)
        more = count_runs(opened.database) - len(found)
    if as_json:
        click.echo(json.dumps([fields_of_run(run) for run in found]))
        return
    print_table(found)
    if more > 0:
        click.echo(f"and {more:,} more: --limit {len(found) + more}", err=True)


def fields_of_run(run: RunView) -> dict[str, Any]:
    return {
        "run": run.name,
        "file": run.source,
        "state": run.state.value,
        "owner": run.owner,
        "began": run.created,
        "ended": run.ended,
        "duration": round(run.duration, 3),
        **{name: getattr(run.counts, attribute) for name, attribute in COUNTS.items()},
    }


def print_table(runs: Sequence[RunView]) -> None:
    from rich.console import Console
    from rich.table import Table

    from celeriac.cli.formatting import on_one_line, seconds

    table = Table("run", "state", "began", "took", box=None, pad_edge=False)
    for name in COUNTS:
        table.add_column(name.replace("_", " "), justify="right")
    table.add_column("file", overflow="fold")
    for run in runs:
        numbers = (f"{getattr(run.counts, attribute):,}" for attribute in COUNTS.values())
        facts = (on_one_line(run.name), how_it_stands(run), time_to_the_second(run.created), seconds(run.duration))
        table.add_row(*facts, *numbers, on_one_line(run.source or ""))
    console = Console(markup=False, highlight=False)
    console.width = console.width if console.is_terminal else WIDE
    console.print(table)
