"""60 tasks over two queues: plain, mapped, one that fails once, one that waits outside of any worker, callbacks.

Each try writes a line as it begins (run, name, process, time): what a run has done, and how often.
"""

from __future__ import annotations

import os
import time
from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG, BaseOperator
from tests.airflow.told import tell
from tests.airflow.trigger import Soon

SECONDS = float(os.environ.get("CELERIAC_TEST_SECONDS", "0.2"))
"""How long each task takes."""


def name_of(context: Any) -> str:
    ti = context["ti"]
    return f"{ti.task_id}[{ti.map_index}].{ti.try_number}" if ti.map_index >= 0 else f"{ti.task_id}.{ti.try_number}"


def work(number: int = 0, **context: Any) -> None:
    tell(context["run_id"], name_of(context))
    time.sleep(SECONDS)


def fail_once(**context: Any) -> None:
    tell(context["run_id"], name_of(context))
    if context["ti"].try_number == 1:
        raise RuntimeError("the first try fails")


def called_back(context: Any) -> None:
    tell(context["run_id"], f"callback_of_{name_of(context)}")


def whole_run(context: Any) -> None:
    """In the dag-processor."""
    tell(context["run_id"], "callback_of_the_run")


class Waits(BaseOperator):
    def execute(self, context: Any) -> None:
        tell(context["run_id"], f"{name_of(context)}.before")
        self.defer(trigger=Soon(), method_name="go_on")

    def go_on(self, context: Any, event: Any) -> None:
        tell(context["run_id"], f"{name_of(context)}.after")


retried = {"retries": 3, "retry_delay": timedelta(seconds=1)}

with DAG(
    "load",
    schedule=None,
    is_paused_upon_creation=False,
    default_args=retried,
    max_active_tasks=100,
    on_success_callback=whole_run,
):
    for n in range(28):
        PythonOperator(task_id=f"plain{n}", python_callable=work, queue="ab"[n % 2], priority_weight=n % 5)
    PythonOperator.partial(task_id="mapped", python_callable=work, queue="b", priority_weight=9).expand(
        op_kwargs=[{"number": n} for n in range(28)]
    )
    PythonOperator(task_id="flaky", python_callable=fail_once, queue="a")
    PythonOperator(task_id="told", python_callable=work, queue="b", on_success_callback=called_back)
    Waits(task_id="waits", queue="a")
    PythonOperator(task_id="last", python_callable=work, queue="a", priority_weight=-3)
