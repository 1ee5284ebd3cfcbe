"""CSV and TSV: a header that names the fields, then one job a row. An empty cell stands for the default."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from celeriac.runs.job_file.fields import FIELDS, Jobs, nearest
from celeriac.runs.job_file.json_text import BrokenJson, parse_json
from celeriac.runs.job_file.lines import MAX_LINE, Lines, to_text
from celeriac.runs.job_file.problem import Problem
from celeriac.task.task import Task

WHOLE_NUMBERS = frozenset({"priority", "slots", "retries", "max_lost"})
SECONDS = frozenset({"timeout", "grace", "retry_delay"})

JSON_EXAMPLES = {"env": 'write for example {"LANG": "C"}', "needs": 'write for example ["fetch", "unpack"]'}

INTEGER = re.compile(r"[+-]?[0-9]{1,300}")
DECIMAL = re.compile(r"[+-]?([0-9]{1,300}\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")


REST_NOT_READ = "from here on nothing was read: it is unclear where the next row begins"

WHAT_CSV_ERRORS_MEAN = (
    ("unexpected end", "a quote is opened and never closed", 'close it, and write a " inside quotes as ""'),
    ("field limit", "a cell is too long, or a quote is never closed", "keep a cell below 131072 characters"),
    ("expected after", "a closing quote is followed by more text", 'write a " inside quotes as ""'),
    ("new-line", "a carriage return stands inside a cell without quotes", "end lines with LF or CR LF"),
)


@dataclass(frozen=True, slots=True)
class Record:
    """One row, which may span lines, and what is wrong with those."""

    line: int
    cells: list[str]
    problems: list[Problem]


@dataclass(frozen=True, slots=True)
class Header:
    """The names of the columns, none if no row can be understood with them, and what is wrong with them."""

    names: list[str]
    problems: list[Problem]


def read_table(lines: Lines, jobs: Jobs, delimiter: str) -> Iterator[Task | Problem]:
    records = _read_records(lines, jobs.file, delimiter)
    for first in records:
        header = _read_header(first, jobs.file, delimiter)
        yield from header.problems
        for record in records if header.names else ():
            for found in _read_row(record, header, jobs):
                if isinstance(found, Problem) or not header.problems:
                    yield found
        return


class _Source:
    """The lines of one record after another as `csv.reader` asks for them; what is wrong with them is kept aside."""

    def __init__(self, lines: Lines, file: str) -> None:
        self._lines = iter(lines)
        self._file = file
        self._line = 0
        self.begin()

    def begin(self) -> None:
        self.start = self._line + 1
        self.problems: list[Problem] = []
        self.ended_early = False
        self._size = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self._line, line = next(self._lines)
        if isinstance(line, Problem):
            return self._end(line)
        self._size += len(line)
        if self._size > MAX_LINE and self._line > self.start:
            problem = f"the row is longer than {MAX_LINE} bytes, or a quote is never closed"
            return self._end(Problem(self._file, self.start, None, problem, 'write a " inside quotes as ""'))
        text = to_text(line, self._line, self._file)
        if isinstance(text, Problem):
            self.problems.append(text)
            return line.replace(b"\0", b"").decode("utf-8", "replace")  # its shape still counts
        return text

    def _end(self, problem: Problem) -> str:
        self.problems.append(problem)
        self.ended_early = True
        raise StopIteration


def _read_records(lines: Lines, file: str, delimiter: str) -> Iterator[Record]:
    """Ends where quotes or length make it unclear where a row ends: what follows may be the middle of a cell,
    and must not be run as a command."""
    source = _Source(lines, file)
    rows = csv.reader(source, delimiter=delimiter, strict=True)
    more = True
    while more:
        source.begin()
        cells: list[str] = []
        try:
            cells = next(rows)
        except StopIteration:
            more = False
        except csv.Error as error:
            more = False
            if not source.ended_early:
                source.problems.append(_explain(error, file, source.start))
        if source.ended_early:
            more = False
        if not more and source.problems:
            source.problems[-1] = replace(source.problems[-1], remedy=f"{source.problems[-1].remedy}; {REST_NOT_READ}")
        if cells or source.problems:
            yield Record(source.start, cells, sorted(source.problems, key=lambda problem: problem.line or 0))


def _explain(error: csv.Error, file: str, line: int) -> Problem:
    for sign, problem, remedy in WHAT_CSV_ERRORS_MEAN:
        if sign in str(error):
            return Problem(file, line, None, problem, remedy)
    return Problem(file, line, None, f"the row is malformed: {error}", "write it as a spreadsheet would")


def _read_header(record: Record, file: str, delimiter: str) -> Header:
    if record.problems:
        return Header([], record.problems)
    example = f"for example {delimiter.join(('key', 'command', 'priority'))}"
    names = [cell.strip() for cell in record.cells]
    problems = []

    def wrong(field: str | None, problem: str, remedy: str) -> None:
        problems.append(Problem(file, record.line, field, problem, remedy))

    if not any(name in FIELDS for name in names):
        wrong(None, "it names no field of a job", f"begin the file with a header, {example}")
        return Header([], problems)
    place_of: dict[str, int] = {}
    for place, name in enumerate(names):
        if not name:
            wrong(None, f"column {place + 1} has no name", "name it, or leave it out")
        elif place_of.setdefault(name, place) < place:
            wrong(name, "it is the name of two columns", "keep one of them")
        elif name not in FIELDS:
            wrong(name, "it is no field of a job", nearest(name))
    if "command" not in names:
        wrong("command", "the header has no such column", f"add it, {example}")
        return Header([], problems)
    return Header(names, problems)


def _read_row(record: Record, header: Header, jobs: Jobs) -> list[Task | Problem]:
    if record.problems:
        return [*record.problems]
    if len(record.cells) > len(header.names):
        problem = f"it has {len(record.cells)} cells and the header {len(header.names)}"
        return [Problem(jobs.file, record.line, None, problem, "quote a cell that holds the separator")]
    problems: list[Problem] = []
    values: dict[str, object] = {}
    for name, cell in zip(header.names, record.cells, strict=False):
        if not cell or name not in FIELDS or name in values:
            continue
        try:
            values[name] = _from_cell(name, cell)
        except BrokenJson as error:
            problems.append(Problem(jobs.file, record.line, name, str(error), JSON_EXAMPLES[name]))
    return jobs.check(record.line, values, problems)


def _from_cell(name: str, cell: str) -> object:
    """What JSON would have said. A text that is no number stays one, and is refused as that."""
    text = cell.strip()
    if name == "env" or (name == "needs" and text.startswith("[")):
        return parse_json(text)
    if name in WHOLE_NUMBERS | SECONDS and INTEGER.fullmatch(text):
        return int(text)
    if name in SECONDS and DECIMAL.fullmatch(text):
        return float(text)
    return cell
