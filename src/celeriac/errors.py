"""Everything Celeriac raises.

CeleriacError
├── InvalidInput                the caller's, and the caller can mend it
│   ├── InvalidTask             a field of a task is wrong
│   ├── InvalidConfig           a setting is wrong
│   ├── TaskAlreadyQueued       a key is waiting or out already
│   ├── UnknownTask             no task of that key is waiting or out
│   ├── ImpossibleMove          the state asked for cannot follow the task's own
│   └── ExecutorEnded           nothing can be queued after `end` or `terminate`
├── BrokerBlocked               RabbitMQ takes no messages for now: an alarm, for its operator to clear
├── BrokerAway                  the broker does not answer
├── BackendAway                 the result backend does not answer
├── QueueRefused                a queue exists already, and is of another kind
├── LedgerError
│   ├── LedgerAway              the ledger cannot be written for now: a full disk, a lock, a server that is away
│   ├── LedgerLost              another executor has taken over what this one had
│   └── LedgerBroken            the ledger is damaged, or of a version that this one does not know
└── CommandFailed               a command did not end well: raised on the worker, for Celery
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celeriac.task.state import State


def describe_error(error: BaseException) -> str:
    """Return one line about an error: its type and the first line of its message.

    SQLAlchemy's errors show the whole statement; the driver's own error behind them does not.
    """
    cause = getattr(error, "orig", None) or error
    first_line = next(iter(str(cause).strip().splitlines()), "")
    return f"{type(cause).__name__}: {first_line}" if first_line else type(cause).__name__


class CeleriacError(Exception):
    """Base class of all of them."""


class InvalidInput(CeleriacError):
    """The caller gave something that cannot be used; nothing has changed."""


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


class TaskAlreadyQueued(InvalidInput):
    """A task with this key is waiting or out already."""

    def __init__(self, key: Hashable) -> None:
        super().__init__(key)
        self.key = key

    def __str__(self) -> str:
        return f"a task with key {self.key!r} is waiting or out already; give each task a key of its own"


class UnknownTask(InvalidInput, KeyError):
    """No task of this key is waiting or out."""

    def __init__(self, key: Hashable) -> None:
        super().__init__(key)
        self.key = key

    def __str__(self) -> str:
        return f"no task with key {self.key!r} is waiting or out"


class InvalidTransition(InvalidInput):
    """The state asked for cannot follow the one the task is in."""

    def __init__(self, key: Hashable, now: State, asked: State, allowed: Collection[State]) -> None:
        super().__init__(key, now, asked, allowed)
        self.key, self.now, self.asked, self.allowed = key, now, asked, allowed

    def __str__(self) -> str:
        allowed = ", ".join(self.allowed) or "nothing: it has ended"
        return f"task {self.key!r} is {self.now.value} and cannot become {self.asked.value}; what can follow: {allowed}"


class ExecutorEnded(InvalidInput):
    """The executor takes no more tasks."""

    def __str__(self) -> str:
        return "the executor has ended and takes no more tasks; make a new one"


class CommandFailed(CeleriacError):
    """A command did not end well. Its one argument is plain data, so that it survives any serializer."""

    def __init__(self, report: Mapping[str, Any]) -> None:
        super().__init__(report)
        self.report = report

    def __str__(self) -> str:
        return str(self.report.get("detail") or "the command failed")


class BrokerBlocked(CeleriacError):
    """RabbitMQ has stopped reading from publishers: it is short of memory or disk. Tasks wait until it reads again."""

    def __str__(self) -> str:
        return "RabbitMQ blocks publishers: see its log for the memory or disk alarm"


class BrokerUnavailable(CeleriacError):
    """The broker does not answer. `broker` is its URL without the password."""

    def __init__(self, broker: str, error: Exception) -> None:
        super().__init__(broker, error)
        self.broker, self.error = broker, error

    def __str__(self) -> str:
        return f"{self.broker} is away: {self.error or type(self.error).__name__}"


class BackendUnavailable(CeleriacError):
    """The result backend does not answer."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error

    def __str__(self) -> str:
        return f"the result backend is away: {' '.join(str(self.error or type(self.error).__name__).split())}"


class LedgerError(CeleriacError):
    """Something is wrong with the ledger. `ledger` is its URL without the password."""

    def __init__(self, ledger: str, problem: str) -> None:
        super().__init__(ledger, problem)
        self.ledger, self.problem = ledger, problem

    def __str__(self) -> str:
        return f"the ledger {self.ledger} {self.problem}"


class LedgerUnavailable(LedgerError):
    """It cannot be read or written for now. Nothing was written."""


class LedgerLost(LedgerError):
    """Another executor owns what this one did: it took this one for dead. What this one sent is with the other."""


class LedgerBroken(LedgerError):
    """It cannot be used as it is."""


class QueueRefused(CeleriacError):
    """RabbitMQ has a queue of this name with other arguments, and will not have it declared anew."""

    def __init__(self, queue: str, answer: str) -> None:
        super().__init__(queue, answer)
        self.queue, self.answer = queue, answer

    def __str__(self) -> str:
        return (
            f"queue {self.queue!r} exists with other arguments ({self.answer}); delete it once it is empty, or set"
            " task_queue_max_priority to what it was made with"
        )
