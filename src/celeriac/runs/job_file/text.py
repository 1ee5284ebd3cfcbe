"""Plain text: each line is a shell command, unless it is blank or a comment."""

from __future__ import annotations

from collections.abc import Iterator

from celeriac.runs.job_file.fields import JobChecker
from celeriac.runs.job_file.lines import Lines, to_text
from celeriac.runs.job_file.problem import Problem
from celeriac.task.task import Task


def read_text(lines: Lines, checker: JobChecker) -> Iterator[Task | Problem]:
    """Yield the task, or the problems, of each line."""
    for number, line in lines:
        text = line if isinstance(line, Problem) else to_text(line, number, checker.file)
        if isinstance(text, Problem):
            yield text
        elif (command := text.lstrip()) and not command.startswith("#"):
            yield from checker.check(number, {"command": text.removesuffix("\n").removesuffix("\r")})
