"""Broker, result backend and ledger in memory, with what matters of the real ones.

A queue of Redis loses a message that a client has taken and not recorded; it gives back after the visibility timeout,
or when a worker closes in order. RabbitMQ gives back when a connection ends.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from celeriac.backend.claims.memory import MemoryClaims
from celeriac.executor.interfaces import Unreadable
from celeriac.task.result import Reason, Result
from celeriac.task.state import State
from celeriac.task.task import Task
from tests.simulation.network import Server
from tests.simulation.primitives import Event
from tests.simulation.world import Process, World

VISIBILITY_TIMEOUT = 45.0  # seconds; short, so that histories see it


@dataclass(eq=False)
class Message:
    """One message of a task; two of the same task are two messages."""

    task: Task
    sent_at: float
    limits: Sequence[Any] = ()
    """The limits of its task, as a worker reads them."""

    taken_by: Process | None = None
    taken_at: float = 0.0


class Broker(Server):
    """A queue. `kind` is "redis" or "amqp"."""

    def __init__(self, world: World, kind: str) -> None:
        super().__init__(world, "broker")
        self.kind, self.visibility_timeout = kind, VISIBILITY_TIMEOUT
        self.queue: list[Message] = []
        self.unacked: dict[int, Message] = {}
        self.last_taken: dict[Process, Message] = {}
        self.consumers: list[Event] = []
        """Set when there is a message to take. They have an order, so that a seed makes the same history each time."""

    def publish(self, task: Task, limits: Sequence[Any] = ()) -> None:
        self.queue.append(Message(task, self.world.now, limits))
        self.notify()

    def notify(self) -> None:
        for consumer in self.consumers.copy():
            consumer.set()

    def insert(self, message: Message) -> None:
        """Put a message before all others."""
        self.queue.insert(0, message)
        self.notify()

    def take(self, process: Process) -> Message | None:
        """Take the next message. On Redis the client must `record` it in a second request."""
        self._restore_invisible()
        if not self.queue:
            return None
        message = self.queue.pop(0)
        message.taken_by, message.taken_at = process, self.world.now
        self.last_taken[process] = message
        if self.kind == "amqp":
            self.unacked[id(message)] = message
        return message

    def record(self, message: Message) -> None:
        self.unacked[id(message)] = message

    def acknowledge(self, message: Message) -> None:
        self.unacked.pop(id(message), None)

    def put_back(self, message: Message) -> None:
        if self.unacked.pop(id(message), None) is not None:
            self.insert(message)

    def connection_ended(self, process: Process) -> None:
        """RabbitMQ gives back what a connection has not acknowledged."""
        if self.kind == "amqp":
            for message in [message for message in self.unacked.values() if message.taken_by is process]:
                self.put_back(message)

    def ids_waiting(self) -> set[str]:
        return {message.task.message_id for message in self.queue}

    def ids_delivered(self) -> set[str]:
        """Return the ids of the messages that were delivered and not acknowledged."""
        return {message.task.message_id for message in self.unacked.values()}

    def _restore_invisible(self) -> None:
        if self.kind == "redis":
            for message in list(self.unacked.values()):
                if self.world.now - message.taken_at > self.visibility_timeout:
                    self.put_back(message)


class Store(Server):
    """Results, claims and leases."""

    def __init__(self, world: World, *, keeps_success: bool = True) -> None:
        """`keeps_success` says whether a success stays: Redis keeps it, and so do databases since Celery 5.7. Before,
        a database replaced it, too."""
        super().__init__(world, "store")
        self._keeps_success = keeps_success
        self.results: dict[str, Result | Unreadable] = {}
        self.claims = MemoryClaims(on_cancelled=self._on_cancelled)
        self.readers: list[Callable[[str], None]] = []
        """The change feeds of the executors; each gets the id of every result that is stored."""

        self.ended: dict[str, State] = {}
        """The ids of which a final result was ever stored: with SUCCESS if one was, which a failover may have lost."""

        self.on_success: Callable[[str], None] = lambda task_id: None
        """Called with the id of each attempt whose success is stored while its claim is good."""

    def put(self, task_id: str, result: Result) -> None:
        """Store a result in place of the one before."""
        stored = self.results.get(task_id)
        if self._keeps_success and isinstance(stored, Result) and stored.state is State.SUCCESS:
            return
        self.results[task_id] = result
        if result.state.is_final and not self.has_success_of(task_id):
            self.ended[task_id] = result.state
        entry = self.claims._entries.get(task_id)  # none if a failover has lost the claim
        if result.state is State.SUCCESS and (entry is None or not entry.fenced):
            self.on_success(task_id)
        for reader in self.readers:
            reader(task_id)

    def has_success_of(self, task_id: str) -> bool:
        return self.ended.get(task_id) is State.SUCCESS

    def fetch(self, ids: Collection[str]) -> Mapping[str, Result | Unreadable]:
        return {task_id: self.results[task_id] for task_id in ids if task_id in self.results}

    def delete(self, ids: Collection[str]) -> None:
        for task_id in ids:
            self.results.pop(task_id, None)

    def _on_cancelled(self, task_id: str) -> None:
        self.put(task_id, Result(State.REVOKED, Reason.REVOKED, "revoked"))
