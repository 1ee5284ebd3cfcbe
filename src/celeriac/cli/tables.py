"""Tables that fit the terminal, as a stream of lines: there may be too many rows to read all of them first.

wide enough   ─► a table, with some columns folded if necessary
too narrow    ─► each row as a record: a line for each heading and its value
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import chain, islice

from rich.cells import cell_len, chop_cells

ROWS_MEASURED = 1_000  # rows that decide how wide the columns are
MAX_COLUMN_WIDTH = 60  # characters, where the width is not limited
MIN_COLUMN_WIDTH = 12  # characters of a column that is folded
MIN_WIDTH = 20  # columns of a terminal; on a narrower one lines are longer than it
GAP = "  "


def output_width() -> int | None:
    """Return the columns that a line may take: those of COLUMNS or of the terminal; None if neither is there."""
    if not os.environ.get("COLUMNS", "").isdecimal() and not sys.stdout.isatty():
        return None
    return max(MIN_WIDTH, shutil.get_terminal_size().columns)


def table_lines(
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    width: int | None,
    foldable: Collection[str],
    right: Collection[str] = (),
    otherwise: Iterable[str] | None = None,
) -> Iterator[str]:
    """Yield the lines of a table of at most `width` columns.

    The columns of the headings in `foldable` may be folded, and those in `right` hold numbers. If no table fits, yield
    `otherwise`, or each row as a record.
    """
    remaining = iter(rows)
    first_rows = [*islice(remaining, ROWS_MEASURED)]
    natural = [max(map(cell_len, column)) for column in zip(headings, *first_rows, strict=True)]
    widths = fitting_widths(headings, natural, width, foldable)
    if widths is None and otherwise is not None:
        yield from otherwise
        return
    if widths is None:
        yield from record_lines(headings, chain(first_rows, remaining), width or MIN_WIDTH)
        return
    justify: list[Callable[[str, int], str]] = [pad_left if name in right else pad_right for name in headings]
    for row in chain([headings], first_rows, remaining):
        # Without a limit, a rare cell that is wider than its column moves those behind it; it is not folded.
        cells = [fold(cell, size) if width is not None else [cell] for cell, size in zip(row, widths, strict=True)]
        for number in range(max(map(len, cells))):
            parts = (cell[number] if number < len(cell) else "" for cell in cells)
            padded = (pad(part, size) for pad, part, size in zip(justify, parts, widths, strict=True))
            yield GAP.join(padded).rstrip()


def fitting_widths(
    headings: Sequence[str], natural: Sequence[int], width: int | None, foldable: Collection[str]
) -> list[int] | None:
    """Return the width of each column; None if no table fits. The widest of the foldable columns give way first."""
    if width is None:
        return [min(MAX_COLUMN_WIDTH, size) for size in natural]
    widths = [*natural]
    minimal = [
        max(cell_len(name), min(size, MIN_COLUMN_WIDTH)) if name in foldable else size
        for name, size in zip(headings, natural, strict=True)
    ]
    excess = sum(widths) + len(GAP) * (len(widths) - 1) - width
    while excess > 0:
        number = max(range(len(widths)), key=lambda each: widths[each] - minimal[each])
        if widths[number] == minimal[number]:
            return None
        widths[number] -= 1
        excess -= 1
    return widths


def record_lines(headings: Sequence[str], rows: Iterable[Sequence[str]], width: int) -> Iterator[str]:
    """Yield each row as a record, without empty values. An empty line is between two records."""
    label_width = max(map(cell_len, headings))
    for number, row in enumerate(rows):
        if number:
            yield ""
        for name, value in zip(headings, row, strict=True):
            for part, text in enumerate(fold(value, width - label_width - len(GAP)) if value else ()):
                yield pad_right("" if part else name, label_width) + GAP + text


def fold(text: str, width: int) -> list[str]:
    """Return a text as lines of at most `width` columns: broken at spaces, and inside a word that is too long."""
    if cell_len(text) <= width:
        return [text]
    lines: list[str] = []
    for word in text.split(" "):
        if lines and cell_len(lines[-1]) + 1 + cell_len(word) <= width:
            lines[-1] += f" {word}"
        else:
            lines += chop_cells(word, max(2, width)) or [""]
    return lines


def fill(parts: Iterable[str], width: int | None, *, gap: str = GAP, indent: str = "") -> Iterator[str]:
    """Yield lines of at most `width` columns, each with as many parts as fit. A part that is too long is folded.

    `indent` begins all lines but the first.
    """
    line = begin = ""
    for part in parts:
        if line and (width is None or cell_len(line) + cell_len(gap) + cell_len(part) <= width):
            line += gap + part
            continue
        if line:
            yield line
            begin = indent
        *whole, last = [part] if width is None else fold(part, width - cell_len(indent))
        for each in whole:
            yield begin + each
            begin = indent
        line = begin + last
    if line:
        yield line


def pad_right(text: str, width: int) -> str:
    return text + " " * (width - cell_len(text))


def pad_left(text: str, width: int) -> str:
    return " " * (width - cell_len(text)) + text
