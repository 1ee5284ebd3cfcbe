"""What is asked and answered, as it travels: JSON, with keys as text, and no command, environment or output in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, assert_never

import msgspec

from celeriac.executor.requests import (
    CancelReply,
    CancelRequest,
    CurrentStatus,
    ErrorReply,
    ExplainReply,
    ExplainRequest,
    Explanation,
    Reply,
    Request,
)
from celeriac.task.event import Event
from celeriac.task.result import Reason
from celeriac.task.state import State


class Move(msgspec.Struct, omit_defaults=True, kw_only=True):
    """One event."""

    state: State
    when: float
    """Seconds since the epoch."""

    attempt: int
    id: str
    reason: Reason | None = None
    detail: str | None = None
    host: str | None = None
    pid: int | None = None
    exit_code: int | None = None
    signal: str | None = None
    duration: float | None = None
    retry_in: float | None = None


class Tale(msgspec.Struct, omit_defaults=True, kw_only=True):
    """The life of one task."""

    key: str
    state: State
    id: str
    attempt: int
    queue: str | None = None
    priority: int | None = None
    arrived: float | None = None
    moves: list[Move]
    left_out: int = 0
    now: CurrentStatus


class RequestMessage(msgspec.Struct, omit_defaults=True):
    """One of them."""

    cancel: CancelRequest | None = None
    explain: ExplainRequest | None = None


class ReplyMessage(msgspec.Struct, omit_defaults=True, kw_only=True):
    executor: str
    """Its process and its host."""

    desk: str = ""
    """Tells it from others of the same process."""

    is_last: bool = True
    """Otherwise another one follows."""

    is_here: bool = False
    """It says no more than that the process has heard, and will answer."""

    error: str | None = None
    cancelled: CancelReply | None = None
    tales: list[Tale] | None = None


def question(request: Request) -> RequestMessage:
    match request:
        case CancelRequest():
            return RequestMessage(cancel=request)
        case ExplainRequest():
            return RequestMessage(explain=request)
    assert_never(request)


def decode(read: Callable[[], RequestMessage]) -> Request | ErrorReply:
    """What is asked, or what is wrong with it."""
    try:
        asked = read()
    except msgspec.MsgspecError as error:
        return ErrorReply(str(error))
    request = asked.cancel or asked.explain
    return ErrorReply("neither cancel nor explain is asked") if request is None else request


def answer(reply: Reply, *, executor: str, desk: str) -> ReplyMessage:
    match reply:
        case CancelReply():
            return ReplyMessage(executor=executor, desk=desk, cancelled=reply, is_last=reply.is_last)
        case ExplainReply(explanations):
            return ReplyMessage(executor=executor, desk=desk, tales=[tale(told) for told in explanations])
        case ErrorReply(error):
            return ReplyMessage(executor=executor, desk=desk, error=error)
    assert_never(reply)


def tale(told: Explanation) -> Tale:
    return Tale(
        key=str(told.key),
        state=told.state,
        id=told.id,
        attempt=told.attempt,
        queue=told.queue,
        priority=told.priority,
        arrived=told.arrived,
        moves=[move(event) for event in told.moves],
        left_out=told.left_out,
        now=told.now,
    )


def move(event: Event) -> Move:
    execution = event.execution
    place: dict[str, Any] = {}
    if execution is not None:
        place = {name: getattr(execution, name) for name in ("host", "pid", "exit_code", "signal", "duration")}
    return Move(
        state=event.state,
        when=event.when,
        attempt=event.attempt,
        id=event.id,
        reason=event.reason,
        detail=event.detail,
        retry_in=event.retry_in,
        **place,
    )
