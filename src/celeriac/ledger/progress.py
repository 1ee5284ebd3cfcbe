"""Report how many rows were read or written, for a person who waits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias, TypeVar

T = TypeVar("T")

STEP = 2_000  # rows between two reports
READING = "reading the ledger"
WRITING = "writing to the ledger"

OnProgress: TypeAlias = Callable[[str, int | None], None]
"""Takes what is being done, and the number of rows so far; None at the end."""


def counted(rows: Iterable[T], on_progress: OnProgress | None) -> Iterable[T]:
    """Return the rows. Report their number while they are read."""
    return rows if on_progress is None else report_each(rows, on_progress)


def report_each(rows: Iterable[T], on_progress: OnProgress) -> Iterator[T]:
    try:
        for number, row in enumerate(rows, start=1):
            if not number % STEP:
                on_progress(READING, number)
            yield row
    finally:
        on_progress(READING, None)


def report_written(number: int | None, on_progress: OnProgress | None) -> None:
    """Report how many rows were written. None is the end."""
    if on_progress is not None:
        on_progress(WRITING, number)
