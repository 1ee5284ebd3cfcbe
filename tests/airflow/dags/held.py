"""12 tasks that each record their start, and end when the test lets them: more than two workers run at once."""

from __future__ import annotations

import time
from typing import Any

from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG
from tests.airflow.start_log import record, release_file

MAX_WAIT = 900.0  # seconds


def wait_for_release(**context: Any) -> None:
    ti, released = context["ti"], release_file(context["run_id"])
    record(context["run_id"], f"{ti.task_id}.{ti.try_number}")
    deadline = time.monotonic() + MAX_WAIT
    while not released.exists():
        if time.monotonic() > deadline:
            raise TimeoutError("the test did not release the task")
        time.sleep(0.1)


with DAG("held", schedule=None, is_paused_upon_creation=False, default_args={"retries": 0}, max_active_tasks=100):
    for n in range(12):
        PythonOperator(task_id=f"held{n}", python_callable=wait_for_release, queue="ab"[n % 2], priority_weight=100)
