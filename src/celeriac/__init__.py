"""Run commands on Celery workers, with priorities, slots, tracked results, and a reason for every end.

The names below are the public ones. Each is imported at its first use.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # without an import of `typing`: Ctrl-C during the first imports cannot be handled yet

if TYPE_CHECKING:
    from typing import Any

    from celeriac.cluster.cluster import Cluster
    from celeriac.cluster.local import LocalCluster
    from celeriac.config.executor_config import Config
    from celeriac.errors import CeleriacError, TaskFailed
    from celeriac.executor.executor import CeleryExecutor
    from celeriac.executor.stats import ExecutorStats
    from celeriac.futures import AsyncExecutor, FutureExecutor, TaskFuture
    from celeriac.ledger import SqlLedger
    from celeriac.runs.job_file.tasks import make_tasks, read_tasks
    from celeriac.task.event import Event
    from celeriac.task.result import Execution, Output, Reason, Result
    from celeriac.task.state import State
    from celeriac.task.task import OnNeedFailed, OnWorkerLost, Secret, Task, TaskKey
    from celeriac.worker.execute_command import register_task

__version__ = "0.1.0"

MODULE_OF = {
    "AsyncExecutor": "futures",
    "CeleriacError": "errors",
    "CeleryExecutor": "executor.executor",
    "Cluster": "cluster.cluster",
    "Config": "config",
    "Event": "task",
    "Execution": "task",
    "ExecutorStats": "executor.stats",
    "FutureExecutor": "futures",
    "LocalCluster": "cluster.local",
    "OnNeedFailed": "task",
    "OnWorkerLost": "task",
    "Output": "task",
    "Reason": "task",
    "Result": "task",
    "Secret": "task",
    "SqlLedger": "ledger",
    "State": "task",
    "Task": "task",
    "TaskFailed": "errors",
    "TaskFuture": "futures",
    "TaskKey": "task",
    "make_tasks": "runs.job_file.tasks",
    "read_tasks": "runs.job_file.tasks",
    "register_task": "worker.execute_command",
}

__all__ = [
    "AsyncExecutor",
    "CeleriacError",
    "CeleryExecutor",
    "Cluster",
    "Config",
    "Event",
    "Execution",
    "ExecutorStats",
    "FutureExecutor",
    "LocalCluster",
    "OnNeedFailed",
    "OnWorkerLost",
    "Output",
    "Reason",
    "Result",
    "Secret",
    "SqlLedger",
    "State",
    "Task",
    "TaskFailed",
    "TaskFuture",
    "TaskKey",
    "make_tasks",
    "read_tasks",
    "register_task",
]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: `celeriac --help` and the supervisor need none of them."""
    if name not in MODULE_OF:
        raise AttributeError(f"module 'celeriac' has no attribute {name!r}")
    return getattr(import_module(f"celeriac.{MODULE_OF[name]}"), name)
