"""`celeriac logs`: what a task wrote."""

from __future__ import annotations

import sys

import click

from celeriac.cli.control_options import check_text
from celeriac.cli.ledger_options import ledger_option, ledger_to_read, or_interrupted
from celeriac.cli.options import config_option, or_bad_input


@click.command(short_help="Show what a task wrote.")
@click.argument("run")
@click.argument("key")
@click.option("--out", "streams", flag_value="stdout", help="Only what it wrote to standard output.")
@click.option("--err", "streams", flag_value="stderr", help="Only what it wrote to standard error.")
@click.option("--attempt", type=click.IntRange(min=1), metavar="N", help="Of that attempt. [the last that began]")
@click.option("-f", "--follow", is_flag=True, help="Go on until the task has ended, also if it has not begun.")
@ledger_option
@config_option
@or_interrupted
@or_bad_input
def logs(
    run: str,
    key: str,
    streams: str | None,
    attempt: int | None,
    follow: bool,
    ledger: str | None,
    config: str | None,
) -> None:
    """Show what a task of a run wrote: to standard output what it wrote there, to standard error the rest.

    That is the file that was kept of it, if it is on this machine; else the last lines, which the ledger has, and a
    note says so.

    Exit status: 0, 1 if the task has not begun or nobody runs it any more, 2 bad input.
    """
    from celeriac.cli.task_output import Wanted, show_output

    check_text("RUN or KEY", run, key)
    wanted = Wanted(streams=("stdout", "stderr") if streams is None else (streams,), attempt=attempt)
    with ledger_to_read(ledger, config) as opened:
        sys.exit(show_output(opened.database, run, key, wanted, follow=follow))
