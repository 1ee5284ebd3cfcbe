"""Run commands on Celery workers: priorities, slots, tracked results, and a reason for every end."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celeriac.cluster import Cluster
    from celeriac.config import Config
    from celeriac.embedded import Embedded
    from celeriac.errors import CeleriacError
    from celeriac.event_buffer import Event
    from celeriac.executor import CeleryExecutor
    from celeriac.result import Execution, Output, Reason, Result
    from celeriac.state import State
    from celeriac.task import Secret, Task, TaskKey
    from celeriac.worker.execute_command import register

__version__ = "0.1.0"

HOMES = {
    "CeleriacError": "errors",
    "CeleryExecutor": "executor",
    "Cluster": "cluster",
    "Config": "config",
    "Embedded": "embedded",
    "Event": "event_buffer",
    "Execution": "result",
    "Output": "result",
    "Reason": "result",
    "Result": "result",
    "Secret": "task",
    "State": "state",
    "Task": "task",
    "TaskKey": "task",
    "register": "worker.execute_command",
}

__all__ = [
    "CeleriacError",
    "CeleryExecutor",
    "Cluster",
    "Config",
    "Embedded",
    "Event",
    "Execution",
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
