"""The report of a command, as a `Result`. It needs no Celery: a local cluster has none."""

from __future__ import annotations

from functools import lru_cache

import msgspec

from celeriac.errors import CommandFailed
from celeriac.task.result import Execution, Reason, Result
from celeriac.task.state import State

MAX_DETAIL = 10_000  # characters of the text of an exception


class StoredReport(msgspec.Struct):
    """The report that `execute_command` returns, or raises in a `CommandFailed`."""

    reason: Reason | None
    detail: str | None
    execution: Execution


@lru_cache(maxsize=10_000)  # most reads return the same STARTED again
def started_result(host: str | None) -> Result:
    """Return RUNNING."""
    return Result(State.RUNNING, execution=Execution(host=host) if host else None)


def success_result(report: StoredReport | None) -> Result:
    """Return SUCCESS. `report` is None for a Celery task that runs no command and returns None."""
    if report is None:
        return Result(State.SUCCESS)
    return Result(State.SUCCESS, None, report.detail, report.execution)


def failed_result(failure: CommandFailed) -> Result:
    """Return the result of a command that did not succeed, or did not run. Raise `msgspec.ValidationError` for a report
    that no version of Celeriac has made."""
    report = msgspec.convert(failure.report, StoredReport)
    state = State.REVOKED if report.reason is Reason.REVOKED else State.FAILED
    return Result(state, report.reason, report.detail, report.execution)


def worker_error_result(error: BaseException) -> Result:
    """Return the result of a task that failed outside of its command: in Celery, or by a bug."""
    return Result(State.FAILED, Reason.WORKER_ERROR, f"{type(error).__name__}: {error}"[:MAX_DETAIL])
