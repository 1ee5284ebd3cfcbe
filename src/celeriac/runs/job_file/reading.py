"""Open a job file, find out its format, and read its tasks."""

from __future__ import annotations

import gc
import io
import os
import select
import stat
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import chain
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, BinaryIO

from msgspec.structs import replace

from celeriac.errors import InvalidConfig
from celeriac.runs.job_file.fields import FIELDS, JobChecker
from celeriac.runs.job_file.formats import FORMATS, NAME_LINES, Doubt, Kind, Layout, layout_of, layout_of_values
from celeriac.runs.job_file.head import HeadReader
from celeriac.runs.job_file.jobs import Jobs, PlainJobs
from celeriac.runs.job_file.json_document import is_document, read_json_document
from celeriac.runs.job_file.json_lines import read_json_lines
from celeriac.runs.job_file.lines import Readable, read_lines
from celeriac.runs.job_file.plain import read_plain_jobs
from celeriac.runs.job_file.problem import BadJobs, Problem
from celeriac.runs.job_file.text import read_text
from celeriac.task.task import Task

if TYPE_CHECKING:
    from celeriac.runs.job_file.template import JobTemplate, TemplateFiller

ARGUMENTS = "<arguments>"
STDIN = ("-", "<stdin>")
BUFFER_SIZE = 1024 * 1024  # bytes
WAIT_REPORTED = 1.0  # seconds that the first byte of a FIFO may take without a word
PROGRESS_STEP = 2_000  # jobs between two calls of `on_read`

NO_DEFAULTS: Mapping[str, Any] = MappingProxyType({})


def read_jobs(
    path: str | os.PathLike[str],
    format: str = "auto",
    defaults: Mapping[str, Any] = NO_DEFAULTS,
    on_read: Callable[[int], None] | None = None,
    on_wait: Callable[[], None] | None = None,
    template: JobTemplate | None = None,
) -> Jobs:
    """Return all tasks of a file, or of standard input if the path is "-". Raise `BadJobs` with all problems.

    With a template, the file has the values of jobs: see `celeriac.runs.job_file.template`. Raises `InvalidConfig` for
    a bad one.

    `on_read` is called now and then with the number of jobs so far, `on_wait` once if a FIFO stays empty.

    `defaults` are fields of `Task` for jobs that do not set them. A job of a file may need any other job of the file; a
    job of standard input may need only earlier jobs.
    """
    check_format(format)
    name = os.fspath(path)
    with opened(name, on_wait) as file, garbage_collection_paused():
        return read_each_line(file, name, format, defaults, on_read, template)


def line_numbers(
    name: str,
    format: str,
    defaults: Mapping[str, Any],
    template: JobTemplate | None,
    file: BinaryIO | None = None,
) -> Mapping[str, int]:
    """Return the line of each key of a file that was read without a problem. `file` is the open file, if there is one
    already."""
    checker = JobChecker(display_name(name), defaults, is_whole=True, template=filler_of(template, defaults))
    with opened(name) if file is None else nullcontext(file) as content, garbage_collection_paused():
        for _ in read_items(content, checker, format):
            pass
    return checker.line_of_key


def read_whole(
    path: str | os.PathLike[str],
    format: str = "auto",
    defaults: Mapping[str, Any] = NO_DEFAULTS,
    on_read: Callable[[int], None] | None = None,
    on_wait: Callable[[], None] | None = None,
    template: JobTemplate | None = None,
) -> Jobs | PlainJobs:
    """Return all jobs of a file, as `read_jobs` does, but without building the tasks of plain jobs."""
    check_format(format)
    name = os.fspath(path)
    with opened(name, on_wait) as file, garbage_collection_paused():
        is_unusual = name in STDIN or template is not None
        plain = None if is_unusual else read_plain_jobs(file, name, format, defaults, on_read)
        return read_each_line(file, name, format, defaults, on_read, template) if plain is None else plain


