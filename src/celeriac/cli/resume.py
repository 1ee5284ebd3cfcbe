"""`celeriac resume`: end a pause. `celeriac.cli.pause` has the logic."""

from __future__ import annotations

import sys
from typing import Any

import click

from celeriac.cli.control_options import exit_on_error, local_option
from celeriac.cli.help_sections import SectionedCommand
from celeriac.cli.options import connection_options, json_option
from celeriac.cli.pause import change_pause, ledger_of_run_option, run_argument


@click.command(cls=SectionedCommand)
@run_argument
@click.option("--queue", "queues", multiple=True, metavar="NAME", help="Only the pause of this queue. Repeatable.")
@click.option("--worker", "workers", multiple=True, metavar="NAME", help="A paused worker. Repeatable.")
@ledger_of_run_option
@connection_options
@local_option
@json_option
@exit_on_error
def resume(**options: Any) -> None:
    """End a pause that `celeriac pause` has begun.

    Name what was paused: the RUN, the --queue, the --queue of a RUN, or the --worker. A queue that was paused by itself
    stays paused when its run is resumed. To go on with a run that was interrupted, use `celeriac run FILE --resume`.

    Exit status: 0; 1 if nothing was paused; 2 bad input.
    """
    sys.exit(change_pause(resume=True, **options))
