"""Read JSON Lines: one object a line. A good line is decoded and checked in one step, a bad line field by field."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from sys import intern
from typing import Any, Required, TypedDict

import msgspec

from celeriac.runs.job_file.fields import JobChecker, keys_needed
from celeriac.runs.job_file.json_text import BrokenJson, JsonObject, kind_of, parse_json
from celeriac.runs.job_file.lines import Lines, to_text
from celeriac.runs.job_file.problem import Problem
from celeriac.task.task import Secret, Task

EXAMPLE = 'write one object a line, for example {"command": "gzip -k data.csv"}'

END_OF_NAME = re.compile(rb'(?<![^\\]\\)"[ \t\r\n]*:')  # may also match inside a string, but misses no name


class SecretValue(msgspec.Struct, forbid_unknown_fields=True):
    """A variable of the environment that is masked everywhere."""

    secret: str


class Fields(TypedDict, total=False):
    """A job as JSON: the fields of `Task` with their types in JSON."""

    key: str
    command: Required[str | tuple[str, ...]]
    priority: int
    queue: str
    slots: int
    cpus: float | None
    memory: int | str | None
    gpus: int
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
    tags: str | tuple[str, ...]
    concurrency_key: str | None
    stdin: str | None
    stdin_file: str | None
    scratch: bool
    artifacts: str | tuple[str, ...]
    not_before: float | str | None
    deadline: float | str | None


def read_json_lines(lines: Lines, checker: JobChecker) -> Iterator[Task | Problem]:
    """Yield the task, or the problems, of each line."""
    decode = msgspec.json.Decoder(Fields).decode
    for number, line in lines:
        if isinstance(line, Problem):
            yield line
            continue
        try:
            task = None if checker.template is not None else read_quickly(decode(line), line, number, checker)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            task = None
        if task is not None:
            yield task
        elif line.strip():
            yield from _read_carefully(line, number, checker)


def read_quickly(
    decoded: Fields, line: bytes, number: int, checker: JobChecker, own_key: str | None = None
) -> Task | None:
    """Return the task of a good line. Return None or raise for a line that must be read carefully.

    `own_key` is the key of a job that gives none, if it is not the number of the line.
    """
    fields: dict[str, Any] = decoded  # type: ignore[assignment]
    members = len(fields)
    if env := fields.get("env"):
        members += len(env) + sum(type(value) is not str for value in env.values())
        fields["env"] = plain_env(env)
    if not has_names(line, members):
        return None
    has_key = "key" in fields
    key = fields.setdefault("key", own_key or str(number))
    if not key or "\0" in key:
        return None
    if "queue" in fields:
        fields["queue"] = intern(fields["queue"])
    if "needs" in fields:
        needs = fields["needs"] = keys_needed(fields["needs"])
        if not checker.is_whole and not all(need in checker.line_of_key for need in needs):
            return None
    task = Task(**({**checker.defaults, **fields} if checker.defaults else fields))
    if key in checker.line_of_key:
        return None
    checker.line_of_key[key] = number
    if task.needs and checker.is_whole:
        checker.needs_of_key[key] = needs
    if not has_key:
        checker.numbered_keys.add(key)
    return task


def plain_env(env: Mapping[str, str | SecretValue]) -> dict[str, str]:
    """Return variables as a task has them."""
    return {name: value if isinstance(value, str) else Secret(value.secret) for name, value in env.items()}


def has_names(line: bytes, number: int) -> bool:
    """Return whether a line has so many names. If not, a name is unknown or given twice, or a string looks like one."""
    return line.count(b":") == number or len(END_OF_NAME.findall(line)) == number


def _read_carefully(line: bytes, number: int, checker: JobChecker) -> list[Task | Problem]:
    """Return the task, or all problems of the line."""
    text = to_text(line, number, checker.file)
    if isinstance(text, Problem):
        return [text]
    try:
        value = parse_json(text)
    except BrokenJson as error:
        return [Problem(checker.file, number, None, str(error), EXAMPLE)]
    return check_value(value, number, checker)


def check_value(value: object, number: int, checker: JobChecker, own_key: str | None = None) -> list[Task | Problem]:
    """Return the task of a JSON value, or all its problems."""
    if checker.template is not None and isinstance(value, str | int | float) and not isinstance(value, bool):
        return checker.check(number, {"": value}, (), own_key)
    if not isinstance(value, JsonObject):
        return [Problem(checker.file, number, None, f"{kind_of(value)} is not a job", EXAMPLE)]
    repeated = [Problem(checker.file, number, name, "it is given twice", "keep one of them") for name in value.repeated]
    return checker.check(number, value, repeated, own_key)
