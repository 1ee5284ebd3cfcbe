"""The errors that Celeriac raises.

CeleriacError
├── InvalidInput                the caller passed something that cannot be used, and can correct it
│   ├── InvalidTask             a field of a task is wrong
│   ├── InvalidConfig           a setting is wrong
│   │   └── LedgerNotWritable   the ledger's file, or its folder, cannot be made or written
│   ├── TaskAlreadyQueued       a task of this key is waiting or in flight already
│   ├── UnknownTask             no task of this key is waiting or in flight
│   ├── InvalidTransition       the requested state cannot follow the state of the task
│   └── ExecutorEnded           a task was queued after `drain`, `end` or `terminate`
├── BrokerBlocked               RabbitMQ accepts no messages for now: an operator must clear its alarm
├── BrokerUnavailable           the broker does not answer, or refuses
├── BackendUnavailable          the result backend does not answer, or refuses
├── QueueRefused                RabbitMQ has a queue of this name with other arguments, or gives no access to it
├── LedgerError
│   ├── LedgerUnavailable       the ledger cannot be used for now: a full disk, a server that does not answer
│   │   └── LedgerLocked        another process is writing to it
│   ├── LedgerLost              another executor has taken over the tasks of this one
│   └── LedgerBroken            the ledger is damaged, or of an unknown version
├── TaskFailed                  a task did not succeed: raised by `Result.check`
└── CommandFailed               a command failed: raised on the worker, for Celery
"""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Mapping
from typing import TYPE_CHECKING, Any, Self

from celeriac.server_errors import is_refusal, remedy_for

if TYPE_CHECKING:
    from celeriac.task.result import Result
    from celeriac.task.state import State


COMMAND_OF_PIPELINE = re.compile(r"^Command # \d+ \(.*\) of pipeline caused error: ", re.DOTALL)


def describe_error(error: BaseException) -> str:
    """Return one line about an error: its type and the first line of its message.

    SQLAlchemy's errors show the whole statement; the driver's own error behind them does not. Those of a pipeline of
    Redis show the command with its values, which are left out: they may be secret.
    """
    cause = getattr(error, "orig", None) or error
    message = COMMAND_OF_PIPELINE.sub("", str(cause).strip())
    first_line = next(iter(message.splitlines()), "")
    return f"{type(cause).__name__}: {first_line}" if first_line else type(cause).__name__


def describe_problem(error: BaseException) -> str:
    """Return a verb phrase for a server that caused this error: whether it is unavailable or refuses."""
    return "refuses requests" if is_refusal(error) else "is unavailable"


def describe_refusal(error: BaseException) -> str:
    """Return one line about a server's error, with the remedy if one is known."""
    remedy = remedy_for(error)
    return describe_error(error) if remedy is None else f"{describe_error(error).rstrip('.')}; {remedy}"


def on_one_line(text: str) -> str:
    """Escape characters that would begin a line or move the cursor: texts come from files, messages and commands."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class CeleriacError(Exception):
    """Base class of all errors of Celeriac."""


class InvalidInput(CeleriacError):
    """The caller passed something that cannot be used. Nothing has changed."""


class InvalidTask(InvalidInput, ValueError):
    """One field of a task is wrong."""

    def __init__(self, field: str, problem: str, remedy: str) -> None:
        super().__init__(field, problem, remedy)
        self.field, self.problem, self.remedy = field, problem, remedy

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}; {self.remedy}"


class InvalidConfig(InvalidInput, ValueError):
    """One setting is wrong."""

    def __init__(self, setting: str, problem: str, remedy: str) -> None:
        super().__init__(setting, problem, remedy)
        self.setting, self.problem, self.remedy = setting, problem, remedy

    def __str__(self) -> str:
        return f"{self.setting}: {self.problem}; {self.remedy}"


class LedgerNotWritable(InvalidConfig):
    """The ledger's file, or its folder, cannot be made or written."""


class TaskAlreadyQueued(InvalidInput):
    """A task with this key is waiting or in flight already."""

    def __init__(self, key: Hashable) -> None:
        super().__init__(key)
        self.key = key

    def __str__(self) -> str:
        return f"a task with key {self.key!r} is already waiting or in flight; give each task its own key"


class UnknownTask(InvalidInput, KeyError):
    """No task of this key is waiting or in flight."""

    def __init__(self, key: Hashable) -> None:
        super().__init__(key)
        self.key = key

    def __str__(self) -> str:
        return f"no task with key {self.key!r} is waiting or in flight"


class InvalidTransition(InvalidInput):
    """The requested state cannot follow the state of the task."""

    def __init__(self, key: Hashable, now: State, requested: State, allowed: Collection[State]) -> None:
        super().__init__(key, now, requested, allowed)
        self.key, self.now, self.requested, self.allowed = key, now, requested, allowed

    def __str__(self) -> str:
        allowed = ", ".join(self.allowed) or "none, the task has ended"
        return (
            f"task {self.key!r} is {self.now.value} and cannot become {self.requested.value}; allowed states: {allowed}"
        )


