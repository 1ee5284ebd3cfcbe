"""Read each result with a separate call of Celery's own reader. This works for every backend of Celery."""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from celery import Celery
from celery.backends.rpc import RPCBackend
from celery.exceptions import SecurityError
from kombu.exceptions import KombuError

from celeriac.backend.results.change_feed import ChangeSource
from celeriac.backend.results.decode import decode_meta
from celeriac.backend.results.reader import BackendResults
from celeriac.executor.interfaces import Unreadable
from celeriac.task.result import Result

CONCURRENCY = 8  # reads at once
UNREADABLE = (
    *(KombuError, SecurityError, pickle.PickleError, zlib.error, RecursionError, MemoryError, ArithmeticError),
    *(ValueError, TypeError, LookupError, AttributeError, ImportError, EOFError),
)
"""Exceptions that Celery and its serializers raise for a malformed value. Any other may be one of the client."""


class OneByOneResults(BackendResults):
    def __init__(
        self, app: Celery, *, timeout: float, concurrency: int = CONCURRENCY, source: ChangeSource | None = None
    ) -> None:
        """`timeout`, in seconds, bounds one `read`. A later `read` returns the results that are late.

        `concurrency` is how many results are read at once. With 0 the caller's thread reads one after the other, as it
        always does for `rpc://`.
        """
        count = 0 if replies_to_sender(app) else concurrency
        super().__init__(OneByOneStore(app), timeout=timeout, concurrency=count, sources=[source])


class OneByOneStore:
    batch_size = 1

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._options = {} if replies_to_sender(app) else {"cache": False}

    def fetch(self, ids: Sequence[str]) -> Mapping[str, Result | Unreadable]:
        (task_id,) = ids
        try:
            result = decode_meta(self._meta(task_id))
        except UNREADABLE as error:
            return {task_id: Unreadable(error)}
        return {task_id: result} if result is not None else {}

    def delete(self, ids: Sequence[str]) -> None:
        for task_id in ids:
            with suppress(FileNotFoundError):  # of the file backend: deleted already
                self._app.backend.forget(task_id)

    def close(self) -> None:
        """Leave each thread's backend to Celery, which closes it."""

    def _meta(self, task_id: str) -> Any:
        """Return Celery's "meta" of a task. `app.backend` is the backend of the calling thread: each thread has one."""
        return self._app.backend.get_task_meta(task_id, **self._options)


def replies_to_sender(app: Celery) -> bool:
    """Return whether results come as messages to the thread that sent the task, and to no other."""
    return isinstance(app.backend, RPCBackend)
