"""The options that split an input into blocks: --pipe and --block."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click

from celeriac.cli.template_options import GRID, LISTS

if TYPE_CHECKING:
    from celeriac.runs.pipe import PipeOptions

P = ParamSpec("P")
R = TypeVar("R")

DEFAULT_BLOCK = "10M"
SIZE = re.compile(r"([0-9]{1,15})([kmgt]?)", re.IGNORECASE)
UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}

PIPE_OPTIONS = (
    click.option(
        "--pipe",
        "is_pipe",
        is_flag=True,
        help="Split FILE or standard input at line ends into blocks: each is the standard input of one COMMAND.",
    ),
    click.option(
        "--block",
        metavar="SIZE",
        help=f"With --pipe: the size of a block. [default: {DEFAULT_BLOCK}; with a broker 4M, the most there]",
    ),
)


def pipe_options(command: Callable[P, R]) -> Callable[P, R]:
    for option in reversed(PIPE_OPTIONS):
        command = option(command)
    return command


def take_pipe(ctx: click.Context, options: dict[str, Any], words: Sequence[str] | None) -> PipeOptions | None:
    """Remove the options of a pipe from the options, and return them; None without --pipe. Raises `UsageError`, and
    `InvalidConfig` for a malformed size."""
    is_pipe, block = options.pop("is_pipe"), options.pop("block")
    if not is_pipe:
        if block is not None:
            raise click.UsageError("--block needs --pipe")
        return None
    template = options["template"]
    if (template is None) == (not words):
        raise click.UsageError("--pipe needs one command: -t 'sort -u' or -- sort -u")
    if options["key_template"] is not None or options["grid"] or ctx.meta[LISTS]:
        raise click.UsageError(f"--pipe takes neither --key nor values after ::: and {GRID}")
    if options["resume"] or options["resume_failed"]:
        raise click.UsageError("--resume cannot split the input again; run the failed jobs with celeriac retry")
    options["template"] = None
    from celeriac.runs.pipe import PipeOptions  # late: few runs need it

    size = size_of(block or DEFAULT_BLOCK)
    return PipeOptions(command=template or tuple(words or ()), block=size, is_default=block is None)


def size_of(text: str) -> int:
    """Return a number of bytes. Raises `InvalidConfig`."""
    found = SIZE.fullmatch(text)
    size = int(found[1]) * UNITS[found[2].lower()] if found else 0
    if size == 0:
        from celeriac.errors import InvalidConfig

        raise InvalidConfig("--block", f"{text!r} is not a size", "write for example 10M")
    return size
