"""Every way in which Airflow starts a task: one DAG with all of them, one to backfill, one to clear and to mark.

Each try records its start. A sensor records each poke, a deferred task each of its parts.
"""

from __future__ import annotations

import os
import time
from datetime import datetime, timedelta
from typing import Any

from airflow import sdk
from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG, BaseSensorOperator, TaskGroup
from tests.airflow.start_log import record, try_name
from tests.airflow.trigger import Deferred

MAPPED = int(os.environ.get("CELERIAC_TEST_MAPPED", "40"))
"""Number of the tasks that are mapped when the DAG runs."""

RANKED = 6
"""Number of the tasks in a pool of one slot, with different weights."""

LOCAL = 4
"""Number of the tasks that name another executor."""

TIMEOUT = 120.0  # seconds


def work(number: int = 0, **context: Any) -> None:
    record(context["run_id"], try_name(context))


def numbers(**context: Any) -> list[dict[str, int]]:
    record(context["run_id"], try_name(context))
    return [{"number": number} for number in range(MAPPED)]


def fail_once(**context: Any) -> None:
    record(context["run_id"], try_name(context))
    if context["ti"].try_number == 1:
        raise RuntimeError("the first try fails")


def wait_in_first_try(**context: Any) -> None:
    """Wait until this task is cleared or marked."""
    record(context["run_id"], try_name(context))
    if context["ti"].try_number == 1:
        time.sleep(TIMEOUT)
        raise TimeoutError("this try was not ended")


def record_success(context: Any) -> None:
    record(context["run_id"], f"success_of_{try_name(context)}")


def record_retry(context: Any) -> None:
    record(context["run_id"], f"retry_of_{try_name(context)}")


def record_run(context: Any) -> None:
    """Run in the dag-processor."""
    record(context["run_id"], "callback_of_the_run")


class ThirdPoke(BaseSensorOperator):
    """A sensor that gives its slot back after each poke."""

    def poke(self, context: Any) -> bool:
        reschedules = context["ti"]._ti_context_from_server.task_reschedule_count
        record(context["run_id"], f"{try_name(context)}.poke{reschedules}")
        return bool(reschedules >= 2)


retried = {"retries": 3, "retry_delay": timedelta(seconds=1), "weight_rule": "absolute"}
options: dict[str, Any] = {
    "schedule": None,
    "is_paused_upon_creation": False,
    "default_args": retried,
    "max_active_tasks": 1000,
}
deadline: dict[str, Any] = {}
if hasattr(sdk, "SyncCallback"):
    deadline["deadline"] = sdk.DeadlineAlert(
        reference=sdk.DeadlineReference.DAGRUN_QUEUED_AT,
        interval=timedelta(seconds=1),
        callback=sdk.SyncCallback("tests.airflow.start_log.deadline_missed"),
    )

with DAG("features", on_success_callback=record_run, **deadline, **options):
    PythonOperator.partial(task_id="mapped", python_callable=work, queue="b").expand(
        op_kwargs=PythonOperator(task_id="numbers", python_callable=numbers, queue="a", priority_weight=9).output
    )
    gate = PythonOperator(task_id="gate", python_callable=work, queue="a", priority_weight=9)
    with TaskGroup("ranked"):
        for n in range(RANKED):
            weight = 10 + (n * 5) % RANKED  # not in the order of the ids
            gate >> PythonOperator(
                task_id=f"weight{weight}", python_callable=work, queue="a", pool="one_slot", priority_weight=weight
            )
    for n in range(LOCAL):
        PythonOperator(task_id=f"local{n}", python_callable=work, executor="LocalExecutor", priority_weight=8)
    # Airflow fails a try whose next poke is due before it has read the end of this one, and that may take some seconds.
    ThirdPoke(task_id="sensor", mode="reschedule", poke_interval=15, queue="b", priority_weight=8)
    Deferred(task_id="deferred", queue="a", executor="CeleryExecutor", priority_weight=8)
    PythonOperator(
        task_id="flaky", python_callable=fail_once, queue="a", on_retry_callback=record_retry, priority_weight=8
    )
    PythonOperator(task_id="with_callback", python_callable=work, queue="b", on_success_callback=record_success)

with DAG("held", **options):
    for name in ("cleared", "marked"):
        PythonOperator(task_id=name, python_callable=wait_in_first_try, queue="a")
    PythonOperator(task_id="untouched", python_callable=work, queue="b")

with DAG(
    "daily",
    **{**options, "schedule": "@daily"},
    start_date=datetime(2024, 1, 1),  # noqa: DTZ001 - Airflow adds the time zone
    end_date=datetime(2024, 1, 31),  # noqa: DTZ001
    catchup=False,
):
    first = PythonOperator(task_id="first", python_callable=work, queue="a")
    first >> PythonOperator(task_id="second", python_callable=work, queue="b")
