"""Several `celeriac serve` that share a ledger: in a part of the histories, in the place of one executor.

Each process runs the real `Service`, with its owner session, on the real SQL. Runs are submitted and cancelled through
the ledger. An owner may be killed, frozen, asked to end, or cut off from the ledger alone, and the clock of the ledger
may jump.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec.structs import replace

from celeriac.config.ledger_keep import LedgerKeep
from celeriac.errors import LedgerUnavailable
from celeriac.executor.executor import CeleryExecutor
from celeriac.executor.interfaces import Ledger
from celeriac.ledger.liveness import Machine
from celeriac.ledger.owned_run import RunKey
from celeriac.runs.service import Service
from celeriac.task.task import Task
from tests.simulation.jobs import DUE_WITHIN, Job
from tests.simulation.owned_ledger import LedgerServer, SimulatedStore
from tests.simulation.owner_watch import LedgerWatch
from tests.simulation.parts import ClusterParts
from tests.simulation.primitives import here, sleep
from tests.simulation.world import Process

if TYPE_CHECKING:
    from tests.simulation.history import History

T = TypeVar("T")
SHARE = 0.12  # of all histories
LOOK_INTERVAL = 3.0  # seconds, in the place of those of the service: a shorter one makes histories slow
SAMPLE_INTERVAL = 0.5  # seconds between two looks at what hinders the owners
SLOWEST = 0.2  # seconds that a message is on its way, at most, if the network is not slow
RETRY_DELAY = 1.0  # seconds until a client of the ledger tries again


def has_owners(seed: int) -> bool:
    """Return whether the history of a seed has several `serve`."""
    return Random(f"{seed} owners").random() < SHARE


class Owners:
    """Hold what the processes of one ledger share: the ledger, the submitted runs, and their client."""

    def __init__(self, history: History) -> None:
        self._history = history
        random = Random(f"{history.seed} runs")
        self.server = LedgerServer(history.world, random.choice(("server", "file")))
        self.watch = LedgerWatch(history)
        self.number = random.choice((2, 2, 3))
        """How many `serve` there are at first."""

        self.client = Process(history.world, "client")
        self.grace = random.choice((None, 5.0))
        self.has_containers = random.random() < 0.3
        """Whether each process has a namespace of process ids, so that a lease in a file decides."""

        self._hindered: dict[Process, float] = {}
        self._pids = 0
        self.client.pid = self.next_pid()

    def begin(self) -> None:
        """Let the client submit and cancel, and watch what hinders the owners."""
        for run in sorted({key.run for key in self._keys()}):
            self.client.spawn(self._submit, run, name=f"submit {run}")
        self._sample(None)

    def next_pid(self) -> int:
        self._pids += 1
        return self._pids

    def quiet_for(self, process: Process) -> float:
        """Return for how many seconds nothing has hindered an owner."""
        since = self._hindered.get(process, process.created_at)
        return self._history.world.now - since if process.is_alive else 0.0

    def hinder(self, process: Process | None, seconds: float = 0.0) -> None:
        """Note that a process could not renew its lease for some seconds from now on; None for all."""
        for each in self._history.schedulers if process is None else ():
            self.hinder(each.process, seconds)
        if process is not None:
            self._hindered[process] = max(self._hindered.get(process, 0.0), self._history.world.now + seconds)

    def step_clock(self, seconds: float) -> None:
        self.server.clock_offset += seconds
        if self.server.kind == "file":  # the clock of the machine, which its processes use
            for scheduler in self._history.schedulers:
                scheduler.process.wall_offset += seconds
        self.hinder(None, abs(seconds))

    def _sample(self, _: Any) -> None:
        history = self._history
        network, servers = history.network, (history.broker, history.store, self.server)
        if network.slowness > 1:
            self.hinder(None, SLOWEST * network.slowness)
        if network.loss or self.server.locked_by or not all(server.serves_writes for server in servers):
            self.hinder(None)
        for scheduler in history.schedulers:
            process = scheduler.process
            if process.is_alive and (process.is_frozen or any(network.is_cut(process, server) for server in servers)):
                self.hinder(process)
        history.world.at(history.world.now + SAMPLE_INTERVAL, self._sample)

    # — the client —

    def _keys(self) -> list[RunKey]:
        return [job.task.key for job in self._history.jobs.values() if isinstance(job.task.key, RunKey)]

    def _jobs_of(self, run: str) -> list[Job]:
        return [job for key, job in self._history.jobs.items() if key.startswith(f"{run}/")]

    def _submit(self, run: str) -> None:
        jobs = self._jobs_of(run)
        sleep(jobs[0].due)
        store = SimulatedStore(self._history, is_near=True)
        store.submit(run, None, [as_submitted(job.task) for job in jobs], is_given=True)
        row = self.server.raw.execute("SELECT id FROM celeriac_run WHERE name = ?", (run,)).fetchone()[0]
        self._history.tell(f"{run} is submitted")
        for feature in self._history.features:
            feature.submitted(run, row)
        for job in jobs:
            job.was_queued = True
            if job.revoke_at is not None:
                self.client.spawn(self._cancel, row, run, job, name=f"cancel {job.task.key}")

    def _cancel(self, row: int, run: str, job: Job) -> None:
        """Cancel a task through the ledger, as soon as that can be used."""
        assert job.revoke_at is not None
        sleep(job.revoke_at - self._history.world.now)
        owner = self.until_changed(lambda store: store.cancel(row, run, [as_submitted(job.task).key]))
        job.revoked = True
        self._history.tell(f"{job.task.key} is cancelled through {owner or 'the ledger'}")

    def until_changed(self, change: Callable[[SimulatedStore], T]) -> T:
        """Change the ledger as soon as it can be used."""
        store = SimulatedStore(self._history)
        while True:
            try:
                return change(store)
            except LedgerUnavailable:
                sleep(RETRY_DELAY)


def as_submitted(task: Task) -> Any:
    """Return the task as its job file has it: with the keys of its run."""
    needs = tuple(need.key for need in task.needs if isinstance(need, RunKey))
    return replace(task, key=task.key.key, needs=needs) if isinstance(task.key, RunKey) else task


def in_runs(jobs: dict[str, Job], seed: int) -> dict[str, Job]:
    """Return the jobs as tasks of submitted runs. Those that need each other are of one run."""
    random = Random(f"{seed} jobs")
    names = [f"r{n}" for n in range(1, random.randint(1, 3) + 1)]
    within = random.choice(DUE_WITHIN)
    due = {name: random.uniform(0.0, within) for name in names}
    by_run: dict[str, Job] = {}
    run = names[0]
    for key, job in jobs.items():
        if not job.task.needs:
            run = random.choice(names)
        needs = tuple(RunKey(run, str(need)) for need in job.task.needs)
        delay = None if job.revoke_at is None else job.revoke_at - job.due
        job.task = replace(job.task, key=RunKey(run, key), needs=needs)
        job.due, job.revoke_at = due[run], None if delay is None else due[run] + delay
        by_run[f"{run}/{key}"] = job
    return by_run


class SimulatedCluster(AbstractContextManager["SimulatedCluster"]):
    """The cluster of one owner session."""

    def __init__(self, serve: SimulatedServe) -> None:
        self._serve = serve
        self._parts = ClusterParts(serve.history, serve.process)

    def executor(self, *, ledger: Ledger | None = None) -> CeleryExecutor:
        self._serve.executor = executor = self._parts.executor(ledger)
        return executor

    def wake(self) -> None:
        self._parts.results.wake()

    def stop_commands(self) -> None:
        """Do nothing: commands run on workers elsewhere."""

    def continue_commands(self) -> None:
        """Do nothing: commands run on workers elsewhere."""

    def __exit__(self, *_: object) -> None:
        self._serve.executor = None
        self._parts.close()


class SimulatedServe:
    """One `celeriac serve`, until it is killed or has ended."""

    def __init__(self, history: History, name: str) -> None:
        self.history, self.name = history, name
        world, random, owners = history.world, history.world.random, history.owners
        rate, offset = history.clock_rate(), random.uniform(-history.clock_error, history.clock_error)
        is_file = owners.server.kind == "file"  # of one machine, with one clock
        self.process: Process = Process(
            world, name, rate=1.0 if is_file else rate, wall_offset=owners.server.clock_offset if is_file else offset
        )
        self.process.pid = owners.next_pid()
        self.executor: CeleryExecutor | None = None
        self.ledger: Ledger
        self._service: Service | None = None
        self.process.spawn(self._main)

    def ask_to_end(self, _: str) -> None:
        """Send TERM. A service that cannot be woken now gets it a moment later."""
        if self.process.is_alive:
            self.process.spawn(self._terminate, name="signal")

    def _terminate(self) -> None:
        while self._service is None or self._service._wake is None:
            sleep(0.1)
        self._service.stop()

    def _main(self) -> None:
        owners = self.history.owners
        store = SimulatedStore(self.history)
        self._service = Service(
            store, lambda: SimulatedCluster(self), output=None, grace=owners.grace, keep=LedgerKeep()
        )
        self._service.run()
        self.history.tell(f"{self.name} has ended")
        self.process.kill()


class NoService:
    """Stands in for the notices, the schedules and the limits of a service: they are no part of a history."""

    def __init__(self, *_: Any) -> None: ...

    def check(self, *_: Any) -> None: ...

    def finish(self) -> None: ...

    def on_failure(self, run: str) -> None: ...

    def on_end(self, run: str) -> None: ...


def stand_ins(history: Callable[[], History]) -> dict[str, Any]:
    """Return what stands in for what an owner knows of its machine, and for what is no part of a history."""

    def this_machine() -> Machine:
        namespace = here().process.pid if history().owners.has_containers else 0
        return Machine("host", f"boot/{namespace}")

    def start_of(pid: int) -> float | None:
        processes = (scheduler.process for scheduler in history().schedulers)
        return next((each.created_at for each in processes if each.pid == pid and each.is_alive), None)

    return {
        "celeriac.ledger.owner.is_sqlite": lambda _: history().owners.server.kind == "file",
        "celeriac.ledger.owner.database_time": lambda _: history().owners.server.time(),
        "celeriac.ledger.owner.this_machine": this_machine,
        "celeriac.ledger.owner.start_of": start_of,
        "celeriac.ledger.owner.start_of_this_process": lambda: here().process.created_at,
        "celeriac.runs.service.DailyLimits": NoService,
        "celeriac.runs.service.ServiceNotices": NoService,
        "celeriac.runs.service.ServiceSchedules": NoService,
        "celeriac.runs.owner_session.LOOK_INTERVAL": LOOK_INTERVAL,
        "celeriac.runs.owner_session.MAX_PAUSE": LOOK_INTERVAL,
    }
