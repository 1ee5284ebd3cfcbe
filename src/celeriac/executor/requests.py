"""What others ask of an executor at work, and what it answers: plain values, whatever carries them.

Cancel  ─► Cancelled: at once, and once more when what was called back has ended
Explain ─► Explained: the life of a task, and what it waits for
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from celeriac.task.event import Event
from celeriac.task.state import State
from celeriac.task.task import TaskKey


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelRequest:
    """Call tasks back: those of these names, and all of these queues."""

    names: tuple[str, ...] = ()
    """Keys, as text."""

    queues: tuple[str, ...] = ()
    wait: float = 0.0
    """Seconds until the last answer is due, whether all has ended or not; 0: only the first one is wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainRequest:
    name: str
    """A key, as text."""


Request: TypeAlias = CancelRequest | ExplainRequest


class CancelOutcome(StrEnum):
    """What an order to cancel did to one task."""

    REVOKED = "revoked"
    """It has ended: it waited, or nobody knew whether the broker had it."""

    CALLED_BACK = "called_back"
    """It was with the broker or ran; its end is still to come, or has come since."""

    HAD_ENDED = "had_ended"
    UNKNOWN = "unknown"
    AMBIGUOUS = "ambiguous"
    """Several keys look the same as text: none of them was touched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelResult:
    """One task of an order to cancel."""

    name: str
    outcome: CancelOutcome
    state: State | None = None
    detail: str | None = None
    queue: str | None = None
    """Of a task that was not named, but was out of a queue that was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelReply:
    fates: tuple[CancelResult, ...] = ()
    """Of every name that was given, and of what was out of the queues that were given."""

    emptied: Mapping[str, int] = field(default_factory=dict)
    """By queue: how many of its tasks were revoked while they waited."""

    is_last: bool = True


class WaitReason(StrEnum):
    """What has to happen before a task moves on."""

    HEARTBEAT = "turn"
    """Nothing but the executor's next heartbeat."""

    SLOTS = "slots"
    OTHERS = "others"
    """A more urgent task, which needs more slots than are open."""

    LIMIT = "limit"
    """Its queue is at its limit."""

    WORKERS = "workers"
    """No live worker serves its queue."""

    ROOM = "room"
    """The live workers of its queue have all they can take."""

    NEEDS = "needs"
    """Other tasks, which it needs, to end."""

    RETRY = "retry"
    """The moment of its next attempt."""

    BROKER = "broker"
    """The broker is away."""

    NOTHING_MORE = "nothing_more"
    """The executor is at its end and starts nothing more."""

    CONFIRMATION = "confirmation"
    """Nobody knows whether the broker has it."""

    START = "start"
    """It is with the broker."""

    END = "end"
    """It runs."""

    TERMINATION = "death"
    """It was called back, and its processes are being ended."""

    REVOCATION = "word"
    """It was called back, and is revoked once it is certain that it does not start."""

    NOTHING = "nothing"
    """It has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CurrentStatus:
    """Where a task stands, in words and for programs."""

    waits_for: WaitReason
    words: str
    facts: Mapping[str, int | float | str] = field(default_factory=dict)
    """The numbers and names of the words, as far as they are known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """The life of one task. It holds no command, no environment and no output."""

    key: TaskKey
    state: State
    id: str
    """The Celery id of its attempt."""

    attempt: int
    queue: str | None = None
    """None, like `priority` and `arrived`, if the source does not know it: a file of events."""

    priority: int | None = None
    arrived: float | None = None
    """When it was queued, in seconds since the epoch."""

    moves: tuple[Event, ...]
    left_out: int = 0
    """How many moves, after the first, are not kept."""

    now: CurrentStatus


@dataclass(frozen=True, slots=True)
class ExplainReply:
    explanations: tuple[Explanation, ...]
    """None if no task is known by that name; several if their keys look the same as text."""


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """What was asked makes no sense."""

    error: str


Reply: TypeAlias = CancelReply | ExplainReply | ErrorReply
