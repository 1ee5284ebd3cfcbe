"""A result backend in this process: a result is stored until it is read once."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from celery import states
from celery.backends.base import Backend

from celeriac.backend.results.decode import decode
from celeriac.executor.interfaces import Unreadable
from celeriac.task.result import Result


class ResultStore:
    """The results that were stored and not yet read."""

    def __init__(self) -> None:
        self._stored: dict[str, tuple[str, Any]] = {}
        self._changed: list[str] = []
        self.has_ended_task = False
        """Whether a task ended since the last `take_changed`: then the executor should not wait."""

    def put(self, task_id: str, state: str, value: Any) -> None:
        self._stored[task_id] = state, value
        self._changed.append(task_id)
        self.has_ended_task = self.has_ended_task or state in states.READY_STATES

    def put_revoked(self, task_id: str) -> None:
        self.put(task_id, states.REVOKED, None)

    def take_changed(self) -> list[str]:
        """Return the ids of the tasks whose results were stored since the last call."""
        ids, self._changed = self._changed, []
        self.has_ended_task = False
        return ids

    def read(self, ids: Collection[str]) -> Mapping[str, Result | Unreadable]:
        """Return the results of these tasks, and delete them. Leave out tasks without one."""
        results = {}
        for task_id in ids:
            stored = self._stored.pop(task_id, None)
            if stored is not None and (result := decode(*stored)) is not None:
                results[task_id] = result
        return results

    def forget(self, ids: Collection[str]) -> None:
        """Delete the results of these tasks."""
        for task_id in ids:
            self._stored.pop(task_id, None)


class MemoryBackend(Backend):  # type: ignore[misc]
    """The Celery result backend: Celery's tracer writes the results here."""

    persistent = False

    def __init__(self, store: ResultStore, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._store = store

    def store_result(
        self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None, **_: Any
    ) -> Any:
        self._store.put(task_id, state, result)
        return result

    def process_cleanup(self) -> None:
        """Do nothing: there is nothing to close."""
