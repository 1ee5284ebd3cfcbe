"""One line on standard error about the current progress."""

from __future__ import annotations

import sys
import time

import click

from celeriac.cli.formatting import on_one_line

PLAIN_INTERVAL = 5.0  # seconds between two lines, if there is no terminal


class StatusLine:
    """A line on standard error: rewritten in place on a terminal, elsewhere printed every `PLAIN_INTERVAL`."""

    def __init__(self) -> None:
        self._rewrites = sys.stderr.isatty()
        self._next_line = float("-inf")

    def show(self, text: str) -> None:
        now = time.monotonic()
        if self._rewrites:
            click.echo(f"\r\x1b[2K{on_one_line(text)}", err=True, nl=False)
        elif now >= self._next_line:
            self._next_line = now + PLAIN_INTERVAL
            click.echo(on_one_line(text), err=True)

    def clear(self) -> None:
        if self._rewrites:
            click.echo("\r\x1b[2K", err=True, nl=False)
