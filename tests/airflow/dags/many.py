"""100 short tasks, for a load that does not end: a test triggers one run after the other."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG
from tests.airflow.start_log import record, try_name

TASKS = 100
SECONDS = 1.0
"""Duration of each task."""


def work(**context: Any) -> None:
    record(context["run_id"], try_name(context))
    time.sleep(SECONDS)


with DAG(
    "many",
    schedule=None,
    is_paused_upon_creation=False,
    default_args={"retries": 10, "retry_delay": timedelta(seconds=1)},
    max_active_tasks=1000,
):
    for n in range(TASKS):
        PythonOperator(task_id=f"task{n}", python_callable=work, queue="ab"[n % 2])
