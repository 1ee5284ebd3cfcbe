"""Workloads as the scheduler makes them, in any version of Airflow."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

from airflow.executors import workloads

BUNDLE = {"name": "dags-folder", "version": None}


def task(task_id: str, *, priority: int = 1, queue: str = "default", dag_id: str = "dag", **fields: Any) -> Any:
    known_fields = workloads.TaskInstance.model_fields
    values = {
        "id": uuid4(),
        "dag_version_id": uuid4(),
        "task_id": task_id,
        "dag_id": dag_id,
        "run_id": "run",
        "try_number": 1,
        "pool_slots": 1,
        "queue": queue,
        "priority_weight": priority,
        "external_executor_id": str(uuid4()),
        **fields,
    }
    ti = workloads.TaskInstance(**{name: value for name, value in values.items() if name in known_fields})
    options = {"dag_rel_path": Path("dag.py"), "token": "a-token", "log_path": "a.log"}
    return workloads.ExecuteTask(ti=ti, bundle_info=workloads.BundleInfo(**BUNDLE), **options)


def callback(name: str, **data: Any) -> Any:
    fields = {"id": str(uuid4()), "fetch_method": "import_path", "data": {"path": name, "kwargs": {}, **data}}
    options = {"dag_rel_path": Path("dag.py"), "token": "a-token", "log_path": "a.log"}
    return workloads.ExecuteCallback(callback=fields, bundle_info=workloads.BundleInfo(**BUNDLE), **options)


def connection_test(name: str, queue: str | None = None) -> Any:
    return workloads.TestConnection(
        connection_test_id=uuid4(), connection_id=name, timeout=10, queue=queue, token="a-token"
    )
