"""`celeriac show`: one run and its tasks, or how it gets on."""

from __future__ import annotations

import sys

import click

from celeriac.cli.control_options import FAILED, check_text
from celeriac.cli.ledger_options import ledger_option, ledger_to_read, or_interrupted
from celeriac.cli.options import config_option, or_bad_input
from celeriac.task.state import State


@click.command(short_help="Show a run and its tasks.")
@click.argument("run", required=False)
@click.option("--failed", is_flag=True, help="Only tasks that failed.")
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice([state.value for state in State]),
    metavar="STATE",
    help=f"Only tasks in that state: {', '.join(state.value for state in State)}. Repeatable.",
)
@click.option("--limit", type=click.IntRange(min=0), metavar="N", help="The first N of them.")
@click.option("-f", "--follow", is_flag=True, help="Show how it gets on, until it has ended.")
@ledger_option
@config_option
@click.option("--json", "as_json", is_flag=True, help="The tasks, one JSON object a line.")
@or_interrupted
@or_bad_input
def show(
    run: str | None,
    failed: bool,
    states: tuple[str, ...],
    limit: int | None,
    follow: bool,
    ledger: str | None,
    config: str | None,
    as_json: bool,
) -> None:
    """Show a run that the ledger remembers, and its tasks. Without RUN, the latest.

    With --json each line has the whole task, with its command; secret values are masked.

    Exit status: 0, 2 bad input; with --follow 0 if all succeeded, else 1.
    """
    from celeriac.cli.run_view import follow_run, show_run
    from celeriac.ledger.views import find_run

    check_text("RUN", *filter(None, [run]))
    wanted = [State(state) for state in states] + [State.FAILED] * failed
    with ledger_to_read(ledger, config) as opened:
        found = find_run(opened.database, run)
        if follow:
            found = follow_run(opened.database, found)
        show_run(opened.database, found, wanted, limit, as_json=as_json)
    sys.exit(FAILED if follow and not found.all_succeeded else 0)
