"""`celeriac show`. `celeriac.cli.run_view` formats the run."""

from __future__ import annotations

import sys

import click

from celeriac.cli.completion import complete_run
from celeriac.cli.exit_status import FAILED
from celeriac.cli.help_sections import SectionedCommand
from celeriac.cli.ledger_options import find_named_run, ledger_option, ledger_to_read
from celeriac.cli.options import check_text, config_option, exit_on_bad_input
from celeriac.cli.run_view import follow_run, show_run
from celeriac.task.state import State


@click.command(cls=SectionedCommand)
@click.argument("run", required=False, shell_complete=complete_run)
@click.option("--failed", is_flag=True, help="Only tasks that failed.")
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice([state.value for state in State]),
    metavar="STATE",
    help=f"Only tasks in this state: {', '.join(state.value for state in State)}. Repeatable.",
)
@click.option("--limit", type=click.IntRange(min=0), metavar="N", help="Only the first N tasks.")
@click.option("-f", "--follow", is_flag=True, help="First show the progress of the run until it ends.")
@ledger_option
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print the tasks, one JSON object per line.")
@exit_on_bad_input
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
    """Show a run in the ledger and its tasks. Without RUN, show the latest run.

    With --json each line has the whole task, with its command; secret values are masked.

    Exit status: 0; 2 bad input. With --follow also 1 if some tasks did not succeed.
    """
    check_text("RUN", *filter(None, [run]))
    wanted_states = [State(state) for state in states] + [State.FAILED] * failed
    with ledger_to_read(ledger, config) as opened:
        view = find_named_run(opened.database, run)
        if follow:
            view = follow_run(opened.database, view)
        show_run(opened.database, view, wanted_states, limit, as_json=as_json)
    sys.exit(FAILED if follow and not view.all_succeeded else 0)
