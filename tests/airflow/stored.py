"""Task instances in Airflow's database, as a dead scheduler left them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from airflow.models.dag import DagModel
from airflow.models.dag_version import DagVersion
from airflow.models.dagbundle import DagBundleModel
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG
from airflow.utils.session import create_session
from airflow.utils.types import DagRunType

try:
    from airflow.sdk.timezone import utcnow
except ImportError:
    from airflow._shared.timezones.timezone import utcnow

COLUMNS = ("id", "dag_id", "task_id", "run_id", "map_index", "state", "external_executor_id")
"""The columns that the scheduler loads."""


def store(states: Sequence[str], *, queue: str = "gpu") -> list[str]:
    """Store one task instance for each state. Return the Celery ids."""
    dag_id, bundle = f"dag-{uuid4()}", f"bundle-{uuid4()}"
    with create_session() as session:
        session.add(DagBundleModel(name=bundle))
        session.flush()
        session.add(DagModel(dag_id=dag_id, bundle_name=bundle, fileloc="dag.py", relative_fileloc="dag.py"))
        session.flush()
        version = DagVersion(dag_id=dag_id, version_number=1, bundle_name=bundle)
        session.add(version)
        now = utcnow()
        run = DagRun(dag_id=dag_id, run_id="run", run_type=DagRunType.MANUAL, state="running", run_after=now)
        session.add(run)
        session.flush()
        with DAG(dag_id, schedule=None):
            operators = [EmptyOperator(task_id=f"t{n}", queue=queue) for n in range(len(states))]
        ids = []
        for operator, state in zip(operators, states, strict=True):
            ti = TaskInstance(task=operator, dag_version_id=version.id, run_id="run", state=state)
            ti.external_executor_id = str(uuid4())
            ti.try_number = 2
            ids.append(ti.external_executor_id)
            session.add(ti)
    return ids


def load(session: Any, ids: Sequence[str]) -> list[Any]:
    from sqlalchemy import select
    from sqlalchemy.orm import load_only

    columns = load_only(*(getattr(TaskInstance, name) for name in COLUMNS))
    query = select(TaskInstance).options(columns).where(TaskInstance.external_executor_id.in_(ids))
    by_id = {ti.external_executor_id: ti for ti in session.scalars(query)}
    return [by_id[celery_id] for celery_id in ids]
