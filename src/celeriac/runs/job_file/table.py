"""Read CSV and TSV: a header with the names of the fields, then one job a row. An empty cell means the default."""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Iterator, Sequence
from itertools import chain, zip_longest

from msgspec import Struct
from msgspec.structs import replace

from celeriac.runs.job_file.fields import FIELD_TYPES, JobChecker, nearest_field
from celeriac.runs.job_file.formats import NAME_LINES, SEPARATOR_LINE, field_name, separator_of
from celeriac.runs.job_file.json_text import BrokenJson, parse_json
from celeriac.runs.job_file.lines import MAX_LINE, Lines, to_text
from celeriac.runs.job_file.problem import Problem
from celeriac.task.task import Task

WHOLE_NUMBERS = frozenset(name for name, kind in FIELD_TYPES.items() if kind is int)
SECONDS = frozenset(name for name, kind in FIELD_TYPES.items() if kind in (float, float | None))

JSON_EXAMPLES = {
    "env": 'write for example {"LANG": "C"}',
    "needs": 'write for example ["fetch", "unpack"]',
    "tags": "write for example nightly,big",
    "artifacts": 'write for example ["*.csv", "plots/**"]',
}

FLAGS = frozenset(name for name, kind in FIELD_TYPES.items() if kind is bool)
FLAG_VALUES = {"true": True, "false": False}
INTEGER = re.compile(r"[+-]?[0-9]{1,300}")
DECIMAL = re.compile(r"[+-]?([0-9]{1,300}\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")

REST_NOT_READ = "the rest was not read: it is unclear where the next row begins"

CSV_PROBLEMS = (
    ("unexpected end", "a quote is opened and never closed", 'close it, and write a " inside quotes as ""'),
    ("field limit", "a cell is too long, or a quote is never closed", "keep a cell below 131072 characters"),
    ("expected after", "a closing quote is followed by more text", 'write a " inside quotes as ""'),
    ("new-line", "a cell without quotes contains a carriage return", "end lines with LF or CR LF"),
)


class Row(Struct, frozen=True):
    """One row, which may span several lines, and the problems of these lines."""

    line: int
    cells: list[str]
    problems: list[Problem]


class Header(Struct, frozen=True):
    """The names of the columns, and their problems. Without names, no row can be read."""

    names: list[str]
    problems: list[Problem]


def read_table(lines: Lines, checker: JobChecker, delimiter: str) -> Iterator[Task | Problem]:
    """Yield the problems of the header, and the task or the problems of each row. A bad header yields no tasks.

    A line such as "sep=;" before the header, or the header itself, may show that the delimiter is another one.
    """
    names = FIELD_TYPES if checker.template is None else {*FIELD_TYPES, *checker.template.names}
    delimiter, lines = find_delimiter(iter(lines), delimiter, names)
    rows = read_rows(lines, checker.file, delimiter)
    for first_row in rows:
        is_template = checker.template is not None
        header = read_columns(first_row, checker) if is_template else read_header(first_row, checker.file, delimiter)
        yield from header.problems
        for row in rows if header.names else ():
            for item in read_job(row, header, checker):
                if isinstance(item, Problem) or not header.problems:
                    yield item
        return


def find_delimiter(
    lines: Iterator[tuple[int, bytes | Problem]], default: str, names: Collection[str] = FIELD_TYPES
) -> tuple[str, Lines]:
    """Return the delimiter that the first lines show, or else the default; and the lines from the header on."""
    blanks: list[tuple[int, bytes | Problem]] = []
    for number, line in lines:
        if not isinstance(line, Problem) and not line.strip():
            blanks.append((number, line))
            continue
        text = "" if isinstance(line, Problem) else line.decode("utf-8", "replace").rstrip("\r\n")
        if separator := re.fullmatch(SEPARATOR_LINE, text):
            return separator[1], lines
        return separator_of(text, default, names), chain(blanks, [(number, line)], lines)
    return default, blanks


class RowSource:
    """Gives the lines of a file to `csv.reader`, and collects the problems of the lines of each row."""

    def __init__(self, lines: Lines, file: str) -> None:
        self._lines = iter(lines)
        self._file = file
        self._line = 0
        self.begin()

    def begin(self) -> None:
        """Begin a row."""
        self.start = 0
        self.problems: list[Problem] = []
        self.ended_early = False
        self._size = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self._line, line = next(self._lines)
        self.start = self.start or self._line
        if isinstance(line, Problem):
            return self._end(line)
        self._size += len(line)
        if self._size > MAX_LINE and self._line > self.start:
            problem = f"the row is longer than {MAX_LINE} bytes, or a quote is never closed"
            return self._end(Problem(self._file, self.start, None, problem, 'write a " inside quotes as ""'))
        text = to_text(line, self._line, self._file)
        if isinstance(text, Problem):
            self.problems.append(text)
            return line.replace(b"\0", b"").decode("utf-8", "replace")  # the quotes of the line still count
        return text

    def _end(self, problem: Problem) -> str:
        self.problems.append(problem)
        self.ended_early = True
        raise StopIteration


