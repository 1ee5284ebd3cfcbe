"""Read a whole file of jobs quickly.

    parts of many lines ─► text, plain_json or plain_table ─► plain_checks ─► Draft

A file with anything unusual in it, such as a mistake, is left to `reading`, which reads it line by line and finds the
same jobs. Reading many lines at a time takes a tenth of that time, so the first of a million commands starts at once.
The jobs become tasks when they are needed, unless some need later ones, or jobs of another queue or priority.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

from celeriac.errors import InvalidTask
from celeriac.runs.job_file.draft import Draft
from celeriac.runs.job_file.formats import BOM, Kind, Layout, layout_of
from celeriac.runs.job_file.head import HeadReader
from celeriac.runs.job_file.jobs import Jobs, PlainJobs
from celeriac.runs.job_file.json_document import is_document
from celeriac.runs.job_file.lines import MAX_LINE
from celeriac.runs.job_file.plain_checks import FieldSets, NotPlain, are_needs_earlier
from celeriac.runs.job_file.plain_json import json_drafts

PART_SIZE = 1024 * 1024  # bytes of lines that are read together
MAX_LENGTH = MAX_LINE // 4  # bytes of a line: the careful reader decides about longer ones


def read_plain_jobs(
    file: BinaryIO, name: str, format: str, defaults: Mapping[str, Any], on_read: Callable[[int], None] | None
) -> PlainJobs | Jobs | None:
    """Return the jobs, as tasks if their needs do not allow to queue them one after the other. Return None if the file
    must be read line by line; then nothing of it has been read."""
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return None
    try:
        drafts: list[Draft] = []
        field_sets = FieldSets(defaults)
        for part in read_drafts(file, name, format, field_sets):
            drafts += part
            if on_read is not None:
                on_read(len(drafts))
        if not drafts:
            raise NotPlain
        jobs = PlainJobs(drafts, field_sets.samples, has_needs=field_sets.has_needs)
        can_wait = not field_sets.has_needs or (are_needs_earlier(drafts) and len(field_sets.levels) == 1)
        return jobs if can_wait else jobs.as_tasks()
    except (NotPlain, InvalidTask, OSError):
        file.seek(0)
        return None


def read_drafts(file: BinaryIO, name: str, format: str, field_sets: FieldSets) -> Iterator[list[Draft]]:
    """Yield the drafts of each part. Raise `NotPlain`, or an error that reading line by line reports better."""
    head = HeadReader(file).head()
    layout = layout_of(format, name, head)
    file.seek(0)
    if not head or not isinstance(layout, Layout):
        raise NotPlain
    match layout.kind:
        case Kind.JSON if is_document(head):
            raise NotPlain
        case Kind.JSON:
            return json_drafts(read_parts(file), field_sets)
        case Kind.TABLE:
            from celeriac.runs.job_file.plain_table import table_drafts  # late: most files are no tables

            return table_drafts(read_parts(file), to_lines, field_sets, layout.separator)
        case Kind.TEXT:
            return text_drafts(read_parts(file), field_sets)


def read_parts(file: BinaryIO) -> Iterator[list[bytes]]:
    """Yield the lines of a file, many at a time, each with its line break."""
    is_first = True
    while lines := file.readlines(PART_SIZE):
        if is_first:
            lines[0], is_first = lines[0].removeprefix(BOM), False
        if max(map(len, lines)) > MAX_LENGTH:
            raise NotPlain
        yield lines


def text_drafts(parts: Iterator[list[bytes]], field_sets: FieldSets) -> Iterator[list[Draft]]:
    """Yield a draft for each line that is a shell command."""
    fields = field_sets[()]
    number = 0
    for lines in parts:
        drafts = []
        for line in to_lines(lines):
            number += 1
            if (command := line.strip()) and command[0] != "#":
                if command[-1] == "\\" or command[0] == "{":
                    raise NotPlain
                drafts.append(Draft(line.removesuffix("\r"), number, fields))
        yield drafts


def to_lines(lines: list[bytes]) -> list[str]:
    """Return lines as text, without their line feeds. Raise `NotPlain` if that is impossible."""
    data = b"".join(lines)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise NotPlain from None
    if "\0" in text:
        raise NotPlain
    return text.removesuffix("\n").split("\n")
