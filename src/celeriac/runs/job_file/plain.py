"""Read a whole file of plain jobs in one go: each is a command, or JSON with a command and perhaps a key.

A file with anything else in it, such as a mistake, is left to `reading`, which reads it line by line and finds the same
jobs. Reading plain jobs takes a fifth of that time, so that the first of 200,000 commands starts at once.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, BinaryIO

import msgspec

from celeriac.errors import InvalidTask
from celeriac.runs.job_file.formats import BOM, Kind, Layout, layout_of
from celeriac.runs.job_file.head import HeadReader
from celeriac.runs.job_file.jobs import Draft, PlainJobs
from celeriac.runs.job_file.json_document import is_document
from celeriac.runs.job_file.json_lines import has_names
from celeriac.runs.job_file.lines import MAX_LINE
from celeriac.task.task import check_command

MAX_SIZE = 256 * 1024 * 1024  # bytes of a file; a larger one is read line by line
MAX_LENGTH = MAX_LINE // 4  # characters of a line, each of which has at most four bytes as UTF-8
PROGRESS_STEP = 20_000  # jobs between two calls of `on_read`


class NotPlain(Exception):
    """The file must be read line by line."""


class PlainJob(msgspec.Struct, forbid_unknown_fields=True):
    """A job as JSON that gives no other field."""

    command: str | tuple[str, ...]
    key: str | msgspec.UnsetType = msgspec.UNSET


def read_plain_jobs(
    file: BinaryIO, name: str, format: str, defaults: Mapping[str, Any], on_read: Callable[[int], None] | None
) -> PlainJobs | None:
    """Return the jobs. Return None if the file must be read line by line; then nothing of it has been read."""
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_SIZE:
        return None
    try:
        drafts: list[Draft] = []
        items = read_drafts(file, name, format, defaults)
        while part := list(islice(items, PROGRESS_STEP)):
            drafts += part
            if on_read is not None:
                on_read(len(drafts))
        if not drafts or "needs" in defaults:
            raise NotPlain
        return PlainJobs(drafts, [drafts[0].build()])
    except (NotPlain, InvalidTask, OSError):
        file.seek(0)
        return None


def read_drafts(file: BinaryIO, name: str, format: str, fields: Mapping[str, Any]) -> Iterator[Draft]:
    """Yield the draft of each job. Raise `NotPlain`, or an error that reading line by line reports better."""
    head = HeadReader(file).head()
    layout = layout_of(format, name, head)
    file.seek(0)
    if not head or not isinstance(layout, Layout) or layout.kind is Kind.TABLE:
        raise NotPlain
    if layout.kind is Kind.JSON and is_document(head):
        raise NotPlain
    data = file.read()
    if b"\0" in data or data.startswith(BOM):
        raise NotPlain
    return text_drafts(data, fields) if layout.kind is Kind.TEXT else json_drafts(data, fields)


def text_drafts(data: bytes, fields: Mapping[str, Any]) -> Iterator[Draft]:
    """Yield the draft of each line that is a shell command."""
    try:
        lines = data.decode().split("\n")
    except UnicodeDecodeError:
        raise NotPlain from None
    for number, line in enumerate(lines, start=1):
        if (command := line.strip()) and command[0] != "#":
            if command[-1] == "\\" or command[0] == "{" or len(line) > MAX_LENGTH:
                raise NotPlain
            yield Draft(line.removesuffix("\r"), number, fields)


def json_drafts(data: bytes, fields: Mapping[str, Any]) -> Iterator[Draft]:
    """Yield the draft of each line."""
    decode = msgspec.json.Decoder(PlainJob).decode
    keys: set[str] = set()
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            job = decode(line)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise NotPlain from None
        has_key = job.key is not msgspec.UNSET
        key = str(job.key) if has_key else str(number)
        if not key or "\0" in key or key in keys or len(line) > MAX_LENGTH or not has_names(line, 1 + has_key):
            raise NotPlain
        check_command(job.command)
        keys.add(key)
        yield Draft(job.command, key if has_key else number, fields)
