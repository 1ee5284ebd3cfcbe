"""What a scheduler that is gone had sent: found by its Celery ids, and written anew if it is in no place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from airflow.models.taskinstance import TaskInstance
from airflow.utils.session import create_session
from airflow.utils.state import TaskInstanceState
from sqlalchemy import select
from sqlalchemy.orm import joinedload, object_session
from sqlalchemy.orm.attributes import set_committed_value

from celeriac.airflow import versions
from celeriac.task import OnWorkerLost, Task

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


def workload_again(executor: Any, message_id: str) -> Any:
    """Raises `NotQueuedAnyMore`."""
    with create_session() as session:
        found = select(TaskInstance).where(TaskInstance.external_executor_id == message_id)
        ti = session.scalar(found.options(joinedload(TaskInstance.dag_run), joinedload(TaskInstance.dag_model)))
        if ti is None or ti.state != TaskInstanceState.QUEUED:
            raise NotQueuedAnyMore(f"no task instance is queued under {message_id}")
        return versions.workload_of(executor, ti)
