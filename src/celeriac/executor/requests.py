"""The requests to a running executor, and its replies, as plain values. No control channel is needed to use them.

CancelRequest  ─► CancelReply: at once, and a second one when the revoked tasks have ended
ExplainRequest ─► ExplainReply: the events of a task, and what it waits for
PriorityRequest ─► PriorityReply: whether a waiting task has the priority now
PauseRequest   ─► PauseReply: what is paused now
LimitsRequest  ─► LimitsReply: the limits now
DemandRequest  ─► DemandReply: how many tasks of each queue could start if there were workers

The names of the fields and the values of the enums are JSON keys and values on the wire: they stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeAlias

from msgspec import Struct, field

from celeriac.task.event import Event
from celeriac.task.state import State
from celeriac.task.task import TaskKey


class CancelRequest(Struct, frozen=True, kw_only=True):
    """Revoke the tasks of these names, and all tasks of these queues."""

    names: tuple[str, ...] = ()
    """Keys, as text."""

    queues: tuple[str, ...] = ()
    wait: float = 0.0
    """Seconds after which the last reply is sent, even if tasks have not ended. With 0 only the first reply is sent."""


class ExplainRequest(Struct, frozen=True, kw_only=True):
    """Explain one task, or several."""

    name: str
    """Its key, as text."""

    others: tuple[str, ...] = ()
    """More keys. An executor of an older version does not know this field, and explains the first one alone."""


class PriorityRequest(Struct, frozen=True, kw_only=True):
    """Change the priority of one waiting task."""

    name: str
    """Its key, as text."""

    priority: int
    asked_by: str = "another process"
    """Who asks, for the event of the task."""


class PauseRequest(Struct, frozen=True, kw_only=True):
    """Pause the executor or some queues, or resume them."""

    resume: bool = False
    queues: tuple[str, ...] = ()
    """Empty for the executor as a whole."""

    asked_by: str = "another process"


class LimitsRequest(Struct, frozen=True, kw_only=True):
    """Change limits of the executor."""

    parallelism: int | None = None
    """None leaves it as it is."""

    queue_limits: Mapping[str, int | None] = field(default_factory=dict)
    """The changed limits of queues; None removes one."""

    shared_limits: Mapping[str, Mapping[str, int | str | None]] = field(default_factory=dict)
    """The changed limits of keys and rates, by the name of the field of `Config`; None removes one."""

    asked_by: str = "another process"


class OwnerRequest(Struct, frozen=True, kw_only=True):
    """A request to the executor that owns a run, and to no other. Exactly one of the last fields is set."""

    executor: str
    """The process and the host of the owner: "4711@host"."""

    run: str
    """The name of the run. Its tasks have their plain keys as names."""

    asked_by: str
    """Who asks, for a person."""

    cancel: CancelRequest | None = None
    """With neither names nor queues, it is for the whole run. A request for no task is not sent."""

    priority: PriorityRequest | None = None
    pause: PauseRequest | None = None
    limits: LimitsRequest | None = None

    @property
    def requests(self) -> list[CancelRequest | PriorityRequest | PauseRequest | LimitsRequest]:
        """The requests that it holds."""
        return [each for each in (self.cancel, self.priority, self.pause, self.limits) if each is not None]


class DemandRequest(Struct, frozen=True):
    """Count the tasks that could start if there were workers."""


Change: TypeAlias = PriorityRequest | PauseRequest | LimitsRequest | OwnerRequest
Request: TypeAlias = CancelRequest | ExplainRequest | DemandRequest | Change


def wait_of(request: Request) -> float:
    """Return how many seconds the last reply may take, besides the time of a first one."""
    return request.wait if isinstance(request, CancelRequest) else 0.0


class PriorityOutcome(StrEnum):
    """The effect of a priority request."""

    CHANGED = "changed"
    NOT_WAITING = "not_waiting"
    """The task is in flight or has ended, so a priority has no effect."""

    UNKNOWN = "unknown"
    AMBIGUOUS = "ambiguous"
    """Several keys have the same text. No priority was changed."""


class PauseReply(Struct, frozen=True, kw_only=True):
    """The pauses after a pause request."""

    changed: bool
    """Whether the request changed anything."""

    paused: bool
    """Whether the executor as a whole is paused."""

    queues: tuple[str, ...] = ()
    """The queues that are paused one by one."""

    waiting: int
    in_flight: int


class LimitsReply(Struct, frozen=True, kw_only=True):
    """The limits after a limits request."""

    parallelism: int
    queue_limits: Mapping[str, int] = field(default_factory=dict)
    shared_limits: Mapping[str, Mapping[str, int | str]] = field(default_factory=dict)
    """The limits of keys and rates, by the name of the field of `Config`: of those fields that were changed, or have
    some."""


class PriorityReply(Struct, frozen=True):
    """The effect of a priority request."""

    outcome: PriorityOutcome


class CancelOutcome(StrEnum):
    """The effect of a cancel request on one task."""

    REVOKED = "revoked"
    """The task has ended: it was waiting, or the broker had not confirmed it."""

    CALLED_BACK = "called_back"
    """The task was queued at the broker or running. It ends later, or has ended since."""

    HAD_ENDED = "had_ended"
    UNKNOWN = "unknown"
    AMBIGUOUS = "ambiguous"
    """Several keys have the same text. None of their tasks was revoked."""


class CancelResult(Struct, frozen=True, kw_only=True):
    """The effect of a cancel request on one task."""

    name: str
    outcome: CancelOutcome
    state: State | None = None
    detail: str | None = None
    queue: str | None = None
    """The queue of the task, if the request named the queue and not the task."""


class CancelReply(Struct, frozen=True, kw_only=True):
    """The effect of a cancel request."""

    fates: tuple[CancelResult, ...] = ()
    """One result for each name of the request, and one for each task in flight of the request's queues."""

    emptied: Mapping[str, int] = field(default_factory=dict)
    """The number of waiting tasks that were revoked, by queue of the request."""

    is_last: bool = True
    """Whether no other reply follows."""


