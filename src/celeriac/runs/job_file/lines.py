"""Lines of bytes, each as soon as it is complete, none longer than `MAX_LINE` in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeAlias

from celeriac.runs.job_file.problem import Problem

MAX_LINE = 1024 * 1024  # bytes, without its end
CHUNK = 64 * 1024  # bytes; how a line that is too long is skipped
BOM = b"\xef\xbb\xbf"

Lines: TypeAlias = Iterable[tuple[int, bytes | Problem]]
"""Each line's number, counted from 1, with the line and its end, or with what is wrong with it."""


class Readable(Protocol):
    """The one method a file must have. It must not wait for more than one line: a buffered file does not."""

    def readline(self, limit: int = -1, /) -> bytes: ...


def read_lines(file: Readable, name: str) -> Iterator[tuple[int, bytes | Problem]]:
    most = MAX_LINE + len(BOM) + len(b"\r\n")
    number = 0
    while True:
        number += 1
        try:
            line = file.readline(most)
            if not line:
                return
            if number == 1:
                line = line.removeprefix(BOM)
            length = len(line) if len(line) <= MAX_LINE else _measure_and_skip(line, file)
        except OSError as error:
            problem = f"it cannot be read any further: {error.strerror or error}"
            yield number, Problem(name, number, None, problem, "check the disk or the program that writes it")
            return
        if length > MAX_LINE:
            problem = f"the line is {length} bytes long, more than {MAX_LINE}"
            yield number, Problem(name, number, None, problem, "put the data in a file and name it in the command")
        else:
            yield number, line


def _measure_and_skip(line: bytes, file: Readable) -> int:
    """How long the whole line is without its end. What has not been read of it is read and forgotten."""
    length, end = len(line), line[-2:]
    while not end.endswith(b"\n") and (chunk := file.readline(CHUNK)):
        length, end = length + len(chunk), (end + chunk)[-2:]
    return length - (2 if end == b"\r\n" else 1 if end.endswith(b"\n") else 0)


def to_text(line: bytes, number: int, name: str) -> str | Problem:
    if (nul := line.find(b"\0")) >= 0:
        problem = f"byte {nul + 1} of the line is a NUL"
        return Problem(name, number, None, problem, "leave it out: no command can hold one")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        problem = f"byte {error.start + 1} of the line, 0x{line[error.start]:02x}, is not UTF-8"
        return Problem(name, number, None, problem, "save the file as UTF-8")
