"""`celeriac schema`."""

from __future__ import annotations

import json

import click

NAMES = (
    *("autoscale", "cancel", "cancel-run", "check", "config", "doctor", "drain", "error", "event", "explain", "job"),
    *("logs", "notice", "pause", "prune", "refused", "resume", "retry", "run", "runs", "schedules", "set", "show"),
    *("status", "submit", "watch"),
)
"""The names of the outputs. `celeriac.json_types` has their types; it imports msgspec, which is slow."""


@click.command
@click.argument("name", required=False, metavar="[NAME]", type=click.Choice(NAMES))
def schema(name: str | None) -> None:
    """Print the JSON Schema of what a command prints with --json; without NAME, list the names.

    NAME is the command. Besides: error, for the errors of any command; job, a line of `run --dry-run`; event, a line of
    the file of --events; notice, what --on-end and --notify get; refused, `status --refused`; watch, a line of `status
    --watch`; cancel-run, `cancel --run` without a KEY. The version is the last part of "$id". Within a version fields
    may be added, so ignore those that you do not know.
    """
    if name is None:
        click.echo("\n".join(NAMES))
        return
    from celeriac.json_types import schema_of

    click.echo(json.dumps(schema_of(name), indent=2))
