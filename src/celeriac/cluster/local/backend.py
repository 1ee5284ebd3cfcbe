"""A result backend inside this process: a result stays until it is read, and is then gone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from celery import states
from celery.backends.base import Backend

from celeriac.backend.results.decode import decode
from celeriac.executor.interfaces import Unreadable
from celeriac.task.result import Result


class ResultStore:
    """What was written and not yet read, and whether any of it is worth waking up for."""

    def __init__(self) -> None:
        self._stored: dict[str, tuple[str, Any]] = {}
        self._changed: list[str] = []
        self.something_ended = False

    def put(self, task_id: str, state: str, value: Any) -> None:
        self._stored[task_id] = state, value
        self._changed.append(task_id)
        self.something_ended = self.something_ended or state in states.READY_STATES

    def put_revoked(self, task_id: str) -> None:
        self.put(task_id, states.REVOKED, None)

    def take_changed(self) -> list[str]:
        ids, self._changed = self._changed, []
        self.something_ended = False
        return ids

    def read(self, ids: Collection[str]) -> Mapping[str, Result | Unreadable]:
        results = {}
        for task_id in ids:
            stored = self._stored.pop(task_id, None)
            if stored is not None and (result := decode(*stored)) is not None:
                results[task_id] = result
        return results

    def forget(self, ids: Collection[str]) -> None:
        for task_id in ids:
            self._stored.pop(task_id, None)


class MemoryBackend(Backend):  # type: ignore[misc]
    """What Celery's tracer writes to."""

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
        """Nothing to close."""
