"""Keep the result of a task until the result backend stores it.

store ─► unavailable, refuses ─► wait, store again: the task keeps its slot and its message
     ├─► a conflict, a value that cannot be stored ─► a few attempts ─► a failure, which Celery stores in its place
     └─► a failure that cannot be stored ─► a failure without details

Celery gives up after one refusal, and after some attempts. Then the result is lost, and its message is never
acknowledged.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from celery import Celery, states

from celeriac.backend.results.decode import decode_meta
from celeriac.broker.celery_internals import drop_idle_connections, wrap_backend, wrap_result_calls
from celeriac.errors import describe_error
from celeriac.executor.interfaces import Unreadable
from celeriac.server_errors import ServerProblem, problem_of
from celeriac.worker.log import logger
from celeriac.worker.outage import ServerRetry

CONFLICT_DELAYS = (0.05, 0.2)  # seconds before the attempts that follow an error of another kind


class ResultNotStored(Exception):
    """The outcome of a task could not be stored, and this was stored in its place."""


def keep_results(app: Celery) -> None:
    """Make every result backend of the app keep results until its server stores them."""
    reading = ServerRetry("the result backend", "results are not read")
    writing = ServerRetry("the result backend", "results are kept")

    def prepare(backend: Any) -> Any:
        wrap_result_calls(
            backend,
            store=lambda store: PatientWriter(backend, writing, store),
            read=lambda read: patient(read, reading),
        )
        return backend

    wrap_backend(app, prepare)


def patient(read: Callable[..., Any], outage: ServerRetry) -> Callable[..., Any]:
    """Return a function that waits for the server, and that reads a malformed result as a missing one."""

    def read_patiently(*args: Any, **options: Any) -> Any:
        try:
            meta = outage.call(lambda: read(*args, **options))
            result = decode_meta(meta)
            if not isinstance(result, Unreadable):
                return meta
            problem = describe_error(result.error)
        except Exception as error:  # noqa: BLE001 - a decoder can raise anything
            problem = describe_error(error)
        logger.warning("a stored result is malformed, and counts as missing: %s", problem)
        return {"status": states.PENDING, "result": None}

    return read_patiently


class PatientWriter:
    """Stores results. It stands in for the method of one backend."""

    def __init__(self, backend: Any, outage: ServerRetry, store: Callable[..., Any]) -> None:
        self._backend, self._outage, self._store = backend, outage, store

    def __call__(self, task_id: str, result: Any, state: str, *args: Any, **options: Any) -> Any:
        try:
            return self._try(task_id, result, state, *args, **options)
        except Exception as error:
            if state != states.FAILURE:
                raise  # Celery stores the error as the task's failure
            logger.error("task %s: its failure cannot be stored, and is replaced: %s", task_id, describe_error(error))
            replacement = ResultNotStored(f"its outcome could not be stored: {type(error).__name__}")
            return self._try(task_id, self._backend.encode_result(replacement, state), state)

    def _try(self, *args: Any, **options: Any) -> Any:
        for delay in CONFLICT_DELAYS:
            # Two workers may insert the same row, or a row may be deleted in between: then another attempt succeeds.
            with contextlib.suppress(Exception):
                return self._call(*args, **options)
            time.sleep(delay)
        return self._call(*args, **options)

    def _call(self, *args: Any, **options: Any) -> Any:
        return self._outage.call(lambda: self._store(*args, **options), self._on_failure)

    def _on_failure(self, error: Exception) -> None:
        """Connect anew after a refusal: another server may be the primary now."""
        if problem_of(error) is ServerProblem.REFUSING:
            with contextlib.suppress(Exception):
                drop_idle_connections(self._backend)
