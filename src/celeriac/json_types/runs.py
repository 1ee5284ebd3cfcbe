"""The JSON of errors, and of commands about runs: run, retry, submit, logs, runs, show, prune."""

from __future__ import annotations

from typing import Literal

from msgspec import UNSET, UnsetType

from celeriac.json_types.base import Command, MaybeNumber, MaybeSeconds, MaybeText, Strict
from celeriac.task.result import Output, Reason
from celeriac.task.state import State

# — errors —


class Problem(Strict):
    """A problem of a job file."""

    file: str
    line: int | None
    field: str | None
    problem: str
    remedy: str


class Error(Strict):
    """An error of any command. A command that fails in the middle prints it after its other output."""

    error: str
    """One line, or several for a job file."""

    problems: list[Problem] | UnsetType = UNSET
    """The problems of a job file."""


# — run, retry, submit —


class Slow(Strict):
    key: str
    duration: float


class Failure(Strict):
    key: str
    attempt: int
    reason: Reason | UnsetType = UNSET
    detail: MaybeText = UNSET
    exit_code: MaybeNumber = UNSET
    signal: MaybeText = UNSET
    duration: MaybeSeconds = UNSET
    stdout: MaybeText = UNSET
    """The file with its output."""

    stderr: MaybeText = UNSET


class Summary(Strict):
    """The end of `run` and `retry`."""

    run: str | None
    """The name of the run; null if it is not recorded."""

    tasks: int
    succeeded: int
    failed: int
    revoked: int
    never_ran: int
    skipped: int
    had_succeeded: int
    had_failed: int
    retried: int
    refused_lines: int
    output_lost: int
    interrupted: bool
    stopped_early: bool
    wall_time: float
    tasks_per_second: float | None
    slowest: list[Slow]
    failures: list[Failure]
    exit_status: int


class Notice(Strict):
    """The input of `--on-end` and the body of `--notify`: at the end of a run, or when its first task has
    failed. Absent fields are unknown."""

    event: Literal["end", "first_failure"]
    text: str
    """The notice as one sentence for a person."""

    host: str
    """The machine that has sent it."""

    run: str | None
    tasks: int
    succeeded: int
    failed: int
    revoked: int
    never_ran: int
    skipped: int
    wall_time: float
    failures: list[Failure]
    """The first 20."""

    exit_status: int | None
    """Null in the notice of the first failure."""

    interrupted: bool | UnsetType = UNSET
    stopped_early: bool | UnsetType = UNSET
    had_succeeded: MaybeNumber = UNSET
    had_failed: MaybeNumber = UNSET
    retried: MaybeNumber = UNSET
    refused_lines: MaybeNumber = UNSET
    output_lost: MaybeNumber = UNSET
    tasks_per_second: float | UnsetType | None = UNSET
    slowest: list[Slow] | UnsetType = UNSET
    error: MaybeText = UNSET
    """What has ended the run early."""


class Job(Strict):
    """One task of `run --dry-run`: one object a line."""

    key: str
    command: Command
    priority: int
    queue: str
    slots: int
    env: dict[str, str]
    """Secret values are masked."""

    cwd: str | None
    timeout: float | None
    grace: float
    retries: int
    retry_delay: float
    on_worker_lost: str
    max_lost: int
    needs: list[str]
    on_need_failed: str
    tags: list[str]
    not_before: float | None
    """Seconds since the epoch."""

    deadline: float | None
    """Seconds since the epoch."""

    concurrency_key: MaybeText = UNSET
    stdin: MaybeText = UNSET
    """Masked if it is a secret."""

    stdin_file: MaybeText = UNSET
    scratch: bool | UnsetType = UNSET
    artifacts: list[str] | UnsetType = UNSET
    cpus: float | UnsetType = UNSET
    memory: MaybeNumber = UNSET
    """Bytes that it needs."""

    gpus: MaybeNumber = UNSET


class Submitted(Strict):
    """The run that `submit` has made; with --wait, how it ended."""

    run: str
    tasks: int
    succeeded: MaybeNumber = UNSET
    failed: MaybeNumber = UNSET
    revoked: MaybeNumber = UNSET
    skipped: MaybeNumber = UNSET
    exit_status: MaybeNumber = UNSET


