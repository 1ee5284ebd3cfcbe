"""Run commands on Celery workers: priorities, slots, tracked results, and a reason for every end."""

from celeriac.config import Config
from celeriac.errors import CeleriacError
from celeriac.event_buffer import Event
from celeriac.executor import CeleryExecutor
from celeriac.result import Execution, Output, Reason, Result
from celeriac.state import State
from celeriac.task import Secret, Task, TaskKey

__version__ = "0.1.0"

__all__ = [
    "CeleriacError",
    "CeleryExecutor",
    "Config",
    "Event",
    "Execution",
    "Output",
    "Reason",
    "Result",
    "Secret",
    "State",
    "Task",
    "TaskKey",
]
