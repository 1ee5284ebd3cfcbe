"""Read JSON in a layout other than one object a line: a list of objects, or objects that span lines.

    bytes ─► JsonScanner: one value at a time ─► json_lines.check_value ─► Task, or each Problem of the value

Each job is read as soon as it is complete. No more than one job is kept in memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from celeriac.runs.job_file.fields import JobChecker
from celeriac.runs.job_file.formats import BOM
from celeriac.runs.job_file.json_lines import Fields, check_value, read_quickly
from celeriac.runs.job_file.json_text import BrokenJson, parse_json
from celeriac.runs.job_file.lines import MAX_LINE, Readable
from celeriac.runs.job_file.problem import Problem
from celeriac.task.task import Task

READ_SIZE = 64 * 1024  # bytes
EXAMPLE = 'write a list of objects, for example [{"command": "gzip -k data.csv"}]'
REST_NOT_READ = "the rest was not read"

BLANKS = re.compile(rb"[ \t\r\n]*")
TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|["{}\[\]]', re.DOTALL)
"""A string, the begin of a string that is not complete yet, or a bracket."""

SCALAR = re.compile(rb"[^\s,\[\]{}\"]+")
OPENING = (b"{", b"[")


class BrokenDocument(Exception):
    """The file is not JSON. It is unclear where the next job begins."""

    def __init__(self, line: int, problem: str, remedy: str = EXAMPLE) -> None:
        super().__init__(line, problem, remedy)
        self.line, self.problem, self.remedy = line, problem, remedy


class JsonScanner:
    """Finds the begin and the end of each value of a file, without decoding it."""

    def __init__(self, file: Readable) -> None:
        self._file = file
        self._data = b""
        self._position = 0
        self.line, self.column = 1, 1
        self._read()
        if self._data.startswith(BOM):
            self._data = self._data.removeprefix(BOM)

    def next_sign(self) -> bytes:
        """Return the next byte that is not blank, without taking it; nothing at the end of the file."""
        while True:
            blanks = BLANKS.match(self._data, self._position)
            self._advance(blanks.end() if blanks else self._position)
            if self._position < len(self._data):
                return self._data[self._position : self._position + 1]
            if not self._read():
                return b""

    def skip(self) -> None:
        """Take the byte that `next_sign` returned."""
        self._advance(self._position + 1)

    def take_value(self) -> bytes:
        """Take the value that begins here, or the rest of the file if the value has no end."""
        depth, start, offset = 0, self._position, 0
        is_scalar = self._data[start : start + 1] not in (b"{", b"[", b'"')
        while True:
            if is_scalar:
                scalar = SCALAR.match(self._data, self._position)
                offset = scalar.end() - self._position if scalar else 1
                if self._position + offset < len(self._data):
                    return self._take(offset)
            else:
                depth, offset, is_complete = self._scan(depth, offset)
                if is_complete:
                    return self._take(offset)
            self._check_size(len(self._data) - self._position)
            if not self._read():
                return self._take(len(self._data) - self._position)

    def _scan(self, depth: int, offset: int) -> tuple[int, int, bool]:
        """Follow the brackets. Return their depth, where to go on, and whether the value is complete there."""
        for token in TOKEN.finditer(self._data, self._position + offset):
            sign = token[0]
            if sign == b'"':
                break  # go on here once the rest of the string was read
            depth += 1 if sign in OPENING else 0 if sign[:1] == b'"' else -1
            offset = token.end() - self._position
            if depth <= 0:
                return depth, offset, True
        else:
            offset = len(self._data) - self._position
        return depth, offset, False

    def _check_size(self, size: int) -> None:
        if size > MAX_LINE:
            problem = f"the job is longer than {MAX_LINE} bytes, or a bracket is never closed"
            raise BrokenDocument(self.line, problem, "put the data in a file and name it in the command")

    def _take(self, size: int) -> bytes:
        self._check_size(size)
        value = self._data[self._position : self._position + size]
        self._advance(self._position + size)
        return value

    def _advance(self, end: int) -> None:
        if newlines := self._data.count(b"\n", self._position, end):
            self.line += newlines
            self.column = end - self._data.rfind(b"\n", self._position, end)
        else:
            self.column += end - self._position
        self._position = end

    def _read(self) -> bool:
        """Read more. Return False at the end of the file. Raises `OSError`."""
        more = self._file.readline(READ_SIZE)
        self._data, self._position = self._data[self._position :] + more, 0
        return bool(more)


def read_json_document(file: Readable, checker: JobChecker) -> Iterator[Task | Problem]:
    """Yield the task, or the problems, of each job. The key of a job that gives none is its number in the file."""
    scanner = None
    try:
        scanner = JsonScanner(file)
        for number, (line, column, value) in enumerate(split_jobs(scanner), 1):
            yield from read_job(value, line, column, str(number), checker)
    except BrokenDocument as broken:
        yield Problem(checker.file, broken.line, None, broken.problem, f"{broken.remedy}; {REST_NOT_READ}")
    except OSError as error:
        problem = f"it cannot be read further: {error.strerror or error}"
        line = 1 if scanner is None else scanner.line
        yield Problem(checker.file, line, None, problem, "check the disk or the program that writes it")


def is_document(head: bytes) -> bool:
    """Return whether a file is a document: it begins with a list, or with an object that spans lines."""
    begin = head.removeprefix(BOM).strip()
    if not begin.startswith(b"{"):
        return begin.startswith(b"[")
    signs = [token[0] for token in TOKEN.finditer(begin)]
    opened = sum(sign in OPENING for sign in signs) - sum(sign in (b"}", b"]") for sign in signs)
    return opened > 0 and b'"' not in signs


def split_jobs(scanner: JsonScanner) -> Iterator[tuple[int, int, bytes]]:
    """Yield each value, and each value of a list at the top, with the line and the column of its begin."""
    while sign := scanner.next_sign():
        if sign == b"[":
            yield from split_list(scanner)
        else:
            yield scanner.line, scanner.column, scanner.take_value()


def split_list(scanner: JsonScanner) -> Iterator[tuple[int, int, bytes]]:
    """Yield the values of a list."""
    line = scanner.line
    scanner.skip()
    if scanner.next_sign() == b"]":
        scanner.skip()
        return
    while True:
        match scanner.next_sign():
            case b"":
                raise BrokenDocument(line, "the list is never closed", "close it with ]")
            case b"]" | b"," | b"}":
                raise BrokenDocument(scanner.line, "a job is missing beside a comma", "remove the comma")
            case _:
                yield scanner.line, scanner.column, scanner.take_value()
        end = scanner.next_sign()
        if end and end not in b",]":
            raise BrokenDocument(scanner.line, "a comma is missing between two jobs", "write it")
        if end:
            scanner.skip()
        if end == b"]":
            return


def read_job(value: bytes, line: int, column: int, own_key: str, checker: JobChecker) -> list[Task | Problem]:
    """Return the task of a value, or all its problems. Raises `BrokenDocument` for a value that is not JSON."""
    try:
        is_template = checker.template is not None
        task = None if is_template else read_quickly(DECODER.decode(value), value, line, checker, own_key)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        task = None
    if task is not None:
        return [task]
    try:
        parsed = parse_json(value.decode())
    except UnicodeDecodeError as error:
        place = line + value.count(b"\n", 0, error.start)
        raise BrokenDocument(
            place, f"the byte 0x{value[error.start]:02x} is not UTF-8", "save the file as UTF-8"
        ) from None
    except BrokenJson as error:
        raise BrokenDocument(*place_of(error, value.decode(), line, column)) from None
    return check_value(parsed, line, checker, own_key)


def place_of(error: BrokenJson, text: str, line: int, column: int) -> tuple[int, str]:
    """Return the line of an error in the file, and the problem with its column."""
    if error.position is None:
        return line, f"broken JSON: {error.problem}"
    before = text[: error.position]
    column = len(before) - before.rfind("\n") if "\n" in before else column + len(before)
    return line + before.count("\n"), f"broken JSON at column {column}: {error.problem}"


DECODER = msgspec.json.Decoder(Fields)
