"""One history: its parts, and what must hold at each step.

Lost: a task that has not ended although the faults ended long ago. Doubled: two live commands of one task. Every start
after the first must follow the end, or the loss, of the one before.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from redis.exceptions import TimeoutError as RedisTimeoutError

from celeriac.backend.claims.claim import Granted
from celeriac.executor.executor import CeleryExecutor
from celeriac.executor.interfaces import LedgerBatch
from celeriac.ledger.memory import MemoryLedger
from celeriac.surviving_loop import Survivor
from celeriac.task.event import Event
from celeriac.task.result import Execution, Result
from celeriac.task.state import State
from celeriac.task.task import Task, TaskKey
from tests.simulation.faults import FAULTS
from tests.simulation.network import Network, Remote, Server
from tests.simulation.primitives import simulated, worlds
from tests.simulation.scheduler import Session, SimulatedScheduler, ask_workers
from tests.simulation.servers import Broker, Store
from tests.simulation.supervisor import Run
from tests.simulation.worker import SimulatedWorker, active_here, probe_here, reserved_here
from tests.simulation.world import NoRest, Process, World

FAULTS_UNTIL = 120.0  # seconds
ENDED_WITHIN = 900.0  # seconds after the last fault until all tasks must have ended
RESUMED_MACHINE = 1.0  # seconds in which the supervisor of a machine that was suspended ends its commands
READS = ("leases", "read", "heartbeat_ages")


class Violation(BaseException):
    """An invariant does not hold. It is no `Exception`, because the code under test handles these."""

    history: History


@dataclass
class CommandPlan:
    """Tell what a command does: for how long it runs, its exit status, and how long it takes to end after TERM."""

    duration: float
    status: int
    time_to_end: float


@dataclass
class Job:
    """A task, and what was seen of it."""

    task: Task
    due: float
    revoke_at: float | None = None
    starts: list[tuple[float, Run]] = field(default_factory=list)
    live: list[Run] = field(default_factory=list)
    losses: int = 0
    """Attempts that the executor has reported as lost, or failed and to be repeated."""

    end: Event | None = None
    was_queued: bool = False
    revoked: bool = False


class History:
    """All of one seed."""

    def __init__(self, seed: int, world: World) -> None:
        self.seed, self.world = seed, world
        random = world.random
        self.network = Network(self.world)
        self.broker = Broker(self.world, random.choice(("redis", "amqp")))
        self.store = Store(self.world)
        self.ledger, self.ledger_server, self.ledger_owner = MemoryLedger(), Server(self.world, "ledger"), 0
        self.late_binding = random.random() < 0.7
        self.parallelism = random.randint(2, 6)
        self.grace = random.choice((0.0, 5.0, 60.0))
        self.slots = random.randint(1, 3)
        self.workers: list[SimulatedWorker] = []
        self.schedulers: list[SimulatedScheduler] = []
        self.jobs = {f"k{n}": self._new_job(f"k{n}") for n in range(random.randint(4, 10))}
        self.story: list[str] = []
        self.faults: Counter[str] = Counter()
        self.no_reply = RedisTimeoutError()
        self._told: set[int] = set()
        self._numbers = 0

    def _new_job(self, key: str) -> Job:
        random = self.world.random
        task = Task(
            key=key,
            command=("true",),
            priority=random.randint(0, 3),
            retries=random.choice((0, 0, 2)),
            retry_delay=random.uniform(0.1, 5.0),
        )
        revoke_at = random.uniform(0, FAULTS_UNTIL) if random.random() < 0.15 else None
        return Job(task, random.uniform(0, 60), revoke_at)

    def tell(self, line: str) -> None:
        self.story.append(f"{self.world.now:9.3f}  {line}")

    def fail(self, problem: str) -> None:
        self.tell(f"VIOLATION: {problem}")
        raise Violation(f"seed {self.seed}: {problem}")

    # — the parts —

    @property
    def processes(self) -> list[Process]:
        """The processes of workers and executors, dead ones too."""
        return [*(worker.process for worker in self.workers), *(scheduler.process for scheduler in self.schedulers)]

    def remote_claims(self) -> Any:
        return Remote(self.network, self.store, Claimed(self), READS)

    def start_worker(self) -> None:
        self._numbers += 1
        worker = SimulatedWorker(self, f"w{self._numbers}", self.slots)
        self.tell(f"{worker.name} starts")
        self.workers.append(worker)

    def start_scheduler(self) -> None:
        self._numbers += 1
        scheduler = SimulatedScheduler(self, f"s{self._numbers}")
        self.tell(f"{scheduler.name} starts")
        self.schedulers.append(scheduler)

    def broadcast_revoke(self, ids: list[str], *, connection: Any, unless_started: bool, **_: Any) -> None:
        """Celery's remote control: it reaches the workers that listen."""
        self.network.call(self.broker, lambda: None)
        for worker in list(self.workers):
            if worker.process.is_alive and self.network.reaches(worker.process, self.broker):
                worker.process.spawn(worker.on_revoke, list(ids), unless_started, name="revoke")

    # — what the executor does —

    def due_jobs(self) -> list[Task]:
        return [job.task for job in self.jobs.values() if not job.was_queued and job.due <= self.world.now]

    def is_new(self, key: TaskKey) -> bool:
        return not self.jobs[str(key)].was_queued

    def ledger_written(self, batch: LedgerBatch) -> None:
        for queued in batch.queued:
            self.jobs[str(queued.task.key)].was_queued = True
        for event in batch.events:
            job = self.jobs[str(event.key)]
            if event.reason is not None or event.state is State.WAITING:
                job.losses += 1

    def due_revokes(self) -> list[TaskKey]:
        return [
            job.task.key
            for job in self.jobs.values()
            if job.revoke_at is not None and not job.revoked and job.revoke_at <= self.world.now
        ]

    def revoke_requested(self, key: TaskKey) -> None:
        self.jobs[str(key)].revoked = True
        self.tell(f"{key} is revoked")

    def check_executor(self, executor: CeleryExecutor) -> None:
        if executor.slots_occupied > self.parallelism:
            self.fail(f"{executor.slots_occupied} of {self.parallelism} slots are occupied")

    def told(self, event: Event) -> None:
        self.tell(f"{event.key} is {event.state.value}: {event.reason} {event.detail or ''}")
        if not event.state.is_final:
            return
        job = self.jobs[str(event.key)]
        if job.end is not None and job.end.number != event.number:
            self.fail(f"{event.key} has ended twice: {job.end} and {event}")
        job.end = event
        live = [run for run in job.live if not self._is_on_suspended_machine(run)]
        if live and event.state in (State.SUCCESS, State.REVOKED):
            self.fail(f"{event.key} has ended as {event.state.value} while its command runs")
        if event.state is State.SUCCESS and not job.starts:
            self.fail(f"{event.key} has succeeded and never run")

    # — what commands do —

    def command_started(self, run: Run) -> CommandPlan:
        key = run.request.env["CELERIAC_KEY"]
        job, now, random = self.jobs[key], self.world.now, self.world.random
        self.tell(f"{key} starts as {run.request.id} on {run.process.name}")
        for other in job.live:
            if not self._is_on_suspended_machine(other):
                self.fail(f"{key} runs twice: on {other.process.name} and on {run.process.name}")
        if job.end is not None:
            self.fail(f"{key} starts after its end was told")
        job.starts.append((now, run))
        job.live.append(run)
        run.is_live = True
        status = 0 if random.random() < 0.8 else 1
        return CommandPlan(random.choice((0.1, 1.0, 5.0, 30.0)) * random.random(), status, random.uniform(0.0, 3.0))

    def command_ended(self, run: Run) -> None:
        if run.is_live:
            run.is_live = False
            key = run.request.env["CELERIAC_KEY"]
            self.jobs[key].live.remove(run)
            self.tell(f"{key} ends on {run.process.name}{'' if run.stopped is None else f': {run.stopped.value}'}")

    def _is_on_suspended_machine(self, run: Run) -> bool:
        process = run.process
        return process.is_frozen or self.world.now - process.thawed_at < RESUMED_MACHINE

    # — the run —

    def run(self) -> None:
        """Run the history. Raise `Violation`."""
        for _ in range(self.world.random.randint(1, 3)):
            self.start_worker()
        self.start_scheduler()
        self._plan_faults()
        self.world.run(FAULTS_UNTIL)
        self._heal()
        if not self.world.run(FAULTS_UNTIL + ENDED_WITHIN, self._is_over):
            left = [key for key, job in self.jobs.items() if job.end is None]
            self.fail(f"{len(left)} tasks have not ended: {', '.join(left)}")

    def _is_over(self) -> bool:
        return all(job.end is not None for job in self.jobs.values())

    # — faults —

    def _plan_faults(self) -> None:
        random = self.world.random
        for _ in range(random.randint(0, 8)):
            self.world.at(random.uniform(0, FAULTS_UNTIL - 1), self._cause_fault, random.choice(FAULTS))

    def _cause_fault(self, fault: Callable[[History], str | None]) -> None:
        what = fault(self)
        if what is not None:
            self.faults[fault.__name__] += 1
            self.tell(f"FAULT: {what}")

    def _heal(self) -> None:
        """End all faults: every server works, and there are a worker and an executor."""
        self.network.loss, self.network.slowness = 0.0, 1.0
        self.network.cut.clear()
        for server in (self.broker, self.store, self.ledger_server):
            server.is_up, server.is_hung, server.refuses_writes = True, False, False
        for worker in self.workers:
            worker.thaw()
        for scheduler in self.schedulers:
            scheduler.process.thaw()
        self.tell("all faults have ended")
        self.start_worker()
        self._keep_scheduler()

    def _keep_scheduler(self, _: Any = None) -> None:
        """Start an executor whenever none is alive."""
        if not any(scheduler.process.is_alive for scheduler in self.schedulers):
            self.start_scheduler()
        self.world.at(self.world.now + 5.0, self._keep_scheduler)


