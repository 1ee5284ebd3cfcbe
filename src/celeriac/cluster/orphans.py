"""Tasks that no executor follows any more: found where workers hold them, and called back by their Celery ids.

key ─► what workers run, and have received and not begun ─► ids
id  ─► claims: who has not started it, never will
    └► remote control: the worker that runs it ends it
"""

from __future__ import annotations

import ast
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from celery import Celery

from celeriac.backend.claims import claims_for
from celeriac.backend.results import results_for
from celeriac.broker.app import TASK_NAME
from celeriac.cluster.status import ANSWERS
from celeriac.errors import BackendUnavailable
from celeriac.executor.interfaces import Unreadable
from celeriac.executor.requests import CancelOutcome, CancelResult
from celeriac.task.result import Result

LOOK = 0.2  # seconds between two looks at results
NO_CLAIMS = "its result backend keeps no claims: a worker that starts later does not know"


@dataclass(frozen=True, slots=True)
class HeldTask:
    key: str
    id: str
    worker: str
    runs: bool
    """Or it has been received, and not begun."""


def held_by_workers(app: Celery, connection: Any) -> list[HeldTask]:
    """Raises what the broker's client does when it goes away."""
    inspect = app.control.inspect(timeout=ANSWERS, connection=connection)
    answers = ((inspect.active(safe=True) or {}, True), (inspect.reserved() or {}, False))
    return [
        HeldTask(key, str(request["id"]), worker, runs)
        for answer, runs in answers
        for worker, requests in answer.items()
        for request in requests
        if (key := key_of(request)) is not None
    ]


def key_of(request: Mapping[str, Any]) -> str | None:
    """None of a task that is not ours. Nothing else of its message is looked at."""
    if request.get("name") != TASK_NAME:
        return None
    match request.get("args"):
        case [{"key": key}, *_]:
            return str(key)
        case str(shown):
            return key_shown(shown)
    return None


def key_shown(shown: str) -> str | None:
    """What stands in `(KEY,)`."""
    try:
        value = ast.literal_eval(shown)
    except (ValueError, SyntaxError):  # a key of a kind of its own
        return shown.removeprefix("(").removesuffix(",)")
    return str(value[0]) if isinstance(value, tuple) and value else None


class OrphanRevoker:
    """Calls tasks back by id. Use as a context manager: it holds the result backend."""

    def __init__(self, app: Celery, connection: Any, *, timeout: float) -> None:
        """`timeout`, in seconds, bounds one operation on the result backend."""
        self._app, self._connection = app, connection
        self._claims = claims_for(app, timeout=timeout)
        self._results = results_for(app, timeout=timeout)

    def __enter__(self) -> OrphanRevoker:
        return self

    def __exit__(self, *_: object) -> None:
        self._results.close()
        if self._claims is not None:
            self._claims.close()

    def cancel(self, names: Mapping[str, str], *, wait: float = 0.0) -> list[CancelResult]:
        """`names` says what each id is called in its fate. Waits up to `wait` seconds for their ends.

        Raises `BackendAway`, or what the broker's client does when it goes away.
        """
        until = time.monotonic() + wait
        ended = self._ends(names)
        ids = [task_id for task_id in names if task_id not in ended]
        stopped = self._cancel(ids)
        ends = self._ends_until([task_id for task_id in ids if task_id not in stopped], until)
        return [
            fate(name, CancelOutcome.HAD_ENDED, ended[task_id])
            if task_id in ended
            else CancelResult(name=name, outcome=CancelOutcome.REVOKED, detail="revoked: no worker starts it")
            if task_id in stopped
            else fate(name, CancelOutcome.CALLED_BACK, ends.get(task_id), None if self._claims else NO_CLAIMS)
            for task_id, name in names.items()
        ]

    def _cancel(self, ids: list[str]) -> Collection[str]:
        """Answers those that never start."""
        stopped: Collection[str] = ()
        if self._claims is not None and ids:
            try:
                stopped = self._claims.cancel(ids)
            except self._claims.errors as error:
                raise BackendUnavailable(error) from None
        if ids:
            self._app.control.revoke(ids, connection=self._connection)
        return stopped

    def _ends(self, ids: Collection[str]) -> dict[str, Result]:
        """Of those that have ended, as far as that is known."""
        return {
            task_id: result
            for task_id, result in self._results.read(ids).items()
            if not isinstance(result, Unreadable) and result.state.is_final
        }

    def _ends_until(self, ids: list[str], until: float) -> dict[str, Result]:
        ends: dict[str, Result] = {}
        while (left := [task_id for task_id in ids if task_id not in ends]) and time.monotonic() < until:
            ends |= self._ends(left)
            if len(ends) < len(ids):
                self._results.wait(LOOK)
        return ends


def fate(name: str, outcome: CancelOutcome, end: Result | None, detail: str | None = None) -> CancelResult:
    if end is None:
        return CancelResult(name=name, outcome=outcome, detail=detail)
    return CancelResult(name=name, outcome=outcome, state=end.state, detail=end.detail)
