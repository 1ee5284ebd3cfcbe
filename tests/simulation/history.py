"""One history: its parts, its faults, and the end that it must have.

Lost: a task that has not ended although the faults ended long ago. `invariants` has the rest.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from random import Random
from types import SimpleNamespace
from typing import Any, NoReturn
from unittest.mock import patch

from redis.exceptions import TimeoutError as RedisTimeoutError

from celeriac import surviving_loop
from celeriac.ledger.memory import MemoryLedger
from celeriac.surviving_loop import Survivor
from celeriac.task.state import State
from celeriac.task.task import Task, TaskKey
from tests.simulation.cluster import Session, ask_workers
from tests.simulation.failover import failovers
from tests.simulation.faults import FAULTS, strike
from tests.simulation.features import Feature, features_of
from tests.simulation.invariants import Invariants, WatchedClaims
from tests.simulation.jobs import Job, new_jobs
from tests.simulation.limits import SharedLimits
from tests.simulation.needs import ResourceNeeds
from tests.simulation.network import Network, Remote, Server
from tests.simulation.owner_faults import OWNER_FAULTS
from tests.simulation.owners import Owners, SimulatedServe, has_owners, in_runs, stand_ins
from tests.simulation.pauses import Pauses, RunPauses
from tests.simulation.primitives import here, simulated, worlds
from tests.simulation.scheduler import SimulatedScheduler
from tests.simulation.servers import Broker, Store
from tests.simulation.times import Times
from tests.simulation.unrecorded import unrecorded_messages
from tests.simulation.worker import SimulatedWorker, active_here, probe_here, reserved_here
from tests.simulation.world import NoRest, Process, World

FAULTS_UNTIL = 50.0  # seconds
ENDED_WITHIN = 900.0  # seconds after the last fault until all tasks must have ended
WATCHED_FOR = 12.0  # seconds after that in which nothing may start any more
LAST_VISIBILITY_TIMEOUT = 3.0  # seconds; then Redis gives back all that dead workers had
CLOCK_RATES, WRONG_CLOCK_RATES = (0.995, 1.005), (0.976, 1.024)
"""How fast clocks go. The commands of a worker are dead 9.5 s after its last renewal by its own clock: 2 s until the
reply comes, 6 s of silence, 1.5 s of grace. Others wait 10 s by theirs. So two clocks may differ by 5 %."""

WRONG_CLOCKS = 0.2
"""The share of the histories whose clocks go wrong as far as that."""

READS = ("leases", "read", "heartbeat_ages")


class Violation(BaseException):
    """An invariant does not hold. It is no `Exception`, because the code under test handles these."""

    history: History


class History:
    """All of one seed."""

    def __init__(self, seed: int, world: World, only_faults: Collection[int] | None) -> None:
        """`only_faults` are the numbers of the faults to cause; None for all of the seed."""
        self.seed, self.world = seed, world
        self._only_faults = only_faults
        self.chance = world.random
        """What the fault that is caused now draws from: each has its own, so that the others can be left out."""

        random = world.random
        self.network = Network(self.world)
        self.broker = Broker(self.world, random.choice(("redis", "amqp")))
        self.store = Store(self.world, keeps_success=Random(f"{seed} results").random() < 0.7)
        self._clock_rates = clock_rates(seed)
        self.has_owners = has_owners(seed)
        """Whether several `serve` share the ledger."""

        self.ledger, self.ledger_server, self.ledger_owner = MemoryLedger(), Server(self.world, "ledger"), 0
        self.late_binding = random.random() < 0.7
        self.parallelism = random.choice((1, 2, 3, 6))
        self.grace = random.choice((0.0, 5.0, 60.0))
        self.slots = random.randint(1, 3)
        self.search_interval = random.choice((5.0, 30.0))
        self.prefetch = random.choice((0, 0, 1, 2))
        """How many messages a worker takes beside those that it works on."""

        self.workers: list[SimulatedWorker] = []
        self.worker_of: dict[Process, SimulatedWorker] = {}
        self.schedulers: list[SimulatedScheduler | SimulatedServe] = []
        self.jobs = new_jobs(random)
        self._owners: Owners | None = None
        if self.has_owners:
            self.jobs = in_runs(self.jobs, seed)
            self._owners = Owners(self)
            self.ledger_server = self._owners.server
        self.left = len(self.jobs)
        """How many of the jobs have not ended."""

        pauses = RunPauses if self.has_owners else Pauses
        self.features = features_of(self, SharedLimits, ResourceNeeds, Times, pauses)
        self.needs = next((feature for feature in self.features if isinstance(feature, ResourceNeeds)), None)
        self.limits = next((feature for feature in self.features if isinstance(feature, SharedLimits)), None)
        self.clock_error = min([Feature.clock_error, *(feature.clock_error for feature in self.features)])
        self.was_drained = False
        """Whether an executor was asked to end: then tasks are revoked."""

        self.story: list[str] = []
        self.faults: Counter[str] = Counter()
        self.no_reply = RedisTimeoutError()
        self._numbers = 0
        self._are_over = False
        """Whether all faults have ended."""

        self.invariants = Invariants(self)
        self.watched_claims = WatchedClaims(self)
        self._claims = Remote(self.network, self.store, self.watched_claims, READS)
        self.network.on_strike = lambda what: self._fault_caused(strike.__name__, what)
        self.store.on_success = self._success_stored

    def clock_rate(self) -> float:
        """Return how fast the clock of another machine goes."""
        return self.world.random.uniform(*self._clock_rates)

    def tell(self, line: str) -> None:
        self.story.append(f"{self.world.now:9.3f}  {line}")

    def fail(self, problem: str) -> NoReturn:
        self.tell(f"VIOLATION: {problem}")
        raise Violation(f"seed {self.seed}: {problem}")

    # — the parts —

    @property
    def owners(self) -> Owners:
        assert self._owners is not None
        return self._owners

    @property
    def most_commands(self) -> int:
        """How many commands may run at once. An owner adopts those of another beside its own."""
        return self.parallelism * (len(self.schedulers) if self.has_owners else 1)

    @property
    def processes(self) -> list[Process]:
        """The processes of workers and executors, dead ones too."""
        return [*(worker.process for worker in self.workers), *(scheduler.process for scheduler in self.schedulers)]

    def remote_claims(self) -> Any:
        return self._claims

    def places_of_worker(self) -> Any:
        return None if self.limits is None else self.limits.places_of_worker()

    def start_worker(self) -> None:
        self._numbers += 1
        worker = SimulatedWorker(self, f"w{self._numbers}", self.slots)
        self.tell(f"{worker.name} starts")
        self.workers.append(worker)

    def start_scheduler(self) -> None:
        self._numbers += 1
        kind = SimulatedServe if self.has_owners else SimulatedScheduler
        scheduler = kind(self, f"s{self._numbers}")
        self.tell(f"{scheduler.name} starts")
        self.schedulers.append(scheduler)

    def broadcast_revoke(self, ids: list[str], *, connection: Any, unless_started: bool, **_: Any) -> None:
        """Celery's remote control: it reaches the workers that listen."""
        self.network.call(self.broker, lambda: None, "broadcast")
        for worker in list(self.workers):
            if worker.process.is_alive and self.network.reaches(worker.process, self.broker):
                worker.process.spawn(worker.on_revoke, list(ids), unless_started, name="revoke")

    # — what the executor does —

    def due_tasks(self) -> list[list[Task]]:
        """Return the tasks to queue now: those that need each other together."""
        groups: list[list[Task]] = []
        for job in self.jobs.values():
            if job.was_queued or job.due > self.world.now:
                continue
            if groups and job.task.needs and groups[-1][-1].key in job.task.needs:
                groups[-1].append(job.task)
            else:
                groups.append([job.task])
        return groups

    def due_revokes(self) -> list[TaskKey]:
        return [
            job.task.key
            for job in self.jobs.values()
            if job.revoke_at is not None and not job.revoked and job.revoke_at <= self.world.now
        ]

    def seconds_until_due(self) -> float:
        """Return the time until a job is to be queued or revoked."""
        now = self.world.now
        times = [job.due for job in self.jobs.values() if job.due > now]
        times += [job.revoke_at for job in self.jobs.values() if job.revoke_at is not None and job.revoke_at > now]
        return min(times, default=float("inf")) - now

    def revoke_requested(self, keys: list[TaskKey]) -> None:
        for key in keys:
            self.jobs[str(key)].revoked = True
            self.tell(f"{key} is revoked")

    def ends(self) -> Mapping[TaskKey, State]:
        """Return how tasks have ended, as far as that was told."""
        return {job.task.key: job.end.state for job in self.jobs.values() if job.end is not None}

    def handed_back(self, task_id: str) -> None:
        """Note that a worker has released a claim: its command may start again without a loss."""
        self.job_of(task_id).handed_back += 1

    def _success_stored(self, task_id: str) -> None:
        self.job_of(task_id).has_succeeded = True

    def job_of(self, task_id: str) -> Job:
        return next(job for job in self.jobs.values() if task_id.startswith(job.task.message_id))

    # — the run —

    def run(self) -> None:
        """Run the history. Raise `Violation`."""
        for _ in range(self.world.random.randint(1, 3)):
            self.start_worker()
        for _ in range(self.owners.number if self.has_owners else 1):
            self.start_scheduler()
        if self.has_owners:
            self.owners.begin()
        self._plan_faults()
        self.world.run(FAULTS_UNTIL, may_stop=True)
        self._heal()
        if not self.world.run(self.world.now + ENDED_WITHIN, may_stop=True):
            left = [key for key, job in self.jobs.items() if job.end is None]
            self.fail(f"{len(left)} tasks have not ended: {', '.join(left)}")
        self.broker.visibility_timeout = LAST_VISIBILITY_TIMEOUT
        self.world.run(self.world.now + WATCHED_FOR)
        if self.has_owners:
            self.owners.watch.check_end()

    def job_ended(self) -> None:
        self.left -= 1
        self.world.is_stopped = not self.left

    # — faults —

    def _plan_faults(self) -> None:
        for number, (when, fault) in enumerate(planned_faults(self.seed)):
            if self._only_faults is None or number in self._only_faults:
                self.world.at(when, self._cause_fault, (fault, Random(f"{self.seed} {number}")))

    def _cause_fault(self, planned: tuple[Callable[[History], str | None], Random]) -> None:
        fault, self.chance = planned
        what = fault(self) if not self._are_over else None
        if what is not None and fault is not strike:
            self._fault_caused(fault.__name__, what)

    def _fault_caused(self, name: str, what: str) -> None:
        self.faults[name] += 1
        self.tell(f"FAULT: {what}")

    def _heal(self) -> None:
        """End all faults: every server works, and there are a worker and an executor."""
        self._are_over = True
        self.network.loss, self.network.slowness = 0.0, 1.0
        self.network.strikes.clear()
        self.network.cut.clear()
        for server in (self.broker, self.store, self.ledger_server):
            server.is_up, server.is_hung, server.refuses_writes = True, False, False
        for worker in self.workers:
            worker.thaw()
        for scheduler in self.schedulers:
            scheduler.process.thaw()
        self.tell("all faults have ended")
        self.start_worker()
        self._keep_on()

    def _keep_on(self, _: Any = None) -> None:
        self.keep_scheduler()
        self.world.at(self.world.now + 5.0, self._keep_on)

    def keep_scheduler(self) -> None:
        """Start an executor if none is alive."""
        if not any(scheduler.process.is_alive for scheduler in self.schedulers):
            self.start_scheduler()


