"""Read lines of bytes, each as soon as it is complete. Keep at most `MAX_LINE` bytes of a line in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeAlias

from celeriac.runs.job_file.problem import Problem

MAX_LINE = 1024 * 1024  # bytes, without the line break
SKIP_SIZE = 64 * 1024  # bytes that are read at a time to skip a line that is too long
BOM = b"\xef\xbb\xbf"

Lines: TypeAlias = Iterable[tuple[int, bytes | Problem]]
"""The number of each line, counted from 1, with the line and its line break, or with a problem."""


class Readable(Protocol):
    """A file with `readline`, which must not wait for more than one line."""

    def readline(self, limit: int = -1, /) -> bytes: ...


def read_lines(file: Readable, name: str) -> Iterator[tuple[int, bytes | Problem]]:
    """Yield the lines of a file, with a problem in place of a line that is too long. End at a read error."""
    limit = MAX_LINE + len(BOM) + len(b"\r\n")
    number = 0
    while True:
        number += 1
        try:
            line = file.readline(limit)
            if not line:
                return
            if number == 1:
                line = line.removeprefix(BOM)
            length = len(line) if len(line) <= MAX_LINE else _measure_and_skip(line, file)
        except OSError as error:
            problem = f"it cannot be read further: {error.strerror or error}"
            yield number, Problem(name, number, None, problem, "check the disk or the program that writes it")
            return
        if length > MAX_LINE:
            problem = f"the line is {length} bytes long, more than {MAX_LINE}"
            yield number, Problem(name, number, None, problem, "put the data in a file and name it in the command")
        else:
            yield number, line


def _measure_and_skip(line: bytes, file: Readable) -> int:
    """Return the length of the line without its line break. Skip the part of it that was not read yet."""
    length, end = len(line), line[-2:]
    while not end.endswith(b"\n") and (chunk := file.readline(SKIP_SIZE)):
        length, end = length + len(chunk), (end + chunk)[-2:]
    return length - (2 if end == b"\r\n" else 1 if end.endswith(b"\n") else 0)


def to_text(line: bytes, number: int, name: str) -> str | Problem:
    """Return the line as text, or the problem with its bytes."""
    if (nul := line.find(b"\0")) >= 0:
        problem = f"byte {nul + 1} of the line is a NUL"
        return Problem(name, number, None, problem, "remove it: no command can contain one")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        problem = f"byte {error.start + 1} of the line, 0x{line[error.start]:02x}, is not UTF-8"
        return Problem(name, number, None, problem, "save the file as UTF-8")
