"""A worker process.

The decisions are those of `celeriac.worker`: the task of a message, the claim, the lease, and what follows from a
shutdown. Celery's event loop and pool are simulated.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import Empty
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from celery.exceptions import Ignore, Reject

from celeriac.broker.command_message import command_message
from celeriac.errors import CommandFailed
from celeriac.server_errors import problem_of
from celeriac.task.result import Execution, Reason, Result
from celeriac.task.state import State
from celeriac.worker.lease_manager import LeaseManager
from celeriac.worker.machine import NO_MACHINE
from celeriac.worker.output import OutputPolicy
from celeriac.worker.probe import Reach
from celeriac.worker.resource_room import ResourceRoom
from celeriac.worker.shutdown_steps import Request, ShutdownSteps, Step
from celeriac.worker.task import register_worker_task
from tests.simulation.command_runner import SimulatedRunner
from tests.simulation.primitives import Event, SimpleQueue, here, monotonic, sleep
from tests.simulation.servers import Message
from tests.simulation.supervisor import Supervisor
from tests.simulation.world import Process

if TYPE_CHECKING:
    from tests.simulation.history import History

POLL_INTERVAL = 5.0  # seconds until an empty queue is looked at again, if no message has arrived
SHUTDOWN_POLL = 0.2  # seconds
RETRY_DELAY = 1.0  # seconds until an answer to the broker is sent again
QUEUE = "default"


class Parts(SimpleNamespace):
    """The parts of a worker that its lease tells of."""

    @property
    def waiting(self) -> frozenset[str]:
        return frozenset(() if self.resources is None else self.resources.waiting)


class SimulatedWorker:
    """One worker process, from its start to its death."""

    def __init__(self, history: History, name: str, slots: int) -> None:
        self.history, self.name, self.slots = history, name, slots
        world, random = history.world, history.world.random
        rate, error = history.clock_rate(), history.clock_error
        self.process = Process(world, name, rate=rate, wall_offset=random.uniform(-error, error))
        history.worker_of[self.process] = self
        self._supervisor: Supervisor | None = None
        self._number = 0
        self.held: list[Any] = []
        """Celery's requests that were received and have not begun."""

        self.active: list[Any] = []
        """Those that have begun. Two of them may be of the same message."""

        self._busy = self._working = 0
        """The messages that it has, and those of them that occupy a thread of its pool."""

        self._changed = Event()
        """Set when it may take a message, or when there is one."""

        self._slot_free = Event()
        self._steps: ShutdownSteps | None = None
        self._requests: SimpleQueue
        self.has_ended = False
        self.process.on_killed.append(self._on_killed)
        self.process.spawn(self._main)

    def supervisor(self) -> Supervisor:
        if self._supervisor is None or not self._supervisor.process.is_alive:
            self._number += 1
            name = f"{self.name} supervisor {self._number}"
            self._supervisor = Supervisor(self.history, self.process, name, self.lease_manager.renewed_at())
            self._supervisor.process.on_killed.append(partial(self._on_supervisor_killed, self._supervisor))
        return self._supervisor

    @property
    def supervisor_process(self) -> Process | None:
        return self._supervisor.process if self._supervisor is not None else None

    @property
    def is_shutting_down(self) -> bool:
        return self._steps is not None and self._steps.step is not Step.RUN

    def terminate(self, request: Request = Request.DRAIN) -> None:
        """Ask it to shut down, as a signal does. Before it handles signals, one ends it."""
        if self._steps is None:
            self.process.kill()
        elif self.process.is_alive:
            self.process.spawn(self._requests.put, request, name="signal")

    def on_revoke(self, ids: list[str], unless_started: bool) -> None:
        """Handle Celery's remote control, as our worker does."""
        if self._steps is None:
            return  # it has just been started, and hears nothing yet
        active = {request.id for request in self.active}
        for task_id in ids:
            if task_id not in active or not unless_started:
                self._runner.revoke(SimpleNamespace(id=task_id))

    def freeze_machine(self) -> None:
        """Freeze the process, and the supervisor with its commands."""
        self.process.freeze()
        if self._supervisor is not None:
            self._supervisor.process.freeze()

    def thaw(self) -> None:
        self.process.thaw()
        if self._supervisor is not None:
            self._supervisor.process.thaw()

    def _on_killed(self) -> None:
        self.history.broker.connection_ended(self.process)
        with suppress(ValueError):
            self.history.broker.consumers.remove(self._changed)
        if self._supervisor is not None:
            self._supervisor.worker_ended()

    def _on_supervisor_killed(self, supervisor: Supervisor) -> None:
        """The kernel ends the commands, and the worker kills what is left, before it goes on."""
        for run in list(supervisor.runs.values()):
            self.history.invariants.command_ended(run)
        if self.process.is_alive:
            self.process.spawn(self._runner.supervisor_died, supervisor, name="supervisor died")

    # — the process —

    def _main(self) -> None:
        self._requests = SimpleQueue()
        self._steps = ShutdownSteps(self.history.grace)
        self._runner = SimulatedRunner(self)
        self.lease_manager = LeaseManager(
            self.history.remote_claims(), self._runner, server=None, places=self.history.places_of_worker
        )
        needs = self.history.needs
        self._room = ResourceRoom(NO_MACHINE) if needs is None else needs.room()
        self._run_task = self._register()
        self.process.spawn(self._shutdown_loop, name="shutdown")
        self._consume()

    def _register(self) -> Callable[..., Any]:
        tasks: list[Callable[..., Any]] = []
        app: Any = SimpleNamespace(task=lambda **_: tasks.append)
        verifier: Any = SimpleNamespace(reject_reason=lambda message, request: None)
        register_worker_task(
            app,
            self._runner,  # type: ignore[arg-type]
            OutputPolicy(),
            verifier=verifier,
            lease_manager=self.lease_manager,
            takes_no_more=lambda: self.is_shutting_down,
            request_class=object,
            resources=self._room,
        )
        return tasks[0]

    def _celery_worker(self) -> Any:
        """Return what the lease reads of Celery's worker."""
        return SimpleNamespace(
            hostname=self.name,
            slots=self.slots,
            app=SimpleNamespace(amqp=SimpleNamespace(queues=SimpleNamespace(consume_from=(QUEUE,)))),
            parts=Parts(
                start_hold=None,
                resources=self._room if self.history.needs is not None else None,
                pause=SimpleNamespace(is_on=False, asked_by=None, queues=()),
                refusals=SimpleNamespace(count=0),
                verifier=SimpleNamespace(fingerprints=()),
            ),
        )

    def _consume(self) -> None:
        """Receive messages while it may hold more, as Celery's event loop does."""
        network, broker = self.history.network, self.history.broker
        broker.consumers.append(self._changed)
        has_lease = False
        while not self.is_shutting_down:
            try:
                self._changed.clear()
                if self._busy >= self.slots + self.history.prefetch:
                    self._changed.wait()
                    continue
                message = network.call(broker, lambda: broker.take(self.process), "take")
                if not has_lease:
                    has_lease = True
                    self.lease_manager.start(self._celery_worker())
                if message is None:
                    self._changed.wait(POLL_INTERVAL)
                    continue
                if broker.kind == "redis" and not self._record(message):
                    continue
            except Exception as error:
                if problem_of(error) is None:
                    raise
                sleep(RETRY_DELAY)
                continue
            self._begin(message)

    def _record(self, message: Message) -> bool:
        """Kombu's second step. If it fails, the message is put back as soon as the server takes it."""
        network, broker = self.history.network, self.history.broker
        try:
            network.call(broker, lambda: broker.record(message), "record")
        except Exception as error:
            if problem_of(error) is None:
                raise
            self.process.spawn(self._put_back_unrecorded, message, name="unrecorded")
            return False
        return True

    def _put_back_unrecorded(self, message: Message) -> None:
        broker = self.history.broker

        def put_back() -> None:
            if id(message) in broker.unacked:
                broker.put_back(message)
            else:
                broker.insert(message)

        self.until_taken(put_back, "put back")

    def _begin(self, message: Message) -> None:
        request = SimpleNamespace(id=message.task.message_id, hostname=self.name, worker_pid=1)
        self._busy += 1
        self.held.append(request)
        self.process.spawn(self.work, message, request, name=f"pool {request.id}")

    def work(self, message: Message, request: Any) -> None:
        """Run the task of one message, store its result, answer the broker: as Celery's tracer and request do."""
        while self._working >= self.slots:
            self._slot_free.clear()
            self._slot_free.wait()
        self._working += 1
        self.held = [other for other in self.held if other is not request]
        self.active.append(request)
        try:
            answer = self._trace(message, request)
        finally:
            self.active = [other for other in self.active if other is not request]
            self._working -= 1
            self._slot_free.set()
        name = "put back" if answer == self.history.broker.put_back else "acknowledge"
        self.until_taken(partial(answer, message), name)
        self._busy -= 1
        self._changed.set()

    def _trace(self, message: Message, request: Any) -> Callable[[Message], None]:
        broker = self.history.broker
        backend = SimpleNamespace(store_result=self._store_handed_back)
        task = SimpleNamespace(request=request, backend=backend)
        body = command_message(message.task)
        if message.limits:
            body["limits"] = message.limits
        try:
            outcome = self._run_task(task, body)
        except Ignore:
            return broker.acknowledge
        except Reject:
            return broker.put_back
        except CommandFailed as failure:
            outcome = failure.report
        result = result_of(outcome)
        self.history.invariants.attempt_ended(request.id, result)
        self._store_result(request.id, result)
        return broker.acknowledge

    def _store_handed_back(self, task_id: str, *_: Any, **__: Any) -> None:
        self._store_result(task_id, Result(State.QUEUED))

    def _store_result(self, task_id: str, result: Result) -> None:
        network, store = self.history.network, self.history.store
        self._until_stored(lambda: network.call(store, lambda: store.put(task_id, result), "store result"))

    def _until_stored(self, store: Callable[[], None]) -> None:
        while True:
            try:
                return store()
            except Exception as error:
                if problem_of(error) is None:
                    raise
                sleep(RETRY_DELAY)

    def until_taken(self, answer: Callable[[], None], name: str) -> None:
        """Send an answer to the broker until it takes it."""
        self._until_stored(lambda: self.history.network.call(self.history.broker, answer, name))

    # — shutdown —

    def _shutdown_loop(self) -> None:
        assert self._steps is not None
        while True:
            with suppress(Empty):
                self._steps.request(self._requests.get(timeout=SHUTDOWN_POLL if self.is_shutting_down else None))
            self._changed.set()
            while self._steps.advance(monotonic()):
                match self._steps.step:
                    case Step.DRAIN:
                        self.lease_manager.drain()
                    case Step.END:
                        try:
                            self._runner.end()
                        finally:
                            self._steps.commands_ended(monotonic())
                    case Step.EXIT:
                        self._exit()
            if self.is_shutting_down and self._steps.may_stop(is_busy=bool(self._busy)):
                self._exit()

    def _exit(self) -> None:
        self._runner.close()
        self.lease_manager.end_lease()
        self.has_ended = True
        self.process.kill()


def result_of(outcome: dict[str, Any]) -> Result:
    reason = None if outcome["reason"] is None else Reason(outcome["reason"])
    state = State.SUCCESS if reason is None else State.REVOKED if reason is Reason.REVOKED else State.FAILED
    return Result(state, reason, outcome["detail"], Execution(host="simulated", pid=outcome["execution"].get("pid")))


# — what Celery and the network know about the worker of this process —


def worker_here(history: History) -> SimulatedWorker | None:
    return history.worker_of.get(here().process)


def active_here(history: History) -> list[Any]:
    worker = worker_here(history)
    return [] if worker is None else list(worker.active)


def reserved_here(history: History) -> list[Any]:
    worker = worker_here(history)
    return [] if worker is None else [*worker.held, *worker.active]


def probe_here(history: History) -> Reach:
    """Return what a probe of the store finds from this process."""
    network, store, process = history.network, history.store, here().process
    sleep(network.delay())
    if network.is_cut(process, store):
        sleep(1.3)
        return Reach.NO_CONNECTION
    return Reach.REPLY if store.is_up and not store.is_hung else Reach.NO_SERVER
