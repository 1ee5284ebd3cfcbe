"""Random faults from a seed, one every 20 s, in a deployment that runs thousands of short tasks.

`make chaos-airflow SECONDS=3600 SEED=7` runs it alone. It prints the seed, each fault and the figures.
"""

from __future__ import annotations

import os
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from celeriac.backend.claims import claims_for
from celeriac.backend.claims.claim import LeaseState
from celeriac.broker.app import make_app
from celeriac.config.lease import RENEWAL_INTERVAL
from celeriac.worker.supervisor.lease_policy import SILENCE_LIMIT
from tests.airflow.api_server import ApiServer, Behaviour, api_server
from tests.airflow.deployment import (
    CHOSEN_PARTS,
    OURS,
    PARTS,
    Deployment,
    check_slots_are_free,
    deployment_of,
    reporting,
)
from tests.support.cli_runner import until
from tests.support.long import LONG
from tests.support.servers import PostgresServer, RedisServer

SECONDS = float(os.environ.get("CELERIAC_CHAOS_SECONDS") or (600 if LONG else 0))
SEED = int(os.environ.get("CELERIAC_CHAOS_SEED") or time.time())
END_TIMEOUT = 2400.0  # seconds from the last fault to the end of the last run

pytestmark = [
    pytest.mark.deployment,
    pytest.mark.timeout(SECONDS + 2 * END_TIMEOUT),
    pytest.mark.skipif(not SECONDS, reason="`make chaos-airflow` runs it"),
]

Fault = Callable[[], AbstractContextManager[None]]
INTERVAL = 20.0  # seconds from the start of one fault to that of the next
DURATIONS = 2.0, 15.0  # seconds
DAG, TASKS = "many", 100
RUNS_AT_ONCE = 2
LEAST_TASKS = round(2000 * SECONDS / 3600)
WORKERS, SCHEDULERS, API_SERVER = ("worker", "worker.2"), ("scheduler", "scheduler.2"), "api-server"
PEERS = "worker", "scheduler", "broker", "backend", API_SERVER
REFUSALS = "full", "read_only", "master_down", "no_replicas", "misconf", "busy", "loading"
HARMLESS_FREEZE = SILENCE_LIMIT - RENEWAL_INTERVAL - 1.0  # seconds: a frozen worker is not silent for too long
REFUSED_AT_START = 2  # the exit status of a worker that starts while a server refuses it
GONE_WORKER = re.compile(r"lost: worker \S+ \(pid (\d+)\) is gone")

SETTINGS = {
    # The executor must notice lost tasks without the help of these timeouts.
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "3600",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "3600",
    # Leave the processors to the tasks.
    "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "600",
    "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "1",
}

Try = tuple[str, str]
"""The run, and the name of the task with the number of the try."""

ERRORS_OF_SDK = re.compile(
    "Failed to send heartbeat"
    "|Recovery retry of terminal-state API call failed"  # of a try that was taken from a worker that was frozen
    # Of a task that was told to end.
    "|Unhandled exception while handling task request"
    r".*(Server error '50|httpx\.\w*(Timeout|ConnectError|ProtocolError))",
    re.DOTALL,
)
"""What the SDK logs with a traceback, through frames of ours, when the API server is away or refuses a request."""


@pytest.fixture
def backend() -> Iterator[RedisServer]:
    with closing(RedisServer()) as server:
        yield server


@pytest.fixture
def proxy() -> Iterator[ApiServer]:
    with api_server(behaviour=Behaviour.FORWARD) as server:
        yield server


@pytest.fixture
def airflow(
    tmp_path: Path, redis: RedisServer, backend: RedisServer, proxy: ApiServer, postgres: PostgresServer
) -> Iterator[Deployment]:
    executor, worker = CHOSEN_PARTS or (OURS, OURS)
    with deployment_of(
        tmp_path,
        postgres,
        broker=redis.url,
        backend=backend.url,
        executor=executor,
        worker=worker,
        parts=(*PARTS, "scheduler.2", "worker.2"),
        dags=[DAG],
        AIRFLOW__CORE__EXECUTION_API_SERVER_URL=proxy.url,
        **SETTINGS,
    ) as deployment:
        proxy.target = f"127.0.0.1:{deployment.api_port}"
        yield deployment


