"""The interface to what brings the output of commands on workers elsewhere to this machine.

A `ResultReader` beside whose results output comes has it as its attribute `outputs`.
"""

from __future__ import annotations

from typing import Protocol

from celeriac.task.result import Result
from celeriac.task.task import Task


class OutputReader(Protocol):
    """Brings output to this machine, beside the results. The executor calls it in its own thread."""

    def begin(self, task: Task) -> None:
        """Take note that an attempt runs."""
        ...

    def complete(self, task: Task, result: Result) -> Result | None:
        """Return the final result of an attempt, with the place of its output here. Return None while a part of its
        output is missing: the `ResultReader` names the task again when it is there."""
        ...

    def lost(self, task: Task, result: Result) -> Result:
        """Return the result of an attempt that was lost, with the place of what has come of its output."""
        ...

    def is_held(self, message_id: str) -> bool:
        """Return whether `complete` has returned None for this attempt."""
        ...