def clock_rates(seed: int) -> tuple[float, float]:
    """Return how fast the clocks of a history go: the slowest and the fastest."""
    return WRONG_CLOCK_RATES if Random(f"{seed} clocks").random() < WRONG_CLOCKS else CLOCK_RATES


def planned_faults(seed: int) -> list[tuple[float, Callable[[History], str | None]]]:
    """Return the faults of a seed, each with its time."""
    random = Random(f"{seed} faults")
    kinds = OWNER_FAULTS if has_owners(seed) else FAULTS
    faults = (strike if random.random() < 0.5 else random.choice(kinds) for _ in range(random.randint(0, 12)))
    timed = ((random.uniform(0, FAULTS_UNTIL - 1), fault) for fault in faults)
    return [*timed, *failovers(seed), *unrecorded_messages(seed)]


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
        "celeriac.worker.lease_manager.boot_id": lambda: "boot",
        "celeriac.worker.taken_places.threading": SimpleNamespace(get_ident=lambda: id(here())),
        "celeriac.worker.renewals.probe": lambda server: probe_here(runs[-1]),
        "celeriac.cluster.lost_tasks.detector.BrokerSession": Session,
        "celeriac.cluster.lost_tasks.detector.ask_workers": ask_workers,
        "celeriac.cluster.revoker.BrokerSession": Session,
        **stand_ins(lambda: runs[-1]),
    }
    with ExitStack() as stack:
        for target, value in replaced.items():
            stack.enter_context(patch(target, value))
        stack.enter_context(simulated())
        yield


def run_history(seed: int, only_faults: Collection[int] | None = None) -> History:
    """Run one history. Raise `Violation`; the history has its story."""
    worlds.append(World(seed))
    history = History(seed, worlds[-1], only_faults)
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
        surviving_loop.started.clear()  # those that a process of its own would take with it
        worlds.pop()
        runs.pop()
    return history


def kill_all(history: History) -> None:
    """End all threads, so that none is left when the next history begins."""
    for process in history.processes:
        process.kill()
    if history.has_owners:
        history.owners.client.kill()
    for worker in history.workers:
        if worker.supervisor_process is not None:
            worker.supervisor_process.kill()
    with suppress(NoRest):
        history.world.run(history.world.now)
    history.world.close()


logging.getLogger("celeriac").setLevel(logging.CRITICAL)
