"""The DAG of a team: 20 tasks in the queue that the other team uses, too."""

from __future__ import annotations

from typing import Any

from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG
from tests.airflow.start_log import record, try_name

TASKS = 20


def work(**context: Any) -> None:
    record(context["run_id"], try_name(context))


with DAG("dag_of_team_a", schedule=None, is_paused_upon_creation=False, max_active_tasks=100):
    for n in range(TASKS):
        PythonOperator(task_id=f"task{n}", python_callable=work, queue="a")
