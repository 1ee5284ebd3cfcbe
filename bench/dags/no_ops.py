"""Tasks that do nothing: a few for a worker to begin with, then those that are measured."""

from __future__ import annotations

from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG

TASKS = {"first_no_ops": 12, "no_ops": 50}


def do_nothing() -> None:
    pass


for dag_id, count in TASKS.items():
    with DAG(dag_id, schedule=None, is_paused_upon_creation=False, default_args={"retries": 0}, max_active_tasks=100):
        for n in range(count):
            PythonOperator(task_id=f"task{n}", python_callable=do_nothing, queue="ab"[n % 2])
