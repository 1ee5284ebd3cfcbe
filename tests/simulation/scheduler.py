"""A process with an executor: the jobs come in, the events go out, and it may be killed at any step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from celeriac.backend.claims.lease_monitor import LeaseMonitor
from celeriac.cluster.lost_tasks.detector import ThreadedLostTaskDetector
from celeriac.cluster.revoker import ControlRevoker
from celeriac.cluster.worker_registry import WorkerRegistry
from celeriac.config.executor_config import Config
from celeriac.config.lease import RENEWAL_INTERVAL
from celeriac.errors import LedgerError, LedgerLocked, LedgerLost, LedgerUnavailable
from celeriac.executor.executor import CeleryExecutor
from celeriac.executor.interfaces import LedgerBatch, NotSent, Receipt, Sent, Unreadable, Unsure
from celeriac.server_errors import problem_of
from celeriac.task.result import Result
from celeriac.task.task import Task, TaskKey
from tests.simulation.network import Server
from tests.simulation.primitives import Condition, here, monotonic, sleep
from tests.simulation.world import Process

if TYPE_CHECKING:
    from tests.simulation.history import History

MAX_WAIT = 5.0  # seconds until the executor has a heartbeat, whatever it waits for
READ_RETRY_DELAY = 1.0  # seconds until the result backend is read again after a failure
REPLY_EXPIRY = 10.0  # seconds that a worker that died counts as one that replied lately


class SimulatedPublisher:
    """Sends one message after the other on one connection."""

    def __init__(self, history: History) -> None:
        self._history = history
        self.executor: CeleryExecutor | None = None

    def publish(self, tasks: Sequence[Task], *, timeout: float) -> list[Receipt]:
        assert self.executor is not None
        self._history.invariants.published(tasks, self.executor)
        return [self._publish(task) for task in tasks]

    def _publish(self, task: Task) -> Receipt:
        history, broker = self._history, self._history.broker
        arrived = False

        def send() -> None:
            nonlocal arrived
            arrived = True
            broker.publish(task)

        try:
            history.network.call(broker, send, "publish")
        except Exception as error:
            if problem_of(error) is None:
                raise
            # A client that got no reply cannot know; one whose connection was refused does.
            is_known = not arrived and not isinstance(error, TimeoutError | type(history.no_reply))
            return NotSent(task, error) if is_known else Unsure(task, error)
        return Sent(task)


class SimulatedResults:
    """Reads results. Hints about changes may be lost."""

    pushes = False

    def __init__(self, history: History, process: Process) -> None:
        self._history, self._process = history, process
        self._changed = Condition()
        self._hints: set[str] = set()
        self._unread: set[str] = set()
        self._retry_at = float("-inf")
        self._woken = False
        self.answered = True
        history.store.readers.append(self._on_stored)

    def _on_stored(self, task_id: str) -> None:
        history, process = self._history, self._process
        if process.is_alive and history.network.reaches(process, history.store) and history.world.random.random() < 0.9:
            process.spawn(self.hint, [task_id], name="change feed")

    def hint(self, ids: Collection[str]) -> None:
        with self._changed:
            self._hints.update(ids)
            self._changed.notify_all()

    def wake(self) -> None:
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def changed(self) -> list[str]:
        hints, self._hints = self._hints, set()
        if monotonic() >= self._retry_at:
            hints |= self._unread
            self._unread = set()
        return sorted(hints)

    def read(self, ids: Collection[str]) -> Mapping[str, Result | Unreadable]:
        store, wanted = self._history.store, sorted(ids)
        self.answered = True
        if not wanted:
            return {}
        if monotonic() >= self._retry_at:
            try:
                return self._history.network.call(store, lambda: store.fetch(wanted), "fetch", writes=False)
            except Exception as error:
                if problem_of(error) is None:
                    raise
                self._retry_at = monotonic() + READ_RETRY_DELAY
        self.answered = False
        self._unread.update(wanted)
        return {}

    def forget(self, ids: Collection[str]) -> None:
        self._process.spawn(self._forget, sorted(ids), name="cleaner")

    def _forget(self, ids: list[str]) -> None:
        try:
            self._history.network.call(self._history.store, lambda: self._history.store.delete(ids), "delete")
        except Exception as error:
            if problem_of(error) is None:
                raise

    def wait(self, timeout: float) -> None:
        if self._unread:
            timeout = min(timeout, max(0.0, self._retry_at - monotonic()))
        with self._changed:
            self._changed.wait_for(lambda: self._hints or self._woken, timeout)
            self._woken = False


class OwnedLedger:
    """The ledger of one history, as one executor holds it. Another executor takes it over."""

    lease: float | None = RENEWAL_INTERVAL
    drained_after = float("inf")
    """The number of the last event before its executor was asked to drain."""

    def __init__(self, history: History) -> None:
        self._history, self._stored = history, history.ledger
        history.ledger_owner += 1
        self._owner = history.ledger_owner
        self.traits = self._stored.traits
        self.check, self.next_place = self._stored.check, self._stored.next_place

    def write(self, batch: LedgerBatch) -> None:
        """Write a batch, in one transaction. Without a reply it may have been written, and is written again."""
        try:
            self._history.network.call(self._history.ledger_server, lambda: self._write(batch), "ledger")
        except LedgerError:
            raise
        except Exception as error:
            if problem_of(error) is None:
                raise
            kind = LedgerLocked if self._history.ledger_server.is_hung else LedgerUnavailable
            raise kind("simulated", "does not answer") from error

    def _write(self, batch: LedgerBatch) -> None:
        self._check()
        stored, _ = self._stored.numbers()
        new = replace(batch, events=[event for event in batch.events if event.number > stored])
        self._stored.write(new)
        self._history.invariants.ledger_written(new, self.drained_after)

    def unfinished(self) -> Any:
        self._check()
        return self._stored.unfinished()

    def numbers(self) -> tuple[int, int]:
        self._check()
        return self._stored.numbers()

    def unacknowledged(self) -> Any:
        self._check()
        return self._stored.unacknowledged()

    def _check(self) -> None:
        if self._history.ledger_owner != self._owner:
            raise LedgerLost("simulated", "was taken over")
        if not self._history.ledger_server.is_up:
            raise LedgerUnavailable("simulated", "is locked")


class Workers:
    """Tell which workers there are: the `WorkerMonitor`."""

    def __init__(self, history: History) -> None:
        self._history, self._registry = history, WorkerRegistry()
        self.leases: LeaseMonitor | None = None

    def names(self) -> frozenset[str]:
        now = self._history.world.now
        return frozenset(
            worker.name
            for worker in self._history.workers
            if worker.process.is_alive or now - worker.process.ended_at < REPLY_EXPIRY
        )

    def why_held(self, queue: str) -> str | None:
        return None

    def shares(self) -> None:
        """No task of a history needs resources."""

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


class SimulatedScheduler:
    """One process with an executor, until it is killed."""

    def __init__(self, history: History, name: str) -> None:
        self.history, self.name = history, name
        world, random = history.world, history.world.random
        self.process = Process(world, name, rate=random.uniform(0.995, 1.005), wall_offset=random.uniform(-3600, 3600))
        self.executor: CeleryExecutor | None = None
        self.ledger: OwnedLedger
        self.ends_by: str | None = None
        """How it is asked to end, if it is."""

        self.process.spawn(self._main)

    def _main(self) -> None:
        try:
            executor = self._make_executor()
        except (LedgerUnavailable, LedgerLost):
            sleep(1.0)
            self.process.kill()
            return
        self.executor = executor
        with suppress(LedgerLost):
            self._drive(executor)
            self._end(executor)
        self.process.kill()

    def _make_executor(self) -> CeleryExecutor:
        history = self.history
        results = SimulatedResults(history, self.process)
        workers = Workers(history)
        leases = LeaseMonitor(history.remote_claims(), on_news=results.wake)
        workers.leases = leases
        app: Any = SimpleNamespace(
            conf=SimpleNamespace(worker_enable_remote_control=True),
            control=SimpleNamespace(revoke=history.broadcast_revoke),
        )
        detector = ThreadedLostTaskDetector(
            app,
            queues=SimulatedQueues(history, workers),
            workers=workers,  # type: ignore[arg-type]
            leases=leases,
            timeout=2.0,
            on_found=results.wake,
        )
        revoker = ControlRevoker(app, claims=history.remote_claims(), timeout=2.0, on_revoked=results.hint)
        self.ledger, publisher = OwnedLedger(history), SimulatedPublisher(history)
        executor = publisher.executor = CeleryExecutor(
            Config(parallelism=history.parallelism, search_interval=history.search_interval),
            publisher=publisher,
            results=results,
            revoker=revoker,
            capacity=workers if history.late_binding else None,
            lost_task_detector=detector,
            ledger=self.ledger,
            clock=monotonic,
            wall_clock=here().process.wall,
            random=history.world.random,
        )
        executor.recover(ended=history.ends())
        return executor

    def _drive(self, executor: CeleryExecutor) -> None:
        """Have heartbeats until it is asked to end."""
        history = self.history
        queued: set[TaskKey] = set()
        while self.ends_by is None:
            for tasks in history.due_tasks():
                new = [task for task in tasks if task.key not in queued and not executor.has_task(task.key)]
                if len(new) == len(tasks):
                    executor.queue_tasks(tasks)
                    queued.update(task.key for task in tasks)
            self._beat(executor)
            executor.wait(min(MAX_WAIT, history.seconds_until_due()))

    def _end(self, executor: CeleryExecutor) -> None:
        """Start nothing more, wait for what is in flight, and revoke the rest."""
        self._beat(executor)
        self.ledger.drained_after = executor._ledger_writer._number
        self.history.was_drained = True
        match self.ends_by:
            case "drain":
                executor.drain()
            case "cancel_unstarted":
                executor.drain()
                executor.cancel_unstarted()
            case _:
                executor.terminate()
        while executor.tasks_in_flight:
            self._beat(executor)
            executor.wait(min(MAX_WAIT, self.history.seconds_until_due()))
        while not executor.end(0.0) or executor._lifecycle.event_buffer:
            self._beat(executor)
            sleep(1.0)
        self._beat(executor)

    def _beat(self, executor: CeleryExecutor) -> None:
        if keys := [key for key in self.history.due_revokes() if executor.has_task(key)]:
            executor.revoke_tasks(keys)
            if executor.flush():
                self.history.revoke_requested(keys)
        executor.heartbeat()
        self.history.invariants.executor_rests(executor)
        events = executor.read_events()
        for event in events:
            self.history.invariants.told(event)
        if events:
            executor.acknowledge(events[-1].number)
