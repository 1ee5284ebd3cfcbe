"""The values that describe a task: the task itself, its states and transitions, its result, and its events.

The values are plain and immutable, and check themselves. Nothing comes in and nothing goes out: no I/O, no settings.
This folder may import `celeriac.errors` only.
"""

from celeriac.task.event import Event
from celeriac.task.result import Execution, Output, Reason, Result
from celeriac.task.state import State
from celeriac.task.task import Command, OnNeedFailed, OnWorkerLost, Secret, Task, TaskKey

__all__ = [
    "Command",
    "Event",
    "Execution",
    "OnNeedFailed",
    "OnWorkerLost",
    "Output",
    "Reason",
    "Result",
    "Secret",
    "State",
    "Task",
    "TaskKey",
]
