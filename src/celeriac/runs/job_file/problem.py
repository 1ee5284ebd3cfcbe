"""A problem with a job file, and its place."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from celeriac.errors import InvalidInput

MAX_FIELD_SHOWN = 60  # characters


class Problem(Struct, frozen=True):
    """One problem. As text it is one line: the place, the problem and the remedy."""

    file: str
    line: int | None
    """Counted from 1; None for a problem with the whole file."""

    field: str | None
    """The field or column, which may be unknown; None for a problem with the whole line."""

    problem: str
    remedy: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        field = "" if self.field is None else f"{shorten(self.field)}: "
        return on_one_line(f"{place}: {field}{self.problem}; {self.remedy}")


class BadJobs(InvalidInput, ValueError):
    """A job file with problems. `problems` holds all of them, in the order of the lines."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))


def shorten(text: str) -> str:
    """Return the text, or its beginning if it is long."""
    return text if len(text) <= MAX_FIELD_SHOWN else f"{text[: MAX_FIELD_SHOWN - 3]}..."


def on_one_line(text: str) -> str:
    """Return the text with escapes for all characters that could move a terminal's cursor."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
