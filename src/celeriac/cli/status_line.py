"""One line on standard error about the current progress."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from celeriac.cli.formatting import count, on_one_line
from celeriac.cli.messages import print_line

FIRST_PROGRESS = 0.5  # seconds that something may take before its progress is shown
PLAIN_INTERVAL = 5.0  # seconds between two lines, if there is no terminal


class StatusLine:
    """A line on standard error: rewritten in place on a terminal, elsewhere printed every `PLAIN_INTERVAL`."""

    def __init__(self, *, delay: float = 0.0, only_terminals: bool = False) -> None:
        """`delay` is the time in seconds until the first line. With `only_terminals`, nothing is printed elsewhere."""
        self._rewrites, self._only_terminals = sys.stderr.isatty(), only_terminals
        self._next_line = time.monotonic() + delay
        self._is_shown = False

    def show(self, text: str) -> None:
        now = time.monotonic()
        if now < self._next_line:
            return
        if self._rewrites:
            self._is_shown = True
            click.echo(f"\r\x1b[2K{on_one_line(text)}", err=True, nl=False)
        elif not self._only_terminals:
            self._next_line = now + PLAIN_INTERVAL
            print_line(text)

    def clear(self) -> None:
        if self._is_shown:
            self._is_shown = False
            click.echo("\r\x1b[2K", err=True, nl=False)


@contextmanager
def show_reading(file: str, *, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """Show how many jobs of a file were read, once that takes long. Yield a function that takes their number."""
    line = StatusLine(delay=float("inf") if quiet else FIRST_PROGRESS)
    try:
        yield lambda number: line.show(f"reading {file}: {count(number, 'job')}")
    finally:
        line.clear()
