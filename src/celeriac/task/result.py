"""The result of an attempt: how, where and after how long a command ended, and its output."""

from __future__ import annotations

from enum import StrEnum
from typing import Self

from msgspec import Struct

from celeriac.errors import TaskFailed
from celeriac.task.state import State


class Reason(StrEnum):
    """Why a task or an attempt ended."""

    EXIT_CODE = "exit_code"
    SIGNAL = "signal"
    TIMEOUT = "timeout"
    MEMORY = "memory"
    """It used more memory than its field `memory` says."""

    NOT_STARTED = "not_started"
    """The program or its working directory could not be used, or the task needs more slots than there are."""

    OUTPUT = "output"
    """The command ended, but its output could not be written to the requested file."""

    LOST = "lost"
    """Its worker is dead, or its result cannot be read."""

    POISON = "poison"
    """As many workers as `max_lost` died while they ran it: the task may be crashing them."""

    REFUSED = "refused"
    """Its message was unsigned or modified: the worker ran nothing, and no retry follows."""

    REVOKED = "revoked"
    PUBLISH_ERROR = "publish_error"
    WORKER_ERROR = "worker_error"
    """The worker failed before or after the command."""

    CALLER = "caller"
    """The caller set the state with `change_state`, `success` or `fail`."""

    NEED_FAILED = "need_failed"
    """A task that it needs did not succeed."""

    DEADLINE = "deadline"
    """It had not started by its deadline, and never ran, or never ran again."""


class Output(Struct, frozen=True, kw_only=True, gc=False):
    """One output stream of a command."""

    path: str | None = None
    """The file with the output; None if the command wrote nothing or nothing is kept."""

    host: str | None = None
    """The machine with the file; None for that of the worker."""

    size: int = 0
    """Bytes that the command wrote, kept or not."""

    left_out: int = 0
    """Bytes that were not kept: they exceeded the size limit or could not be written."""

    tail: str = ""
    """The last lines of the stream."""

    def machine(self, worker: str) -> str:
        """Return the machine with the file of an output from the machine `worker`."""
        return self.host or worker


class Execution(Struct, frozen=True, kw_only=True, gc=False):
    """One attempt, as its worker reports it."""

    host: str
    pid: int | None = None
    started: float | None = None
    """Seconds since the epoch."""

    duration: float | None = None
    """Seconds from the start of the command to the end of its last process."""

    exit_code: int | None = None
    signal: str | None = None
    """The signal that ended the command, such as "SIGKILL"."""

    peak_memory: int | None = None
    """The largest resident set of any one of its processes, in bytes."""

    leftovers_ended: bool = False
    """Whether processes of its group still ran when the command ended. They were then terminated."""

    stdout: Output = Output()
    stderr: Output = Output()


class Result(Struct, frozen=True, gc=False):
    """The result of one attempt, as the result backend stores it."""

    state: State
    reason: Reason | None = None
    detail: str | None = None
    execution: Execution | None = None

    def check(self) -> Self:
        """Return the result itself if the task succeeded. Raise `TaskFailed` if not."""
        if self.state is not State.SUCCESS:
            raise TaskFailed(self)
        return self
