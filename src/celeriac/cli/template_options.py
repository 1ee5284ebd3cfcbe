"""The options that make jobs from a template: -t, --key, --grid, and the arguments after `:::`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click

from celeriac.cli.help_sections import SectionedCommand

if TYPE_CHECKING:
    from celeriac.runs.job_file.template import JobTemplate

P = ParamSpec("P")
R = TypeVar("R")

LISTS = "celeriac.lists"
"""The key in a context's `meta` of the words from the first `:::` on."""

GRID = "--grid"
GRID_WORD = re.compile(r"[^\W\d]\w*=")

TEMPLATE_OPTIONS = (
    click.option(
        "-t",
        "--template",
        metavar="COMMAND",
        help="Make a job of each line of FILE, or of each row of a table: {} is the line, {NAME} a column.",
    ),
    click.option("--key", "key_template", metavar="KEY", help="With -t: the key of each job, for example {sample}."),
    click.option(
        GRID, multiple=True, metavar="NAME=VALUES...", help="With -t: all combinations, as of lr=0.1,0.01 seed=1..5."
    ),
)


def template_options(command: Callable[P, R]) -> Callable[P, R]:
    for option in reversed(TEMPLATE_OPTIONS):
        command = option(command)
    return command


class TemplateCommand(SectionedCommand):
    """A command that takes `::: VALUES...` at its end, and several words after --grid. Click's parser does neither."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[LISTS] = []
        if (start := next((place for place, word in enumerate(args) if word.startswith(":::")), None)) is not None:
            args, ctx.meta[LISTS] = args[:start], args[start:]
        return super().parse_args(ctx, with_each_grid(args))


def with_each_grid(args: Sequence[str]) -> list[str]:
    """Return the arguments, with --grid before each of its words."""
    words: list[str] = []
    in_grid = False
    for word in args:
        if in_grid and words[-1] != GRID and GRID_WORD.match(word):
            words.append(GRID)
        words.append(word)
        in_grid = word == GRID or (in_grid and GRID_WORD.match(word) is not None)
    return words


def take_template(ctx: click.Context, options: dict[str, Any], file: str | None) -> JobTemplate | None:
    """Remove the options of a template from the options, and return it; None if there is none. Raises `UsageError`,
    and `InvalidConfig` for malformed values."""
    command, key, grid = options.pop("template"), options.pop("key_template"), options.pop("grid")
    words = ctx.meta[LISTS]
    if command is None:
        if key is not None or grid or words:
            name = "--key" if key is not None else GRID if grid else words[0]
            raise click.UsageError(f"{name} needs a template, for example -t 'gzip -k {{}}'")
        return None
    from celeriac.runs.job_file.arguments import argument_lists, check_lists, grid_lists  # late, as are templates
    from celeriac.runs.job_file.template import JobTemplate

    lists = [*argument_lists(words), *grid_lists(grid)]
    check_lists(lists)
    if lists and file is not None:
        raise click.UsageError(f"give either a FILE, or values after ::: and {GRID}")
    return JobTemplate(command=command, key=key, lists=tuple(lists))
