"""Plain text: each line is a shell command, unless it is blank or a comment."""

from __future__ import annotations

import re
from collections.abc import Iterator

from celeriac.runs.job_file.fields import JobChecker
from celeriac.runs.job_file.lines import Lines, to_text
from celeriac.runs.job_file.problem import Problem
from celeriac.task.task import Task

JSON_JOB = re.compile(r'\{\s*"\w+"\s*:')
JSON_REMEDY = "write only JSON, or only commands; if it is a shell command, give --format lines"
ONE_LINE = "write each command on one line"


def read_text(lines: Lines, checker: JobChecker, *, is_certain: bool = True) -> Iterator[Task | Problem]:
    """Yield the task, or the problems, of each line. Unless the format is certain, an object of JSON is a problem."""
    if (problem := checker.names_problem(None, [""])) is not None:
        yield problem
        return
    for number, line in lines:
        text = line if isinstance(line, Problem) else to_text(line, number, checker.file)
        if isinstance(text, Problem):
            yield text
        elif checker.template is not None:  # a line is a value, and may begin with a "#"
            if value := text.strip():
                yield from checker.check_command(number, value)
        elif (command := text.strip()) and not command.startswith("#"):
            if command.endswith("\\") and is_continued(command):
                yield Problem(checker.file, number, None, "the line ends with a backslash", ONE_LINE)
            elif not is_certain and JSON_JOB.match(command):
                yield Problem(checker.file, number, None, "it is an object of JSON, not a command", JSON_REMEDY)
            else:
                yield from checker.check_command(number, text.removesuffix("\n").removesuffix("\r"))


def is_continued(command: str) -> bool:
    """Return whether the backslash at the end of a line would join the next line to it."""
    return (len(command) - len(command.rstrip("\\"))) % 2 == 1
