"""The doors of the executor: out to the broker, back from the result backend.

Each has an in-memory implementation in `celeriac.testing` or `ledger/`, and real ones in `publisher/`, `results/`,
`embedded/` and `ledger/`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from celeriac.executor.requests import Reply, Request
from celeriac.task.event import Event
from celeriac.task.result import Execution, Reason, Result
from celeriac.task.state import State
from celeriac.task.task import Task, TaskKey


@dataclass(frozen=True, slots=True)
class Sent:
    """The broker has it."""

    task: Task


@dataclass(frozen=True, slots=True)
class NotSent:
    """The broker does not have it."""

    task: Task
    error: Exception
    transient: bool = True
    """Whether sending the same thing later may work: True for an outage, False for a message nobody can encode."""


@dataclass(frozen=True, slots=True)
class Unsure:
    """Nobody knows: the connection broke after the write. It is sent again under the same id."""

    task: Task
    error: Exception


Receipt: TypeAlias = Sent | NotSent | Unsure


@dataclass(frozen=True, slots=True)
class Unreadable:
    """There is a result, and it cannot be understood."""

    error: Exception


class Publisher(Protocol):
    def publish(self, tasks: Sequence[Task], *, timeout: float) -> Iterable[Receipt]:
        """Send every task and answer for each one, in order.

        Takes no longer than `timeout` seconds and does not raise for a broker that is away: that is `NotSent`.
        A task it gives no receipt for counts as `Unsure`.
        """
        ...


class Revoker(Protocol):
    @property
    def is_durable(self) -> bool:
        """Whether what has not started never will, also when no worker is up to hear of it. Then its end arrives as a
        result in any case."""
        ...

    def revoke(self, ids: Collection[str], *, unless_started: bool = False) -> None:
        """Ask that these never start, or stop if they run; with `unless_started`, that what runs goes on. Their end
        arrives as a result. Does not wait or raise."""
        ...


class ResultReader(Protocol):
    @property
    def pushes(self) -> bool:
        """Whether the last `changed` named all that had moved since the one before. Then the executor looks by itself
        only rarely; else it looks at everything that is out, soon."""
        ...

    def changed(self) -> Collection[str]:
        """Ids that may have moved since the last call. A hint: some may be missing, doubled or not ours."""
        ...

    def read(self, ids: Collection[str]) -> Mapping[str, Result | Unreadable]:
        """What is known of these; those of which nothing is known are left out.

        Does not raise for a backend that is away, nor wait long: what could not be read now, `changed` names again.
        """
        ...

    @property
    def answered(self) -> bool:
        """Whether the last `read` left nothing unread: what it knows nothing of, nobody has stored."""
        ...

    def forget(self, ids: Collection[str]) -> None:
        """Their events were taken: the stored results may be deleted. Does not wait long or raise."""
        ...

    def wait(self, timeout: float) -> None:
        """Return when something may have changed, or after `timeout` seconds."""
        ...


class Capacity(Protocol):
    def by_queue(self) -> Mapping[str, int] | None:
        """How many tasks the live workers of each queue run at once; None while that is not known."""
        ...


@dataclass(frozen=True, slots=True)
class LostTask:
    """A task that was sent and has not ended, and that nobody has any more."""

    id: str
    detail: str
    was_claimed: bool = False
    """Whether a worker had claimed it. Then it is fenced off: nobody can start it under this id."""

    host: str | None = None
    """That worker's."""

    requested_at: float | None = None
    """When the search was asked for. Of a task that has moved since it says nothing: it was somewhere after all. None
    of what is fenced off."""


class LostTaskDetector(Protocol):
    @property
    def is_scanning(self) -> bool:
        """Whether a search is under way."""
        ...

    @property
    def has_news(self) -> bool:
        """Whether a worker has gone, or may have, since the last search began: then there is something to look for,
        also while one is under way."""
        ...

    def scan(self, tasks: Iterable[Task], *, requested_at: float, urgent: bool = False) -> None:
        """Begin to search for tasks that were sent and have not ended, and leave off what is under way. Does not wait.
        `asked` is now, by the caller's clock: what is found is marked with it.

        In haste a task may be called missing that is on its way from one place to another, where a second message of it
        does no harm because workers claim what they start."""
        ...

    def take_lost(self) -> Collection[LostTask]:
        """What was found since the last call. Each is said once."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class PendingRequest:
    """A request, and whoever made it."""

    request: Request
    reply_to: object = None
    """The desk's own, by which it knows where the answer goes."""


class ControlChannel(Protocol):
    """Where others ask things of an executor at work, from wherever they are."""

    def take_requests(self) -> Iterable[PendingRequest]:
        """What was asked since the last call. Does not wait or raise."""
        ...

    def reply(self, asked: PendingRequest, reply: Reply) -> None:
        """The answer; a `Cancelled` that is not the last is followed by another. Does not wait or raise."""
        ...


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """Where a task stands, as the ledger keeps it."""

    task: Task
    """With the attempt that runs, or that is to run next."""

    state: State
    when: float
    """Seconds since the epoch."""

    reason: Reason | None = None
    detail: str | None = None
    execution: Execution | None = None
    not_before: float | None = None
    """Seconds since the epoch: when it may be sent, while it waits for its next attempt."""

    revoking: bool = False


@dataclass(frozen=True, slots=True)
class LedgerBatch:
    """What goes into the ledger in one transaction."""

    queued: Sequence[tuple[Task, float]]
    """New tasks, each with the moment it arrived, in seconds since the epoch."""

    records: Mapping[TaskKey, TaskRecord]
    """Where each task that moved stands now, new ones too."""

    events: Sequence[Event]
    """What happened, in the order of its numbers: not every move, but all that tell more than a standing."""

    last_number: int
    """Of the last event there was."""

    acknowledged: int
    """Up to which number the caller has dealt with events."""


@dataclass(frozen=True, slots=True)
class UnfinishedTask:
    """A task that had not ended when its executor went."""

    task: Task
    state: State
    arrived: float
    not_before: float | None = None
    revoking: bool = False


class Ledger(Protocol):
    """The executor's own durable memory. Nobody else writes to it."""

    lease: float | None
    """Seconds between two writes, at the most, by which this executor is known to live; None if nobody asks."""

    def check(self, task: Task) -> None:
        """Raises `InvalidTask` for a task that cannot be written down."""
        ...

    def write(self, page: LedgerBatch) -> None:
        """All of it, or nothing. The same page may come again. Does not wait long.

        Raises `LedgerAway` if it may work later, `LedgerLost` if another executor has taken over, and `LedgerBroken`.
        """
        ...

    def unfinished(self) -> Iterable[UnfinishedTask]:
        """The tasks that have not ended, in order of arrival. Raises what `write` does."""
        ...

    def numbers(self) -> tuple[int, int]:
        """Of the last event there was, and up to which the caller has dealt with them. Raises what `write` does."""
        ...

    def unacknowledged(self) -> Iterable[Event]:
        """The final events that the caller has not dealt with, in order. Raises what `write` does."""
        ...
