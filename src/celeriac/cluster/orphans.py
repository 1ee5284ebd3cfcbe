"""Find tasks on workers that no executor follows, and revoke them by their Celery ids.

key ─► the tasks that workers run or have received ─► ids
id  ─► claims: a task that has not started never will
    └► remote control: the worker that runs it ends it
"""

from __future__ import annotations

import ast
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Self

from celery import Celery

from celeriac.backend.claims import claims_for
from celeriac.backend.results import results_for
from celeriac.broker.command_message import TASK_NAME
from celeriac.cluster.worker_registry import REPLY_TIMEOUT
from celeriac.errors import BackendUnavailable
from celeriac.executor.interfaces import Unreadable
from celeriac.executor.requests import CancelOutcome, CancelResult
from celeriac.server_errors import is_server_error
from celeriac.task.result import Result

POLL_INTERVAL = 0.2  # seconds between two reads of results
NO_CLAIMS = "its result backend keeps no claims: a worker that starts later may still run it"


@dataclass(frozen=True, slots=True)
class HeldTask:
    """A task that a worker runs or has received. `celeriac explain --json` prints these fields."""

    key: str
    id: str
    worker: str
    runs: bool
    """False for a task that was received and has not started."""


def held_by_workers(app: Celery, connection: Any) -> list[HeldTask]:
    """Return the tasks of Celeriac that workers run or have received. Raise the errors of the broker's client."""
    inspect = app.control.inspect(timeout=REPLY_TIMEOUT, connection=connection)
    replies = ((inspect.active(safe=True) or {}, True), (inspect.reserved() or {}, False))
    return [
        HeldTask(key, str(request["id"]), worker, runs)
        for reply, runs in replies
        for worker, requests in reply.items()
        if isinstance(requests, list)
        for request in requests
        if isinstance(request, Mapping) and "id" in request and (key := task_key(request)) is not None
    ]


def task_key(request: Mapping[str, Any]) -> str | None:
    """Return the key in a worker's description of a message; None for a task that is not Celeriac's."""
    if request.get("name") != TASK_NAME:
        return None
    match request.get("args"):
        case [{"key": key}, *_]:
            return str(key)
        case str(argsrepr):
            return parse_key(argsrepr)
    return None


def parse_key(argsrepr: str) -> str | None:
    """Return KEY of `(KEY,)`."""
    try:
        value = ast.literal_eval(argsrepr)
    except (ValueError, SyntaxError, RecursionError, MemoryError):  # the key is not a literal
        return argsrepr.removeprefix("(").removesuffix(",)")
    return str(value[0]) if isinstance(value, tuple) and value else None


class OrphanRevoker:
    """Revokes tasks by id. Use it as a context manager: it has connections to the result backend."""

    def __init__(self, app: Celery, *, connection: Any, timeout: float) -> None:
        """`timeout`, in seconds, bounds one operation on the result backend."""
        self._app, self._connection = app, connection
        self._claims = claims_for(app, timeout=timeout)
        self._results = results_for(app, timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._results.close()
        if self._claims is not None:
            self._claims.close()

    def cancel(self, names: Mapping[str, str], *, wait: float = 0.0) -> list[CancelResult]:
        """Cancel tasks, and wait up to `wait` seconds for their ends. Return one result for each task.

        `names` maps each Celery id to the name for its `CancelResult`. Raise `BackendUnavailable`, and the errors of
        the broker's client.
        """
        until = time.monotonic() + wait
        ended = self._read_ended(names)
        ids = [task_id for task_id in names if task_id not in ended]
        unstarted = self._revoke(ids)
        ends = self._wait_for_ends([task_id for task_id in ids if task_id not in unstarted], until)
        return [
            cancel_result(name, CancelOutcome.HAD_ENDED, ended[task_id])
            if task_id in ended
            else CancelResult(name=name, outcome=CancelOutcome.REVOKED, detail="revoked: no worker starts it")
            if task_id in unstarted
            else cancel_result(name, CancelOutcome.CALLED_BACK, ends.get(task_id), None if self._claims else NO_CLAIMS)
            for task_id, name in names.items()
        ]

    def _revoke(self, ids: list[str]) -> Collection[str]:
        """Revoke tasks. Return the ids of the tasks that will never start."""
        unstarted: Collection[str] = ()
        if self._claims is not None and ids:
            try:
                unstarted = self._claims.cancel(ids)
            except Exception as error:
                if not is_server_error(error):
                    raise
                raise BackendUnavailable(error) from None
        if ids:
            self._app.control.revoke(ids, connection=self._connection)
        return unstarted

    def _read_ended(self, ids: Collection[str]) -> dict[str, Result]:
        """Return the results of the tasks that are known to have ended."""
        return {
            task_id: result
            for task_id, result in self._results.read(ids).items()
            if not isinstance(result, Unreadable) and result.state.is_final
        }

    def _wait_for_ends(self, ids: list[str], until: float) -> dict[str, Result]:
        ends: dict[str, Result] = {}
        while (missing := [task_id for task_id in ids if task_id not in ends]) and time.monotonic() < until:
            ends |= self._read_ended(missing)
            if len(ends) < len(ids):
                self._results.wait(POLL_INTERVAL)
        return ends


def cancel_result(name: str, outcome: CancelOutcome, end: Result | None, detail: str | None = None) -> CancelResult:
    if end is None:
        return CancelResult(name=name, outcome=outcome, detail=detail)
    return CancelResult(name=name, outcome=outcome, state=end.state, detail=end.detail)
