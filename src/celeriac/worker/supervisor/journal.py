"""The supervisor's record of its commands. If the worker is killed, the next worker reads the record.

FOLDER/lock                  locked by a worker and its supervisors, until the last of them has ended
FOLDER/MARK.PID.N.jsonl      segment N of the supervisor with this mark and process id

{"id": …, "at": …}           the command is about to start, at seconds since the epoch
{"id": …, "ended": {…}}      the report, without default values; also for a command that could not be started

Each line is one write into the page cache. So a killed process loses no line; a machine that loses power may.
"""

from __future__ import annotations

import json
import os
import time

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any

LOCK = "lock"
SUFFIX = ".jsonl"
SEGMENT_SIZE = 4 * 2**20  # bytes; the next line begins a new segment
OWNER_ONLY = 0o600  # the output of commands is for their user alone

REPORT_DEFAULTS = {
    "pid": None,
    "status": 0,
    "peak_memory": None,
    "stopped": None,
    "leftovers_ended": False,
    "error": None,
    "output_error": None,
}
STREAM_DEFAULTS = {"path": None, "size": 0, "left_out": 0, "tail": ""}
STREAMS = ("stdout", "stderr")
encode = json.JSONEncoder(separators=(",", ":")).encode  # made once: `json.dumps` would make one for each line


class Journal:
    """Writes the record. It raises no error: a full disk must not stop commands."""

    def __init__(self, folder: str, mark: str) -> None:
        self._stem = os.path.join(folder, f"{mark}.{os.getpid()}")
        self._number = self._size = 0
        self._file = -1
        self._is_torn = False
        """Whether the last line was written in part."""

        self._finished: str | None = None
        self.error: str | None = None
        """Why a line could not be written; the first error counts."""

        self._begin_segment()

    def started(self, task_id: str) -> None:
        """Record that a command is about to start."""
        self._write(f'{{"id":{encode(task_id)},"at":{time.time():.3f}}}')

    def ended(self, task_id: str, report: dict[str, Any]) -> None:
        """Record the JSON of a report."""
        self._write(f'{{"id":{encode(task_id)},"ended":{encode(shortened(report))}}}')

    def take_news(self) -> dict[str, str]:
        """Return fields to add to the next report: the error, and a segment that just became complete."""
        news = {}
        if self.error is not None:
            news["journal_error"] = self.error
        if self._finished is not None:
            news["segment"], self._finished = self._finished, None
        return news

    def _write(self, entry: str) -> None:
        line = entry.encode() + b"\n"
        if self._size >= SEGMENT_SIZE:
            self._begin_segment()
        if self._is_torn:
            line = b"\n" + line
        try:
            written = os.write(self._file, line)
        except OSError as error:
            self._fail(error.strerror)
            return
        self._size += written
        self._is_torn = written < len(line)
        if self._is_torn:
            self._fail("a line was written in part")

    def _begin_segment(self) -> None:
        """Begin the next segment. If the new file cannot be made, continue the current segment."""
        path = f"{self._stem}.{self._number}{SUFFIX}"
        self._size = 0
        try:
            file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, OWNER_ONLY)
        except OSError as error:
            self._fail(error.strerror)
            return
        if self._file >= 0:
            os.close(self._file)
            self._finished = f"{self._stem}.{self._number - 1}{SUFFIX}"
        self._file, self._is_torn = file, False
        self._number += 1

    def _fail(self, problem: str | None) -> None:
        self.error = self.error or f"{self._stem}: {problem}"


def shortened(report: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON of a report without its default values."""
    short = {
        name: value for name, value in report.items() if name not in STREAMS and value != REPORT_DEFAULTS.get(name, "")
    }
    for name in STREAMS:
        stream = {field: value for field, value in report[name].items() if value != STREAM_DEFAULTS[field]}
        if stream:
            short[name] = stream
    return short


def completed(short: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON of a report with its default values added again."""
    return {**REPORT_DEFAULTS, **short, **{name: {**STREAM_DEFAULTS, **short.get(name, {})} for name in STREAMS}}
