"""One task, over whose end a deadline passes: from Airflow 3.2 that is told on a worker."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

from airflow import sdk
from airflow.providers.standard.operators.python import PythonOperator
from tests.airflow.told import is_told, tell

PATIENCE = 60.0  # seconds


def await_the_deadline(**context: Any) -> None:
    tell(context["run_id"], "task")
    end = time.monotonic() + PATIENCE
    while not is_told(context["run_id"], "deadline_missed"):
        if time.monotonic() > end:
            raise TimeoutError("nobody was told of the deadline")
        time.sleep(0.1)


if hasattr(sdk, "SyncCallback"):
    deadline = sdk.DeadlineAlert(
        reference=sdk.DeadlineReference.DAGRUN_QUEUED_AT,
        interval=timedelta(seconds=1),
        callback=sdk.SyncCallback("tests.airflow.told.deadline_missed"),
    )
    with sdk.DAG("late", schedule=None, is_paused_upon_creation=False, deadline=deadline):
        PythonOperator(task_id="late", python_callable=await_the_deadline, queue="a")