def read_each_line(
    file: BinaryIO,
    name: str,
    format: str,
    defaults: Mapping[str, Any],
    on_read: Callable[[int], None] | None,
    template: JobTemplate | None = None,
) -> Jobs:
    """Return all tasks of an open file. Raise `BadJobs` with all problems."""
    filler = filler_of(template, defaults)
    checker = JobChecker(display_name(name), defaults, is_whole=name not in STDIN, template=filler)
    return collect(read_items(file, checker, format), checker, on_read)


def read_arguments(
    template: JobTemplate, defaults: Mapping[str, Any] = NO_DEFAULTS, on_read: Callable[[int], None] | None = None
) -> Jobs:
    """Return the tasks of a template that has all values. Raise `BadJobs` with all problems, and `InvalidConfig`."""
    from celeriac.runs.job_file.arguments import combinations  # late: most runs have a file

    checker = JobChecker(ARGUMENTS, defaults, is_whole=True, template=filler_of(template, defaults))

    def items() -> Iterator[Task | Problem]:
        for number, values in enumerate(combinations(template.lists), start=1):
            if number == 1 and (problem := checker.names_problem(None, values)) is not None:
                yield problem
                return
            yield from checker.check(number, values)

    return collect(items(), checker, on_read)


def filler_of(template: JobTemplate | None, defaults: Mapping[str, Any]) -> TemplateFiller | None:
    if template is None:
        return None
    from celeriac.runs.job_file.template import TemplateFiller  # late: most runs have no template

    return TemplateFiller(template, defaults, frozenset(FIELDS))


def collect(items: Iterator[Task | Problem], checker: JobChecker, on_read: Callable[[int], None] | None) -> Jobs:
    """Return the tasks. Raise `BadJobs` with all problems."""
    tasks = Jobs()
    problems: list[Problem] = []
    for item in chain(items, needs_problems(checker, problems)):
        if isinstance(item, Problem):
            problems.append(item)
            tasks.clear()
        elif not problems:
            tasks.append(item)
            if on_read is not None and not len(tasks) % PROGRESS_STEP:
                on_read(len(tasks))
    if problems:
        raise BadJobs(sorted(problems, key=lambda problem: problem.line or 0))
    tasks.numbered = checker.numbered_keys
    return tasks


def needs_problems(checker: JobChecker, problems: Sequence[Problem]) -> Iterator[Problem]:
    """Yield problems with dependencies. `problems` are those of the lines: an unreadable line has no key."""
    checker.has_lines_without_key |= any(problem.field is None for problem in problems)
    yield from checker.check_needs()


def stream_jobs(
    binary_file: Readable,
    name: str,
    format: str = "auto",
    defaults: Mapping[str, Any] = NO_DEFAULTS,
    template: JobTemplate | None = None,
) -> Iterator[Task | Problem]:
    """Yield each task and each problem as soon as its line is complete.

    `name` is for messages. With the format "auto", the extension of the name decides the format, or else the first line
    that is neither blank nor a comment. The file is read one line at a time, so a job may only need earlier jobs.
    """
    check_format(format)
    checker = JobChecker(display_name(name), defaults, template=filler_of(template, defaults))
    return read_items(binary_file, checker, format)


def check_format(format: str) -> None:
    """Raise `InvalidConfig` for an unknown format."""
    if format not in FORMATS:
        raise InvalidConfig("format", f"{format!r} is not a format", f"write one of {', '.join(FORMATS)}")


def display_name(name: str) -> str:
    return "<stdin>" if name in STDIN else name