class Claimed:
    """The store's claims. A claim also stores that the task has started."""

    def __init__(self, history: History) -> None:
        self._history, self._claims = history, history.store.claims

    def __getattr__(self, name: str) -> Any:
        return getattr(self._claims, name)

    def claim(self, task_id: str, **options: Any) -> Any:
        reply = self._claims.claim(task_id, **options)
        if isinstance(reply, Granted):
            self._history.store.put(task_id, Result(State.RUNNING, execution=Execution(host="simulated")))
        return reply


runs: list[History] = []
"""The history that runs now, if one does."""


@contextmanager
def simulation() -> Iterator[None]:
    """Put histories in the place of threads, clocks, chance, and Celery's view of a process."""

    def record(survivor: Survivor, error: Exception) -> None:
        raise Violation(f"seed {runs[-1].seed}: unexpected in thread {survivor.name}") from error

    replaced: dict[str, Any] = {
        "celeriac.surviving_loop.Survivor.record": record,
        "celeriac.worker.lease_manager.active_requests": lambda: active_here(runs[-1]),
        "celeriac.worker.lease_manager.reserved_requests": lambda: reserved_here(runs[-1]),
        "celeriac.worker.renewals.probe": lambda server: probe_here(runs[-1]),
        "celeriac.cluster.lost_tasks.detector.BrokerSession": Session,
        "celeriac.cluster.lost_tasks.detector.ask_workers": ask_workers,
        "celeriac.cluster.revoker.BrokerSession": Session,
    }
    with ExitStack() as stack:
        for target, value in replaced.items():
            stack.enter_context(patch(target, value))
        stack.enter_context(simulated())
        yield


def run_history(seed: int) -> History:
    """Run one history. Raise `Violation`; the history has its story."""
    worlds.append(World(seed))
    history = History(seed, worlds[-1])
    runs.append(history)
    Session.history = history
    try:
        history.run()
    except Violation as error:
        error.history = history
        raise
    except NoRest:
        violation = Violation(f"seed {seed}: the history does not come to rest")
        violation.history = history
        raise violation from None
    finally:
        kill_all(history)
        worlds.pop()
        runs.pop()
    return history


def kill_all(history: History) -> None:
    """End all threads, so that none is left when the next history begins."""
    for process in history.processes:
        process.kill()
    for worker in history.workers:
        if worker.supervisor_process is not None:
            worker.supervisor_process.kill()
    with suppress(NoRest):
        history.world.run(history.world.now)


logging.getLogger("celeriac").setLevel(logging.CRITICAL)
