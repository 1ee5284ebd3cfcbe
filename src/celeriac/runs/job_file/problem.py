"""What can be wrong with a job file, and where."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from celeriac.errors import InvalidInput

LONGEST_FIELD_SHOWN = 60  # characters


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. As text it is one line that names the place, the fault and the remedy."""

    file: str
    line: int | None
    """Counted from 1; None when it is about the whole file."""

    field: str | None
    """The field or column, also an unknown one; None when it is about the whole line."""

    problem: str
    remedy: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        field = "" if self.field is None else f"{shorten(self.field)}: "
        return on_one_line(f"{place}: {field}{self.problem}; {self.remedy}")


class BadJobs(InvalidInput, ValueError):
    """A job file that cannot be run as it is. `problems` holds all that is wrong, in the order of its lines."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))


def shorten(text: str) -> str:
    return text if len(text) <= LONGEST_FIELD_SHOWN else f"{text[: LONGEST_FIELD_SHOWN - 3]}..."


def on_one_line(text: str) -> str:
    """Whatever would move a terminal's cursor is shown as an escape: the text may come from anywhere."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
