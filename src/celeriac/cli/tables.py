"""Tables: small tables with Rich, and long tables as a stream of aligned lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

ROWS_MEASURED = 1_000  # rows that decide how wide the columns are
MAX_COLUMN_WIDTH = 60  # characters


def new_table(*headings: str) -> Table:
    return Table(*headings, box=None, pad_edge=False)


def new_console(*, pipe_width: int | None = None) -> Console:
    """Return a console that does not change text. `pipe_width` is its width, in columns, if there is no terminal."""
    console = Console(markup=False, highlight=False)
    if pipe_width is not None and not console.is_terminal:
        console.width = pipe_width
    return console


def align(headings: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """Yield aligned lines. The first rows decide the widths: there may be too many rows to read all of them first."""
    remaining = iter(rows)
    first_rows = [headings, *islice(remaining, ROWS_MEASURED)]
    widths = [min(MAX_COLUMN_WIDTH, max(map(cell_len, column))) for column in zip(*first_rows, strict=True)]
    for row in chain(first_rows, remaining):
        padded = (cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(padded).rstrip()
