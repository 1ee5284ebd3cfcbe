"""What a scheduler that is gone had sent: found by its Celery ids, and written anew if it is in no place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from airflow.models.taskinstance import TaskInstance
from airflow.utils.session import create_session
from airflow.utils.state import TaskInstanceState
from sqlalchemy import select
from sqlalchemy.orm import joinedload, load_only, object_session

from celeriac.airflow import versions
from celeriac.task import OnWorkerLost, Task

CHUNK = 1_000  # rows in one query


class NotQueuedAnyMore(ValueError):
    """Airflow has moved on: there is nothing to send again."""


def load(tis: Sequence[Any]) -> None:
    """The scheduler loads a few columns of each; what else is needed comes with one query for many."""
    session = object_session(tis[0]) if tis else None
    if session is None:
        return
    columns = load_only(TaskInstance.try_number, TaskInstance.queue, TaskInstance.priority_weight)
    for n in range(0, len(tis), CHUNK):
        ids = [ti.id for ti in tis[n : n + CHUNK]]
        session.scalars(select(TaskInstance).options(columns).where(TaskInstance.id.in_(ids))).all()


def task_of(ti: Any, default_queue: str) -> Task:
    return Task(
        key=ti.external_executor_id,
        id=ti.external_executor_id,
        command="execute_workload",
        queue=str(ti.queue or default_queue),
        priority=versions.within_bounds(ti.priority_weight),
        on_worker_lost=OnWorkerLost.FAIL,
    )


def workload_again(executor: Any, message_id: str) -> Any:
    """Raises `NotQueuedAnyMore`."""
    with create_session() as session:
        found = select(TaskInstance).where(TaskInstance.external_executor_id == message_id)
        ti = session.scalar(found.options(joinedload(TaskInstance.dag_run), joinedload(TaskInstance.dag_model)))
        if ti is None or ti.state != TaskInstanceState.QUEUED:
            raise NotQueuedAnyMore(f"no task instance is queued under {message_id}")
        return versions.workload_of(executor, ti)
