"""Decode a value that Celery has stored into a `Result`.

stored value ─► fast path: JSON with STARTED, or with SUCCESS and a report of `execute_command` ─► Result
             └► Celery's own decoding, for everything else ─► "meta" ─► Result, or Unreadable
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, TypeVar

import msgspec
from celery import states
from celery.exceptions import WorkerLostError

from celeriac.backend.report import (
    StoredReport,
    failed_result,
    started_result,
    success_result,
    worker_error_result,
)
from celeriac.errors import CommandFailed
from celeriac.executor.interfaces import Unreadable
from celeriac.task.result import Reason, Result
from celeriac.task.state import State

Stored = TypeVar("Stored")

MAX_HOST = 255  # characters


class StartedInfo(msgspec.Struct):
    """The value that Celery stores for a started task."""

    hostname: str | None = None


class StartedMeta(msgspec.Struct, tag_field="status", tag=states.STARTED):
    result: StartedInfo | None = None


class SuccessMeta(msgspec.Struct, tag_field="status", tag=states.SUCCESS):
    result: StoredReport | None = None


META_DECODER = msgspec.json.Decoder(StartedMeta | SuccessMeta)
STARTED_DECODER = msgspec.json.Decoder(StartedInfo | None)
REPORT_DECODER = msgspec.json.Decoder(StoredReport | None)


def decode_all(
    load: Callable[[Stored], Any],
    values: Mapping[str, Stored],
    *,
    decode_fast: Callable[[Stored], Result | None] | None = None,
) -> dict[str, Result | Unreadable]:
    """Return the results by task id. `load` turns a value into Celery's "meta": a mapping with "status" and "result".

    `decode_fast` is tried first, at a tenth of the cost. For a value that it cannot decode, it returns None or
    raises one of msgspec's errors.
    """
    results: dict[str, Result | Unreadable] = {}
    for task_id, value in values.items():
        result: Result | Unreadable | None = None
        if decode_fast is not None:
            try:
                result = decode_fast(value)
            except msgspec.MsgspecError:
                pass
            except Exception as error:  # noqa: BLE001 - any client of the result backend may have written the value
                result = Unreadable(error)
        if result is None:
            result = decode_value(load, value)
        if result is not None:
            results[task_id] = result
    return results


def decode_value(load: Callable[[Stored], Any], value: Stored) -> Result | Unreadable | None:
    """Decode one value. Whatever is wrong with it affects no other value."""
    try:
        return decode_meta(load(value))
    except Exception as error:  # noqa: BLE001 - any client of the result backend may have written the value
        return Unreadable(error)


def is_plain_json(backend: Any) -> bool:
    """Return whether Celery's backend stores and accepts JSON."""
    return backend.serializer == "json" and backend.content_type in backend.accept


def decode_meta_json(value: bytes) -> Result:
    """Decode the whole meta, as Redis holds it. Raise `msgspec.MsgspecError` for all but STARTED and SUCCESS."""
    meta = META_DECODER.decode(value)
    if isinstance(meta, SuccessMeta):
        return success_result(meta.result)
    return started_on(meta.result.hostname if meta.result else None)


def decode_status(status: str, value: bytes | None) -> Result | None:
    """Decode the value, for a backend that stores the status beside it. Return None for all but STARTED and SUCCESS."""
    if value is not None and status == states.STARTED:
        info = STARTED_DECODER.decode(value)
        return started_on(info.hostname if info else None)
    if value is not None and status == states.SUCCESS:
        return success_result(REPORT_DECODER.decode(value))
    return None


@lru_cache(maxsize=1024)  # workers: each look at a task that runs on one of them gets the same result
def started_on(hostname: str | None) -> Result:
    return started_result(host_of(hostname))


def decode_meta(meta: Any) -> Result | Unreadable | None:
    return decode(meta["status"], meta.get("result"))


def decode(status: object, value: Any) -> Result | Unreadable | None:
    """Return None for PENDING: Celery returns it for a waiting task and for an unknown task."""
    try:
        return decode_known(status, value)
    except Exception as error:  # noqa: BLE001 - the text of an exception of any class may raise any other
        return Unreadable(error)


def decode_known(status: object, value: Any) -> Result | None:
    match status:
        case states.STARTED:
            return started_result(host_of(value.get("hostname") if isinstance(value, Mapping) else None))
        case states.RETRY:
            return Result(State.QUEUED)
        case states.SUCCESS:
            return success_result(msgspec.convert(value, StoredReport | None))
        case states.FAILURE:
            return failure_result(value)
        case states.REVOKED:
            return Result(State.REVOKED, Reason.REVOKED, "revoked before it started")
        case str():  # also a state of a task's own
            return None
    raise TypeError(f"its state is no text: {type(status).__name__}")


def host_of(hostname: object) -> str | None:
    """Return the host in Celery's name of a worker: a name and, after the last "@", its host."""
    return str(hostname).rpartition("@")[2][:MAX_HOST] if hostname else None


def failure_result(error: Any) -> Result:
    if isinstance(error, WorkerLostError):
        return Result(State.FAILED, Reason.LOST, "the process that ran it was killed")
    if not isinstance(error, CommandFailed):  # raised outside the command: by Celery, or by a bug
        return worker_error_result(error)
    return failed_result(error)
