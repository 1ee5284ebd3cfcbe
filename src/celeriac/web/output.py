"""A part of the output of a task: from its file if that is on this machine, or else its last lines in the ledger.

A file is read only inside the folder that the run, or the settings, name for output. A worker on another machine could
write any path into the ledger.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from celeriac.ledger.task_attempts import Attempts, attempts_of
from celeriac.runs.output_files import files_of_attempt, read_file
from celeriac.task.result import Output
from celeriac.web.errors import NotFound
from celeriac.web.reads import Reads

MAX_PART = 1024 * 1024  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputPart:
    """Some bytes of one output stream."""

    attempt: int
    content: bytes
    offset: int
    size: int
    """The number of bytes of the whole stream so far."""

    has_ended: bool
    note: str | None = None
    """Why it is not the whole output."""

    def headers(self) -> dict[str, str]:
        """Return the facts as headers of a response."""
        headers = {
            "x-celeriac-attempt": str(self.attempt),
            "x-celeriac-next-offset": str(self.offset + len(self.content)),
            "x-celeriac-size": str(self.size),
            "x-celeriac-ended": str(self.has_ended).lower(),
        }
        return headers if self.note is None else {**headers, "x-celeriac-note": self.note}


def read_output(
    reads: Reads, run: str, key: str, *, stream: str, attempt: int | None, offset: int, limit: int
) -> OutputPart:
    """Return a part of the output. Raises `NotFound` for an unknown task, and for an attempt that has not begun."""
    reads.task(run, key)
    attempts = attempts_of(reads.ledger, run, key)
    number = attempt or attempts.last_begun
    if number is None or (number not in attempts.ended and not attempts.is_running(number)):
        wanted = "attempt that has begun" if attempt is None else f"attempt {attempt}"
        raise NotFound(f"task {key!r} has no {wanted}")
    if number in attempts.ended:
        execution = attempts.ended[number]
        output = Output() if execution is None else getattr(execution, stream)
        host = "" if execution is None else execution.host
        return part_of_ended(number, output, host, attempts.run.output, offset, limit)
    return part_of_running(attempts, number, stream, offset, limit)


def part_of_ended(number: int, output: Output, host: str, folder: str | None, offset: int, limit: int) -> OutputPart:
    """Return a part of an attempt that has ended."""
    if output.path is None:
        note = "no file was kept"
    elif output.machine(host) != socket.gethostname():
        note = "the file is on the machine of the worker"
    elif (read := read_file(Path(output.path), folder, offset, limit)) is None:
        note = "the file was removed, or is outside of the folder of the run"
    else:
        content, size = read
        return OutputPart(attempt=number, content=content, offset=offset, size=size, has_ended=True)
    tail = output.tail.encode("utf-8", "replace")
    first = max(0, output.size - len(tail))
    start = max(0, offset - first)
    is_whole = len(tail) >= output.size
    return OutputPart(
        attempt=number,
        content=tail[start : start + limit],
        offset=max(offset, first),
        size=max(output.size, len(tail)),
        has_ended=True,
        note=None if is_whole else f"only the last {len(tail)} bytes are known: {note}",
    )


def part_of_running(attempts: Attempts, number: int, stream: str, offset: int, limit: int) -> OutputPart:
    """Return a part of an attempt that runs."""
    files = files_of_attempt(attempts, number)
    if files is not None and (read := read_file(files[stream], attempts.run.output, offset, limit)) is not None:
        return OutputPart(attempt=number, content=read[0], offset=offset, size=read[1], has_ended=False)
    note = "the output is with the worker; its last lines arrive when the attempt has ended"
    return OutputPart(attempt=number, content=b"", offset=offset, size=offset, has_ended=False, note=note)
