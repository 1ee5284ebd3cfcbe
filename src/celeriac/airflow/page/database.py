"""Queries of Airflow's database: tasks by queue and state, the tasks that workers run, and one task instance."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from airflow.models.dagrun import DagRun
from airflow.models.log import Log
from airflow.models.pool import Pool
from airflow.models.taskinstance import TaskInstance
from airflow.utils.session import create_session
from airflow.utils.state import TaskInstanceState
from sqlalchemy import and_, func, or_, select

from celeriac.airflow.adoption import INDEX
from celeriac.airflow.page.wording import TaskFacts

SHOWN_STATES = (TaskInstanceState.SCHEDULED, TaskInstanceState.QUEUED, TaskInstanceState.RUNNING)
SENT_STATES = (TaskInstanceState.QUEUED, TaskInstanceState.RUNNING, TaskInstanceState.RESTARTING)
MAX_SHOWN = 200  # running tasks, and events of one task


@dataclass(frozen=True, slots=True)
class Counts:
    """The tasks of one queue that have not ended, by state."""

    scheduled: int = 0
    queued: int = 0
    running: int = 0
    oldest_queued: float | None = None
    """Seconds since the task that has been queued longest was queued."""


@dataclass(frozen=True, slots=True)
class TaskName:
    """The name of a task instance for a person."""

    dag: str
    run: str
    task: str
    index: int


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One event of a task instance in Airflow's audit log."""

    when: datetime
    event: str
    owner: str
    text: str


@dataclass(frozen=True, slots=True)
class StoredTask:
    """A task instance, and which executor it is meant for."""

    id: str
    """The id of its row: an executor knows it, even before the task has a Celery id."""

    name: TaskName
    facts: TaskFacts
    executor: str | None
    names: Mapping[str, Any]
    """Other facts to show, by their labels."""


def of_executors(names: Iterable[str], *, with_default: bool) -> Any:
    """Return the condition for the tasks of executors with these names; `with_default` for tasks that name none."""
    named = TaskInstance.executor.in_(list(names))
    return or_(named, TaskInstance.executor.is_(None)) if with_default else named


def counts_by_queue(condition: Any) -> dict[str, Counts]:
    """Return the numbers of tasks by queue. `condition` selects those of one executor; None selects all."""
    columns = (TaskInstance.queue, TaskInstance.state, func.count(), func.min(TaskInstance.queued_dttm))
    query = select(*columns).where(TaskInstance.state.in_(SHOWN_STATES))
    query = query if condition is None else query.where(condition)
    with create_session(scoped=False) as session:
        rows = session.execute(query.group_by(TaskInstance.queue, TaskInstance.state)).all()
    found: dict[str, dict[str, Any]] = {}
    for queue, state, number, first in rows:
        values = found.setdefault(str(queue), {})
        values[str(getattr(state, "value", state))] = number
        if state == TaskInstanceState.QUEUED:
            values["oldest_queued"] = age_of(first)
    return {queue: Counts(**values) for queue, values in found.items()}


def names_of(celery_ids: Sequence[str]) -> dict[str, TaskName]:
    """Return the names of tasks that were sent, by Celery id."""
    index = getattr(TaskInstance, INDEX)
    columns = (TaskInstance.external_executor_id, TaskInstance.dag_id, TaskInstance.run_id, TaskInstance.task_id, index)
    condition = and_(
        TaskInstance.state.in_(SENT_STATES), TaskInstance.external_executor_id.in_(list(celery_ids)[:MAX_SHOWN])
    )
    if not celery_ids:
        return {}
    with create_session(scoped=False) as session:
        return {row[0]: TaskName(*row[1:]) for row in session.execute(select(*columns).where(condition))}


