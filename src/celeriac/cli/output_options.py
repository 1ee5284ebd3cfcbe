"""The options for showing what commands write: --group, --line-buffer, --keep-order, --tag, --quiet-output."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click

if TYPE_CHECKING:
    from celeriac.cli.shown_output import OutputStyle

P = ParamSpec("P")
R = TypeVar("R")

STANDARD_OUTPUT = "-"

SHOWN_OPTIONS = (
    click.option(
        "--group", is_flag=True, help="Show the output of each task when it has ended. [default: on a terminal]"
    ),
    click.option("--line-buffer", is_flag=True, help="Show each line of output soon after it was written."),
    click.option("-k", "--keep-order", is_flag=True, help="Show the output in the order of the jobs."),
    click.option("--tag", is_flag=True, help="Begin each line of output with the key of its task and a tab."),
    click.option("--quiet-output", is_flag=True, help="Show no output, also on a terminal."),
)
NAMES = ("group", "line_buffer", "keep_order", "tag")


def shown_options(command: Callable[P, R]) -> Callable[P, R]:
    """Add the options for showing what commands write."""
    for option in reversed(SHOWN_OPTIONS):
        command = option(command)
    return command


def take_style(
    options: dict[str, Any], *, events: str | None, as_json: bool, quiet: bool, is_one: bool
) -> OutputStyle | None:
    """Remove the options from the options of a run, and return how its output is shown; None if it is not.

    `is_one` says whether there is one command, whose output is that of this process. Adds `show_option`, the option
    that asks for it, if there is one. Raises `UsageError`.
    """
    given = [f"--{name.replace('_', '-')}" for name in NAMES if options[name]]
    by_line, in_order, is_tagged = options["line_buffer"], options["keep_order"], options["tag"]
    is_grouped, is_quiet = options["group"], options.pop("quiet_output")
    for name in NAMES:
        del options[name]
    options["show_option"] = given[0] if given else None
    if is_quiet and given:
        raise click.UsageError(f"give either {given[0]} or --quiet-output")
    if by_line and (is_grouped or in_order):
        raise click.UsageError(f"give either --line-buffer or {'--group' if is_grouped else '--keep-order'}")
    if given and (as_json or events == STANDARD_OUTPUT):
        other = "--json" if as_json else "--events -"
        raise click.UsageError(f"{given[0]} and {other} would both write to standard output")
    if given and is_one:
        raise click.UsageError(f"{given[0]} is for several commands: the output of one is shown as it is")
    is_default = (
        not (quiet or as_json or is_one or is_quiet) and events != STANDARD_OUTPUT and options["output"] is None
    )
    if not given and not (is_default and sys.stdout.isatty()):
        return None
    from celeriac.cli.shown_output import OutputStyle  # late: not every run shows output

    return OutputStyle(by_line=by_line, in_order=in_order, is_tagged=is_tagged)
