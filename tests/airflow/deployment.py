"""A whole Airflow: api-server, scheduler, dag-processor, triggerer and a worker, on free ports, in a folder of its own.

PostgreSQL ◄─ api-server ◄─ worker ◄─ broker ◄─ scheduler ─► result backend

Begun once, it can `change` executor, worker, broker and backend: only scheduler and worker begin again for that.
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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen
from uuid import uuid4

import psutil
import psycopg

from tests.support.cli_runner import until
from tests.support.servers import PostgresServer, free_port, lives

ROOT = Path(__file__).parents[2]
SLOW = 180.0  # seconds: Airflow's parts begin slowly, and all at once
GRACE = 30.0  # seconds that a part may take to stop
OURS, INCUMBENT = "ours", "incumbent"
EXECUTORS = {OURS: "CeleryExecutor:celeriac.airflow.CeleryExecutor", INCUMBENT: "CeleryExecutor"}
GROUPS = {OURS: "celeriac", INCUMBENT: "celery"}
CHOSEN = tuple(os.environ.get("CELERIAC_TEST_PARTS", "").split())
"""Executor and worker of every test, to see how others fare: "incumbent incumbent"."""

SECRET = "a-secret-of-the-tests-that-is-long-enough-for-everybody-who-signs-with-it-64"
CHANGEABLE = ("scheduler", "worker")
PARTS = ("api-server", "dag-processor", "triggerer", *CHANGEABLE)
COMMANDS_OF_EXECUTOR = version("apache-airflow-core").startswith("3.1.")
"""`airflow` has the commands of the executor that is configured, and no others."""

DAG, TASKS = "load", 60
ENDED = ("success", "failed", "skipped", "upstream_failed", "removed")


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
        **settings: str,
    ) -> None:
        """`settings` are environment variables over what is set here."""
        self.folder, self._postgres = folder, postgres
        self._database = f"airflow_{uuid4().hex}"
        self._dsn = postgres.dsn.replace("dbname=postgres", f"dbname={self._database}")
        self._port = free_port()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._began: dict[str, int] = {}
        """Where the log of each part begins that runs now."""

        self._orphans: list[psutil.Process] = []
        self._chosen = {"broker": broker, "backend": backend, "executor": executor, "worker": worker}
        self._settings = settings

    @property
    def _env(self) -> dict[str, str]:
        url = f"http://127.0.0.1:{self._port}"
        options = {
            "CORE__EXECUTOR": EXECUTORS[self._chosen["executor"]],
            "CORE__DAGS_FOLDER": str(Path(__file__).parent / "dags"),
            "CORE__LOAD_EXAMPLES": "False",
            "CORE__UNIT_TEST_MODE": "False",
            "CORE__PARALLELISM": "16",
            "CORE__FERNET_KEY": "",
            "CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
            "CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "CORE__HOSTNAME_CALLABLE": "tests.airflow.deployment.localhost",
            "OPERATORS__DEFAULT_QUEUE": "a",  # that of callbacks
            "DATABASE__SQL_ALCHEMY_CONN": f"postgresql+psycopg2://{address(self._dsn)}",
            "API__PORT": str(self._port),
            "API__HOST": "127.0.0.1",
            "API__BASE_URL": url,
            "API__SECRET_KEY": SECRET,
            "API_AUTH__JWT_SECRET": SECRET,
            "CELERY__BROKER_URL": self._chosen["broker"],
            "CELERY__RESULT_BACKEND": self._chosen["backend"],
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
            "CELERIAC_TEST_BEGUN": str(self._begun_file),
            **self._settings,
        }

    @property
    def _log_ports(self) -> tuple[str, str]:
        if "ports" not in self._chosen:
            self._chosen["ports"] = f"{free_port()} {free_port()}"
        worker, triggerer = self._chosen["ports"].split()
        return worker, triggerer

    # — its parts —

    def begin(self) -> None:
        self._postgres.sql(f'CREATE DATABASE "{self._database}"')
        self.airflow("db", "migrate")
        for part in PARTS:
            self.start(part)
        until(self._is_healthy, "the health of every part", SLOW)
        until(lambda: self.sql("SELECT 1 FROM serialized_dag WHERE dag_id = %s", DAG), "the DAG", SLOW)
        self.await_worker()

    def change(self, settings: dict[str, str] | None = None, **chosen: str) -> None:
        """Other `executor`, `worker`, `broker`, `backend`, environment: scheduler and worker begin again with them."""
        for part in CHANGEABLE:
            self.stop(part)
        self._chosen |= chosen
        self._settings |= settings or {}
        self._abandon()
        for part in CHANGEABLE:
            self.start(part)
        self.await_worker()

    def is_as(self, **chosen: str) -> bool:
        """With these parts, all of which live, and nothing left of another test, which may have failed."""
        left = self.sql("SELECT 1 FROM dag_run WHERE state NOT IN ('success', 'failed')")
        whole = len(self._processes) == len(PARTS) and all(map(self.lives, self._processes))
        return whole and not left and self._chosen.items() >= chosen.items() and not self.held()

    def start(self, part: str) -> None:
        words = {
            "api-server": ["api-server", "--workers", "1"],
            "scheduler": ["scheduler", "--skip-serve-logs"],
            "triggerer": ["triggerer", "--skip-serve-logs"],
            "worker": [GROUPS[self._chosen["worker"]], "worker", "--queues", "a,b", "--concurrency", "4"],
        }.get(part, [part])
        env = self._env
        if part == "worker" and COMMANDS_OF_EXECUTOR:  # it is configured as it was before the scheduler changed
            env["AIRFLOW__CORE__EXECUTOR"] = EXECUTORS[self._chosen["worker"]]
        with self._log(part).open("ab") as log:
            self._began[part] = log.tell()
            self._processes[part] = subprocess.Popen(
                [sys.executable, "-m", "airflow", *words],
                env=env,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                process_group=0,
            )

    def await_worker(self) -> None:
        until(lambda: self._alive_and_said("worker", r"\bready\b"), "a worker that is ready", SLOW)

    def stop(self, part: str) -> None:
        """As an operator does it. What does not heed it is killed."""
        process = self._processes.get(part)
        if process is None:
            return
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
        self.kill(part)

    def kill(self, part: str, *, main_only: bool = False) -> None:
        """With all that it started, and no goodbye; or its main process alone."""
        process = self._processes.pop(part)
        family = self._family(process)
        if main_only:
            self._orphans += family[1:]
            family = family[:1]
        end(family)
        process.wait()

    def freeze(self, part: str) -> None:
        """With all that it started."""
        for process in self._family(self._processes[part]):
            with suppress(psutil.NoSuchProcess):
                process.suspend()

    def lives(self, part: str) -> bool:
        return self._processes[part].poll() is None

    def close(self) -> None:
        for part in list(self._processes):
            self.kill(part)
        end([process for process in self._orphans if lives(process)])
        with suppress(psycopg.Error):
            self._postgres.sql(f'DROP DATABASE IF EXISTS "{self._database}" WITH (FORCE)')

    def _family(self, process: subprocess.Popen[bytes]) -> list[psutil.Process]:
        try:
            main = psutil.Process(process.pid)
            return [main, *main.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    # — what is done with it —

    def airflow(self, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "airflow", *words], env=self._env, cwd=self.folder, capture_output=True, check=False
        )
        if done.returncode:
            raise AssertionError(f"airflow {' '.join(words)}: {done.stderr.decode()[-3000:]}")
        return done.stdout.decode()

    def trigger(self, run: str, dag: str = DAG) -> None:
        asked = {"dag_run_id": run, "logical_date": None}
        self._http(f"/api/v2/dags/{dag}/dagRuns", asked, self._http("/auth/token")["access_token"])

    def _abandon(self) -> None:
        """Whatever has not ended has failed: a failed test is not the next one's."""
        self.sql(f"UPDATE task_instance SET state = 'failed' WHERE coalesce(state, '') NOT IN {ENDED} RETURNING 1")
        self.sql("UPDATE dag_run SET state = 'failed' WHERE state NOT IN ('success', 'failed') RETURNING 1")

    # — what is seen of it —

    def sql(self, query: str, *values: Any) -> list[Any]:
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            return connection.execute(query.encode(), values or None).fetchall()

    def states(self, run: str) -> Counter[str]:
        """Of the last tries."""
        one = f"task_id, {self.index}"
        latest = f"SELECT DISTINCT ON ({one}) state FROM task_instance WHERE run_id = %s"
        found = self.sql(f"{latest} ORDER BY {one}, try_number DESC", run)
        return Counter(state for (state,) in found)

    def said(self, part: str) -> str:
        """All of its log."""
        return self._log(part).read_text(errors="replace")

    def run_state(self, run: str) -> str:
        ((state,),) = self.sql("SELECT state FROM dag_run WHERE run_id = %s", run)
        return str(state)

    def ended(self, run: str) -> bool:
        self.check_alive()
        return self.run_state(run) in ("success", "failed")

    def check_alive(self) -> None:
        dead = [part for part in self._processes if not self.lives(part)]
        assert not dead, f"{dead} died: {self.tail(dead[0])}"

    def begun(self, run: str) -> Counter[str]:
        """How often each try of each task began."""
        return Counter(name for where, name, *_ in self._told() if where == run)

    def held(self) -> dict[str, int]:
        """What the executor has in its queues and in its slots: the scheduler tells it when it is sent USR2."""
        log, before = self._log("scheduler"), self._log("scheduler").stat().st_size
        self._processes["scheduler"].send_signal(signal.SIGUSR2)
        until(lambda: "executor.event_buffer (" in said_since(log, before), "what the scheduler tells", SLOW)
        counts = re.findall(r"executor\.((?:queued|running)[^ ]*) \((\d+)\)", said_since(log, before))
        assert counts
        return {name: int(count) for name, count in counts if int(count)}

    def tail(self, part: str) -> str:
        return self._log(part).read_text(errors="replace")[-4000:]

    def report(self) -> str:
        """Where everything stands, for whoever reads of a failed test."""
        lines = [f"— {part} —\n{self.tail(part)}" for part in PARTS if self._log(part).exists()]
        with suppress(psycopg.Error):
            columns = (
                f"run_id, task_id, {self.index}, try_number, state, queue, external_executor_id, last_heartbeat_at"
            )
            open_ones = f"SELECT {columns} FROM task_instance WHERE coalesce(state, '') NOT IN {ENDED}"
            lines += ["— not ended —", *map(str, self.sql(f"{open_ones} OR state = 'failed'"))]
        doubled = {told: times for told, times in Counter((*told[:2],) for told in self._told()).items() if times > 1}
        lines += ["— begun more than once —", *(str(told) for told in self._told() if (*told[:2],) in doubled)]
        with suppress(AssertionError, KeyError):
            lines += ["— held by the executor —", str(self.held())]
        return "\n".join(lines)

    @cached_property
    def index(self) -> str:
        """What the column is called that tells mapped tasks apart: Airflow 3.4 renamed it."""
        named = "SELECT column_name FROM information_schema.columns WHERE table_name = 'task_instance'"
        ((name,),) = self.sql(f"{named} AND column_name IN ('map_index', 'region_index')")
        return str(name)

    def _told(self) -> list[list[str]]:
        return [line.split() for line in self._begun_file.read_text().splitlines()] if self._begun_file.exists() else []

    @property
    def _begun_file(self) -> Path:
        return self.folder / "begun"

    def _log(self, part: str) -> Path:
        return self.folder / f"{part}.log"

    def _alive_and_said(self, part: str, pattern: str) -> bool:
        assert self.lives(part), f"{part} died: {self.tail(part)}"
        return re.search(pattern, said_since(self._log(part), self._began[part])) is not None

    def _is_healthy(self) -> bool:
        self.check_alive()
        try:
            parts = self._http("/api/v2/monitor/health")
        except OSError:
            return False
        return all(parts[name]["status"] == "healthy" for name in parts)

    def _http(self, path: str, body: Any = None, token: str = "") -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
        with urlopen(Request(f"http://127.0.0.1:{self._port}{path}", data, headers), timeout=30) as answer:
            return json.load(answer)


