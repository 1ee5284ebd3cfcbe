"""Random faults, several at a time, while commands run that record their own starts.

No task may be lost. No two runs of a task may overlap. Every extra start must be an attempt after a loss that an event
reported. `make test-faults` injects hundreds of faults while thousands of tasks run. CELERIAC_SEED repeats a choice of
faults.
"""

from __future__ import annotations

import heapq
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from itertools import count
from pathlib import Path
from random import Random

import pytest

from celeriac import CeleryExecutor, Cluster, Config, Event, State
from celeriac.broker.publishers import publisher_for
from tests.support.cli_runner import until
from tests.support.long import LONG
from tests.support.servers import DurableRedisServer, PostgresServer, RabbitServer, Server
from tests.support.start_recorder import StartRecorder
from tests.support.worker_host import Network, WorkerHost

# py-amqp leaves the socket of a handshake that was cut to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.fault,
    pytest.mark.usefixtures("collect_cut_sockets"),
]

FAULTS = 300 if LONG else 5
TASKS = 5_000 if LONG else 60
MACHINES = 3
THREADS = 8
MIN_WAITING = MACHINES * THREADS  # tasks that wait while faults are injected
LONG_TASK = 20.0 if LONG else 6.0  # seconds: longer than the visibility timeout of these workers
LONG_TASK_EVERY = 200  # tasks
FAULT_INTERVAL = (0.2, 1.6)  # seconds between two faults: minimum and maximum
END_TIMEOUT = 300.0  # seconds from the last fault until all tasks have ended

logger = logging.getLogger(__name__)


class Site:
    """A broker, a result backend, an executor, and machines with one worker each."""

    def __init__(self, broker: Server, backend: Server, folder: Path, random: Random) -> None:
        self.broker, self.backend, self.folder, self.random = broker, backend, folder, random
        self.recorder = StartRecorder(folder)
        self.events: list[Event] = []
        self.keys: list[str] = []
        self._in_flight: dict[object, str] = {}
        """The message ids of tasks that were queued and have not ended, by key."""

        self.done: Counter[str] = Counter()
        self._names = count()
        self._plans: list[tuple[float, int, Callable[[], object]]] = []
        self._order = count()
        self._stack = ExitStack()
        self.network = Network(*{broker, backend})
        self._stack.callback(self.network.close)
        self.machines: list[WorkerHost] = []
        config = Config(parallelism=10_000, publish_backoff_max=1.0, reconcile_interval=1.0, search_interval=5.0)
        urls = (self.network.url(broker.url), self.network.url(backend.url))
        self.cluster = self._stack.enter_context(Cluster(*urls, config=config))
        self.executor: CeleryExecutor = self.cluster.executor()
        self.duplicator = publisher_for(self.cluster.app)
        self._stack.callback(self.duplicator.close)
        for _ in range(MACHINES):
            self.add_machine()

    def add_machine(self) -> None:
        name = f"m{next(self._names)}"
        options = ["--concurrency", str(THREADS), "--log-level", "info"]
        machine = WorkerHost(
            name, self.broker, self.backend, self.folder, *options, program="tests.support.short_visibility"
        )
        self.machines.append(self._stack.enter_context(machine))

    def close(self) -> None:
        self._stack.close()

    # — the load —

    def add_tasks(self, number: int) -> None:
        for _ in range(number):
            key = f"k{len(self.keys)}"
            seconds = LONG_TASK if len(self.keys) % LONG_TASK_EVERY == 7 else self.random.choice((0.05, 0.2, 0.5, 1, 2))
            self.keys.append(key)
            command = self.recorder.command(f"sleep {seconds}")
            self.executor.queue_command(
                key, command, cwd=str(self.folder), priority=self.random.choice((0, 0, 5)), max_lost=1_000
            )

    def heartbeat(self) -> None:
        while self._plans and self._plans[0][0] <= time.monotonic():
            heapq.heappop(self._plans)[2]()
        self.executor.heartbeat()
        for event in self.executor.get_event_buffer():
            self._on_event(event)
        self.executor.wait(0.05)

    def _on_event(self, event: Event) -> None:
        self.events.append(event)
        if event.state in (State.QUEUED, State.RUNNING):
            self._in_flight[event.key] = event.id
        else:
            self._in_flight.pop(event.key, None)

    def drive_for(self, seconds: float, *, loaded: bool) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if loaded and self.executor.tasks_waiting < MIN_WAITING:
                self.add_tasks(MIN_WAITING)
            self.heartbeat()

    def run_to_the_end(self) -> None:
        def all_ended() -> bool:
            self.heartbeat()
            return not (self._plans or self.executor.tasks_waiting or self.executor.tasks_in_flight)

        until(all_ended, "the end of all tasks", END_TIMEOUT)

    def call_later(self, seconds: float, action: Callable[[], object]) -> None:
        heapq.heappush(self._plans, (time.monotonic() + seconds, next(self._order), action))

    # — the faults —

    def fault(self) -> None:
        kind = self.random.choices(list(FAULT_KINDS), list(FAULT_KINDS.values()))[0]
        if kind(self):
            self.done[kind.__name__] += 1

    def take_machine(self) -> WorkerHost | None:
        """Remove a machine from the list; None if too few would be left."""
        if len(self.machines) < 2:
            return None
        return self.machines.pop(self.random.randrange(len(self.machines)))

    def worker_killed(self) -> bool:
        if (machine := self.take_machine()) is None:
            return False
        machine.kill_worker()
        self.add_machine()
        self.call_later(20, machine.close)
        return True

    def machine_killed(self) -> bool:
        if (machine := self.take_machine()) is None:
            return False
        machine.kill()
        self.add_machine()
        self.call_later(self.random.uniform(5, 30), machine.close)
        return True

    def worker_frozen(self) -> bool:
        if (machine := self.take_machine()) is None:
            return False

        def thaw() -> None:
            machine.thaw()
            self.machines.append(machine)

        machine.freeze()
        self.call_later(self.random.uniform(1, 15), thaw)
        return True

    def worker_cut(self) -> bool:
        self.random.choice(self.machines).network.cut()
        return True

    def worker_in_a_black_hole(self) -> bool:
        machine = self.random.choice(self.machines)
        machine.network.vanish()
        self.call_later(self.random.uniform(1, 15), machine.network.cut)
        return True

    def executor_cut(self) -> bool:
        self.network.cut()
        return True

    def executor_in_a_black_hole(self) -> bool:
        self.network.vanish()
        self.call_later(self.random.uniform(1, 8), self.network.cut)
        return True

    def message_doubled(self) -> bool:
        """Deliver copies of the messages of tasks in flight."""
        tasks = [task for task in self.executor.tasks() if self._in_flight.get(task.key) == task.message_id]
        tasks = self.random.sample(tasks, min(8, len(tasks)))
        receipts = list(self.duplicator.publish(tasks, timeout=2.0))
        return bool(receipts)

    def server_killed(self) -> bool:
        server = self.random.choice([self.broker, self.backend])
        server.kill()
        self.drive_for(self.random.uniform(0, 4), loaded=True)
        server.start()
        return True

    def server_frozen(self) -> bool:
        server = self.random.choice([self.broker, self.backend])
        server.freeze()
        self.drive_for(self.random.uniform(0.5, 8), loaded=True)
        server.thaw()
        return True


