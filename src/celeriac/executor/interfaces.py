"""The interfaces between the executor and everything that does I/O.

| interface        | the executor uses it to             | implemented in                         |
|------------------|-------------------------------------|----------------------------------------|
| Publisher        | send tasks to the broker            | broker/, cluster/local/                |
| ResultReader     | read results from the backend       | backend/results/, cluster/local/       |
| Revoker          | revoke tasks at the workers         | cluster/revoker.py, cluster/local/     |
| Capacity         | count what the live workers can run | executor/capacity.py, cluster/         |
| LostTaskDetector | find tasks that were lost           | cluster/lost_tasks/                    |
| ControlChannel   | receive requests of other processes | control/                               |
| Ledger           | store tasks and events durably      | ledger/                                |
| PlaceStore       | keep to limits with other executors | executor/places.py, cluster/           |

`celeriac.testing` implements most of them in memory. No method blocks for long, because a heartbeat calls all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

from msgspec import Struct

from celeriac.executor.requests import Reply, Request
from celeriac.task.event import Event
from celeriac.task.result import Execution, Reason, Result
from celeriac.task.state import State
from celeriac.task.task import Task, TaskKey

if TYPE_CHECKING:  # few runs have limits
    from celeriac.executor.limit import PlaceRequest, Refusal


class Sent(Struct, frozen=True):
    """The broker has the task."""

    task: Task


class NotSent(Struct, frozen=True):
    """This attempt has not sent the task. With `SentBefore` as the error, the message of an earlier one counts."""

    task: Task
    error: Exception
    transient: bool = True
    """Whether a later attempt may succeed: True for an outage, False for a message that cannot be encoded."""


class Unsure(Struct, frozen=True):
    """The broker may or may not have the task: the connection broke after the write. The same id is re-sent."""

    task: Task
    error: Exception


Receipt: TypeAlias = Sent | NotSent | Unsure


class Unreadable(Struct, frozen=True):
    """A stored result that cannot be decoded."""

    error: Exception


class Publisher(Protocol):
    """Sends tasks to the broker."""

    def publish(self, tasks: Sequence[Task], *, timeout: float) -> Iterable[Receipt]:
        """Send the tasks. Return one receipt for each task, in the same order.

        Take at most `timeout` seconds. Do not raise for an unavailable broker: return `NotSent`. A task without a
        receipt counts as `Unsure`."""
        ...


class Revoker(Protocol):
    """Keeps tasks from starting, and stops running ones."""

    @property
    def is_durable(self) -> bool:
        """Whether a revoked task that has not started can never start, even on a worker that starts later. If so, its
        end always arrives as a result."""
        ...

    def revoke(self, ids: Collection[str], *, unless_started: bool = False) -> None:
        """Revoke tasks by their Celery ids. With `unless_started`, running tasks go on.

        The end of each task arrives as a result. Do not wait or raise.
        """
        ...


class ResultReader(Protocol):
    """Reads results from the result backend, and reports which ones may have changed."""

    @property
    def pushes(self) -> bool:
        """Whether the last `changed` returned every id that had changed since the call before. If so, the executor
        rarely reads the other results. If not, it soon reads the results of all tasks in flight."""
        ...

    def changed(self) -> Collection[str]:
        """Return the Celery ids whose results may have changed since the last call.

        They are hints: ids may be missing, doubled, or of other executors.
        """
        ...

    def read(self, ids: Collection[str]) -> Mapping[str, Result | Unreadable]:
        """Return the stored results of these ids. An id without a result is left out.

        Do not raise for an unavailable backend, or wait long: a later `changed` returns the unread ids again."""
        ...

    @property
    def answered(self) -> bool:
        """Whether the last `read` could look up all of its ids. If so, an id that it left out has no stored result."""
        ...

    def forget(self, ids: Collection[str]) -> None:
        """Delete the stored results of these ids, whose events were taken. Do not wait long or raise."""
        ...

    def wait(self, timeout: float) -> None:
        """Return when something may have changed, or after `timeout` seconds."""
        ...


class LostTask(Struct, frozen=True):
    """A task that was sent and has not ended, and that neither the broker nor a live worker has."""

    id: str
    """Its Celery id."""

    detail: str
    was_claimed: bool = False
    """Whether a worker had claimed it. Then the claim is fenced: no worker can start the task under this id."""

    host: str | None = None
    """The host of the worker that had claimed it."""

    requested_at: float | None = None
    """The time at which the scan was requested. Ignore this `LostTask` if the task changed its state later. None for a
    fenced claim."""


class LostTaskDetector(Protocol):
    """Scans the broker and the claims for lost tasks, in the background."""

    @property
    def is_scanning(self) -> bool:
        """Whether a scan is going on."""
        ...

    @property
    def has_news(self) -> bool:
        """Whether a worker died, or may have died, since the last scan began. If so, begin a new scan at once."""
        ...

    def scan(self, tasks: Iterable[Task], *, requested_at: float, urgent: bool = False) -> None:
        """Begin to scan for these tasks, which were sent and have not ended. Stop a scan that is going on. Do not wait.

        `requested_at` is the present time on the caller's clock; each `LostTask` of the scan carries it. An urgent scan
        may report a task on its way to a worker: re-sending it does no harm, because workers claim what they start.
        Another thread may iterate over `tasks`, while the caller goes on.
        """
        ...

    def take_lost(self) -> Collection[LostTask]:
        """Return the lost tasks found since the last call. Return each lost task once."""
        ...

    def is_held(self, message_id: str) -> bool:
        """Return whether the lease of a live worker lists the task. Do not wait."""
        ...


class PendingRequest(Struct, frozen=True, eq=False):
    """A request of another process."""

    request: Request
    reply_to: object = None
    """Where the control channel sends the reply. Only the control channel reads it."""


class ControlChannel(Protocol):
    """Receives requests of other processes to a running executor, and sends the replies."""

    def take_requests(self) -> Iterable[PendingRequest]:
        """Return the requests that arrived since the last call. Do not wait or raise."""
        ...

    def reply(self, pending: PendingRequest, reply: Reply) -> None:
        """Send a reply. After a `CancelReply` with `is_last` False another reply follows. Do not wait or raise."""
        ...


class PlaceStore(Protocol):
    """Keeps the places of limits, for all executors that share them."""

    renew_interval: float | None
    """Seconds after which a place is to be renewed until its task has started. None if places need no renewal."""

    def reserve(self, requests: Sequence[PlaceRequest]) -> Mapping[str, Refusal]:
        """Take or renew all places of each request, or none, in one round trip. Return the refusals, by id.

        Do not wait long or raise."""
        ...

    def renew(self, requests: Sequence[PlaceRequest]) -> None:
        """Renew the places of tasks that were sent. Do not wait or raise."""
        ...

    def started(self, request: PlaceRequest) -> None:
        """Note that a task was started. Do not wait or raise."""
        ...

    def ended(self, request: PlaceRequest, *, was_sent: bool) -> None:
        """Free the places of an ended task. Without `was_sent` it has not started. Do not wait or raise."""
        ...


OpenPlaces: TypeAlias = Callable[[], PlaceStore]
"""Opens the store of places, when there is a first limit. Raises `InvalidConfig` if there is no store for them."""


class TaskRecord(Struct, frozen=True, gc=False):
    """The state of a task, as the ledger stores it."""

    task: Task
    """The task with the attempt that runs, or that runs next."""

    state: State
    when: float
    """When the task entered that state, in seconds since the epoch."""

    reason: Reason | None = None
    detail: str | None = None
    execution: Execution | None = None
    not_before: float | None = None
    """When the next attempt may be sent, in seconds since the epoch. None if the task does not wait for a retry."""

    revoking: bool = False
    """Whether the task was revoked and has not ended yet."""


class QueuedTask(NamedTuple):
    """A new task for the ledger."""

    task: Task
    arrived: float
    """Seconds since the epoch."""

    place: int
    """Its place among the tasks of the ledger, in order of arrival: see `Ledger.next_place`."""


class LedgerBatch(Struct, frozen=True):
    """The changes that the ledger stores in one transaction."""

    queued: Collection[QueuedTask]
    """New tasks, in any order. The tasks that one of them needs are among them, or were stored before."""

    records: Mapping[TaskKey, TaskRecord]
    """The state of each task that changed, by key; new tasks may be among them."""

    events: Sequence[Event]
    """The events that end a task or an attempt, in the order of their numbers."""

    last_number: int
    """The number of the last event."""

    acknowledged: int
    """The caller has handled all events up to this number."""

    revoked_waiting: RevokedWaiting | None = None
    """The end of all tasks that wait, after the other changes."""


class RevokedWaiting(Struct, frozen=True):
    """The end of all tasks that wait: each becomes REVOKED."""

    when: float
    """Seconds since the epoch."""

    detail: str


class UnfinishedTask(Struct, frozen=True, gc=False):
    """A task that had not ended when its executor stopped. The ledger returns it; it never stores one."""

    task: Task
    state: State
    arrived: float
    """Seconds since the epoch."""

    not_before: float | None = None
    """When it may be sent, in seconds since the epoch."""

    revoking: bool = False
    """Whether it was revoked."""


class LedgerTraits(Struct, frozen=True, kw_only=True):
    """How an executor may use its ledger."""

    is_optional: bool = False
    """Whether tasks start also while it cannot be written. They do not while another process is writing."""

    revokes_together: bool = False
    """Whether a batch may have `revoked_waiting`: the executor has recovered all tasks that wait in the ledger."""

    has_source: bool = False
    """Whether the tasks can be queued again from elsewhere, such as a file. A task that is revoked before it was
    stored is then not stored at all."""

    run: str | None = None
    """The name of the run, if the executor has this run alone, and ends when the run is cancelled."""


NO_TRAITS = LedgerTraits()


class Ledger(Protocol):
    """The durable memory of one executor. Nothing else writes to it."""

    lease: float | None
    """The longest allowed time between two writes, in seconds. None if a write is not also a heartbeat."""

    traits: LedgerTraits

    def next_place(self, number: int = 1) -> int:
        """Return the place of the next task that is queued, and reserve the places of so many tasks."""
        ...

    def check(self, task: Task) -> None:
        """Raise `InvalidTask` for a task that cannot be stored."""
        ...

    def write(self, batch: LedgerBatch) -> None:
        """Store all of the batch or nothing. The same batch may be written again. Do not wait long.

        Raise `LedgerUnavailable` if a later write may succeed, `LedgerLocked` while another process is writing,
        `LedgerLost` if another executor has taken over, and `LedgerBroken` if the ledger cannot be used.
        """
        ...

    def unfinished(self) -> Iterable[UnfinishedTask]:
        """Return the tasks that have not ended, in order of arrival. Raise the same errors as `write`."""
        ...

    def numbers(self) -> tuple[int, int]:
        """Return the numbers of the last event and of the last acknowledged one. Raise the same errors as `write`."""
        ...

    def unacknowledged(self) -> Iterable[Event]:
        """Return the final events that are not acknowledged, in order. Raise the same errors as `write`."""
        ...


class TaskSource(Protocol):
    """Valid tasks of one queue that are built when they are taken. Each has a key of its own, and a place among all
    tasks that are accepted with it, also those of other sources, counted from 0."""

    queue: str
    has_needs: bool
    """Whether some tasks need others. Then these are taken before them."""

    def __len__(self) -> int:
        """Return how many are left."""
        ...

    def take(self, limit: int) -> list[tuple[int, Task]]:
        """Remove and return the most urgent tasks, at most `limit`, with their places. Equally urgent ones are in the
        order of their places."""
        ...

    def take_named(self, names: Collection[str]) -> list[tuple[int, Task]]:
        """Remove and return the tasks whose keys have these names, with their places; and perhaps others."""
        ...

    def keys(self) -> Iterable[TaskKey]:
        """Return the keys of the tasks that are left, in the order in which they would be taken."""
        ...

    def most_slots(self) -> int:
        """Return the largest number of slots that one of them may ask for."""
        ...

    def number_before(self, priority: int, place: int) -> int:
        """Return how many are left that come before a task of this priority and place."""
        ...
