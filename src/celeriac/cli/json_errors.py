"""Errors of a command with --json: one JSON object on standard output, beside the line on standard error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from celeriac.runs.job_file import Problem

JSON_OPTION = "--json"


def print_json_error(message: str, problems: Sequence[Problem] = (), *, context: click.Context | None = None) -> None:
    """Print an error as JSON if the command has --json. `problems` are those of a job file.

    The command is that of `context`, or the current one.
    """
    context = context or click.get_current_context(silent=True)
    if context is not None and context.params.get("as_json"):
        echo_error(message, problems)


def echo_error(message: str, problems: Sequence[Problem] = ()) -> None:
    import json  # late: most commands have no errors, and `--help` needs no library

    from msgspec.structs import asdict

    fields: dict[str, object] = {"error": message}
    if problems:
        fields["problems"] = [asdict(problem) for problem in problems]
    click.echo(json.dumps(fields))
