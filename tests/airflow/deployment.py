"""A whole Airflow: api-server, scheduler, dag-processor, triggerer and a worker, on free ports, in a folder of its own.

PostgreSQL ◄─ api-server ◄─ worker ◄─ broker ◄─ scheduler ─► result backend
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import psycopg

from tests.command_line import until
from tests.servers import PostgresServer, free_port

ROOT = Path(__file__).parents[2]
SLOW = 180.0  # seconds: Airflow's parts begin slowly, and all at once
OURS, INCUMBENT = "ours", "incumbent"
EXECUTORS = {OURS: "CeleryExecutor:celeriac.airflow.CeleryExecutor", INCUMBENT: "CeleryExecutor"}
GROUPS = {OURS: "celeriac", INCUMBENT: "celery"}
SECRET = "a-secret-of-the-tests-that-is-long-enough-for-everybody-who-signs-with-it-64"


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
        self._worker = worker
        self._port = free_port()
        self._env = {**self._settings(broker, backend, executor), **settings}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def _settings(self, broker: str, backend: str, executor: str) -> dict[str, str]:
        url = f"http://127.0.0.1:{self._port}"
        options = {
            "CORE__EXECUTOR": EXECUTORS[executor],
            "CORE__DAGS_FOLDER": str(Path(__file__).parent / "dags"),
            "CORE__LOAD_EXAMPLES": "False",
            "CORE__PARALLELISM": "16",
            "CORE__FERNET_KEY": "",
            "CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
            "CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "CORE__HOSTNAME_CALLABLE": "tests.airflow.deployment.localhost",
            "DATABASE__SQL_ALCHEMY_CONN": f"postgresql+psycopg2://{address(self._dsn)}",
            "API__PORT": str(self._port),
            "API__HOST": "127.0.0.1",
            "API__BASE_URL": url,
            "API__SECRET_KEY": SECRET,
            "API_AUTH__JWT_SECRET": SECRET,
            "CELERY__BROKER_URL": broker,
            "CELERY__RESULT_BACKEND": backend,
            "CELERY__WORKER_CONCURRENCY": "4",
            "LOGGING__WORKER_LOG_SERVER_PORT": str(free_port()),
            "LOGGING__TRIGGER_LOG_SERVER_PORT": str(free_port()),
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
            "CELERIAC_TEST_BEGUN": str(self.folder / "begun"),
        }

    # — its parts —

    def begin(self) -> None:
        self._postgres.sql(f'CREATE DATABASE "{self._database}"')
        self.airflow("db", "migrate")
        for part in ("api-server", "dag-processor", "triggerer", "scheduler", "worker"):
            self.start(part)
        until(self._is_served, "the API server", SLOW)
        until(lambda: self.sql("SELECT 1 FROM serialized_dag"), "the DAG", SLOW)

    def start(self, part: str) -> None:
        words = {
            "api-server": ["api-server", "--workers", "1"],
            "scheduler": ["scheduler", "--skip-serve-logs"],
            "triggerer": ["triggerer", "--skip-serve-logs"],
            "worker": [GROUPS[self._worker], "worker", "--queues", "a,b", "--concurrency", "4"],
        }.get(part, [part])
        with (self.folder / f"{part}.log").open("ab") as log:
            self._processes[part] = subprocess.Popen(
                [sys.executable, "-m", "airflow", *words],
                env=self._env,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                process_group=0,
            )

    def kill(self, part: str) -> None:
        """With all that it started, and no goodbye."""
        process = self._processes.pop(part)
        with suppress(psutil.NoSuchProcess):
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            for one in family:
                with suppress(psutil.NoSuchProcess):
                    one.send_signal(signal.SIGSTOP)  # else one would see the others go
            for one in family:
                with suppress(psutil.NoSuchProcess):
                    one.kill()
        process.wait()

    def lives(self, part: str) -> bool:
        return self._processes[part].poll() is None

    def close(self) -> None:
        for part in list(self._processes):
            self.kill(part)
        with suppress(psycopg.Error):
            self._postgres.sql(f'DROP DATABASE IF EXISTS "{self._database}" WITH (FORCE)')

    # — what is done with it —

    def airflow(self, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "airflow", *words], env=self._env, cwd=self.folder, capture_output=True, check=False
        )
        if done.returncode:
            raise AssertionError(f"airflow {' '.join(words)}: {done.stderr.decode()[-3000:]}")
        return done.stdout.decode()

    def trigger(self, run: str) -> None:
        self.airflow("dags", "trigger", "load", "--run-id", run)

    def sql(self, query: str, *values: Any) -> list[Any]:
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            return connection.execute(query.encode(), values or None).fetchall()

    def states(self, run: str) -> Counter[str]:
        """Of the last tries."""
        latest = "SELECT DISTINCT ON (task_id, map_index) state FROM task_instance WHERE run_id = %s"
        found = self.sql(f"{latest} ORDER BY task_id, map_index, try_number DESC", run)
        return Counter(state for (state,) in found)

    def run_state(self, run: str) -> str:
        ((state,),) = self.sql("SELECT state FROM dag_run WHERE run_id = %s", run)
        return str(state)

    def ended(self, run: str) -> bool:
        dead = [part for part in self._processes if not self.lives(part)]
        assert not dead, f"{dead} died: {self.tail(dead[0])}"
        return self.run_state(run) in ("success", "failed")

    def begun(self) -> Counter[str]:
        """How often each try of each task began."""
        file = self.folder / "begun"
        return Counter(file.read_text().splitlines()) if file.exists() else Counter()

    def tail(self, part: str) -> str:
        return (self.folder / f"{part}.log").read_text(errors="replace")[-4000:]

    def _is_served(self) -> bool:
        assert self.lives("api-server"), self.tail("api-server")
        try:
            with socket.create_connection(("127.0.0.1", self._port), timeout=1):
                return True
        except OSError:
            return False


@contextmanager
def deployed(*args: Any, **options: Any) -> Iterator[Deployment]:
    deployment = Deployment(*args, **options)
    try:
        deployment.begin()
        yield deployment
    except BaseException:
        for part in deployment._processes:
            print(f"— {part} —\n{deployment.tail(part)}")
        raise
    finally:
        deployment.close()


def address(dsn: str) -> str:
    words = dict(word.split("=") for word in dsn.split())
    return f"{words['user']}@{words['host']}:{words['port']}/{words['dbname']}"


def localhost() -> str:
    """What the parts call this machine: its real name may resolve to nowhere."""
    return "127.0.0.1"


def seconds_since(began: float) -> float:
    return time.monotonic() - began
