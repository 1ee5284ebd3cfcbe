"""What Airflow's database knows: of what a scheduler that is gone had sent, and of tasks whose end nobody told."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from airflow.models.taskinstance import TaskInstance
from airflow.utils.session import create_session
from airflow.utils.state import TaskInstanceState
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import joinedload, object_session
from sqlalchemy.orm.attributes import set_committed_value

from celeriac.airflow import versions
from celeriac.task.task import OnWorkerLost, Task

log = logging.getLogger(__name__)

AT_WORK = (TaskInstanceState.QUEUED, TaskInstanceState.RUNNING, TaskInstanceState.RESTARTING)
CHUNK = 1_000  # rows in one query
NEEDED = ("try_number", "queue", "priority_weight")


class NotQueuedAnyMore(ValueError):
    """Airflow has moved on: there is nothing to send again."""


def load(tis: Sequence[Any]) -> None:
    """The scheduler loads a few columns of each; what else is needed comes with one query for many."""
    session = object_session(tis[0]) if tis else None
    if session is None:
        return
    by_id = {ti.id: ti for ti in tis}
    ids = list(by_id)
    columns = [getattr(TaskInstance, name) for name in ("id", *NEEDED)]
    for n in range(0, len(ids), CHUNK):
        for row in session.execute(select(*columns).where(TaskInstance.id.in_(ids[n : n + CHUNK]))):
            for name in NEEDED:
                set_committed_value(by_id[row.id], name, getattr(row, name))


def task_of(ti: Any, default_queue: str) -> Task:
    return Task(
        key=ti.external_executor_id,
        id=ti.external_executor_id,
        command="execute_workload",
        queue=str(ti.queue or default_queue),
        priority=versions.within_bounds(ti.priority_weight),
        on_worker_lost=OnWorkerLost.FAIL,
    )


def at_work(ids: Sequence[Any]) -> set[str] | None:
    """Of the task instances, those that a worker has, or is to have. None if the database does not answer."""
    found: set[str] = set()
    try:
        with create_session(scoped=False) as session:
            for n in range(0, len(ids), CHUNK):
                chunk = select(TaskInstance.id).where(TaskInstance.id.in_(map(as_stored, ids[n : n + CHUNK])))
                found.update(map(str, session.scalars(chunk.where(TaskInstance.state.in_(AT_WORK)))))
    except SQLAlchemyError as error:
        log.warning("Airflow's database cannot be asked which tasks are over: %s", type(error).__name__)
        return None
    return found


def state_of(ti_id: Any, celery_id: str) -> Any:
    """None if the database does not answer; "" of a task instance that is gone, has no state, or goes on under another
    Celery id."""
    columns = select(TaskInstance.state, TaskInstance.external_executor_id)
    try:
        with create_session(scoped=False) as session:
            row = session.execute(columns.where(TaskInstance.id == as_stored(ti_id))).one_or_none()
    except SQLAlchemyError as error:
        log.warning("Airflow's database cannot be asked what became of a lost task: %s", type(error).__name__)
        return None
    is_ours = row is not None and row.external_executor_id in (None, celery_id)
    return (row.state or "") if is_ours else ""


def as_stored(ti_id: Any) -> Any:
    """The column holds strings in 3.1, and UUIDs later; a workload has UUIDs."""
    return TaskInstance.id.type.python_type(str(ti_id))


def workload_again(executor: Any, ti_id: Any) -> Any:
    """Raises `NotQueuedAnyMore`."""
    with create_session(scoped=False) as session:
        found = select(TaskInstance).where(TaskInstance.id == as_stored(ti_id))
        ti = session.scalar(found.options(joinedload(TaskInstance.dag_run), joinedload(TaskInstance.dag_model)))
        if ti is None or ti.state != TaskInstanceState.QUEUED:
            raise NotQueuedAnyMore("the task instance is not queued any more")
        return versions.workload_of(executor, ti)
