"""Tables drawn by rich, for the few commands that show little: importing it takes a tenth of a second."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table


def new_table(*headings: str) -> Table:
    return Table(*headings, box=None, pad_edge=False)


def new_console(*, pipe_width: int | None = None) -> Console:
    """Return a console that does not change text. `pipe_width` is its width, in columns, if there is no terminal."""
    console = Console(markup=False, emoji=False, highlight=False)
    if pipe_width is not None and not console.is_terminal:
        console.width = pipe_width
    return console
