"""Run a whole Airflow with one worker after the other, and measure each of them. Runs in `.venv-incumbent`.

    measure("ours") ─► another worker ─► its first tasks ─► memory at idle ─► 50 no-op tasks ─► CPU

The scheduler and its executor are Airflow's own for both workers.

CPU is counted over the tree of processes below the worker's main process, the log server and the like included. For
each living process that is its own time, and the time of its children that have ended and that it has waited for, with
theirs. So a task that ends moves from the first sum into the second one, and none is counted twice. Only a process
whose parent ended before it is lost: neither worker has one.

Memory is the sum of PSS: a page that n processes share counts as 1/n in each of them. RSS counts it n times.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing, redirect_stdout
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil

from bench.player import ROOT, serve

FIRST_DAG, DAG, TASKS = "first_no_ops", "no_ops", 50
REST = 6.0  # seconds from the last of the first tasks until memory is read
RUN_TIMEOUT = 300.0  # seconds
MIB = 2**20


class Workers:
    """The workers of one deployment, each measured just after its start."""

    def __init__(self, deployment: Any) -> None:
        self._deployment = deployment

    def measure(self, worker: str) -> dict[str, float]:
        self._deployment.switch("worker", worker)
        self._run(FIRST_DAG)
        idle = len(self._family())
        time.sleep(REST)
        memory = [process.memory_full_info() for process in self._family()]
        cpu, wall = self._cpu(), time.monotonic()
        self._run(DAG)
        wall = time.monotonic() - wall
        self._await(lambda: len(self._family()) <= idle, "the end of the last task")
        return {
            "cpu": (self._cpu() - cpu) / TASKS,
            "pss": sum(one.pss for one in memory) / MIB,
            "rss": sum(one.rss for one in memory) / MIB,
            "processes": len(memory),
            "wall": wall,
        }

    def _run(self, dag: str) -> None:
        run = f"bench_{uuid4().hex}"
        self._deployment.trigger(run, dag)
        self._await(lambda: self._deployment.ended(run), f"the end of {dag}")
        if self._deployment.run_state(run) != "success":
            raise RuntimeError(f"{dag} failed: {self._deployment.tail('worker')}")

    def _family(self) -> list[psutil.Process]:
        main = psutil.Process(self._deployment.main_process_id("worker"))
        return [main, *main.children(recursive=True)]

    def _cpu(self) -> float:
        times = [process.cpu_times() for process in self._family()]
        return sum(one.user + one.system + one.children_user + one.children_system for one in times)

    def _await(self, condition: Callable[[], bool], what: str) -> None:
        from tests.support.cli_runner import until

        until(condition, what, RUN_TIMEOUT)


def main() -> None:
    from tests.airflow.deployment import UPSTREAM, deployment_of
    from tests.support.servers import PostgresServer, RedisServer

    with (
        redirect_stdout(sys.stderr),  # a report of the deployment is no answer
        closing(PostgresServer()) as postgres,
        closing(RedisServer()) as redis,
        tempfile.TemporaryDirectory(prefix="celeriac-bench-") as folder,
        deployment_of(
            Path(folder),
            postgres,
            broker=redis.url,
            backend=redis.url,
            executor=UPSTREAM,
            worker=UPSTREAM,
            dags=(FIRST_DAG, DAG),
            AIRFLOW__CORE__DAGS_FOLDER=str(ROOT / "bench" / "dags"),
        ) as deployment,
    ):
        serve({"measure": Workers(deployment).measure})


if __name__ == "__main__":
    main()