def read_items(file: Readable, checker: JobChecker, format: str) -> Iterator[Task | Problem]:
    """Yield the tasks and problems of a file."""
    name = checker.file
    if isinstance(file, io.RawIOBase):  # a raw file reads a line byte by byte; a buffer reads all that is available
        buffered = io.BufferedReader(file)
        try:
            yield from read_items(buffered, checker, format)
        finally:
            buffered.detach()
        return
    whole = HeadReader(file)
    head = whole.head()
    layout = (layout_of if checker.template is None else layout_of_values)(format, name, head)
    if isinstance(layout, Doubt):
        yield Problem(name, None, None, layout.problem, layout.remedy)
        return
    items = iter(read_layout(whole, checker, layout, head))
    first = next(items, None)
    if first is None:
        what = "command" if checker.template is None else "value"
        yield Problem(name, None, None, f"it contains no {what}", f"write at least one {what}")
        return
    is_doubtful = not layout.is_certain and layout.kind is not Kind.TEXT
    yield with_hint(first) if is_doubtful else first
    yield from items


def read_layout(file: Readable, checker: JobChecker, layout: Layout, head: bytes) -> Iterator[Task | Problem]:
    """Yield the tasks and problems of a file of this layout, which begins with `head`."""
    if layout.kind is Kind.JSON and is_document(head):
        return read_json_document(file, checker)
    lines = read_lines(file, checker.file)
    match layout.kind:
        case Kind.JSON:
            return read_json_lines(lines, checker)
        case Kind.TABLE:
            from celeriac.runs.job_file.table import read_table  # late: most files are no tables

            return read_table(lines, checker, layout.separator)
        case Kind.TEXT:
            return read_text(lines, checker, is_certain=layout.is_certain)


def with_hint(item: Task | Problem) -> Task | Problem:
    """Return the first item of a file whose format is guessed. If it is a problem with a whole line, the guess may be
    wrong, and the remedy says so."""
    if isinstance(item, Problem) and item.field is None and NAME_LINES not in item.remedy:
        return replace(item, remedy=f"{item.remedy}; {NAME_LINES}")
    return item


@contextmanager
def opened(name: str, on_wait: Callable[[], None] | None = None) -> Iterator[BinaryIO]:
    """Open a file, or standard input if the name is "-". Raise `BadJobs` if that fails.

    `on_wait` is called if a FIFO has no first byte after `WAIT_REPORTED`.
    """
    if name == "-":
        if sys.stdin is None:
            raise BadJobs([Problem("<stdin>", None, None, "it is closed", "name a file")])
        yield sys.stdin.buffer
        return
    try:
        opener = None if on_wait is None or not is_fifo(name) else partial(open_fifo, on_wait)
        file = open(name, "rb", buffering=BUFFER_SIZE, opener=opener)  # noqa: SIM115
    except FileNotFoundError:
        problem, remedy = "there is no such file", "check its name and directory"
    except IsADirectoryError:
        problem, remedy = "it is a directory", "name a file in it"
    except PermissionError:
        problem, remedy = "it cannot be read: permission denied", "ask its owner for permission"
    except (OSError, ValueError) as error:
        problem, remedy = f"it cannot be opened: {getattr(error, 'strerror', None) or error}", "check its name"
    else:
        with file:
            yield file
        return
    raise BadJobs([Problem(name, None, None, problem, remedy)])


def is_fifo(name: str) -> bool:
    """Return whether the wait for the first byte of a file can be reported. Other systems than Linux cannot wait so."""
    try:
        mode = os.stat(name).st_mode  # noqa: PTH116 - a path may hold what `Path` refuses
    except (OSError, ValueError):
        return False
    return sys.platform == "linux" and stat.S_ISFIFO(mode)


def open_fifo(on_wait: Callable[[], None], name: str, flags: int) -> int:
    """Open a FIFO, and wait for its first byte, or its end."""
    descriptor = os.open(name, flags | os.O_NONBLOCK)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        if not poll.poll(WAIT_REPORTED * 1000):
            on_wait()
            poll.poll()
        os.set_blocking(descriptor, True)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def garbage_collection_paused() -> Iterator[None]:
    """Pause the garbage collector: new tasks hold no cycles, and scanning them takes longer than reading them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
