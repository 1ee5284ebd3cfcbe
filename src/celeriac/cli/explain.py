"""`celeriac explain`: the life of one task, and what it waits for."""

from __future__ import annotations

import sys
from typing import Any

import click

from celeriac.cli.asking import FAILED, check_local, check_text, complain, json_option, local_option, one_line_of_error
from celeriac.cli.options import connection_options


@click.command(short_help="Show the life of one task, and what it waits for.")
@click.argument("key")
@click.option("--events", metavar="FILE", help="Read it from the file that `celeriac run --events` wrote.")
@connection_options
@local_option
@json_option
@one_line_of_error
def explain(key: str, events: str | None, config: str | None, local: bool, as_json: bool, **options: Any) -> None:
    """Show the life of one task: each move with its time, place and reason, and what it waits for now.

    With a broker, named here or in the configuration, its executors are asked; else the runs of this user on this
    machine. An executor knows all of its tasks that wait or are out, and the last 10,000 that ended.

    Exit status: 0, 1 if nobody knows it, 2 bad input.
    """
    from celeriac.cli.explained import ask, read, tell
    from celeriac.settings import read_settings

    check_text("KEY", key)
    check_local(options, local=local)
    settings = read_settings(options, config=config)
    found = read(events, key) if events is not None else ask(settings, key, local=local)
    for error in found.errors:
        complain(error)
    tell(found, as_json=as_json)
    if not found.tales and not found.held:
        complain(f"no task {key!r} is known")
    sys.exit(0 if found.tales or found.held else FAILED)
