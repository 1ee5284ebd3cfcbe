"""What Celery stored of a task, as a `Result`."""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec
from celery import states
from celery.exceptions import SecurityError
from kombu.exceptions import KombuError

from celeriac.errors import CommandFailed
from celeriac.interfaces import Unreadable
from celeriac.result import Execution, Reason, Result
from celeriac.state import State

Stored = TypeVar("Stored")

UNREADABLE = (
    *(KombuError, SecurityError, pickle.PickleError, zlib.error),
    *(ValueError, TypeError, LookupError, AttributeError, ImportError, EOFError),
)
"""What Celery and its serializers raise over a value that nobody stored for a task."""


class Outcome(msgspec.Struct):
    """What `execute_command` returns, or raises in a `CommandFailed`."""

    reason: Reason | None
    detail: str | None
    execution: Execution


def decode_with(load: Callable[[Stored], Any], stored: Mapping[str, Stored]) -> dict[str, Result | Unreadable]:
    """What each value says, by task. `load` makes Celery's "meta" of it: a mapping of "status" and "result"."""
    results: dict[str, Result | Unreadable] = {}
    for task_id, value in stored.items():
        try:
            result = decode_meta(load(value))
        except UNREADABLE as error:
            result = Unreadable(error)
        if result is not None:
            results[task_id] = result
    return results


def decode_meta(meta: Any) -> Result | Unreadable | None:
    return decode(meta["status"], meta.get("result"))


def decode(status: str, value: Any) -> Result | Unreadable | None:
    """None for a status that says nothing: Celery's PENDING is both "waiting" and "never heard of it"."""
    try:
        return decode_known(status, value)
    except (msgspec.ValidationError, TypeError) as error:
        return Unreadable(error)


def decode_known(status: str, value: Any) -> Result | None:
    match status:
        case states.STARTED:
            return started(value)
        case states.RETRY:
            return Result(State.QUEUED)
        case states.SUCCESS:
            outcome = msgspec.convert(value, Outcome)
            return Result(State.SUCCESS, None, outcome.detail, outcome.execution)
        case states.FAILURE:
            return failed(value)
        case states.REVOKED:
            return Result(State.REVOKED, Reason.REVOKED, "revoked before it started")
    return None


def started(value: Any) -> Result:
    host = value.get("hostname") if isinstance(value, Mapping) else None
    return Result(State.RUNNING, execution=Execution(host=str(host).rpartition("@")[2]) if host else None)


def failed(error: Any) -> Result:
    if not isinstance(error, CommandFailed):  # raised around the command: by Celery, or by a bug
        return Result(State.FAILED, Reason.WORKER_ERROR, f"{type(error).__name__}: {error}")
    outcome = msgspec.convert(error.report, Outcome)
    state = State.REVOKED if outcome.reason is Reason.REVOKED else State.FAILED
    return Result(state, outcome.reason, outcome.detail, outcome.execution)
