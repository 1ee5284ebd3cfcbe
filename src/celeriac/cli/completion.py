"""Completion of the names of runs and the keys of a run in the shell. A mistake completes nothing: it never fails.

_CELERIAC_COMPLETE=bash_source celeriac   prints the script for bash; click has those for zsh and fish, too
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from celeriac.cli.ledger_options import ledger_to_read
from celeriac.cli.path_completion import Completions, items
from celeriac.config.url_files import UrlFile
from celeriac.errors import CeleriacError

if TYPE_CHECKING:
    from celeriac.ledger.database import Database

MAX_ITEMS = 500


def complete_run(ctx: click.Context, _param: click.Parameter, incomplete: str) -> Completions:
    return items(from_ledger(ctx, lambda database: run_names(database, incomplete)))


def complete_key(ctx: click.Context, param: click.Parameter, incomplete: str) -> Completions:
    """Return keys of the run that is named, or of the latest."""
    run = ctx.params.get("run")
    if run is None and isinstance(param, click.Option) and ctx.args:
        run = ctx.args[0]  # click has not parsed the arguments before an option without its value
    return items(from_ledger(ctx, lambda database: keys_of(database, run, incomplete)))


def complete_run_and_key(ctx: click.Context, param: click.Parameter, incomplete: str) -> Completions:
    """Return runs, and keys of the latest run; after a run, its keys."""
    names = ctx.params.get(str(param.name)) or ()
    if names:
        return items(from_ledger(ctx, lambda database: keys_of(database, names[0], incomplete)))
    both = from_ledger(ctx, lambda database: [*run_names(database, incomplete), *keys_of(database, None, incomplete)])
    return items(dict.fromkeys(both))


def from_ledger(ctx: click.Context, read: Callable[[Database], list[str]]) -> list[str]:
    """Return what `read` finds in the ledger of the command; nothing if there is none."""
    file = ctx.params.get("ledger_file")
    ledger = ctx.params.get("ledger") if file is None else UrlFile(file)
    with suppress(CeleriacError), ledger_to_read(ledger, ctx.params.get("config")) as opened:
        return read(opened.database)
    return []


def run_names(database: Database, incomplete: str) -> list[str]:
    from celeriac.ledger.run_lookup import list_run_names  # imports SQLAlchemy

    return list_run_names(database, incomplete, MAX_ITEMS)


def keys_of(database: Database, run: str | None, incomplete: str) -> list[str]:
    """Return keys of a run, or of the latest one."""
    from celeriac.ledger.run_lookup import list_keys, look_up_run

    return list_keys(database, look_up_run(database, run, counted=False).id, incomplete, MAX_ITEMS)
