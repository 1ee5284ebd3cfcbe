"""What a supervisor writes down of its commands, for a worker that comes after one that was killed.

FOLDER/lock                  held by a worker and its supervisors, until the last of them has gone
FOLDER/MARK.PID.N.jsonl      segment N of the supervisor with that mark and process id

{"id": …, "at": …}           about to start, at seconds since the epoch
{"id": …, "ended": {…}}      the report, without what is as usual; of what could not be started too

One write for each line, into the page cache: a killed process loses none of them, a machine that loses power may.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

LOCK = "lock"
SUFFIX = ".jsonl"
SEGMENT_SIZE = 4 * 2**20  # bytes, from which on a new segment is begun
FOR_THE_OWNER = 0o600  # what commands print may hold their secrets, which nobody has masked yet

USUAL = {
    "pid": None,
    "status": 0,
    "peak_memory": None,
    "stopped": None,
    "leftovers_ended": False,
    "error": None,
    "output_error": None,
}
USUAL_STREAM = {"path": None, "size": 0, "left_out": 0, "tail": ""}
STREAMS = ("stdout", "stderr")
encode = json.JSONEncoder(separators=(",", ":")).encode  # made once: `json.dumps` would make one for each line


class Journal:
    """No error of it is raised: a full disk must not stop commands."""

    def __init__(self, folder: str, mark: str) -> None:
        self._stem = os.path.join(folder, f"{mark}.{os.getpid()}")
        self._number = self._size = 0
        self._file = -1
        self._torn = False
        self._finished: str | None = None
        self.error: str | None = None
        """What went wrong, from the first failure on."""

        self._begin_segment()

    def started(self, task_id: str) -> None:
        self._write({"id": task_id, "at": round(time.time(), 3)})

    def ended(self, task_id: str, report: dict[str, Any]) -> None:
        self._write({"id": task_id, "ended": shortened(report)})

    def take_news(self) -> dict[str, str]:
        """What the worker is to know, to go with a report: an error, a segment that is written no more."""
        news = {}
        if self.error is not None:
            news["journal_error"] = self.error
        if self._finished is not None:
            news["segment"], self._finished = self._finished, None
        return news

    def _write(self, entry: dict[str, Any]) -> None:
        line = encode(entry).encode() + b"\n"
        if self._size >= SEGMENT_SIZE:
            self._begin_segment()
        if self._torn:
            line = b"\n" + line
        try:
            written = os.write(self._file, line)
        except OSError as error:
            self._fail(error.strerror)
            return
        self._size += written
        self._torn = written < len(line)
        if self._torn:
            self._fail("a line was written in part")

    def _begin_segment(self) -> None:
        """If there can be none, the one before goes on."""
        path = f"{self._stem}.{self._number}{SUFFIX}"
        self._size = 0
        try:
            file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, FOR_THE_OWNER)
        except OSError as error:
            self._fail(error.strerror)
            return
        if self._file >= 0:
            os.close(self._file)
            self._finished = f"{self._stem}.{self._number - 1}{SUFFIX}"
        self._file, self._torn = file, False
        self._number += 1

    def _fail(self, why: str | None) -> None:
        self.error = self.error or f"{self._stem}: {why}"


def shortened(report: dict[str, Any]) -> dict[str, Any]:
    """Without what is as usual."""
    short = {name: value for name, value in report.items() if name not in STREAMS and value != USUAL.get(name, "")}
    for name in STREAMS:
        stream = {field: value for field, value in report[name].items() if value != USUAL_STREAM[field]}
        if stream:
            short[name] = stream
    return short


def whole(short: dict[str, Any]) -> dict[str, Any]:
    """The report that was shortened."""
    return {**USUAL, **short, **{name: {**USUAL_STREAM, **short.get(name, {})} for name in STREAMS}}
