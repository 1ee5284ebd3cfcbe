"""The JSON output of explain, status, cancel, drain, config and doctor."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, UnsetType

from celeriac.executor.requests import CancelOutcome, WaitReason
from celeriac.json_types.base import MaybeNumber, MaybeSeconds, MaybeText, Strict
from celeriac.json_types.runs import Run
from celeriac.task.result import Reason
from celeriac.task.state import State

# — explain —


class Move(Strict):
    """One event of a task."""

    state: State
    when: float
    id: str
    attempt: int
    reason: Reason | UnsetType = UNSET
    detail: MaybeText = UNSET
    retry_in: MaybeSeconds = UNSET
    priority: MaybeNumber = UNSET
    """The new priority, if the event is a change of it."""

    host: MaybeText = UNSET
    pid: MaybeNumber = UNSET
    exit_code: MaybeNumber = UNSET
    signal: MaybeText = UNSET
    duration: MaybeSeconds = UNSET


class Now(Strict):
    """The thing that a task waits for."""

    waits_for: WaitReason
    words: str
    facts: dict[str, int | float | str]


class History(Strict):
    """The history of one task, as one executor or the ledger knows it."""

    key: str
    state: State
    id: str
    attempt: int
    moves: list[Move]
    now: Now
    executor: str | None
    """Null for a file of events, and for the ledger."""

    queue: MaybeText = UNSET
    priority: MaybeNumber = UNSET
    arrived: MaybeSeconds = UNSET
    left_out: MaybeNumber = UNSET


class Holder(Strict):
    """A worker that has the task, if no executor knows it."""

    key: str
    id: str
    worker: str
    runs: bool


class ExplainOutput(Strict):
    """The findings of `explain`."""

    lives: list[History]
    workers: list[Holder]


# — status —


class Queue(Strict):
    name: str
    waiting: int
    oldest: float | None
    slots: int


class Worker(Strict):
    name: str
    queues: list[str]
    concurrency: int | None
    running: int | None
    refused: int | None
    draining: bool
    heartbeat_age: float | None
    """Seconds since the last heartbeat of its lease; null if it is unknown."""

    host: str | None
    """Null, like `tasks`, for a worker that is known by its reply alone."""

    tasks: list[str] | None
    """Ids of the tasks that it runs."""

    drained_by: str | None
    """Who has asked it to drain; null if that is unknown."""

    paused: bool
    """Whether it takes no more tasks until it is resumed. `queues` is empty meanwhile."""

    paused_by: str | None
    """Who has paused it; null if that is unknown."""

    waits: str | None
    """Why it starts nothing for now, such as "load 9.2 is above 8"; null if nothing holds it back."""


class Limit(Strict):
    """A limit of a key or a rate that live executors have."""

    setting: str
    """`concurrency_limits`, `concurrency_rates` or `queue_rates`."""

    name: str
    """The key or the queue."""

    number: int
    """The least of those of its executors."""

    period: float | None
    """The length of the window of a rate, in seconds; null if places are held until their tasks end."""

    used: int
    """How many places are reserved or taken, the starts of the last window included."""

    executors: dict[str, int]
    """How many places the tasks in flight of each executor hold."""

    full_until: float | None
    """When a place of a rate that is used up is free, in seconds since the epoch."""


class WorkerCheck(Strict):
    """The result of `check worker`."""

    name: str
    ok: bool
    problem: str | None
    worker: Worker | None
    """Null for a worker without a lease."""


class ActiveRun(Strict):
    """A submitted run that has not ended."""

    name: str
    owner: str | None
    paused: str | None
    """What is paused, and by whom, for a person."""

    waiting: int
    out: int
    succeeded: int
    failed: int
    revoked: int
    skipped: int


class Status(Strict):
    """The state of a broker; `runs` if a ledger is named. Without a broker, `runs` alone."""

    queues: list[Queue] | UnsetType = UNSET
    workers: list[Worker] | UnsetType = UNSET
    problem: str | UnsetType | None = UNSET
    limits: list[Limit] | UnsetType = UNSET
    runs: list[ActiveRun] | UnsetType = UNSET


class StatusChange(Strict):
    """One object of `status --watch`, printed when more has changed than ages. `runs` are those of `runs`."""

    at: float
    problems: list[str]
    """One line for each server that is unavailable. What it would have told is absent."""

    queues: list[Queue] | UnsetType = UNSET
    workers: list[Worker] | UnsetType = UNSET
    problem: str | UnsetType | None = UNSET
    limits: list[Limit] | UnsetType = UNSET
    runs: list[Run] | UnsetType = UNSET


class RefusedMessage(Strict):
    at: float
    queue: str
    worker: str
    id: str | None
    why: str
    size: int | None
    about: str


class RefusedOutput(Strict):
    """The newest messages that workers refused, of `status --refused`."""

    refused: list[RefusedMessage]


# — cancel, drain, prune, config —


class CancelledTask(Strict):
    name: str
    outcome: CancelOutcome
    state: State | None
    detail: str | None
    executor: str | None


class CancelledQueue(Strict):
    queue: str
    revoked: int


class CancelOutput(Strict):
    """The results of `cancel`."""

    tasks: list[CancelledTask]
    queues: list[CancelledQueue]
    errors: list[str]


class CancelledRun(Strict):
    """The result of `cancel --run` without a KEY."""

    run: str
    owner: str | None
    revoked: int
    left: int


class PausedExecutor(Strict):
    """One executor after `pause` or `resume`."""

    executor: str | None
    """None if no service owns the submitted run."""

    run: str | None
    """None if the executor was not asked for a run."""

    changed: bool
    paused: bool
    """Whether all tasks are paused."""

    queues: list[str]
    """The queues that are paused one by one."""

    waiting: int
    in_flight: int


class PausedWorker(Strict):
    """One worker after `pause --worker` or `resume --worker`."""

    worker: str
    changed: bool
    paused: bool
    running: int
    """How many tasks it runs."""


class PauseOutput(Strict):
    """The results of `pause` and `resume`."""

    executors: list[PausedExecutor]
    errors: list[str]
    workers: list[PausedWorker] | UnsetType = UNSET
    """Those that `--worker` names."""


class PausedWorkers(Strict):
    """The result of the pause of a worker over REST."""

    workers: list[PausedWorker]


class SetOutput(Strict):
    """The result of `set`: the limits of the run, or the priority of the task."""

    run: str
    key: str | UnsetType = UNSET
    priority: int | UnsetType = UNSET
    parallelism: int | UnsetType = UNSET
    queue_limits: dict[str, int] | UnsetType = UNSET
    concurrency_limits: dict[str, int] | UnsetType = UNSET
    concurrency_rates: dict[str, str] | UnsetType = UNSET
    queue_rates: dict[str, str] | UnsetType = UNSET


class DrainedWorker(Strict):
    worker: str
    gone: bool | None
    running: int | None


class Drained(Strict):
    """The result of `drain`."""

    workers: list[DrainedWorker]


class PrunedRun(Strict):
    run: str
    tasks: int


class KeptRun(Strict):
    run: str
    why: str


class Pruned(Strict):
    """The result of `prune`."""

    removed: list[PrunedRun]
    kept: list[KeptRun]
    bytes_freed: int | None
    folders_removed: int
    """How many folders with the output of failed tasks were removed."""
    dry_run: bool


class Setting(Strict):
    """One setting of `config`."""

    value: Any
    origin: str


# — doctor —


class Finding(Strict):
    """The result of one check of `doctor`."""

    subject: str
    check: str
    """The id of the check; docs/doctor.md lists them."""

    level: Literal["ok", "warning", "error", "skipped"]
    text: str
    remedy: str | None
    """What to do; null if nothing is wrong."""


class DoctorOutput(Strict):
    """The result of `doctor`."""

    findings: list[Finding]
    errors: int
    warnings: int