class ExecutorEnded(InvalidInput):
    """The executor accepts no more tasks."""

    def __str__(self) -> str:
        return "the executor has ended and accepts no more tasks; create a new one"


class TaskFailed(CeleriacError):
    """A task did not succeed."""

    def __init__(self, result: Result) -> None:
        super().__init__(result)
        self.result = result

    def __str__(self) -> str:
        return f"{self.result.state.value}: {self.result.detail or self.result.reason or 'no reason is known'}"


class CommandFailed(CeleriacError):
    """A command failed. The only argument of the error is plain data, so that every serializer can store the error."""

    def __init__(self, report: Mapping[str, Any]) -> None:
        super().__init__(report)
        self.report = report

    def __str__(self) -> str:
        return str(self.report.get("detail") or "the command failed")


class BrokerBlocked(CeleriacError):
    """RabbitMQ has stopped reading from publishers, because memory or disk is low. Tasks wait until it reads again."""

    def __str__(self) -> str:
        return "RabbitMQ blocks publishers; see its log for the memory or disk alarm"


class BrokerUnavailable(CeleriacError):
    """The broker does not answer, or refuses. `broker` is its URL without the password."""

    def __init__(self, broker: str, error: Exception) -> None:
        super().__init__(broker, error)
        self.broker, self.error = broker, error

    def __str__(self) -> str:
        return f"{self.broker} {describe_problem(self.error)}: {describe_refusal(self.error)}"


class BackendUnavailable(CeleriacError):
    """The result backend does not answer, or refuses."""

    def __init__(self, error: Exception, *, backend: str = "the result backend") -> None:
        super().__init__(error)
        self.error, self.backend = error, backend

    def __str__(self) -> str:
        return f"{self.backend} {describe_problem(self.error)}: {describe_refusal(self.error)}"


class LedgerError(CeleriacError):
    """The ledger cannot be used. `ledger` is its URL without the password; `problem` is a verb phrase."""

    def __init__(self, ledger: str, problem: str) -> None:
        super().__init__(ledger, problem)
        self.ledger, self.problem = ledger, problem

    def __str__(self) -> str:
        return f"the ledger {self.ledger} {self.problem}"


class LedgerUnavailable(LedgerError):
    """The ledger cannot be read or written for now. Nothing was written."""


class LedgerLocked(LedgerUnavailable):
    """Another process is writing to the ledger: a later attempt will succeed."""

    REPORT_DELAY = 5.0
    """Seconds that it may last before a line says so."""


class LedgerLost(LedgerError):
    """Another executor has taken over the tasks of this one, because the lease of this one expired."""


class LedgerBroken(LedgerError):
    """The ledger is damaged, or of an unknown version."""


class SentBefore(CeleriacError):
    """A task that was sent before must not be sent again: it may have started meanwhile, or ended."""


class QueueRefused(CeleriacError):
    """RabbitMQ refuses to declare a queue, or to let this user use it."""

    def __init__(self, queue: str, answer: str) -> None:
        """`answer` is RabbitMQ's reply, in its own words."""
        super().__init__(queue, answer)
        self.queue, self.answer = queue, answer

    @classmethod
    def from_reply(cls, error: Any, queue: str | None = None) -> Self:
        """Return the error for an error of the client, which has a `reply_text`. RabbitMQ names the queue in most
        replies; `queue` is the name otherwise."""
        answer = str(getattr(error, "reply_text", None) or error)
        named = re.search(QUEUE_NAME, answer)
        return cls(queue or (named[1] if named else "?"), answer)

    def __str__(self) -> str:
        for pattern, problem, remedy in QUEUE_PROBLEMS:
            if re.search(pattern, self.answer):
                return f"queue {self.queue!r} {problem} ({self.answer}); {remedy}"
        return f"queue {self.queue!r} is refused by RabbitMQ ({self.answer}); see the log of the server"


QUEUE_NAME = r"(?:queue|exchange) '([^']*)'"
QUORUM_REMEDY = "set queue_type = quorum (in Celery: task_default_queue_type) in every executor and worker"
QUEUE_PROBLEMS = (
    (r"current is (the value )?'quorum'|rabbit_quorum_queue|global qos", "is a quorum queue", QUORUM_REMEDY),
    (
        r"inequivalent arg 'x-queue-type'",
        "is not a quorum queue",
        "leave queue_type out, or delete the queue when it is empty",
    ),
    (
        r"inequivalent arg 'x-max-priority'",
        "exists with other arguments",
        "delete it when it is empty, or set queue_type and task_queue_max_priority as when it was created",
    ),
    (r"inequivalent arg", "exists with other arguments", "delete it when it is empty"),
    (r"ACCESS_REFUSED", "is not allowed for this user", "give the user the rights to configure, write and read it"),
    (r"is down or inaccessible", "is on a stopped node of the cluster", "start that node again"),
    (r"NOT_FOUND", "does not exist, or its exchange does not", "create it again"),
    (r"RESOURCE_LOCKED", "belongs to one connection alone", "end the client that has it, or choose another name"),
)
"""Parts of RabbitMQ's replies, each with the problem and its remedy. The first that matches counts."""
