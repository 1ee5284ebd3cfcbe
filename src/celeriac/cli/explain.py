"""`celeriac explain`: the life of one task, and what it waits for."""

from __future__ import annotations

import sys
from typing import Any

import click

from celeriac.cli.control_options import (
    FAILED,
    check_local,
    check_text,
    complain,
    json_option,
    local_option,
    one_line_of_error,
)
from celeriac.cli.ledger_options import ledger_option, ledger_to_read
from celeriac.cli.options import connection_options


@click.command(short_help="Show the life of one task, and what it waits for.")
@click.argument("key")
@click.option("--events", metavar="FILE", help="Read it from the file that `celeriac run --events` wrote.")
@click.option("--run", "run", metavar="RUN", help="Read it from the ledger, where that run is remembered.")
@ledger_option
@connection_options
@local_option
@json_option
@one_line_of_error
def explain(
    key: str,
    events: str | None,
    run: str | None,
    ledger: str | None,
    config: str | None,
    local: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Show the life of one task: each move with its time, place and reason, and what it waits for now.

    With a broker, named here or in the configuration, its executors are asked; else the runs of this user on this
    machine. An executor knows all of its tasks that wait or are out, and the last 10,000 that ended. The ledger
    (--run) knows all of a run, however long ago it was: each attempt, without the moves in between.

    Exit status: 0, 1 if nobody knows it, 2 bad input.
    """
    from celeriac.cli.explained import ask, read, remembered, tell
    from celeriac.config.settings import read_settings

    check_text("KEY", key, *filter(None, [run]))
    check_local(options, local=local)
    if events is not None and run is not None:
        raise click.UsageError("give either --events or --run")
    if run is None and ledger is not None:
        raise click.UsageError("--ledger is for --run")
    if run is not None:
        with ledger_to_read(ledger, config) as opened:
            found = remembered(opened.database, run, key)
    elif events is not None:
        found = read(events, key)
    else:
        found = ask(read_settings(options, config=config), key, local=local)
    for error in found.errors:
        complain(error)
    tell(found, as_json=as_json)
    if not found.tales and not found.held:
        complain(f"no task {key!r} is known")
    sys.exit(0 if found.tales or found.held else FAILED)
