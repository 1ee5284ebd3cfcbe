"""What came back: how a command ended, where, after how long, and what it said."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from celeriac.task.state import State


class Reason(StrEnum):
    """Why a task ended, or why an attempt did not count."""

    EXIT_CODE = "exit_code"
    SIGNAL = "signal"
    TIMEOUT = "timeout"
    NOT_STARTED = "not_started"
    """The program or its working directory could not be used, or it needs more slots than there are."""

    OUTPUT = "output"
    """The command ended, but the output that was asked for could not be written."""

    LOST = "lost"
    """What ran it died, or its result cannot be read."""

    POISON = "poison"
    """So many workers were lost with it that it may be what kills them."""

    REFUSED = "refused"
    """Its message was not signed, or was altered: its worker ran nothing, and no retry follows."""

    REVOKED = "revoked"
    PUBLISH_ERROR = "publish_error"
    WORKER_ERROR = "worker_error"
    """The worker itself failed around the command."""

    CALLER = "caller"
    """The caller said so with `change_state`, `success` or `fail`."""

    NEED_FAILED = "need_failed"
    """A task that it needs ended in anything but success."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """One stream of a command."""

    path: str | None = None
    """The file that holds it; none if nothing was written or nothing is kept."""

    size: int = 0
    """Bytes the command wrote, kept or not."""

    left_out: int = 0
    """Bytes that were not kept, because they went over the size cap or could not be written."""

    tail: str = ""
    """Its last lines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """One attempt, as the worker saw it."""

    host: str
    pid: int | None = None
    started: float | None = None
    """Seconds since the epoch."""

    duration: float | None = None
    """Seconds from start to the end of its last process."""

    exit_code: int | None = None
    signal: str | None = None
    """The signal that ended it, such as "SIGKILL"."""

    peak_memory: int | None = None
    """Bytes: the largest resident set of any one of its processes."""

    leftovers_ended: bool = False
    """Whether it left processes behind in its group, which were then ended."""

    stdout: Output = Output()
    stderr: Output = Output()


@dataclass(frozen=True, slots=True)
class Result:
    """What the result backend says of one attempt."""

    state: State
    reason: Reason | None = None
    detail: str | None = None
    execution: Execution | None = None