class Schedule(Strict):
    """One element of the list of `schedules`. Exactly one of `cron` and `every` is set."""

    schedule: str
    cron: str | None
    every: float | None
    """Seconds."""

    timezone: str
    jobs: str
    missed: Literal["skip", "once", "all"]
    overlap: Literal["skip", "wait", "allow"]
    last: Run | None
    """The last run that a service has made; null if there is none, or it was removed."""

    next: list[float]
    """The next due times, in seconds since the epoch."""


class Event(Strict):
    """One line of the file of `--events`. Absent fields are unknown."""

    key: str
    state: State
    when: float
    id: str
    attempt: int
    number: int
    reason: Reason | UnsetType = UNSET
    detail: MaybeText = UNSET
    retry_in: MaybeSeconds = UNSET
    priority: MaybeNumber = UNSET
    """The new priority, if the event is a change of it."""

    host: MaybeText = UNSET
    pid: MaybeNumber = UNSET
    started: MaybeSeconds = UNSET
    duration: MaybeSeconds = UNSET
    exit_code: MaybeNumber = UNSET
    signal: MaybeText = UNSET
    peak_memory: MaybeNumber = UNSET
    leftovers_ended: bool | UnsetType = UNSET
    stdout: Output | UnsetType = UNSET
    stderr: Output | UnsetType = UNSET


# — logs --failed —


class FailedAttempt(Strict):
    """One line of `logs --failed`. Fields without a value are absent."""

    key: str
    attempt: int
    ended: float
    """Seconds since the epoch."""

    reason: Reason | UnsetType = UNSET
    detail: MaybeText = UNSET
    host: MaybeText = UNSET
    started: MaybeSeconds = UNSET
    duration: MaybeSeconds = UNSET
    exit_code: MaybeNumber = UNSET
    signal: MaybeText = UNSET
    stdout: MaybeText = UNSET
    """The last lines of its standard output."""

    stderr: MaybeText = UNSET
    stdout_size: MaybeNumber = UNSET
    """Bytes that it wrote."""

    stderr_size: MaybeNumber = UNSET


# — runs, show —


class Run(Strict):
    """One element of the list of `runs`. Times are seconds since the epoch."""

    run: str
    file: str | None
    state: str
    owner: str | None
    began: float
    ended: float | None
    duration: float
    tags: list[str]
    paused: str | None
    """What is paused, and by whom, for a person."""

    tasks: int
    succeeded: int
    failed: int
    revoked: int
    never_ran: int
    waiting: int
    out: int
    """In flight."""


class Task(Strict):
    """One task of `show`: one object a line. Fields without a value are absent."""

    key: str
    command: Command
    priority: int
    queue: str
    slots: int
    env: dict[str, str]
    grace: float
    retries: int
    retry_delay: float
    on_worker_lost: str
    max_lost: int
    needs: list[str]
    on_need_failed: str
    tags: list[str]
    state: State
    id: str
    attempt: int
    arrived: float
    moved: float
    cwd: MaybeText = UNSET
    concurrency_key: MaybeText = UNSET
    stdin: MaybeText = UNSET
    stdin_file: MaybeText = UNSET
    scratch: bool | UnsetType = UNSET
    artifacts: list[str] | UnsetType = UNSET
    cpus: float | UnsetType = UNSET
    memory: MaybeNumber = UNSET
    """Bytes that it needs."""

    gpus: MaybeNumber = UNSET
    timeout: MaybeSeconds = UNSET
    not_before: MaybeSeconds = UNSET
    """When it, or its next attempt, may start: seconds since the epoch."""

    deadline: MaybeSeconds = UNSET
    """When it must have started."""

    reason: Reason | UnsetType = UNSET
    detail: MaybeText = UNSET
    host: MaybeText = UNSET
    pid: MaybeNumber = UNSET
    started: MaybeSeconds = UNSET
    duration: MaybeSeconds = UNSET
    exit_code: MaybeNumber = UNSET
    signal: MaybeText = UNSET
    peak_memory: MaybeNumber = UNSET
    leftovers_ended: bool | UnsetType = UNSET
    stdout: Output | UnsetType = UNSET
    stderr: Output | UnsetType = UNSET
