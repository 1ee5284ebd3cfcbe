"""Drive an Airflow executor, the incumbent's or ours, as the scheduler does. Runs in `.venv-incumbent`.

python -m bench.scheduler incumbent|ours BROKER BACKEND SYNC_PARALLELISM [OPERATION_TIMEOUT]

ExecuteTask ─► queue_workload ─► trigger_tasks ─► broker         result backend ─► sync ─► event_buffer
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from typing import Any
from uuid import UUID

from bench.player import cost_of, serve

TOKEN = "x" * 430  # about the size of a signed token; the whole workload is then 1 KB
ROOM = 1_000_000  # slots, so that no task waits for one
TIMEOUT = "10"  # seconds for one operation on the broker: on a busy machine Airflow's 1 s is too short for both


def configure(folder: str, broker: str, backend: str, parallelism: str, timeout: str = TIMEOUT) -> None:
    """Set its options before its modules are imported, because it reads them then."""
    os.environ.update(
        AIRFLOW_HOME=folder,
        AIRFLOW__CELERY__BROKER_URL=broker,
        AIRFLOW__CELERY__RESULT_BACKEND=backend,
        AIRFLOW__CELERY__SYNC_PARALLELISM=parallelism,
        AIRFLOW__CELERY__OPERATION_TIMEOUT=timeout,
        AIRFLOW__LOGGING__LOGGING_LEVEL="ERROR",
    )


class Scheduler:
    def __init__(self, kind: str) -> None:
        from importlib import import_module

        self._is_ours = kind == "ours"
        place = "celeriac.airflow" if self._is_ours else "airflow.providers.celery.executors.celery_executor"
        self._executor = import_module(place).CeleryExecutor(parallelism=ROOM)
        self._executor.start()
        self._app = self._executor._cluster.app if self._is_ours else self._executor.celery_app

    def publish(self, count: int, batch: int, prefix: str) -> dict[str, float]:
        """Measure from `queue_workload` until `trigger_tasks` returns, for each batch. Fail if one was not sent."""
        workloads = [workload(prefix, n) for n in range(count)]

        def send() -> None:
            for first in range(0, count, batch):
                for one in workloads[first : first + batch]:
                    self._executor.queue_workload(one, session=None)
                self._executor.trigger_tasks(batch)

        cost = cost_of(send)
        self._check(count)
        return cost

    def put_out(self, count: int, prefix: str) -> None:
        """Publish workloads and keep them in flight."""
        for n in range(count):
            self._executor.queue_workload(workload(prefix, n), session=None)
        self._executor.trigger_tasks(count)
        self._executor.get_event_buffer()

    def forget(self) -> None:
        for key in list(self._executor.running):
            self._executor.change_state(key, "failed")
        self._executor.get_event_buffer()
        if self._is_ours:
            self._executor.sync()
            self._executor.get_event_buffer()

    def sync(self) -> dict[str, float]:
        cost = cost_of(self._executor.sync)
        return {**cost, "events": len(self._executor.get_event_buffer())}

    def heartbeat(self, count: int, prefix: str) -> dict[str, float]:
        """Run one heartbeat with `count` new workloads."""
        for n in range(count):
            self._executor.queue_workload(workload(prefix, n), session=None)
        return cost_of(self._executor.heartbeat)

    def leave(self, count: int) -> list[str]:
        """Store task instances that a dead scheduler left running, in SQLite. Return their Celery ids."""
        from tests.airflow.stored import store

        subprocess.run([sys.executable, "-m", "airflow", "db", "migrate"], check=True, stdout=sys.stderr)
        return store(["running"] * count)

    def adopt(self, ids: list[str]) -> dict[str, float]:
        from airflow.utils.session import create_session
        from tests.airflow.stored import load

        with create_session() as session:
            tis = load(session, ids)
            cost = cost_of(lambda: self._executor.try_adopt_task_instances(tis))
        if len(self._executor.running) < len(ids):
            raise RuntimeError(f"only {len(self._executor.running)} of {len(ids)} were adopted")
        self.forget()
        return cost

    def store(self, task_id: str, state: str) -> None:
        """Store a result as its worker does."""
        value = {"pid": os.getpid(), "hostname": "celery@host"} if state == "STARTED" else None
        self._app.backend.store_result(task_id, value, state)

    def versions(self) -> dict[str, str]:
        from importlib.metadata import version

        return {name: version(name) for name in ("apache-airflow", "apache-airflow-providers-celery", "celery")}

    def _check(self, count: int) -> None:
        sent = [state for state, _ in self._executor.event_buffer.values() if state == "queued"]
        if len(sent) != count:
            raise RuntimeError(f"{count - len(sent)} of {count} were not sent")
        self.forget()


def workload(prefix: str, n: int) -> Any:
    """Return what the scheduler makes of a task instance that may run: 1 KB as JSON."""
    from airflow.executors.workloads import ExecuteTask
    from airflow.executors.workloads.base import BundleInfo
    from airflow.executors.workloads.task import TaskInstanceDTO

    instance = TaskInstanceDTO(
        id=UUID(int=n),
        dag_version_id=UUID(int=n),
        dag_id="benchmark",
        task_id=f"task-{n}",
        run_id="scheduled__2026-01-01T00:00:00+00:00",
        try_number=1,
        pool_slots=1,
        priority_weight=n % 10,
        queue="default",
        external_executor_id=f"{prefix}{n}",
    )
    return ExecuteTask(
        ti=instance,
        dag_rel_path="benchmark.py",
        token=TOKEN,
        log_path=f"dag_id=benchmark/run_id=scheduled__2026-01-01T00:00:00+00:00/task_id=task-{n}/attempt=1.log",
        bundle_info=BundleInfo(name="dags-folder"),
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="celeriac-bench-") as folder:
        kind, *words = sys.argv[1:]
        configure(folder, *words)
        scheduler = Scheduler(kind)
        names = ("publish", "put_out", "forget", "sync", "heartbeat", "leave", "adopt", "store", "versions")
        serve({name: getattr(scheduler, name) for name in names})
