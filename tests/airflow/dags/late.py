"""One task that runs past a deadline. From Airflow 3.2 on, a worker runs the callback of a missed deadline."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

from airflow import sdk
from airflow.providers.standard.operators.python import PythonOperator
from tests.airflow.start_log import is_recorded, record

TIMEOUT = 60.0  # seconds


def wait_past_the_deadline(**context: Any) -> None:
    record(context["run_id"], "task")
    deadline = time.monotonic() + TIMEOUT
    while not is_recorded(context["run_id"], "deadline_missed"):
        if time.monotonic() > deadline:
            raise TimeoutError("the callback of the missed deadline did not run")
        time.sleep(0.1)


if hasattr(sdk, "SyncCallback"):
    alert = sdk.DeadlineAlert(
        reference=sdk.DeadlineReference.DAGRUN_QUEUED_AT,
        interval=timedelta(seconds=1),
        callback=sdk.SyncCallback("tests.airflow.start_log.deadline_missed"),
    )
    with sdk.DAG("late", schedule=None, is_paused_upon_creation=False, deadline=alert):
        PythonOperator(task_id="late", python_callable=wait_past_the_deadline, queue="a")
