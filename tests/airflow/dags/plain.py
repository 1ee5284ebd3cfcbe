"""31 independent tasks of a second or more. None of them has a retry. Each start is recorded."""

from __future__ import annotations

import os
import time
from typing import Any

from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG
from tests.airflow.start_log import record

TASKS = 31
SECONDS = float(os.environ.get("CELERIAC_TEST_PLAIN_SECONDS", "1"))
"""Duration of each task."""


def work(**context: Any) -> None:
    ti = context["ti"]
    record(context["run_id"], f"{ti.task_id}.{ti.try_number}")
    time.sleep(SECONDS)


with DAG("plain", schedule=None, is_paused_upon_creation=False, default_args={"retries": 0}, max_active_tasks=100):
    for n in range(TASKS):
        PythonOperator(task_id=f"task{n}", python_callable=work, queue="ab"[n % 2])