def stored_task(name: TaskName) -> StoredTask | None:
    """Return the latest try of a task instance; None if there is none."""
    conditions = (
        TaskInstance.dag_id == name.dag,
        TaskInstance.run_id == name.run,
        TaskInstance.task_id == name.task,
        getattr(TaskInstance, INDEX) == name.index,
    )
    with create_session(scoped=False) as session:
        ti = session.scalars(
            select(TaskInstance).where(*conditions).order_by(TaskInstance.try_number.desc()).limit(1)
        ).first()
        if ti is None:
            return None
        pool = session.scalar(select(Pool).where(Pool.pool == ti.pool))
        pool_open = None
        if pool is not None and ti.state == TaskInstanceState.SCHEDULED:
            open_slots = pool.open_slots(session=session)
            pool_open = None if open_slots == float("inf") else int(open_slots)
        return StoredTask(str(ti.id), name, facts_of(ti, pool_open), ti.executor, names_in(ti))


def sent_tasks(dag: str, run: str) -> tuple[list[StoredTask], int]:
    """Return the queued and running task instances of a run, the queued ones first, and how many there are.

    No more than `MAX_SHOWN` are returned.
    """
    of_run = (TaskInstance.dag_id == dag, TaskInstance.run_id == run, TaskInstance.state.in_(SENT_STATES))
    index = getattr(TaskInstance, INDEX)
    query = select(TaskInstance).where(*of_run).order_by(TaskInstance.state, TaskInstance.queued_dttm, index)
    with create_session(scoped=False) as session:
        number = session.scalar(select(func.count()).select_from(TaskInstance).where(*of_run)) or 0
        tis = session.scalars(query.limit(MAX_SHOWN)).all()
        return [
            StoredTask(
                str(ti.id),
                TaskName(dag, run, str(ti.task_id), getattr(ti, INDEX)),
                facts_of(ti, None),
                ti.executor,
                names_in(ti),
            )
            for ti in tis
        ], number


def has_run(dag: str, run: str) -> bool:
    query = select(DagRun.id).where(DagRun.dag_id == dag, DagRun.run_id == run)
    with create_session(scoped=False) as session:
        return session.scalar(query) is not None


def facts_of(ti: Any, pool_open: int | None) -> TaskFacts:
    began = {"scheduled": ti.scheduled_dttm, "queued": ti.queued_dttm, "running": ti.start_date}
    state = None if ti.state is None else str(getattr(ti.state, "value", ti.state))
    return TaskFacts(
        state=state,
        try_number=ti.try_number,
        queue=str(ti.queue),
        pool=str(ti.pool),
        pool_open=pool_open,
        celery_id=ti.external_executor_id,
        age=age_of(began.get(state or "")),
        duration=ti.duration,
        host=ti.hostname or None,
        pid=ti.pid,
        heartbeat_age=age_of(ti.last_heartbeat_at),
    )


def names_in(ti: Any) -> dict[str, Any]:
    shown = {
        "state": ti.state or "none",
        "try": ti.try_number,
        "queue": ti.queue,
        "pool": ti.pool,
        "priority": ti.priority_weight,
        "scheduled": ti.scheduled_dttm,
        "queued": ti.queued_dttm,
        "started": ti.start_date,
        "ended": ti.end_date,
        "host": ti.hostname,
        "Celery id": ti.external_executor_id,
    }
    return {label: value for label, value in shown.items() if value not in (None, "")}


def log_entries(name: TaskName) -> list[LogEntry]:
    """Return the events of a task instance in the audit log, the newest first."""
    of_task = (Log.dag_id == name.dag, Log.run_id == name.run, Log.task_id == name.task)
    of_index = or_(Log.map_index == name.index, Log.map_index.is_(None))
    query = select(Log.dttm, Log.event, Log.owner, Log.extra).where(*of_task, of_index)
    with create_session(scoped=False) as session:
        rows = session.execute(query.order_by(Log.id.desc()).limit(MAX_SHOWN)).all()
    return [LogEntry(when, event, owner or "", extra or "") for when, event, owner, extra in rows]


def age_of(when: datetime | None) -> float | None:
    return None if when is None else max(0.0, (datetime.now(UTC) - when).total_seconds())
