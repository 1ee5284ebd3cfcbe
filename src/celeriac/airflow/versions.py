"""The differences between Airflow's versions for an executor: one small function for each difference.

A function tests which features exist, not the version number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from airflow.executors import workloads
from airflow.executors.base_executor import BaseExecutor
from sqlalchemy import inspect

TASK: Any = workloads.ExecuteTask
CALLBACK: Any = getattr(workloads, "ExecuteCallback", ())  # 3.2
"""The types of workloads. Any other workload is a connection test (3.3 and later)."""

OWN_ID_PREFIX = "celeriac-"
"""Prefix of the Celery ids that this executor makes if the scheduler assigns none. Each id is used once."""

QUEUE_NAMES = ("queued_tasks", "queued_callbacks", "queued_connection_tests")  # before 3.4
MAX_PRIORITY = 2**31 - 1
CALLBACK_PRIORITY = MAX_PRIORITY
CONNECTION_TEST_PRIORITY = MAX_PRIORITY - 1
MAX_TASK_PRIORITY = MAX_PRIORITY - 2


def base_executor_class() -> type[BaseExecutor]:
    """Return a `BaseExecutor` that declares support for callbacks and connection tests in the way of its version."""
    return type("SupportingExecutor", (BaseExecutor,), {**support_flags(), "__module__": __name__})


def support_flags() -> dict[str, Any]:
    if hasattr(workloads, "WorkloadType"):  # 3.4
        names = {"EXECUTE_TASK", "EXECUTE_CALLBACK", "TEST_CONNECTION"}
        return {
            "supported_workload_types": frozenset(kind for kind in workloads.WorkloadType if kind.name in names),
            "supports_task_instance_uuid": True,
        }
    if not hasattr(workloads, "ExecuteCallback"):  # 3.1
        return {}
    return {
        "supports_callbacks": True,
        "supports_connection_test": hasattr(workloads, "TestConnection"),  # 3.3
        "order_queued_tasks_by_priority": order_queued_tasks_by_priority,
    }


def order_queued_tasks_by_priority(executor: BaseExecutor) -> list[Any]:
    """Return the queued tasks, highest `priority_weight` first. Airflow 3.2.0 to 3.3.1 has the lowest first."""
    return sorted(executor.queued_tasks.items(), key=lambda item: item[1].ti.priority_weight, reverse=True)


def task_key(executor: BaseExecutor, ti: Any) -> Any:
    """Return the key that scheduler and executor use for a task instance. From 3.4 on, it is the UUID."""
    get_task_key = getattr(executor, "get_task_key", None)
    return ti.key if get_task_key is None else get_task_key(ti)


def workload_key(executor: BaseExecutor, workload: Any) -> Any:
    if isinstance(workload, TASK):
        return task_key(executor, workload.ti)
    if isinstance(workload, CALLBACK):
        return workload.callback.key  # 3.2.0 has no `workload.key`
    return workload.key


def assigned_celery_id(workload: Any) -> str | None:
    """Return the Celery id that the scheduler has assigned (3.2.2 and later); None if there is none.

    If Airflow has executors of several kinds, the scheduler may assign none. Then the field may hold an id that this
    executor made for an earlier try, or before the task was deferred. That id must not be used again.
    """
    assigned = getattr(getattr(workload, "ti", None), "external_executor_id", None)
    return None if assigned is None or str(assigned).startswith(OWN_ID_PREFIX) else str(assigned)


def clear_celery_id(workload: Any) -> None:
    if hasattr(workload.ti, "external_executor_id"):
        workload.ti.external_executor_id = None


def executor_queues(executor: BaseExecutor) -> list[dict[Any, Any]]:
    """Return the dicts in which the scheduler's workloads wait, by key."""
    attributes = vars(executor)
    if "executor_queues" in attributes:  # 3.4
        return list(attributes["executor_queues"].values())
    return [attributes[name] for name in QUEUE_NAMES if name in attributes]


def workload_priority(workload: Any) -> int:
    """Return the priority: callbacks first, as in Airflow; then connection tests, because users wait; then tasks."""
    if isinstance(workload, TASK):
        return clamp_priority(workload.ti.priority_weight)
    return CALLBACK_PRIORITY if isinstance(workload, CALLBACK) else CONNECTION_TEST_PRIORITY


def clamp_priority(priority_weight: int | None) -> int:
    return max(-MAX_TASK_PRIORITY, min(priority_weight or 0, MAX_TASK_PRIORITY))


def workload_queue(workload: Any, default: str) -> str:
    if isinstance(workload, TASK):
        return str(workload.ti.queue or default)
    if isinstance(workload, CALLBACK):
        data = workload.callback.data
        return str((data.get("queue") if isinstance(data, Mapping) else None) or default)
    return str(getattr(workload, "queue", None) or default)


def make_workload(executor: BaseExecutor, ti: Any) -> Any:
    """Return a new workload for a task instance, with a new token."""
    options = {"generator": executor.jwt_generator}
    if hasattr(BaseExecutor, "sentry_integration"):  # 3.2
        options["sentry_integration"] = executor.sentry_integration
    return workloads.ExecuteTask.make(ti, **options)


def log_task_event(executor: BaseExecutor, event: str, text: str, key: Any) -> None:
    """Give an event about a task to the scheduler, which stores it in Airflow's event log.

    Before 3.4 the scheduler passes its records to SQLAlchemy without a reference of its own. SQLAlchemy then keeps only
    their states, so each record would be gone before it is stored. So its state refers to it.
    """
    executor.log_task_event(event=event, extra=text, ti_key=key)
    if records := executor._task_event_logs:
        inspect(records[-1]).info["record"] = records[-1]


def rendered_log_path(ti: Any, session: Any) -> str:
    """Return the path of the log of a task instance's try, in the folder of the logs."""
    try:
        from airflow.utils.log import task_log_address as address  # 3.4
    except ImportError:
        from airflow.utils.helpers import log_filename_template_renderer

        return str(log_filename_template_renderer()(ti=ti))
    context = address.prepare_task_log_contexts([ti], session=session)[ti.id]
    return str(address.render_task_log_filename(ti, ti.try_number, context=context))


def remote_upload() -> Callable[[str, Any], object] | None:
    """Return the function that uploads a log, by its path and task instance; None without remote logging."""
    from airflow import logging_config

    getter = getattr(logging_config, "get_remote_task_log", None)  # 3.2; in 3.1 any other name is None
    remote = logging_config.REMOTE_TASK_LOG if getter is None else getter()
    return None if remote is None else remote.upload
