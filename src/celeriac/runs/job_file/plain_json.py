"""Read JSON Lines of plain jobs: many lines are decoded together, as one list."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import attrgetter
from sys import intern
from typing import Any, get_type_hints

import msgspec

from celeriac.runs.job_file.draft import Draft
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
        data = b"".join((b"[", b",".join(lines), b"]"))
        jobs = decode_jobs(data, lines)
        commands, given_keys = [job.command for job in jobs], [job.key for job in jobs]
        check_commands(commands)
        values = list(map(other_values, jobs)) if jobs and isinstance(jobs[0], LongJob) else [()] * len(jobs)
        check_names(data, lines, given_keys, values)
        keys = checked.add(given_keys, numbers)
        yield list(map(Draft, commands, keys, map(field_sets.__getitem__, values)))
    checked.check()


def decode_jobs(data: bytes, lines: list[bytes]) -> list[ShortJob]:
    """Return the job of each line. Raise `NotPlain` unless each line has exactly one.

    `data` is a list of the lines. Each keeps its line break, which no string may contain, so the "{" at the begin of a
    line begins a job. Hence each line has one job if there are as many jobs as lines.
    """
    begun = data.startswith(b"[{") + data.count(b"\n,{")
    if b"\\u0000" in data or (begun < len(lines) and not all(line.lstrip().startswith(b"{") for line in lines)):
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


def check_names(data: bytes, lines: list[bytes], keys: list[Any], values: list[tuple[Any, ...]]) -> None:
    """Raise `NotPlain` if a line has more names than its job has fields."""
    expected = 2 * len(keys) - keys.count(UNSET) + sum(len(given) - given.count(UNSET) for given in values if given)
    if data.count(b":") == expected:
        return
    for line, key, given in zip(lines, keys, values, strict=True):
        if not has_names(line, 1 + (key is not UNSET) + len(given) - given.count(UNSET)):
            raise NotPlain


def parse_values(values: tuple[Any, ...]) -> dict[str, Any]:
    """Return the fields that the values of `other_values` mean."""
    fields = {name: value for name, value in zip(OTHERS, values, strict=False) if value is not UNSET}
    if "queue" in fields:
        fields["queue"] = intern(fields["queue"])
    return fields