FAULT_KINDS: dict[Callable[[Site], bool], int] = {
    Site.worker_killed: 4,
    Site.machine_killed: 3,
    Site.worker_frozen: 3,
    Site.worker_cut: 4,
    Site.worker_in_a_black_hole: 2,
    Site.executor_cut: 3,
    Site.executor_in_a_black_hole: 2,
    Site.message_doubled: 6,
    Site.server_killed: 1,
    Site.server_frozen: 2,
}
"""Faults, and how often each is chosen relative to the others."""


@contextmanager
def servers(kind: str) -> Iterator[tuple[Server, Server]]:
    with ExitStack() as stack:
        if kind == "redis":
            redis = stack.enter_context(closing(DurableRedisServer()))
            yield redis, redis
        else:
            yield stack.enter_context(closing(RabbitServer())), stack.enter_context(closing(PostgresServer()))


@pytest.mark.parametrize("kind", ["redis", "rabbit"])
def test_random_faults_lose_no_task_and_cause_no_overlapping_runs(kind, tmp_path):
    seed = int(os.environ.get("CELERIAC_SEED") or time.time_ns() % 1_000_000)
    logger.info("CELERIAC_SEED=%d", seed)
    with servers(kind) as (broker, backend), closing(Site(broker, backend, tmp_path, Random(seed))) as site:
        site.drive_for(3, loaded=True)
        while site.done.total() < FAULTS:
            site.fault()
            site.drive_for(site.random.uniform(*FAULT_INTERVAL), loaded=True)
        site.add_tasks(max(0, TASKS - len(site.keys)))
        site.run_to_the_end()
        log_summary(site)
    finals = Counter(event.key for event in site.events if event.state.is_final)
    assert site.recorder.never_started(site.keys) == []
    assert site.recorder.overlaps == []
    assert site.recorder.unexplained(site.events) == []
    assert [event for event in site.events if event.state in (State.FAILED, State.REVOKED)] == []
    assert finals == Counter(site.keys)


def log_summary(site: Site) -> None:
    """Log the counts; `pytest -rP --log-level=info` shows them."""
    attempts = len(site.recorder.starts)
    logger.info("%d tasks, %d starts, faults: %s", len(site.keys), attempts, dict(site.done))
    logger.info("results of fenced attempts that were ignored: %d", site.executor.stats().results_ignored)
