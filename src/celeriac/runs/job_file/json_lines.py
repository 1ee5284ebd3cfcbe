"""JSON Lines: one object a line. Nearly all lines are right, and those are decoded and checked in one go."""

from __future__ import annotations

import re
from collections.abc import Iterator
from sys import intern
from typing import Any, Required, TypedDict

import msgspec

from celeriac.runs.job_file.fields import Jobs, keys_needed
from celeriac.runs.job_file.json_text import BrokenJson, JsonObject, kind_of, parse_json
from celeriac.runs.job_file.lines import Lines, to_text
from celeriac.runs.job_file.problem import Problem
from celeriac.task.task import Secret, Task

EXAMPLE = 'write one object a line, for example {"command": "gzip -k data.csv"}'

END_OF_NAME = re.compile(rb'(?<![^\\]\\)"[ \t\r\n]*:')  # it may see one where none is, but it misses none


class SecretValue(msgspec.Struct, forbid_unknown_fields=True):
    secret: str


class Fields(TypedDict, total=False):
    key: str
    command: Required[str | tuple[str, ...]]
    priority: int
    queue: str
    slots: int
    env: dict[str, str | SecretValue]
    cwd: str | None
    timeout: float | None
    grace: float
    retries: int
    retry_delay: float
    on_worker_lost: str
    max_lost: int
    needs: str | tuple[str, ...]
    on_need_failed: str


def read_json_lines(lines: Lines, jobs: Jobs) -> Iterator[Task | Problem]:
    decode = msgspec.json.Decoder(Fields).decode
    for number, line in lines:
        if isinstance(line, Problem):
            yield line
            continue
        try:
            task = _quickly(decode(line), line, number, jobs)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            task = None
        if task is not None:
            yield task
        elif line.strip():
            yield from _carefully(line, number, jobs)


def _quickly(decoded: Fields, line: bytes, number: int, jobs: Jobs) -> Task | None:
    """The task, if the line is beyond doubt. None or an exception leaves it to the careful reading."""
    fields: dict[str, Any] = decoded  # type: ignore[assignment]
    members = len(fields)
    if env := fields.get("env"):
        members += len(env) + sum(type(value) is not str for value in env.values())
        fields["env"] = {name: value if type(value) is str else Secret(value.secret) for name, value in env.items()}
    # More names than there are members: one is unknown or given twice, or a string only looks like a name.
    if line.count(b":") != members and len(END_OF_NAME.findall(line)) != members:
        return None
    key = fields.setdefault("key", str(number))
    if not key or "\0" in key:
        return None
    if "queue" in fields:
        fields["queue"] = intern(fields["queue"])
    if "needs" in fields:
        needs = fields["needs"] = keys_needed(fields["needs"])
        if not jobs.is_whole and not all(need in jobs.line_of_key for need in needs):
            return None
    task = Task(**({**jobs.defaults, **fields} if jobs.defaults else fields))
    if jobs.line_of_key.setdefault(key, number) != number:
        return None
    if task.needs and jobs.is_whole:
        jobs.needs_of_key[key] = needs
    return task


def _carefully(line: bytes, number: int, jobs: Jobs) -> list[Task | Problem]:
    text = to_text(line, number, jobs.file)
    if isinstance(text, Problem):
        return [text]
    try:
        value = parse_json(text)
    except BrokenJson as error:
        return [Problem(jobs.file, number, None, str(error), EXAMPLE)]
    if not isinstance(value, JsonObject):
        return [Problem(jobs.file, number, None, f"{kind_of(value)} is no job", EXAMPLE)]
    twice = [Problem(jobs.file, number, name, "it is given twice", "keep one of them") for name in value.repeated]
    return jobs.check(number, value, twice)
