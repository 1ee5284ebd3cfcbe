"""A whole Airflow: api-server, scheduler, dag-processor, triggerer and worker, on free ports, in a folder of its own.

PostgreSQL ◄─ api-server ◄─ worker ◄─ broker ◄─ scheduler ─► result backend

A running deployment can `change` executor, worker, broker and backend: only schedulers and workers restart for that.
A deployment may have several parts of a kind: "scheduler.2" is a second scheduler.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen
from uuid import uuid4

import psutil
import psycopg
import pytest

from tests.support.cli_runner import until
from tests.support.servers import PostgresServer, RedisServer, free_port, lives

ROOT = Path(__file__).parents[2]
START_TIMEOUT = 400.0  # seconds: the parts start all at once, on a machine that may be busy
RUN_TIMEOUT = 600.0  # seconds for a run that a fault has delayed
STOP_TIMEOUT = 30.0  # seconds that a part may take to stop
OURS, UPSTREAM = "ours", "upstream"
EXECUTORS = {OURS: "CeleryExecutor:celeriac.airflow.CeleryExecutor", UPSTREAM: "CeleryExecutor"}
GROUPS = {OURS: "celeriac", UPSTREAM: "celery"}
CHOSEN_PARTS = tuple(os.environ.get("CELERIAC_TEST_PARTS", "").split())
"""Executor and worker of every test, such as "upstream upstream" to test upstream itself."""

SECRET = "a-secret-of-the-tests-that-is-long-enough-for-all-signatures-of-any-length-64"
USERS = ADMIN, VIEWER = "admin", "viewer"
"""Their roles, names and passwords."""

RESTARTABLE = ("scheduler", "worker")
PARTS = ("api-server", "dag-processor", "triggerer", *RESTARTABLE)
COMMANDS_OF_EXECUTOR = version("apache-airflow-core").startswith("3.1.")
"""Whether `airflow` has only the commands of the configured executor."""

PATIENT = {
    "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "60",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "3600",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "3600",
}
"""With these a busy machine lets no task fail. The executor, too, must do without the help of these timeouts."""

DAG, TASKS = "load", 60
PLAIN_DAG, PLAIN_TASKS = "plain", 31
HELD_DAG, HELD_TASKS = "held", 12
END_STATES = ("success", "failed", "skipped", "upstream_failed", "removed")


class Start(NamedTuple):
    """A line of the start log."""

    name: str
    pid: int
    parent_pid: int


class Deployment:
    def __init__(
        self,
        folder: Path,
        postgres: PostgresServer,
        *,
        broker: str,
        backend: str,
        executor: str = OURS,
        worker: str = OURS,
        parts: Sequence[str] = PARTS,
        dags: Sequence[str] = (DAG, PLAIN_DAG),
        teams: Sequence[str] = (),
        **settings: str,
    ) -> None:
        """`dags` must be there before a test begins. `settings` are environment variables that override others."""
        self.folder, self._postgres = folder, postgres
        self._parts, self._dags, self._teams = parts, dags, teams
        self._database = f"airflow_{uuid4().hex}"
        self._dsn = postgres.dsn.replace("dbname=postgres", f"dbname={self._database}")
        self.api_port = free_port()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._log_offsets: dict[str, int] = {}
        """Position in the log of each part at which its running process began to write."""

        self._orphans: list[psutil.Process] = []
        self._choices = {"broker": broker, "backend": backend, "executor": executor}
        self._choices |= {part: worker for part in parts if kind_of(part) == "worker"}
        self._settings = settings

    @property
    def _env(self) -> dict[str, str]:
        url = f"http://127.0.0.1:{self.api_port}"
        options = {
            "CORE__EXECUTOR": EXECUTORS[self._choices["executor"]],
            "CORE__DAGS_FOLDER": str(Path(__file__).parent / "dags"),
            "CORE__LOAD_EXAMPLES": "False",
            "CORE__UNIT_TEST_MODE": "False",
            "CORE__PARALLELISM": "16",
            "CORE__FERNET_KEY": "",
            "CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
            "CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(f"{user}:{user}" for user in USERS),
            "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(self.folder / "passwords.json"),
            "CORE__HOSTNAME_CALLABLE": "tests.airflow.deployment.localhost",
            "OPERATORS__DEFAULT_QUEUE": "a",  # callbacks go there
            "DATABASE__SQL_ALCHEMY_CONN": f"postgresql+psycopg2://{dsn_to_url(self._dsn)}",
            "API__PORT": str(self.api_port),
            "API__HOST": "127.0.0.1",
            "API__BASE_URL": url,
            "API__SECRET_KEY": SECRET,
            "API_AUTH__JWT_SECRET": SECRET,
            "CELERY__BROKER_URL": self._choices["broker"],
            "CELERY__RESULT_BACKEND": self._choices["backend"],
            "CELERY__WORKER_CONCURRENCY": "4",
            "LOGGING__WORKER_LOG_SERVER_PORT": self._log_ports[0],
            "LOGGING__TRIGGER_LOG_SERVER_PORT": self._log_ports[1],
            "SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.2",
            "SCHEDULER__JOB_HEARTBEAT_SEC": "2",
            "SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "2",
            "SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "8",
            "SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "5",
            "SCHEDULER__TASK_INSTANCE_HEARTBEAT_SEC": "2",
            "WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
            "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
            "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "3",
        }
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")},
            **{f"AIRFLOW__{name}": value for name, value in options.items()},
            "AIRFLOW_HOME": str(self.folder),
            "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
            "PYTHONUNBUFFERED": "1",
            "CELERIAC_TEST_START_LOG": str(self._start_log),
            **self._settings,
        }

    @property
    def _log_ports(self) -> tuple[str, str]:
        if "ports" not in self._choices:
            self._choices["ports"] = f"{free_port()} {free_port()}"
        worker, triggerer = self._choices["ports"].split()
        return worker, triggerer

    # — parts —

    def start_all(self) -> None:
        self._postgres.sql(f'CREATE DATABASE "{self._database}"')
        (self.folder / "passwords.json").write_text(json.dumps({user: user for user in USERS}))
        self.airflow("db", "migrate")
        for team in self._teams:
            self.airflow("teams", "create", team)
        for part in self._parts:
            self.start(part)
        until(self.is_healthy, "the health of every part", START_TIMEOUT)
        for dag in self._dags:
            until(partial(self.sql, "SELECT 1 FROM serialized_dag WHERE dag_id = %s", dag), "the DAG", START_TIMEOUT)
        self.await_workers()

    def change(self, settings: dict[str, str] | None = None, **choices: str) -> None:
        """Restart schedulers and workers with another `executor`, `worker`, `broker`, `backend` or environment."""
        restartable = [part for part in self._parts if kind_of(part) in RESTARTABLE]
        for part in restartable:
            self.stop(part)
        self._choices |= choices
        self._settings |= settings or {}
        self._fail_unfinished()
        for part in restartable:
            self.start(part)
        self.await_workers()

    def switch(self, part: str, to: str, *, after_term: Callable[[], None] = lambda: None) -> None:
        """Restart one scheduler or worker as the other product, while everything else runs on."""
        process = self._processes[part]
        process.terminate()
        after_term()
        until(lambda: process.poll() is not None, "the end of its tasks, and its own", START_TIMEOUT)
        self.kill(part)
        self._choices["executor" if kind_of(part) == "scheduler" else part] = to
        self.start(part)
        if kind_of(part) == "worker":
            self.await_workers()

    def has_parts(self, **choices: str) -> bool:
        """Return whether these parts are running, and no run of an earlier test is unfinished."""
        left = self.sql("SELECT 1 FROM dag_run WHERE state NOT IN ('success', 'failed')")
        whole = len(self._processes) == len(self._parts) and all(map(self.is_running, self._processes))
        return whole and not left and self._choices.items() >= choices.items() and not self.held_by_executor()

    def start(self, part: str) -> None:
        kind, product = kind_of(part), self._choices.get(part, OURS)
        worker = [GROUPS[product], "worker", "--queues", "a,b", "--concurrency", "4"]
        if part != "worker":  # another one on this machine
            worker += ["--celery-hostname", f"{part}@127.0.0.1", "--skip-serve-logs"]
        if (team := part.partition(".")[2]) in self._teams:
            worker += ["--team", team]
        arguments = {
            "api-server": ["api-server", "--workers", "1"],
            "scheduler": ["scheduler", "--skip-serve-logs"],
            "triggerer": ["triggerer", "--skip-serve-logs"],
            "worker": worker,
        }.get(kind, [kind])
        env = self._env
        names_executors = "AIRFLOW__CORE__EXECUTOR" in self._settings  # several, which DAGs name
        if kind == "worker" and COMMANDS_OF_EXECUTOR and not names_executors:
            # The worker keeps its configuration when the scheduler changes.
            env["AIRFLOW__CORE__EXECUTOR"] = EXECUTORS[product]
        with self._log(part).open("ab") as log:
            self._log_offsets[part] = log.tell()
            self._processes[part] = subprocess.Popen(
                [sys.executable, "-m", "airflow", *arguments],
                env=env,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                process_group=0,
            )

    def await_workers(self) -> None:
        for part in self._running("worker"):
            until(partial(self._alive_and_logged, part, r"\bready\b"), "a worker that is ready", START_TIMEOUT)

    def stop(self, part: str) -> None:
        """Stop a part as an operator does. Kill it if it does not stop."""
        process = self._processes.get(part)
        if process is None:
            return
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT)
        self.kill(part)

    def kill(self, part: str, *, main_only: bool = False) -> None:
        """Kill a part with all processes that it started; with `main_only` the main process alone. The others go on,
        also if the part was frozen."""
        process = self._processes.pop(part)
        family = self._family(process)
        orphans = family[1:] if main_only else []
        self._orphans += orphans
        kill_all(family[:1] if main_only else family)
        process.wait()
        for orphan in orphans:
            with suppress(psutil.NoSuchProcess):
                orphan.resume()

    def freeze(self, part: str) -> None:
        """Freeze a part with all processes that it started."""
        for process in self._family(self._processes[part]):
            with suppress(psutil.NoSuchProcess):
                process.suspend()

    def resume(self, part: str) -> None:
        for process in self._family(self._processes[part]):
            with suppress(psutil.NoSuchProcess):
                process.resume()

    def process_ids(self, part: str) -> set[int]:
        """Return the ids of a part's process and of all that it started."""
        return {process.pid for process in self._family(self._processes[part])}

    def main_process_id(self, part: str) -> int:
        return self._processes[part].pid

    def exit_status(self, part: str) -> int | None:
        """Return the exit status of a part that has ended by itself; None if it runs, or was ended."""
        return self._processes[part].poll() if part in self._processes else None

    def is_running(self, part: str) -> bool:
        return self._processes[part].poll() is None

    def _running(self, kind: str) -> list[str]:
        return [part for part in self._processes if kind_of(part) == kind]

    def close(self) -> None:
        for part in list(self._processes):
            self.kill(part)
        kill_all([process for process in self._orphans if lives(process)])
        with suppress(psycopg.Error):
            self._postgres.sql(f'DROP DATABASE IF EXISTS "{self._database}" WITH (FORCE)')

    def _family(self, process: subprocess.Popen[bytes]) -> list[psutil.Process]:
        try:
            main = psutil.Process(process.pid)
            return [main, *main.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    # — actions —

    def airflow(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "airflow", *arguments],
            env=self._env,
            cwd=self.folder,
            capture_output=True,
            check=False,
        )
        if done.returncode:
            raise AssertionError(f"airflow {' '.join(arguments)}: {done.stderr.decode()[-3000:]}")
        return done.stdout.decode()

    def trigger(self, run: str, dag: str = DAG) -> None:
        self.api(f"dags/{dag}/dagRuns", {"dag_run_id": run, "logical_date": None})

    def release(self, run: str) -> None:
        """Let the tasks of a run of the DAG `held` end."""
        (self.folder / f"{run}.released").touch()

    def api(self, path: str, body: Any, method: str = "POST") -> Any:
        """Send a request to the API that people use."""
        return self._http(f"/api/v2/{path}", body, self.token_of(ADMIN), method)

    def token_of(self, user: str) -> str:
        """Return the token that Airflow gives a user at the login."""
        return str(self._http("/auth/token", {"username": user, "password": user})["access_token"])

    def page(self, path: str, user: str | None = None) -> tuple[int, str]:
        """Return the status and the text of a page, as a browser gets it: of a user, or before the login."""
        headers = {} if user is None else {"Cookie": f"_token={self.token_of(user)}"}
        try:
            with urlopen(Request(f"http://127.0.0.1:{self.api_port}{path}", headers=headers), timeout=30) as answer:
                return answer.status, answer.read().decode()
        except HTTPError as error:
            return error.code, error.read().decode()

    def _fail_unfinished(self) -> None:
        """Mark everything unfinished as failed, so that a failed test does not disturb the next one."""
        self.sql(f"UPDATE task_instance SET state = 'failed' WHERE coalesce(state, '') NOT IN {END_STATES} RETURNING 1")
        self.sql("UPDATE dag_run SET state = 'failed' WHERE state NOT IN ('success', 'failed') RETURNING 1")

    # — observations —

    def sql(self, query: str, *values: Any) -> list[Any]:
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            return connection.execute(query.encode(), values or None).fetchall()

    def states(self, run: str) -> Counter[str]:
        """Return the states of the last tries."""
        one = f"task_id, {self.index}"
        latest = f"SELECT DISTINCT ON ({one}) state FROM task_instance WHERE run_id = %s"
        found = self.sql(f"{latest} ORDER BY {one}, try_number DESC", run)
        return Counter(state for (state,) in found)

    def log_of(self, part: str) -> str:
        """Return the whole log of a part."""
        return self._log(part).read_text(errors="replace")

    def run_state(self, run: str) -> str:
        ((state,),) = self.sql("SELECT state FROM dag_run WHERE run_id = %s", run)
        return str(state)

    def ended(self, run: str) -> bool:
        self.check_alive()
        return self.run_state(run) in ("success", "failed")

    def check_alive(self) -> None:
        dead = [part for part in self._processes if not self.is_running(part)]
        assert not dead, f"{dead} ended: {self.tail(dead[0])}"

    def starts(self, run: str) -> Counter[str]:
        """Return how often each try of each task started."""
        return Counter(name for line_run, name, *_ in self._start_lines() if line_run == run)

    def start_lines(self, run: str) -> list[Start]:
        """Return the starts of tasks and callbacks in a run, in their order."""
        return [Start(name, *map(int, ids)) for line_run, name, _, *ids in self._start_lines() if line_run == run]

    def held_by_executor(self) -> dict[str, int]:
        """Return how many workloads the executors have queued and running: each scheduler logs it at USR2."""
        held: Counter[str] = Counter()
        for part in self._running("scheduler"):
            held += self._held_in(part)
        return dict(held)

    def _held_in(self, scheduler: str) -> Counter[str]:
        at_work = partial(self._alive_and_logged, scheduler, "Adopting or resetting orphaned tasks")
        until(at_work, "a scheduler that is at work: the signal ends one that is starting", START_TIMEOUT)
        log, before = self._log(scheduler), self._log(scheduler).stat().st_size
        self._processes[scheduler].send_signal(signal.SIGUSR2)
        executors = len(re.split("[,;]", self._env["AIRFLOW__CORE__EXECUTOR"]))
        until(
            lambda: read_since(log, before).count("executor.event_buffer (") == executors,
            "the dump in the scheduler's log",
            START_TIMEOUT,
        )
        counts = re.findall(r"executor\.((?:queued|running)[^ ]*) \((\d+)\)", read_since(log, before))
        assert counts
        held: Counter[str] = Counter()
        for name, count in counts:
            held[name] += int(count)
        return +held

    def tail(self, part: str) -> str:
        return self._log(part).read_text(errors="replace")[-4000:]

    def report(self) -> str:
        """Return logs and unfinished tasks, to explain a failed test."""
        lines = [f"— {part} —\n{self.tail(part)}" for part in self._parts if self._log(part).exists()]
        with suppress(psycopg.Error):
            columns = (
                f"run_id, task_id, {self.index}, try_number, state, queue, external_executor_id, last_heartbeat_at"
            )
            open_ones = f"SELECT {columns} FROM task_instance WHERE coalesce(state, '') NOT IN {END_STATES}"
            lines += ["— not ended —", *map(str, self.sql(f"{open_ones} OR state = 'failed'"))]
        counts = Counter((*line[:2],) for line in self._start_lines())
        repeated = {start for start, times in counts.items() if times > 1}
        lines += [
            "— started more than once —",
            *(str(line) for line in self._start_lines() if (*line[:2],) in repeated),
        ]
        with suppress(AssertionError, KeyError):
            lines += ["— held by the executor —", str(self.held_by_executor())]
        return "\n".join(lines)

    @cached_property
    def index(self) -> str:
        """The name of the column with the index of a mapped task. Airflow 3.4 renamed it."""
        query = "SELECT column_name FROM information_schema.columns WHERE table_name = 'task_instance'"
        ((name,),) = self.sql(f"{query} AND column_name IN ('map_index', 'region_index')")
        return str(name)

    def _start_lines(self) -> list[list[str]]:
        return [line.split() for line in self._start_log.read_text().splitlines()] if self._start_log.exists() else []

    @property
    def _start_log(self) -> Path:
        return self.folder / "starts"

    def _log(self, part: str) -> Path:
        return self.folder / f"{part}.log"

    def _alive_and_logged(self, part: str, pattern: str) -> bool:
        assert self.is_running(part), f"{part} ended: {self.tail(part)}"
        return re.search(pattern, read_since(self._log(part), self._log_offsets[part])) is not None

    def is_healthy(self) -> bool:
        self.check_alive()
        try:
            parts = self._http("/api/v2/monitor/health")
        except OSError:
            return False
        return all(parts[name]["status"] == "healthy" for name in parts)

    def _http(self, path: str, body: Any = None, token: str = "", method: str | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
        request = Request(f"http://127.0.0.1:{self.api_port}{path}", data, headers, method=method)
        with urlopen(request, timeout=30) as answer:
            return json.load(answer)


def check_run(deployment: Deployment, run: str) -> None:
    """Wait for the end of a run. Every task must succeed, every try start once, and every slot be free."""
    until(lambda: deployment.ended(run), "the end of the run", START_TIMEOUT)
    assert deployment.states(run) == {"success": TASKS}
    assert deployment.run_state(run) == "success"
    until(lambda: "callback_of_the_run" in deployment.starts(run), "the callback of the run", START_TIMEOUT)
    assert deployment.starts(run) == expected_starts()
    check_slots_are_free(deployment)


def check_plain_run(deployment: Deployment, run: str, tasks: int = PLAIN_TASKS, name: str = "task") -> None:
    """Wait for the end of a run of alike tasks. Every task must succeed in its first try, and start once."""
    until(lambda: deployment.ended(run), "the end of the run", RUN_TIMEOUT)
    assert deployment.states(run) == {"success": tasks}
    assert deployment.sql("SELECT DISTINCT try_number FROM task_instance WHERE run_id = %s", run) == [(1,)]
    assert deployment.starts(run) == {f"{name}{n}.1": 1 for n in range(tasks)}
    check_slots_are_free(deployment)


def check_slots_are_free(deployment: Deployment) -> None:
    last_heartbeat: Any = None

    def are_free() -> bool:  # checked once for each heartbeat, because each check writes a page into the log
        nonlocal last_heartbeat
        before, last_heartbeat = (
            last_heartbeat,
            deployment.sql("SELECT max(latest_heartbeat) FROM job WHERE job_type = 'SchedulerJob'"),
        )
        return before != last_heartbeat and not deployment.held_by_executor()

    until(are_free, "free slots", START_TIMEOUT)


def expected_starts() -> Counter[str]:
    """Return how often each try of the DAG's tasks starts, if no fault happens."""
    plain = [f"plain{n}.1" for n in range(28)] + [f"mapped[{n}].1" for n in range(28)]
    others = ["flaky.1", "flaky.2", "with_callback.1", "deferred.1.before", "deferred.1.after", "last.1"]
    return Counter([*plain, *others, "callback_of_with_callback.1", "callback_of_the_run"])


@contextmanager
def deployment_of(*args: Any, **options: Any) -> Iterator[Deployment]:
    deployment = Deployment(*args, **options)
    try:
        deployment.start_all()
        yield deployment
    except BaseException:
        print(deployment.report())
        raise
    finally:
        deployment.close()


@contextmanager
def our_deployment_on_redis(
    factory: pytest.TempPathFactory, redis: RedisServer, postgres: PostgresServer, settings: Mapping[str, str]
) -> Iterator[Deployment]:
    """Yield a deployment with our executor and our worker. Redis is the broker and the result backend."""
    folder = factory.mktemp("airflow")
    servers = {"broker": redis.url, "backend": redis.url}
    with deployment_of(folder, postgres, **servers, executor=OURS, worker=OURS, **settings) as deployment:
        yield deployment


@contextmanager
def reporting(deployment: Deployment) -> Iterator[Deployment]:
    """Print a report if the test fails."""
    try:
        yield deployment
    except BaseException:
        print(deployment.report())
        raise


def kind_of(part: str) -> str:
    return part.partition(".")[0]


def kill_all(processes: list[psutil.Process]) -> None:
    for number in (signal.SIGSTOP, signal.SIGKILL):  # stopped first: else each would see the others end
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)


def read_since(log: Path, position: int) -> str:
    with log.open("rb") as file:
        file.seek(position)
        return file.read().decode(errors="replace")


def dsn_to_url(dsn: str) -> str:
    values = dict(item.split("=") for item in dsn.split())
    return f"{values['user']}@{values['host']}:{values['port']}/{values['dbname']}"


def localhost() -> str:
    """Return the name that the parts use for this machine: its real one may not resolve."""
    return "127.0.0.1"


def wait_through_fault(seconds: float, deployment: Deployment) -> None:
    """Wait for the duration of a fault. Every part must stay alive."""
    end_of_fault = time.monotonic() + seconds

    def is_over() -> bool:
        deployment.check_alive()
        return time.monotonic() > end_of_fault

    until(is_over, "the end of the fault", seconds + START_TIMEOUT)