def check_run(deployment: Deployment, run: str) -> None:
    """Wait for its end: every task a success, every try begun once, every slot free."""
    until(lambda: deployment.ended(run), "the end of the run", SLOW)
    assert deployment.states(run) == {"success": TASKS}
    assert deployment.run_state(run) == "success"
    until(lambda: "callback_of_the_run" in deployment.begun(run), "the callback of the run", SLOW)
    assert deployment.begun(run) == expected()
    check_slots(deployment)


def check_slots(deployment: Deployment) -> None:
    looked: Any = None

    def are_free() -> bool:  # looked at once in a heartbeat: each look writes a page into the log
        nonlocal looked
        before, looked = looked, deployment.sql("SELECT max(latest_heartbeat) FROM job WHERE job_type = 'SchedulerJob'")
        return before != looked and not deployment.held()

    until(are_free, "free slots", SLOW)


def expected() -> Counter[str]:
    """How often each try of the DAG's tasks begins, if nothing happens that is no concern of the DAG."""
    plain = [f"plain{n}.1" for n in range(28)] + [f"mapped[{n}].1" for n in range(28)]
    others = ["flaky.1", "flaky.2", "told.1", "waits.1.before", "waits.1.after", "last.1"]
    return Counter([*plain, *others, "callback_of_told.1", "callback_of_the_run"])