class WaitReason(StrEnum):
    """The thing that a task waits for."""

    HEARTBEAT = "turn"
    """The executor's next heartbeat sends the task."""

    SLOTS = "slots"
    """The executor has not enough open slots."""

    RESOURCES = "resources"
    """Too many CPUs, too much memory or too many GPUs are in use."""

    OTHERS = "others"
    """A more urgent task needs more slots than are open, or resources that are kept for it."""

    LIMIT = "limit"
    """The queue is at its limit."""

    WORKERS = "workers"
    """No live worker serves the queue."""

    ROOM = "room"
    """The live workers of the queue have as many tasks as they can take."""

    NEEDS = "needs"
    """The task depends on tasks that have not ended."""

    RETRY = "retry"
    """The time of the next attempt has not come."""

    PAUSED = "paused"
    """The executor or the queue of the task is paused, until a request resumes it."""

    TIME = "time"
    """Its `not_before` has not come."""

    LOAD = "load"
    """The load of the machine is above its limit."""

    MEMORY = "memory"
    """The machine has too little free memory."""

    DELAY = "delay"
    """The time between two starts is not over."""

    BROKER = "broker"
    """The broker is unavailable."""

    NOTHING_MORE = "nothing_more"
    """The executor drains: it starts no more tasks."""

    CONFIRMATION = "confirmation"
    """The broker has not confirmed the task."""

    START = "start"
    """The task is queued at the broker, and no worker has started it."""

    END = "end"
    """The task is running."""

    TERMINATION = "death"
    """The task was revoked while running, and its processes are being ended."""

    REVOCATION = "word"
    """The task was revoked, and it is not yet certain that no worker starts it."""

    NOTHING = "nothing"
    """The task has ended."""


class CurrentStatus(Struct, frozen=True, kw_only=True):
    """The reason why a task waits now, as text for people and as values for programs."""

    waits_for: WaitReason
    words: str
    facts: Mapping[str, int | float | str] = field(default_factory=dict)
    """The known numbers and names in `words`."""


class Explanation(Struct, frozen=True, kw_only=True):
    """The events of one task and its current status, without its command, environment and output."""

    key: TaskKey
    state: State
    id: str
    """The Celery id of its attempt."""

    attempt: int
    queue: str | None = None
    """None if the events come from a file, which has no queue, `priority` and `arrived`."""

    priority: int | None = None
    arrived: float | None = None
    """When it was queued, in seconds since the epoch."""

    moves: tuple[Event, ...]
    left_out: int = 0
    """The number of events after the first one that are not kept."""

    now: CurrentStatus


class ExplainReply(Struct, frozen=True):
    """The explanations of the tasks of one name."""

    explanations: tuple[Explanation, ...]
    """Empty if no task of that name is known. Several if different keys have the same text."""


class DemandReply(Struct, frozen=True, kw_only=True):
    """The tasks of an executor that could start if there were workers. Those that are in flight are not counted."""

    waiting: Mapping[str, int]
    """By queue, how many tasks are ready and within the limits of the queue and of the executor."""

    open_slots: int
    """How many tasks of all queues together can be in flight, besides those that are."""


class ErrorReply(Struct, frozen=True):
    """The request is malformed."""

    error: str


Reply: TypeAlias = CancelReply | ExplainReply | PriorityReply | PauseReply | LimitsReply | DemandReply | ErrorReply
