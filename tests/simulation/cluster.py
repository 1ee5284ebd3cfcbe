"""The workers and the queues as an executor sees them: by leases, by replies, and by looks into the broker."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from celeriac.backend.claims.lease_monitor import LeaseMonitor
from celeriac.cluster.worker_registry import WorkerRegistry, shares_of
from celeriac.executor.capacity import WorkerShare
from celeriac.server_errors import problem_of
from tests.simulation.network import Server
from tests.simulation.primitives import sleep

if TYPE_CHECKING:
    from tests.simulation.history import History

REPLY_EXPIRY = 10.0  # seconds that a worker that died counts as one that replied lately


class Workers:
    """Tell which workers there are: the `WorkerMonitor`."""

    def __init__(self, history: History) -> None:
        self._history, self._registry = history, WorkerRegistry()
        self.leases: LeaseMonitor | None = None
        self._shares: Mapping[str, WorkerShare] | None = None

    def names(self) -> frozenset[str]:
        now = self._history.world.now
        return frozenset(
            worker.name
            for worker in self._history.workers
            if worker.process.is_alive or now - worker.process.ended_at < REPLY_EXPIRY
        )

    def why_held(self, queue: str) -> str | None:
        return None

    def shares(self) -> Mapping[str, WorkerShare] | None:
        assert self.leases is not None
        if self._history.needs is not None and self.leases.has_polled:
            shares = shares_of(self._registry.live(self.leases.active))
            self._shares = self._shares if self._shares == shares else shares
        return self._shares

    def unknown(self, queue: str) -> bool:
        """Return whether the queue has more consumers than there are known workers."""
        assert self.leases is not None
        consumers = sum(worker.process.is_alive and not worker.is_shutting_down for worker in self._history.workers)
        return consumers > len([lease for lease, has_renewed in self.leases.active if has_renewed])

    def query_all(self) -> None:
        """Each question is asked of all workers."""

    def by_queue(self) -> Mapping[str, int] | None:
        assert self.leases is not None
        return self._registry.capacity(self.leases.active, self.leases.names())


class SimulatedQueues:
    """Read the messages of the broker: Redis lists their ids, RabbitMQ only counts them."""

    def __init__(self, history: History, workers: Workers) -> None:
        self._history, self._workers = history, workers
        self.lists_ids = history.broker.kind == "redis"

    def find(self, channel: Any, ids_of_queue: Mapping[str, Collection[str]], *, with_delivered: bool) -> Iterator[str]:
        broker, network = self._history.broker, self._history.network
        for queue, ids in ids_of_queue.items():
            if self.lists_ids:
                yield from sorted(set(ids) & network.call(broker, broker.ids_waiting, "look", writes=False))
                if with_delivered:
                    yield from sorted(set(ids) & network.call(broker, broker.ids_delivered, "look", writes=False))
            elif network.call(broker, lambda: len(broker.queue), "look", writes=False) or self._workers.unknown(queue):
                yield from ids


class Session:
    """Stands in for `BrokerSession`: connections to the simulated broker."""

    history: History

    def __init__(self, app: Any, *, timeout: float) -> None:
        self._server: Server = self.history.broker

    @contextmanager
    def connect(self) -> Iterator[Any]:
        self.history.network.call(self._server, lambda: None, "connect", writes=False)
        yield self

    @contextmanager
    def channel(self) -> Iterator[Any]:
        yield self

    def is_broker_error(self, error: BaseException) -> bool:
        return isinstance(error, Exception) and problem_of(error) is not None


def ask_workers(
    app: Any,
    connection: Session,
    command: str,
    on_reply: Callable[[Any], object],
    *,
    timeout: float,
    arguments: Mapping[str, Any],
) -> None:
    """Ask the workers which of some tasks they hold. The question reaches each of them, or not."""
    history, ids = connection.history, set(arguments["ids"])
    network = history.network
    network.call(history.broker, lambda: None, "ask")
    replies: dict[str, Any] = {}
    for worker in list(history.workers):
        hears = worker.process.is_alive and not worker.process.is_frozen
        if hears and network.reaches(worker.process, history.broker) and history.world.random.random() > network.loss:
            replies[worker.name] = {request.id: {} for request in (*worker.held, *worker.active) if request.id in ids}
    sleep(timeout)
    for name, tasks in replies.items():
        on_reply({name: tasks})
