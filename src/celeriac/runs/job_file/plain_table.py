"""Read tables of plain jobs: many rows are checked together, column by column."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from sys import intern
from typing import Any

from celeriac.runs.job_file.draft import Draft
from celeriac.runs.job_file.fields import convert
from celeriac.runs.job_file.plain_checks import OWN, SELDOM, SEPARATE, UNSET, FieldSets, Keys, NotPlain, check_commands
from celeriac.runs.job_file.table import Row, find_delimiter, parse_cell, read_header

PART_ROWS = 10_000


def table_drafts(
    parts: Iterator[list[bytes]],
    to_text: Callable[[list[bytes]], list[str]],
    field_sets: FieldSets,
    default_delimiter: str,
) -> Iterator[list[Draft]]:
    """Yield the drafts of each part. Raise `NotPlain` or `InvalidTask`. `to_text` decodes lines."""
    delimiter, first_lines = find_delimiter(enumerate(next(parts, []), start=1), default_delimiter)
    numbered = list(first_lines)
    if not numbered:
        raise NotPlain
    before = numbered[0][0] - 1
    first_part: list[bytes] = [line for _, line in numbered if isinstance(line, bytes)]
    lines = chain.from_iterable(map(to_text, chain([first_part], parts)))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        names = read_names(reader, delimiter)
        yield from row_drafts(reader, names, before, field_sets)
    except csv.Error:
        raise NotPlain from None


def read_names(reader: Any, delimiter: str) -> list[str]:
    """Read the header and return its names."""
    for cells in reader:
        if cells:
            header = read_header(Row(1, cells, []), "", delimiter)
            if header.problems:
                raise NotPlain
            return header.names
    raise NotPlain


def row_drafts(reader: Any, names: list[str], before: int, field_sets: FieldSets) -> Iterator[list[Draft]]:
    """Yield the drafts of the rows. `before` is the number of lines before those of the reader."""
    others = [column for column, name in enumerate(names) if name not in SEPARATE]
    field_sets.parse = partial(parse_cells, [names[column] for column in others])
    checked = Keys()
    read = reader.line_num
    while rows := list(islice(reader, PART_ROWS)):
        numbers: Sequence[int] = range(before + read + 1, before + read + 1 + len(rows))
        read += len(rows)
        if reader.line_num != read:  # a row spans lines
            raise NotPlain
        if [] in rows:
            numbers = [number for number, row in zip(numbers, rows, strict=True) if row]
            rows = [row for row in rows if row]
        columns = columns_of(rows, len(names))
        commands = columns[names.index("command")]
        check_commands(commands)
        given = columns[names.index("key")] if "key" in names else [""] * len(rows)
        keys = checked.add([key or UNSET for key in given], numbers)
        values = zip(*(columns[column] for column in others), strict=True) if others else iter([()] * len(rows))
        yield list(map(Draft, commands, keys, map(field_sets.__getitem__, values)))
    checked.check()


def columns_of(rows: list[list[str]], width: int) -> list[Sequence[str]]:
    """Return the cells of each column. A row may have fewer cells than the header, but not more."""
    if any(len(row) != width for row in rows):
        if any(len(row) > width for row in rows):
            raise NotPlain
        rows = [row + [""] * (width - len(row)) for row in rows]
    return list(zip(*rows, strict=True)) if rows else [()] * width


def parse_cells(names: Sequence[str], cells: tuple[str, ...]) -> dict[str, Any]:
    """Return the fields that the cells of a row mean."""
    given = {name: cell for name, cell in zip(names, cells, strict=True) if cell}
    if not given.keys().isdisjoint((*OWN, *SELDOM)):
        raise NotPlain
    fields: dict[str, Any] = {name: convert(name, parse_cell(name, cell)) for name, cell in given.items()}
    if "queue" in fields:
        fields["queue"] = intern(fields["queue"])
    return fields
