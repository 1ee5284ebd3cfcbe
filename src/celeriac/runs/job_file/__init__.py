"""Job files: one job a line, as JSON Lines, as a table (CSV, TSV) or as plain shell commands.

read_jobs      the whole file: all tasks, or everything that is wrong with it
stream_jobs    one line at a time, while it is still being written

lines of bytes ─► json_lines, table or text ─► Jobs.check ─► Task, or each Problem of the line
"""

from __future__ import annotations

import gc
import io
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

from celeriac.errors import InvalidConfig
from celeriac.runs.job_file.fields import FIELDS, Jobs
from celeriac.runs.job_file.json_lines import read_json_lines
from celeriac.runs.job_file.lines import MAX_LINE, Lines, Readable, read_lines
from celeriac.runs.job_file.problem import BadJobs, Problem
from celeriac.runs.job_file.table import read_table
from celeriac.runs.job_file.text import read_text
from celeriac.task.task import Task

__all__ = ["FIELDS", "FORMATS", "MAX_LINE", "BadJobs", "Problem", "read_jobs", "stream_jobs"]

FORMATS = ("auto", "jsonl", "csv", "tsv", "text")
STDIN = ("-", "<stdin>")

FORMAT_OF_EXTENSION = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json-lines": "jsonl", ".csv": "csv", ".tsv": "tsv"}
FIRST_OBJECT = re.compile(rb'\s*\{\s*["}]')

BUFFER = 1024 * 1024  # bytes


NO_DEFAULTS: Mapping[str, Any] = MappingProxyType({})


def read_jobs(
    path: str | os.PathLike[str], format: str = "auto", defaults: Mapping[str, Any] = NO_DEFAULTS
) -> list[Task]:
    """All tasks of a file, or of standard input if the path is "-". Raises `BadJobs` with everything that is wrong.
    The tasks of a file may need each other in any order, those of standard input only earlier ones.

    `defaults` are fields of `Task`, for jobs that do not name them.
    """
    name = os.fspath(path)
    tasks: list[Task] = []
    problems: list[Problem] = []
    check_format(format)
    jobs = Jobs(shown(name), defaults, is_whole=name not in STDIN)
    with _opened(name) as file, _no_garbage_collection():
        for found in chain(_stream(file, jobs, format), _needs(jobs, problems)):
            if isinstance(found, Problem):
                problems.append(found)
                tasks.clear()
            elif not problems:
                tasks.append(found)
    if problems:
        raise BadJobs(sorted(problems, key=lambda problem: problem.line or 0))
    return tasks


def _needs(jobs: Jobs, problems: Sequence[Problem]) -> Iterator[Problem]:
    """What is wrong with who needs whom. Of a line that could not be read nobody knows the key."""
    jobs.has_lines_without_key |= any(problem.field is None for problem in problems)
    yield from jobs.check_needs()


def stream_jobs(
    binary_file: Readable, name: str, format: str = "auto", defaults: Mapping[str, Any] = NO_DEFAULTS
) -> Iterator[Task | Problem]:
    """Each task as soon as its line is complete, and each problem. `name` is for messages; in the format "auto" its
    extension decides, or else the first line that is not blank. Nothing of the file is read before it is asked for, so
    that a task may only need what an earlier line names.
    """
    check_format(format)
    return _stream(binary_file, Jobs(shown(name), defaults), format)


def check_format(format: str) -> None:
    if format not in FORMATS:
        raise InvalidConfig("format", f"{format!r} is no format", f"write one of {', '.join(FORMATS)}")


def shown(name: str) -> str:
    return "<stdin>" if name in STDIN else name


def _stream(file: Readable, jobs: Jobs, format: str) -> Iterator[Task | Problem]:
    name = jobs.file
    if isinstance(file, io.RawIOBase):  # it reads byte by byte; buffered, it takes what is there
        buffered = io.BufferedReader(file)
        try:
            yield from _stream(buffered, jobs, format)
        finally:
            buffered.detach()
        return
    lines: Lines = read_lines(file, name)
    if format != "auto":
        kind = format
    elif (known := FORMAT_OF_EXTENSION.get(Path(name).suffix.lower())) is not None:
        kind = known
    else:
        kind, lines = _look_at(lines)
    found = None
    for found in _read(lines, jobs, kind):
        yield found
    if found is None:
        yield Problem(name, None, None, "there is nothing to run in it", "write at least one command")


def _read(lines: Lines, jobs: Jobs, format: str) -> Iterator[Task | Problem]:
    match format:
        case "jsonl":
            return read_json_lines(lines, jobs)
        case "csv":
            return read_table(lines, jobs, ",")
        case "tsv":
            return read_table(lines, jobs, "\t")
        case _:
            return read_text(lines, jobs)


def _look_at(lines: Lines) -> tuple[str, Lines]:
    """The format that the first line shows which is not blank, and the lines from there on."""
    lines = iter(lines)
    for number, line in lines:
        if isinstance(line, Problem):
            return "text", chain([(number, line)], lines)
        if line.strip():
            return "jsonl" if FIRST_OBJECT.match(line) else "text", chain([(number, line)], lines)
    return "text", ()


@contextmanager
def _opened(name: str) -> Iterator[BinaryIO]:
    if name == "-":
        if sys.stdin is None:
            raise BadJobs([Problem("<stdin>", None, None, "it is closed", "name a file")])
        yield sys.stdin.buffer
        return
    try:
        file = Path(name).open("rb", buffering=BUFFER)  # noqa: SIM115
    except FileNotFoundError:
        problem, remedy = "there is no such file", "check its name and directory"
    except IsADirectoryError:
        problem, remedy = "it is a directory", "name a file in it"
    except PermissionError:
        problem, remedy = "it may not be read: permission denied", "ask its owner for the right to read it"
    except (OSError, ValueError) as error:
        problem, remedy = f"it cannot be opened: {getattr(error, 'strerror', None) or error}", "check its name"
    else:
        with file:
            yield file
        return
    raise BadJobs([Problem(name, None, None, problem, remedy)])


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A million new tasks hold no cycle; looking for one among them again and again takes longer than making them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
