"""Messages on standard error: each is one line, whatever names of files, keys and errors it contains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click

from celeriac.errors import on_one_line

ERASE_LINE = "\r\x1b[2K"


def print_line(line: str) -> None:
    """Print on standard error, with escapes for characters that would begin a line or move the cursor."""
    click.echo(on_one_line(line), err=True)


def print_message(line: str) -> None:
    """Print an error or a warning, after the name of the program."""
    print_line(f"celeriac: {line}")


def erase_line() -> None:
    """Erase the line at the cursor of the terminal."""
    click.echo(ERASE_LINE, err=True, nl=False)


def report_wait(file: str) -> None:
    """Say that a FIFO is still empty."""
    print_line(f"waiting for a program that writes to {file}")


@contextmanager
def escaped_usage_errors() -> Iterator[None]:
    """Escape the errors of click, which repeat arguments."""
    try:
        yield
    except click.UsageError as error:
        raise click.UsageError(on_one_line(error.format_message()), error.ctx) from None