def test_every_task_runs_once_through_random_faults(airflow, redis, backend, proxy):
    source = random.Random(SEED)
    load, outcome = Load(airflow), Outcome(airflow)
    faults = Faults(airflow, {"broker": redis, "backend": backend}, proxy, source, outcome)
    print(f"seed {SEED}, {SECONDS:g} s")
    with reporting(airflow):
        with load.keep_up():
            faults.inject(SECONDS)
        until(load.has_ended, "the end of every run", END_TIMEOUT)
        outcome.read(load.runs)
        print("\n".join([f"seed {SEED}", *faults.figures(), *outcome.figures()]), flush=True)
        assert {fault.partition(" ")[0] for fault in faults.counts} == set(PEERS)
        assert outcome.run_states == {"success": load.runs}
        assert outcome.succeeded == load.runs * TASKS >= LEAST_TASKS
        assert outcome.lost == set()
        assert outcome.doubled == {}
        assert outcome.unexplained() == {}
        check_slots_are_free(airflow)
        until(lambda: leases_held(backend) == [0, 0], "leases of two idle workers, and none of dead ones", END_TIMEOUT)
        assert outcome.errors_of_ours() == []


class Load:
    """Runs of the DAG, a few at once."""

    def __init__(self, airflow: Deployment) -> None:
        self._airflow, self._faults_are_over = airflow, threading.Event()
        self.runs = 0

    @contextmanager
    def keep_up(self) -> Iterator[None]:
        """Trigger runs in a thread, because requests may hang: in the block, and then up to the least number."""
        thread = threading.Thread(target=self._trigger_runs, daemon=True)
        thread.start()
        yield
        self._faults_are_over.set()
        thread.join()

    def has_ended(self) -> bool:
        return self._count_unfinished() == 0

    def _trigger_runs(self) -> None:
        while not self._faults_are_over.wait(1.0) or self.runs * TASKS < LEAST_TASKS:
            if self._count_unfinished() < RUNS_AT_ONCE:
                with suppress(OSError):  # the API server is down, frozen, starting, or was when it created the run
                    self._airflow.trigger(name_of_run(self.runs), DAG)
                self.runs = len(self._airflow.sql("SELECT 1 FROM dag_run"))

    def _count_unfinished(self) -> int:
        return len(self._airflow.sql("SELECT 1 FROM dag_run WHERE state NOT IN ('success', 'failed')"))


class Deck:
    """Deals cards in random order, each one once before any comes again."""

    def __init__(self, cards: Sequence[str], source: random.Random) -> None:
        self._cards, self._random = cards, source
        self._left: list[str] = []

    def deal(self) -> str:
        if not self._left:
            self._left = self._random.sample(self._cards, len(self._cards))
        return self._left.pop()