def read_rows(lines: Lines, file: str, delimiter: str) -> Iterator[Row]:
    """Yield the rows. Stop where it is unclear where a row ends.

    The next line may then be the middle of a cell, and must not run as a command.
    """
    source = RowSource(lines, file)
    reader = csv.reader(source, delimiter=delimiter, strict=True)
    has_more = True
    while has_more:
        source.begin()
        cells: list[str] = []
        try:
            cells = next(reader)
        except StopIteration:
            has_more = False
        except csv.Error as error:
            has_more = False
            if not source.ended_early:
                source.problems.append(csv_problem(error, file, source.start))
        if source.ended_early:
            has_more = False
        if not has_more and source.problems:
            source.problems[-1] = replace(source.problems[-1], remedy=f"{source.problems[-1].remedy}; {REST_NOT_READ}")
        if cells or source.problems:
            yield Row(source.start, cells, sorted(source.problems, key=lambda problem: problem.line or 0))


def csv_problem(error: csv.Error, file: str, line: int) -> Problem:
    """Return the problem behind an error of `csv.reader`."""
    for sign, problem, remedy in CSV_PROBLEMS:
        if sign in str(error):
            return Problem(file, line, None, problem, remedy)
    return Problem(file, line, None, f"the row is malformed: {error}", "write it as a spreadsheet would")


def read_header(row: Row, file: str, delimiter: str) -> Header:
    """Return the header in the first row."""
    if row.problems:
        return Header([], row.problems)
    example = delimiter.join(("key", "command", "priority"))
    names = [field_name(cell) for cell in row.cells]
    problems = []

    def report(field: str | None, problem: str, remedy: str) -> None:
        problems.append(Problem(file, row.line, field, problem, remedy))

    if not any(name in FIELD_TYPES for name in names):
        remedy = f"write into such a column what to run for each row, with a header such as {example}; {NAME_LINES}"
        report(None, 'no column has the name "command"', remedy)
        return Header([], problems)
    problems += column_problems(names, row.line, file)
    for name in dict.fromkeys(names):
        if name and name not in FIELD_TYPES:
            report(name, "it is not a field of a job", nearest_field(name))
    if "command" not in names:
        report("command", "the header has no such column", f"add it, for example {example}")
        return Header([], problems)
    return Header(names, problems)


def read_columns(row: Row, checker: JobChecker) -> Header:
    """Return the header in the first row of a table whose columns are the values of a template."""
    if row.problems:
        return Header([], row.problems)
    names = [field_name(cell) for cell in row.cells]
    problems = list(column_problems(names, row.line, checker.file))
    if not problems and (problem := checker.names_problem(row.line, names)) is not None:
        problems.append(problem)
    return Header([] if problems else names, problems)


def column_problems(names: Sequence[str], line: int, file: str) -> Iterator[Problem]:
    """Yield the problems of columns without a name, and of two with the same name."""
    for column, name in enumerate(names):
        if not name:
            yield Problem(file, line, None, f"column {column + 1} has no name", "name it, or remove it")
        elif name in names[:column]:
            yield Problem(file, line, name, "it is the name of two columns", "keep one of them")


def read_job(row: Row, header: Header, checker: JobChecker) -> list[Task | Problem]:
    """Return the task of a row, or all its problems."""
    if row.problems:
        return [*row.problems]
    if len(row.cells) > len(header.names):
        problem = f"the row has {len(row.cells)} cells and the header {len(header.names)}"
        return [Problem(checker.file, row.line, None, problem, too_many_cells_remedy(row))]
    problems: list[Problem] = []
    values: dict[str, object] = {}
    for name, cell in zip_longest(header.names, row.cells, fillvalue=""):
        if checker.template is not None and (name not in FIELD_TYPES or name == "command"):
            values[name] = cell
        if not cell or name not in FIELD_TYPES or name in values:
            continue
        try:
            values[name] = parse_cell(name, cell)
        except BrokenJson as error:
            problems.append(Problem(checker.file, row.line, name, str(error), JSON_EXAMPLES[name]))
    return checker.check(row.line, values, problems)


def too_many_cells_remedy(row: Row) -> str:
    if any(cell.lstrip().startswith('"') for cell in row.cells):
        return "a quote must be the first character of its cell: remove the space before it"
    return "quote a cell that contains the separator"


def parse_cell(name: str, cell: str) -> object:
    """Return the value of a cell, as in JSON. Text that is not a number stays text, and a later check refuses it."""
    text = cell.strip()
    if name == "env" or (name in ("needs", "tags", "artifacts") and text.startswith("[")):
        return parse_json(text)
    if name in FLAGS:
        return FLAG_VALUES.get(text.lower(), cell)
    if name in WHOLE_NUMBERS | SECONDS and INTEGER.fullmatch(text):
        return int(text)
    if name in SECONDS and DECIMAL.fullmatch(text):
        return float(text)
    return cell
