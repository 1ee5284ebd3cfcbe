"""Queries of Airflow's database: tasks that a dead scheduler had sent, and tasks that have ended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from airflow.models.taskinstance import TaskInstance
from airflow.utils.session import create_session
from airflow.utils.state import TaskInstanceState
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import joinedload, object_session
from sqlalchemy.orm.attributes import set_committed_value

from celeriac.airflow import versions
from celeriac.airflow.page.wording import spoken
from celeriac.errors import SentBefore, describe_error
from celeriac.log_lines import logger_for
from celeriac.task.task import OnWorkerLost, Task

log = logger_for(__name__)

ACTIVE_STATES = (TaskInstanceState.QUEUED, TaskInstanceState.RUNNING, TaskInstanceState.RESTARTING)
BATCH_SIZE = 1_000  # rows in one query
INDEX = "map_index" if hasattr(TaskInstance, "map_index") else "region_index"  # 3.4
MISSING_COLUMNS = ("try_number", "queue", "priority_weight")


class NoLongerQueued(SentBefore, ValueError):
    """Airflow has changed the state of the task, so the task must not be sent again."""


def load_columns(tis: Sequence[Any]) -> None:
    """Load the columns that adoption needs and that the scheduler has not loaded, with one query for each batch."""
    session = object_session(tis[0]) if tis else None
    if session is None:
        return
    by_id = {ti.id: ti for ti in tis}
    columns = [getattr(TaskInstance, name) for name in ("id", *MISSING_COLUMNS)]
    for ids in batches(list(by_id)):
        for row in session.execute(select(*columns).where(TaskInstance.id.in_(ids))):
            for name in MISSING_COLUMNS:
                set_committed_value(by_id[row.id], name, getattr(row, name))


def adopted_task(ti: Any, default_queue: str) -> Task:
    """Return the task that Celeriac's executor tracks for an adopted task instance."""
    return Task(
        key=ti.external_executor_id,
        id=ti.external_executor_id,
        command="execute_workload",
        queue=str(ti.queue or default_queue),
        priority=versions.clamp_priority(ti.priority_weight),
        on_worker_lost=OnWorkerLost.FAIL,
    )


def read_active_ids(ids: Sequence[Any]) -> set[str] | None:
    """Return which of these task instances are queued or running; None if the database is unavailable."""
    active: set[str] = set()
    try:
        with create_session(scoped=False) as session:
            for batch in batches(ids):
                query = select(TaskInstance.id).where(TaskInstance.id.in_(map(stored_id, batch)))
                active.update(map(str, session.scalars(query.where(TaskInstance.state.in_(ACTIVE_STATES)))))
    except SQLAlchemyError as error:
        log.warning(
            "Airflow's database is unavailable; slots of tasks that ended unseen stay taken until it is back: %s",
            describe_error(error),
        )
        return None
    return active


def read_state(ti_id: Any, celery_id: str, job_id: Any) -> Any:
    """Return the state of a task instance; None if the database is unavailable.

    Return "" if the task instance is deleted, has no state, has another Celery id now, or if a scheduler with another
    job than `job_id` has adopted it: a scheduler that was frozen or slow for too long does not learn that otherwise.
    """
    columns = select(TaskInstance.state, TaskInstance.external_executor_id, TaskInstance.queued_by_job_id)
    try:
        with create_session(scoped=False) as session:
            row = session.execute(columns.where(TaskInstance.id == stored_id(ti_id))).one_or_none()
    except SQLAlchemyError as error:
        log.warning(
            "Airflow's database is unavailable; a lost task waits until its state can be read: %s",
            describe_error(error),
        )
        return None
    is_ours = (
        row is not None
        and row.external_executor_id in (None, celery_id)
        and (job_id is None or row.queued_by_job_id in (None, job_id))
    )
    return (row.state or "") if is_ours else ""


@dataclass(frozen=True, slots=True)
class QueuedTask:
    """A queued task instance, for a line of the log."""

    id: str
    name: str
    wait: str
    """For how long it has been queued, as a predicate. Only a row that was changed by hand has no time."""


def read_queued(ids: Sequence[str]) -> list[QueuedTask] | None:
    """Return those of these task instances that are queued; None if the database is unavailable."""
    index = getattr(TaskInstance, INDEX)
    names = ("id", "dag_id", "task_id", "run_id", "try_number", "queued_dttm")
    columns = [*(getattr(TaskInstance, name) for name in names), index.label("index")]
    query = select(*columns).where(TaskInstance.id.in_(map(stored_id, ids)))
    try:
        with create_session(scoped=False) as session:
            rows = session.execute(query.where(TaskInstance.state == TaskInstanceState.QUEUED)).all()
    except SQLAlchemyError as error:
        log.debug("Airflow's database is unavailable: %s", describe_error(error))
        return None
    return [queued_task(row) for row in rows]


def queued_task(row: Any) -> QueuedTask:
    index = f" [{row.index}]" if row.index >= 0 else ""
    name = f"{row.dag_id}.{row.task_id}{index}, run {row.run_id}, try {row.try_number},"
    if row.queued_dttm is None:
        return QueuedTask(str(row.id), name, "is queued, since a time that is not stored")
    seconds = (datetime.now(UTC) - row.queued_dttm).total_seconds()
    return QueuedTask(str(row.id), name, f"has been queued for {spoken(seconds)}")


def rebuild_workload(executor: Any, ti_id: Any) -> Any:
    """Return a new workload for a queued task instance, with a new token.

    Raises `NoLongerQueued`, or an error of SQLAlchemy if the database is unavailable.
    """
    with create_session(scoped=False) as session:
        query = select(TaskInstance).where(TaskInstance.id == stored_id(ti_id))
        ti = session.scalar(query.options(joinedload(TaskInstance.dag_run), joinedload(TaskInstance.dag_model)))
        if ti is None or ti.state != TaskInstanceState.QUEUED:
            raise NoLongerQueued("the task instance is not queued any more")
        return versions.make_workload(executor, ti)


def read_log_path(ti_id: Any, try_number: int) -> tuple[Any, str | None]:
    """Return a row and the path of its log; None for both if the row has another try by now, or cannot be read."""
    query = select(TaskInstance).where(TaskInstance.id == stored_id(ti_id))
    try:
        with create_session(scoped=False) as session:
            ti = session.scalar(query.options(joinedload(TaskInstance.dag_run)))
            if ti is None or ti.try_number != try_number:
                return None, None
            path = versions.rendered_log_path(ti, session)
            session.expunge_all()
            return ti, path
    except SQLAlchemyError as error:
        log.warning("Airflow's database is unavailable: why a task failed is not in its log: %s", describe_error(error))
        return None, None


def stored_id(ti_id: Any) -> Any:
    """Return the id in the type of the column: a string in 3.1, a UUID later. A workload has a UUID."""
    return TaskInstance.id.type.python_type(str(ti_id))


def batches(ids: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(ids), BATCH_SIZE):
        yield ids[start : start + BATCH_SIZE]
