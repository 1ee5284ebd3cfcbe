"""Say what a task is: what is asked for, its states, its result, and the events of its life. Plain values."""

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
