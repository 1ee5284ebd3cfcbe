"""Keep standard output for what a command prints: some versions of Airflow log there, and JSON must stand alone.

Every command of Airflow imports this module, so it imports almost nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from airflow.cli.cli_config import lazy_load_command

STDOUT, STDERR = 1, 2  # file descriptors

Show = Callable[[], None]
"""Print the output of a command."""


def printing_command(path: str) -> Callable[[Any], None]:
    """Return a command that imports and calls the function of this path, and then has its output printed.

    The function returns a `Show`. Whatever it or an import logs to standard output is on standard error instead.
    """
    find = lazy_load_command(path)

    def command(args: Any) -> None:
        with standard_output_on_error():
            show: Show = find(args)
        show()

    command.__name__ = find.__name__
    return command


@contextmanager
def standard_output_on_error() -> Iterator[None]:
    """Write to standard error what the block writes to standard output, also what log handlers write that have opened
    it before."""
    if sys.stdout is None or sys.stderr is None:  # closed: another file may have its descriptor
        yield
        return
    sys.stdout.flush()
    kept = os.dup(STDOUT)
    os.dup2(STDERR, STDOUT)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, STDOUT)
        os.close(kept)
