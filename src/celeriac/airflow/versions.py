"""Where Airflow's versions differ for an executor: one small function for each difference, by what is there to use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any

from airflow.executors import workloads
from airflow.executors.base_executor import BaseExecutor

TASK: Any = workloads.ExecuteTask
CALLBACK: Any = getattr(workloads, "ExecuteCallback", ())  # 3.2
"""Kinds of workload. The rest are connection tests, from 3.3 on."""

OWN_IDS = "celeriac-"
"""How Celery ids begin that the scheduler has not assigned: each is used once."""

HIGHEST = 2**31 - 1
CALLBACK_PRIORITY = HIGHEST
CONNECTION_TEST_PRIORITY = HIGHEST - 1
MOST_URGENT_TASK = HIGHEST - 2


def supporting_base() -> type[BaseExecutor]:
    """`BaseExecutor`, saying that callbacks and connection tests are welcome, in the words of its version."""
    return type("SupportingExecutor", (BaseExecutor,), {**support(), "__module__": __name__})


def support() -> dict[str, Any]:
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
        "order_queued_tasks_by_priority": most_urgent_first,
    }


def most_urgent_first(executor: BaseExecutor) -> list[Any]:
    """Airflow 3.2.0 to 3.3.1 has the lowest `priority_weight` first."""
    return sorted(executor.queued_tasks.items(), key=lambda item: item[1].ti.priority_weight, reverse=True)


def task_key_of(executor: BaseExecutor, ti: Any) -> Any:
    """How a task instance is called between scheduler and executor: by its UUID from 3.4 on."""
    get_task_key = getattr(executor, "get_task_key", None)
    return ti.key if get_task_key is None else get_task_key(ti)


def celery_id_of(workload: Any) -> str | None:
    """What the scheduler has assigned, from 3.2.2 on. Where it serves executors of several kinds it may assign nothing,
    and show the id of an earlier try, or of the part before a task was deferred: one that we made."""
    given = getattr(getattr(workload, "ti", None), "external_executor_id", None)
    return None if given is None or str(given).startswith(OWN_IDS) else str(given)


def forget_celery_id(workload: Any) -> None:
    if hasattr(workload.ti, "external_executor_id"):
        workload.ti.external_executor_id = None


def key_of(executor: BaseExecutor, workload: Any) -> Any:
    if isinstance(workload, TASK):
        return task_key_of(executor, workload.ti)
    if isinstance(workload, CALLBACK):
        return workload.callback.key  # `workload.key` is not there in 3.2.0
    return workload.key


def queues_of(executor: BaseExecutor) -> Iterator[dict[Any, Any]]:
    """Where the scheduler's workloads wait, by key."""
    if hasattr(executor, "executor_queues"):  # 3.4
        yield from executor.executor_queues.values()
        return
    for name in ("queued_tasks", "queued_callbacks", "queued_connection_tests"):
        if hasattr(executor, name):
            yield getattr(executor, name)


def priority_of(workload: Any) -> int:
    """Callbacks complete what was begun, so they go first, as Airflow has it; then connection tests, with people
    waiting for them."""
    if isinstance(workload, TASK):
        return within_bounds(workload.ti.priority_weight)
    return CALLBACK_PRIORITY if isinstance(workload, CALLBACK) else CONNECTION_TEST_PRIORITY


def within_bounds(priority_weight: int | None) -> int:
    return max(-MOST_URGENT_TASK, min(priority_weight or 0, MOST_URGENT_TASK))


def queue_of(workload: Any, default: str) -> str:
    if isinstance(workload, TASK):
        return str(workload.ti.queue or default)
    if isinstance(workload, CALLBACK):
        data = workload.callback.data
        return str((data.get("queue") if isinstance(data, Mapping) else None) or default)
    return str(getattr(workload, "queue", None) or default)


def workload_of(executor: BaseExecutor, ti: Any) -> Any:
    """Made anew for a task instance whose message is lost, with a token that is valid from now on."""
    options = {"generator": executor.jwt_generator}
    if hasattr(BaseExecutor, "sentry_integration"):  # 3.2
        options["sentry_integration"] = executor.sentry_integration
    return workloads.ExecuteTask.make(ti, **options)


def stats() -> Any:
    """What counts and measures, with `incr` and `timing`."""
    for place, name in STATS:
        with suppress(ImportError, AttributeError):
            found = getattr(import_module(place), name)
            if hasattr(found, "incr"):
                return found
    raise ImportError("this version of Airflow has its statistics in an unknown place")


STATS = (
    ("airflow._shared.observability.metrics", "stats"),  # 3.3: a module
    ("airflow._shared.observability.metrics.stats", "Stats"),  # 3.2
    ("airflow.stats", "Stats"),  # 3.1
)
