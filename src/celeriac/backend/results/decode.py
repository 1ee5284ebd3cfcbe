"""What Celery stored of a task, as a `Result`.

stored value ─► read quickly: JSON that says STARTED, or SUCCESS with what `execute_command` returns ─► Result
             └─► Celery's own decoding, for all the rest ─► "meta" ─► Result, or Unreadable
"""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, TypeVar

import msgspec
from celery import states
from celery.exceptions import SecurityError, WorkerLostError
from kombu.exceptions import KombuError

from celeriac.errors import CommandFailed
from celeriac.executor.interfaces import Unreadable
from celeriac.task.result import Execution, Reason, Result
from celeriac.task.state import State

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


class Place(msgspec.Struct):
    """What Celery stores of a task that has begun."""

    hostname: str | None = None


class Begun(msgspec.Struct, tag_field="status", tag=states.STARTED):
    result: Place | None = None


class Done(msgspec.Struct, tag_field="status", tag=states.SUCCESS):
    result: Outcome | None = None


META = msgspec.json.Decoder(Begun | Done)
PLACE = msgspec.json.Decoder(Place | None)
OUTCOME = msgspec.json.Decoder(Outcome | None)


def decode_with(
    load: Callable[[Stored], Any],
    stored: Mapping[str, Stored],
    *,
    quickly: Callable[[Stored], Result | None] | None = None,
) -> dict[str, Result | Unreadable]:
    """What each value says, by task. `load` makes Celery's "meta" of it: a mapping of "status" and "result".

    `quickly` is asked first, which costs a tenth; it answers None, or raises one of msgspec's errors, for what it
    does not understand.
    """
    results: dict[str, Result | Unreadable] = {}
    for task_id, value in stored.items():
        try:
            result = (read_quickly(quickly, value) if quickly else None) or decode_meta(load(value))
        except UNREADABLE as error:
            result = Unreadable(error)
        if result is not None:
            results[task_id] = result
    return results


def read_quickly(quickly: Callable[[Stored], Result | None], value: Stored) -> Result | None:
    try:
        return quickly(value)
    except msgspec.MsgspecError:
        return None


def is_plain_json(backend: Any) -> bool:
    """Whether what Celery's backend stores, and accepts, is JSON."""
    return backend.serializer == "json" and backend.content_type in backend.accept


def from_meta(value: bytes) -> Result:
    meta = META.decode(value)
    if isinstance(meta, Done):
        return done(meta.result)
    return begun(meta.result.hostname if meta.result else None)


def from_status(status: str, value: bytes | None) -> Result | None:
    """Of a backend that keeps the status beside the rest."""
    if value is not None and status == states.STARTED:
        place = PLACE.decode(value)
        return begun(place.hostname if place else None)
    if value is not None and status == states.SUCCESS:
        return done(OUTCOME.decode(value))
    return None


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
            host = value.get("hostname") if isinstance(value, Mapping) else None
            return begun(None if host is None else str(host))
        case states.RETRY:
            return Result(State.QUEUED)
        case states.SUCCESS:
            return done(msgspec.convert(value, Outcome | None))
        case states.FAILURE:
            return failed(value)
        case states.REVOKED:
            return Result(State.REVOKED, Reason.REVOKED, "revoked before it started")
    return None


@lru_cache(maxsize=10_000)  # most looks find what the last one found
def begun(hostname: str | None) -> Result:
    """`hostname` is what Celery calls a worker: a name and, after the last "@", its host."""
    return Result(State.RUNNING, execution=Execution(host=hostname.rpartition("@")[2]) if hostname else None)


def done(outcome: Outcome | None) -> Result:
    """None is what a task returns that is no command: it ended well, and that is all it says."""
    if outcome is None:
        return Result(State.SUCCESS)
    return Result(State.SUCCESS, None, outcome.detail, outcome.execution)


def failed(error: Any) -> Result:
    if isinstance(error, WorkerLostError):
        return Result(State.FAILED, Reason.LOST, "the process that ran it was killed")
    if not isinstance(error, CommandFailed):  # raised around the command: by Celery, or by a bug
        return Result(State.FAILED, Reason.WORKER_ERROR, f"{type(error).__name__}: {error}")
    outcome = msgspec.convert(error.report, Outcome)
    state = State.REVOKED if outcome.reason is Reason.REVOKED else State.FAILED
    return Result(state, outcome.reason, outcome.detail, outcome.execution)
