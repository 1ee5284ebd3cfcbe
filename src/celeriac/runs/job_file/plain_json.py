"""Read JSON Lines of plain jobs: many lines are decoded together, as one list."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import attrgetter
from sys import intern
from typing import Any, get_type_hints

import msgspec

from celeriac.runs.job_file.jobs import Draft
from celeriac.runs.job_file.json_lines import Fields, has_names
from celeriac.runs.job_file.plain_checks import NOT_PLAIN, SEPARATE, UNSET, FieldSets, Keys, NotPlain, check_commands
from celeriac.task.task import Command

OTHERS = {name: hint for name, hint in get_type_hints(Fields).items() if name not in (*SEPARATE, *NOT_PLAIN)}


class ShortJob(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A job that gives no other field. No field of it is an object."""

    command: Command
    key: str | msgspec.UnsetType = UNSET


LongJob: Any = msgspec.defstruct(
    "LongJob",
    [(name, hint | msgspec.UnsetType, UNSET) for name, hint in OTHERS.items()],
    bases=(ShortJob,),
    forbid_unknown_fields=True,
    gc=False,
)
"""A job with other fields. No field of it is an object."""

other_values = attrgetter(*OTHERS)
decode_short = msgspec.json.Decoder(list[ShortJob]).decode
decode_long = msgspec.json.Decoder(list[LongJob]).decode


def json_drafts(parts: Iterator[list[bytes]], field_sets: FieldSets) -> Iterator[list[Draft]]:
    """Yield the drafts of each part. Raise `NotPlain` or `InvalidTask`."""
    field_sets.parse = parse_values
    checked = Keys()
    first = 1
    for lines in parts:
        numbers: Sequence[int] = range(first, first + len(lines))
        first += len(lines)
        if any(map(bytes.isspace, lines)):
            numbers = [number for number, line in zip(numbers, lines, strict=True) if not line.isspace()]
            lines = [line for line in lines if not line.isspace()]
        jobs = decode_lines(lines)
        fields = check_fields(jobs, lines, field_sets)
        commands = [job.command for job in jobs]
        check_commands(commands)
        keys = checked.add([job.key for job in jobs], numbers)
        yield list(map(Draft, commands, keys, fields))
    checked.check()


def decode_lines(lines: list[bytes]) -> list[ShortJob]:
    """Return the job of each line. Raise `NotPlain` unless each line has exactly one.

    The lines are joined to one list. Each keeps its line break, which no string may contain, so the "{" at the begin of
    a line begins a job. Hence each line has one job if there are as many jobs as lines.
    """
    data = b"".join((b"[", b",".join(lines), b"]"))
    if b"\\u0000" in data or not all(line[:1] == b"{" or line.lstrip()[:1] == b"{" for line in lines):
        raise NotPlain
    try:
        jobs = decode_list(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise NotPlain from None
    if len(jobs) != len(lines):
        raise NotPlain
    return jobs


def decode_list(data: bytes) -> list[ShortJob]:
    try:
        return decode_short(data)
    except msgspec.ValidationError:
        jobs: list[ShortJob] = decode_long(data)
        return jobs


def check_fields(jobs: list[ShortJob], lines: list[bytes], field_sets: FieldSets) -> Iterator[Any]:
    """Return the other fields of each job. Raise `NotPlain` if a line has more names than its job has fields."""
    is_short = not jobs or type(jobs[0]) is ShortJob
    values: list[tuple[Any, ...]] = [()] * len(jobs) if is_short else list(map(other_values, jobs))
    names = [1 + (job.key is not UNSET) for job in jobs]
    if not is_short:
        names = [number + len(OTHERS) - given.count(UNSET) for number, given in zip(names, values, strict=True)]
    if sum(line.count(b":") for line in lines) != sum(names) and not all(map(has_names, lines, names)):
        raise NotPlain
    return map(field_sets.__getitem__, values)


def parse_values(values: tuple[Any, ...]) -> dict[str, Any]:
    """Return the fields that the values of `other_values` mean."""
    fields = {name: value for name, value in zip(OTHERS, values, strict=False) if value is not UNSET}
    if "queue" in fields:
        fields["queue"] = intern(fields["queue"])
    return fields
