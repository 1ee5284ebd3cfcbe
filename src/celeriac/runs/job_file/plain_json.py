"""Read JSON Lines of plain jobs: many lines are decoded together, as one list."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from sys import intern
from typing import Any, get_type_hints

import msgspec

from celeriac.runs.job_file.draft import Draft
from celeriac.runs.job_file.fields import MOMENTS, keys_needed, read_moment
from celeriac.runs.job_file.json_lines import Fields, has_names, plain_env
from celeriac.runs.job_file.plain_checks import OWN, SELDOM, SEPARATE, UNSET, FieldSets, Keys, NotPlain, check_commands
from celeriac.task.task import Command, check_env

HINTS = {name: hint for name, hint in get_type_hints(Fields).items() if name not in (*SEPARATE, *SELDOM)}
SHARED = [name for name in HINTS if name not in OWN]
"""The fields that many jobs have in common."""


class ShortJob(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A job that gives no other field. No field of it is an object."""

    command: Command
    key: str | msgspec.UnsetType = UNSET


LongJob: Any = msgspec.defstruct(
    "LongJob",
    [(name, hint | msgspec.UnsetType, UNSET) for name, hint in HINTS.items()],
    bases=(ShortJob,),
    forbid_unknown_fields=True,
    gc=False,
)
"""A job with other fields. Only one of them, `env`, is an object, and no list has an object."""

shared_values = attrgetter(*SHARED)
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
        is_long = bool(jobs) and isinstance(jobs[0], LongJob)
        values = list(map(shared_values, jobs)) if is_long else [()] * len(jobs)
        check_names(data, lines, jobs, values)
        keys = checked.add(given_keys, numbers)
        fields = map(field_sets.__getitem__, values)
        yield list(map(Draft, commands, keys, with_own(jobs, fields) if is_long else fields))
        field_sets.has_needs |= is_long and any(getattr(job, "needs", UNSET) is not UNSET for job in jobs)
    checked.check()


def decode_jobs(data: bytes, lines: list[bytes]) -> list[ShortJob]:
    """Return the job of each line. Raise `NotPlain` unless each line has exactly one.

    `data` is a list of the lines. Each keeps its line break, which no string may contain, so the "{" at the begin of a
    line is the first one, or follows a comma between values. Only the list of jobs has objects as values, so it begins
    a job. Hence each line has one job if there are as many jobs as lines.
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


def check_names(data: bytes, lines: list[bytes], jobs: list[Any], values: list[tuple[Any, ...]]) -> None:
    """Raise `NotPlain` if a line has more names than its job has fields."""
    numbers = [
        1 + (job.key is not UNSET) + (number_of_names(job) + len(given) - given.count(UNSET) if given else 0)
        for job, given in zip(jobs, values, strict=True)
    ]
    if data.count(b":") != sum(numbers) and not all(map(has_names, lines, numbers)):
        raise NotPlain


def number_of_names(job: Any) -> int:
    """Return how many names the own fields of a job have."""
    number = int(job.needs is not UNSET)
    if job.env is not UNSET:
        number += 1 + len(job.env) + sum(type(value) is not str for value in job.env.values())
    return number


def with_own(jobs: list[Any], shared: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Yield the fields of each job: the shared ones, and those that it has for itself. Raise `InvalidTask`."""
    for job, fields in zip(jobs, shared, strict=True):
        if job.env is UNSET and job.needs is UNSET:
            yield fields
            continue
        own = dict(fields)
        if job.env is not UNSET:
            own["env"] = plain_env(job.env)
            check_env(own["env"])
        if job.needs is not UNSET:
            own["needs"] = keys_needed(job.needs)
        yield own


def parse_values(values: tuple[Any, ...]) -> dict[str, Any]:
    """Return the fields that the values of `shared_values` mean."""
    fields = {name: value for name, value in zip(SHARED, values, strict=False) if value is not UNSET}
    if "queue" in fields:
        fields["queue"] = intern(fields["queue"])
    for name in MOMENTS:
        if fields.get(name) is not None:
            fields[name] = read_moment(name, fields[name])
    return fields
