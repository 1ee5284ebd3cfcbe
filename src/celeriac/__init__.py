"""Run commands on Celery workers: priorities, slots, tracked results, and a reason for every end."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celeriac.cluster.cluster import Cluster
    from celeriac.cluster.local import LocalCluster
    from celeriac.config.executor_config import Config
    from celeriac.errors import CeleriacError
    from celeriac.executor.executor import CeleryExecutor
    from celeriac.task.event import Event
    from celeriac.task.result import Execution, Output, Reason, Result
    from celeriac.task.state import State
    from celeriac.task.task import Secret, Task, TaskKey
    from celeriac.worker.execute_command import register

__version__ = "0.1.0"

HOMES = {
    "CeleriacError": "errors",
    "CeleryExecutor": "executor.executor",
    "Cluster": "cluster.cluster",
    "Config": "config",
    "LocalCluster": "cluster.local",
    "Event": "task",
    "Execution": "task",
    "Output": "task",
    "Reason": "task",
    "Result": "task",
    "Secret": "task",
    "State": "task",
    "Task": "task",
    "TaskKey": "task",
    "register": "worker.execute_command",
}

__all__ = [
    "CeleriacError",
    "CeleryExecutor",
    "Cluster",
    "Config",
    "Event",
    "Execution",
    "LocalCluster",
    "Output",
    "Reason",
    "Result",
    "Secret",
    "State",
    "Task",
    "TaskKey",
    "register",
]


def __getattr__(name: str) -> Any:
    """Each name is fetched when it is first asked for: `celeriac --help`, and the supervisor, need none of them."""
    if name not in HOMES:
        raise AttributeError(f"module 'celeriac' has no attribute {name!r}")
    return getattr(import_module(f"celeriac.{HOMES[name]}"), name)