class Faults:
    """Faults of the peers, in an order that the seed decides."""

    def __init__(
        self,
        airflow: Deployment,
        servers: dict[str, RedisServer],
        proxy: ApiServer,
        source: random.Random,
        outcome: Outcome,
    ) -> None:
        self._airflow, self._servers, self._proxy, self._random = airflow, servers, proxy, source
        self._outcome = outcome
        self._peers = Deck(PEERS, source)
        self._kinds = {peer: Deck([*self._faults_of(peer)], source) for peer in PEERS}
        self._victims = {kind: Deck(parts, source) for kind, parts in (("worker", WORKERS), ("scheduler", SCHEDULERS))}
        self._refusals = {server: Deck(REFUSALS, source) for server in servers}
        self.counts: Counter[str] = Counter()
        self.refused_starts = 0

    def inject(self, seconds: float) -> None:
        begin = time.monotonic()
        while (elapsed := time.monotonic() - begin) < seconds:
            peer = self._peers.deal()
            kind = self._kinds[peer].deal()
            duration = self._random.uniform(*DURATIONS)
            with self._faults_of(peer)[kind]():
                print(f"{elapsed:6.1f} s: {peer} {kind} for {duration:.1f} s", flush=True)
                self.counts[f"{peer} {kind}"] += 1
                self._watch(begin + elapsed + duration)
            self._watch(begin + elapsed + INTERVAL)

    def figures(self) -> list[str]:
        return [
            f"{sum(self.counts.values())} faults; {self.refused_starts} starts of a worker that a server refused",
            *(f"{times:4} {name}" for name, times in sorted(self.counts.items())),
        ]

    def _watch(self, until_time: float) -> None:
        """Look after the parts until this time of the monotonic clock, as an init system does."""
        while (left := until_time - time.monotonic()) > 0:
            for part in WORKERS:
                if self._airflow.exit_status(part) == REFUSED_AT_START:
                    self.refused_starts += 1
                    self._airflow.start(part)
            self._airflow.check_alive()
            time.sleep(min(left, 0.5))

    # — the faults —

    def _faults_of(self, peer: str) -> dict[str, Fault]:
        if peer == "worker":
            return {
                "killed": partial(self._killed_worker, main_only=False),
                "killed, its main process only,": partial(self._killed_worker, main_only=True),
                "frozen": self._frozen_worker,
            }
        if peer in self._servers:
            server = self._servers[peer]
            return {
                "killed": partial(killed_server, server),
                "frozen": partial(frozen_server, server),
                "refusing": partial(self._refusing_server, peer),
            }
        faults: dict[str, Fault] = {"killed": partial(self._killed, peer), "frozen": partial(self._frozen, peer)}
        return {**faults, "refusing": self._refusing_api} if peer == API_SERVER else faults

    @contextmanager
    def _killed_worker(self, *, main_only: bool) -> Iterator[None]:
        worker = self._victims["worker"].deal()
        self._airflow.freeze(worker)  # else it could start another task after `note_hit`
        self._outcome.note_hit(self._airflow.process_ids(worker), self._airflow.main_process_id(worker))
        self._airflow.kill(worker, main_only=main_only)  # which resumes what it leaves alive
        yield
        self._airflow.start(worker)

    @contextmanager
    def _frozen_worker(self) -> Iterator[None]:
        worker, begin = self._victims["worker"].deal(), time.monotonic()
        self._airflow.freeze(worker)
        ids, main = self._airflow.process_ids(worker), self._airflow.main_process_id(worker)
        yield
        if time.monotonic() - begin > HARMLESS_FREEZE:
            self._outcome.note_hit(ids, main)
        self._airflow.resume(worker)

    def _part_of(self, peer: str) -> str:
        """Return the part to hit. A peer with two parts has its turns."""
        return self._victims[peer].deal() if peer in self._victims else peer

    @contextmanager
    def _killed(self, peer: str) -> Iterator[None]:
        part = self._part_of(peer)
        self._airflow.kill(part)
        yield
        self._airflow.start(part)

    @contextmanager
    def _frozen(self, peer: str) -> Iterator[None]:
        part = self._part_of(peer)
        self._airflow.freeze(part)
        yield
        self._airflow.resume(part)

    @contextmanager
    def _refusing_api(self) -> Iterator[None]:
        self._proxy.behaviour = Behaviour.UNAVAILABLE
        yield
        self._proxy.behaviour = Behaviour.FORWARD

    @contextmanager
    def _refusing_server(self, peer: str) -> Iterator[None]:
        refusal = self._refusals[peer].deal()
        with getattr(self._servers[peer], refusal)():
            self.counts[f"{peer} refusing: {refusal}"] += 1
            yield


