"""The doors of the executor: out to the broker, back from the result backend.

Each has an in-memory implementation in `celeriac.testing`, and real ones in `publisher/`, `results/` and `embedded/`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from celeriac.result import Result
from celeriac.task import Task


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


class Whereabouts(Protocol):
    @property
    def busy(self) -> bool:
        """Whether a search is under way."""
        ...

    def look_for(self, tasks: Iterable[Task]) -> None:
        """Begin to search for tasks that were sent and have not ended. Does not wait; while busy it does nothing."""
        ...

    def nowhere(self) -> Collection[str]:
        """The ids that the last search found neither with the broker nor with a worker; each is said once."""
        ...
