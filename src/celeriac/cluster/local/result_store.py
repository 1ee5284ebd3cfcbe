"""The results of a local cluster: each is kept until it is read once."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from celeriac.executor.interfaces import Unreadable
from celeriac.task.result import Reason, Result
from celeriac.task.state import State


class ResultStore:
    """The results that were stored and not yet read."""

    def __init__(self) -> None:
        self._stored: dict[str, Result] = {}
        self._changed: list[str] = []
        self.has_ended_task = False
        """Whether a task ended since the last `take_changed`: then the executor should not wait."""

    def put(self, task_id: str, result: Result) -> None:
        self._stored[task_id] = result
        self._changed.append(task_id)
        self.has_ended_task = self.has_ended_task or result.state is not State.RUNNING

    def put_revoked(self, task_id: str) -> None:
        self.put(task_id, Result(State.REVOKED, Reason.REVOKED, "revoked before it started"))

    def take_changed(self) -> list[str]:
        """Return the ids of the tasks whose results were stored since the last call."""
        ids, self._changed = self._changed, []
        self.has_ended_task = False
        return ids

    def read(self, ids: Collection[str]) -> Mapping[str, Result | Unreadable]:
        """Return the results of these tasks, and delete them. Leave out tasks without one."""
        return {task_id: self._stored.pop(task_id) for task_id in ids if task_id in self._stored}

    def forget(self, ids: Collection[str]) -> None:
        """Delete the results of these tasks."""
        for task_id in ids:
            self._stored.pop(task_id, None)