class Outcome:
    """The end of each task instance, and the tries that a fault may have ended."""

    def __init__(self, airflow: Deployment) -> None:
        self._airflow = airflow
        self._hit: set[Try] = set()
        """The tries that ran in a worker when a fault hit it."""

        self._hit_workers: set[int] = set()
        """The process ids of these workers."""

    def note_hit(self, process_ids: set[int], worker: int) -> None:
        """Remember the tries that run in these processes: their worker is killed, or frozen for so long that it ends
        them."""
        self._hit_workers.add(worker)
        rows = self._airflow.sql("SELECT run_id, task_id, try_number, pid FROM task_instance WHERE state = 'running'")
        self._hit |= {(run, f"{task}.{number}") for run, task, number, pid in rows if pid in process_ids}

    def read(self, runs: int) -> None:
        """Read what became of the runs. All of them have ended."""
        names = [name_of_run(number) for number in range(runs)]
        self.starts = {(run, name): times for run in names for name, times in self._airflow.starts(run).items()}
        self.run_states = dict(Counter(state for (state,) in self._airflow.sql("SELECT state FROM dag_run")))
        last = self._airflow.sql("SELECT run_id, task_id, try_number FROM task_instance WHERE state = 'success'")
        self.succeeded = len(last)
        self.failed = {(run, f"{task}.{number}") for run, task, tries in last for number in range(1, tries)}
        events = self._airflow.sql(
            "SELECT run_id, task_id, try_number, event, extra FROM log WHERE event ~ '^celeriac'"
        )
        self._reasons = {(run, f"{task}.{number}"): f"{event}: {text}" for run, task, number, event, text in events}
        expected = {(run, f"task{n}") for run in names for n in range(TASKS)}
        self.lost = expected - {(run, name.partition(".")[0]) for run, name in self.starts}
        self.doubled = {start: times for start, times in self.starts.items() if times > 1}

    def unexplained(self) -> dict[Try, str | None]:
        """Return the tries that failed although no fault ended their process, and what Celeriac says of them."""
        return {one: self._reasons.get(one) for one in self.failed - self._hit if not self._was_in_hit_worker(one)}

    def _was_in_hit_worker(self, one: Try) -> bool:
        """Return whether a try began just when its worker was hit: the executor knows from its claim where it ran."""
        found = GONE_WORKER.search(self._reasons.get(one, ""))
        return found is not None and int(found[1]) in self._hit_workers

    def errors_of_ours(self) -> list[str]:
        """Return the unexpected errors in the logs of schedulers and workers, without what the SDK logs."""
        blocks = [
            block
            for part in (*SCHEDULERS, *WORKERS)
            for block in re.split(r"\n(?=\d{4}-\d\d-\d\dT)", self._airflow.log_of(part))
        ]
        return [
            block[-2000:]
            for block in blocks
            if "unexpected error" in block
            or ("Traceback" in block and "/celeriac/" in block and not ERRORS_OF_SDK.search(block))
        ]

    def figures(self) -> list[str]:
        later = {(run, name.partition(".")[0]) for run, name in self.failed}
        return [
            f"{self.succeeded} task instances succeeded, {self.succeeded - len(later)} of them in their first try",
            f"failed tries: {len(self.failed)}, {len(self.failed) - len(self.unexplained())} of them killed by a fault",
            f"lost: {len(self.lost)}, doubled: {len(self.doubled)}",
        ]


def name_of_run(number: int) -> str:
    return f"run{number}"


def leases_held(backend: RedisServer) -> list[int]:
    """Return how many tasks each living worker runs or holds, as its lease says."""
    with closing(make_app(broker_url="memory://", result_backend=backend.url)) as app:
        claims = claims_for(app, timeout=2.0)
        assert claims is not None
        with closing(claims):
            records = claims.leases().values()
    leases = [record.lease for record in records if record.state is LeaseState.LIVE and record.lease is not None]
    return [len(lease.running) + len(lease.held) for lease in leases]


@contextmanager
def killed_server(server: RedisServer) -> Iterator[None]:
    server.kill()
    yield
    server.start()


@contextmanager
def frozen_server(server: RedisServer) -> Iterator[None]:
    server.freeze()
    yield
    server.thaw()