@contextmanager
def deployed(*args: Any, **options: Any) -> Iterator[Deployment]:
    deployment = Deployment(*args, **options)
    try:
        deployment.begin()
        yield deployment
    except BaseException:
        print(deployment.report())
        raise
    finally:
        deployment.close()


@contextmanager
def reported(deployment: Deployment) -> Iterator[Deployment]:
    """A test of its own on a deployment that others share: if it fails, all that is known is printed."""
    try:
        yield deployment
    except BaseException:
        print(deployment.report())
        raise


def end(processes: list[psutil.Process]) -> None:
    for number in (signal.SIGSTOP, signal.SIGKILL):  # stopped first: else one would see the others go
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)


def said_since(log: Path, position: int) -> str:
    with log.open("rb") as file:
        file.seek(position)
        return file.read().decode(errors="replace")


def address(dsn: str) -> str:
    words = dict(word.split("=") for word in dsn.split())
    return f"{words['user']}@{words['host']}:{words['port']}/{words['dbname']}"


def localhost() -> str:
    """What the parts call this machine: its real name may resolve to nowhere."""
    return "127.0.0.1"


def wait_out(seconds: float, deployment: Deployment) -> None:
    """How long a fault lasts. Every part lives meanwhile."""
    end_of_it = time.monotonic() + seconds

    def over() -> bool:
        deployment.check_alive()
        return time.monotonic() > end_of_it

    until(over, "the end of the fault", seconds + SLOW)
