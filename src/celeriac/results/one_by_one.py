"""Reads results one at a time, with Celery's own reader: works on every backend that Celery knows."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping
from typing import Any

from celery import Celery
from celery.exceptions import BackendGetMetaError, BackendStoreError
from kombu.exceptions import DecodeError, OperationalError

from celeriac.interfaces import Unreadable
from celeriac.result import Result
from celeriac.results.decode import decode

UNREADABLE = (DecodeError, ValueError, TypeError, KeyError, AttributeError)
"""What Celery raises over a value that nobody stored for a task."""


class OneByOneResults:
    """Gives no hints: each task is looked at when the executor's reconcile says so."""

    def __init__(self, app: Celery, *, timeout: float) -> None:
        """`timeout` bounds one `read`, in seconds; what was not reached then comes with a later one."""
        self._backend, self._timeout = app.backend, timeout
        self._away = (OperationalError, BackendGetMetaError, BackendStoreError, OSError, *app_errors(self._backend))
        self._woken = threading.Event()

    def changed(self) -> Collection[str]:
        return ()

    def read(self, ids: Collection[str]) -> Mapping[str, Result | Unreadable]:
        until = time.monotonic() + self._timeout
        results: dict[str, Result | Unreadable] = {}
        for task_id in ids:
            if time.monotonic() >= until:
                break
            try:
                meta = self._backend.get_task_meta(task_id, cache=False)
            except self._away:
                break
            except UNREADABLE as error:
                results[task_id] = Unreadable(error)
            else:
                self._add(results, task_id, meta)
        return results

    def wait(self, timeout: float) -> None:
        self._woken.wait(timeout)
        self._woken.clear()

    def wake(self) -> None:
        """End a `wait`. May be called from a signal handler or another thread."""
        self._woken.set()

    def _add(self, results: dict[str, Result | Unreadable], task_id: str, meta: Any) -> None:
        try:
            result = decode(meta["status"], meta.get("result"))
        except UNREADABLE as error:
            results[task_id] = Unreadable(error)
            return
        if result is not None:
            results[task_id] = result


def app_errors(backend: Any) -> tuple[type[Exception], ...]:
    """What this backend's own client raises when the server is away."""
    return tuple(getattr(backend, "connection_errors", ()))
