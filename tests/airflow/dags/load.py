"""60 tasks in two queues: plain ones, mapped ones, one that fails once, one that is deferred; and callbacks.

Each try records its start: run, name, time and process.
"""

from __future__ import annotations

import os
import time
from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG
from tests.airflow.start_log import record, try_name
from tests.airflow.trigger import Deferred

SECONDS = float(os.environ.get("CELERIAC_TEST_SECONDS", "0.2"))
"""Duration of each task."""


def work(number: int = 0, **context: Any) -> None:
    record(context["run_id"], try_name(context))
    time.sleep(SECONDS)


def fail_once(**context: Any) -> None:
    record(context["run_id"], try_name(context))
    if context["ti"].try_number == 1:
        raise RuntimeError("the first try fails")


def record_callback(context: Any) -> None:
    record(context["run_id"], f"callback_of_{try_name(context)}")


def record_run_callback(context: Any) -> None:
    """Run in the dag-processor."""
    record(context["run_id"], "callback_of_the_run")


retried = {"retries": 3, "retry_delay": timedelta(seconds=1)}

with DAG(
    "load",
    schedule=None,
    is_paused_upon_creation=False,
    default_args=retried,
    max_active_tasks=100,
    on_success_callback=record_run_callback,
):
    for n in range(28):
        PythonOperator(task_id=f"plain{n}", python_callable=work, queue="ab"[n % 2], priority_weight=n % 5)
    PythonOperator.partial(task_id="mapped", python_callable=work, queue="b", priority_weight=9).expand(
        op_kwargs=[{"number": n} for n in range(28)]
    )
    PythonOperator(task_id="flaky", python_callable=fail_once, queue="a")
    PythonOperator(task_id="with_callback", python_callable=work, queue="b", on_success_callback=record_callback)
    Deferred(task_id="deferred", queue="a")
    PythonOperator(task_id="last", python_callable=work, queue="a", priority_weight=-3)
