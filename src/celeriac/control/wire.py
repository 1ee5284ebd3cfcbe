"""The JSON of requests and replies: with keys as text, and without commands, environments and output.

The names and the structure of the JSON stay as in version 0.1: caller and executor may have different versions.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from typing import Any, assert_never

import msgspec
from msgspec.structs import replace

from celeriac.executor.requests import (
    CancelReply,
    CancelRequest,
    DemandReply,
    DemandRequest,
    ErrorReply,
    ExplainReply,
    ExplainRequest,
    Explanation,
    LimitsReply,
    LimitsRequest,
    OwnerRequest,
    PauseReply,
    PauseRequest,
    PriorityOutcome,
    PriorityReply,
    PriorityRequest,
    Reply,
    Request,
)
from celeriac.task.event import Event

EVENT_FIELDS = tuple(name for name in Event.__struct_fields__ if name not in ("key", "execution", "number"))
EXECUTION_FIELDS = ("host", "pid", "exit_code", "signal", "duration")
"""The fields of an `Execution` that are sent with the fields of its event."""


MAX_ERROR = 500  # characters


class ExplainMessage(msgspec.Struct, omit_defaults=True):
    """An `ExplainRequest`. Its JSON is that of version 0.1 unless there are several keys."""

    name: str
    others: tuple[str, ...] = ()


class RequestMessage(msgspec.Struct, omit_defaults=True):
    """One request: exactly one of the fields is set."""

    cancel: CancelRequest | None = None
    explain: ExplainMessage | None = None
    priority: PriorityRequest | None = None
    owner: OwnerRequest | None = None
    pause: PauseRequest | None = None
    limits: LimitsRequest | None = None
    demand: DemandRequest | None = None
    """An executor of an earlier version replies with an error to one of the last four, and does nothing."""


class ReplyMessage(msgspec.Struct, omit_defaults=True, kw_only=True):
    """One reply of one executor."""

    executor: str
    """The process and the host of the executor: "4711@host"."""

    channel: str = msgspec.field(default="", name="\x64esk")  # the JSON key is that of version 0.1
    """The name of the control channel: a process may have several."""

    is_last: bool = True
    """Whether no other reply of this channel to the same request follows."""

    is_acknowledgement: bool = msgspec.field(default=False, name="is_here")
    """Whether the message only says that the channel has received the request and will reply."""

    error: str | None = None
    cancelled: CancelReply | None = None
    priority: PriorityOutcome | None = None
    paused: PauseReply | None = None
    limits: LimitsReply | None = None
    demand: DemandReply | None = None
    encoded_explanations: list[dict[str, Any]] | None = msgspec.field(default=None, name="tales")

    def explanations(self) -> list[Explanation]:
        """Return the decoded explanations, without those that are malformed."""
        decoded = (decode_explanation(encoded) for encoded in self.encoded_explanations or ())
        return [explanation for explanation in decoded if explanation is not None]


def encode_request(request: Request) -> RequestMessage:
    """Return the message that carries the request."""
    match request:
        case CancelRequest():
            return RequestMessage(cancel=request)
        case ExplainRequest(name=name, others=others):
            return RequestMessage(explain=ExplainMessage(name, others))
        case PriorityRequest():
            return RequestMessage(priority=request)
        case PauseRequest():
            return RequestMessage(pause=request)
        case LimitsRequest():
            return RequestMessage(limits=request)
        case OwnerRequest():
            return RequestMessage(owner=request)
        case DemandRequest():
            return RequestMessage(demand=request)
    assert_never(request)


def decode_request(read: Callable[[], RequestMessage]) -> Request | ErrorReply:
    """Return the request in the message that `read` returns. Return an error reply if the message is malformed."""
    try:
        message = read()
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        return ErrorReply(f"the request is malformed: {error}"[:MAX_ERROR])
    explain = message.explain and ExplainRequest(name=message.explain.name, others=message.explain.others)
    changes = message.priority or message.owner or message.pause or message.limits
    request = message.cancel or explain or changes or message.demand
    return ErrorReply("the request holds nothing that this version knows") if request is None else request


def addressed(request: Request | ErrorReply, executor: str) -> Request | ErrorReply:
    """Return the request. Return an error reply if it is for the owner of a run, which is another executor."""
    if isinstance(request, OwnerRequest) and request.executor != executor:
        return ErrorReply(f"the request is for executor {request.executor}"[:MAX_ERROR])
    return request


def executor_name() -> str:
    """Return the process and the host of an executor of this process."""
    return f"{os.getpid()}@{socket.gethostname()}"


def decode_reply(read: Callable[[], ReplyMessage], *, channel: str) -> ReplyMessage:
    """Return the message that `read` returns. Return an error of that channel if the message is malformed."""
    try:
        return read()
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        problem = f"its reply is malformed: {error}"[:MAX_ERROR]
        return ReplyMessage(executor="?", channel=channel, error=problem)


def encode_reply(reply: Reply, *, executor: str, channel: str) -> ReplyMessage:
    """Return the message that carries the reply of that executor."""
    match reply:
        case CancelReply():
            return ReplyMessage(executor=executor, channel=channel, cancelled=reply, is_last=reply.is_last)
        case ExplainReply(explanations):
            encoded = [encode_explanation(explanation) for explanation in explanations]
            return ReplyMessage(executor=executor, channel=channel, encoded_explanations=encoded)
        case PriorityReply(outcome):
            return ReplyMessage(executor=executor, channel=channel, priority=outcome)
        case PauseReply():
            return ReplyMessage(executor=executor, channel=channel, paused=reply)
        case LimitsReply():
            return ReplyMessage(executor=executor, channel=channel, limits=reply)
        case DemandReply():
            return ReplyMessage(executor=executor, channel=channel, demand=reply)
        case ErrorReply(error):
            return ReplyMessage(executor=executor, channel=channel, error=error)
    assert_never(reply)


def encode_explanation(explanation: Explanation) -> dict[str, Any]:
    """Return the explanation as JSON objects, without the fields that are None."""
    encoded = {name: getattr(explanation, name) for name in explanation.__struct_fields__}
    encoded["key"] = str(explanation.key)
    encoded["moves"] = [encode_event(event) for event in explanation.moves]
    encoded["left_out"] = explanation.left_out or None
    builtins: dict[str, Any] = msgspec.to_builtins(without_none(encoded))
    return builtins


def decode_explanation(encoded: Mapping[str, Any]) -> Explanation | None:
    """Return the explanation; None if it is malformed."""
    try:
        events = msgspec.convert(encoded.get("moves", ()), list[dict[str, Any]])
        moves = [decode_event({**event, "key": encoded.get("key")}) for event in events]
        explanation = msgspec.convert({**encoded, "moves": ()}, Explanation)
    except (msgspec.MsgspecError, RecursionError, ValueError):
        return None
    return replace(explanation, moves=tuple(moves))


def encode_event(event: Event) -> dict[str, Any]:
    """Return the event as one flat JSON object: without its key, its number and the output of the command."""
    encoded = {name: getattr(event, name) for name in EVENT_FIELDS}
    if event.execution is not None:
        encoded |= {name: getattr(event.execution, name) for name in EXECUTION_FIELDS}
    return without_none(encoded)


def decode_event(encoded: Mapping[str, Any]) -> Event:
    """Return the event in a flat JSON object with a key. Raise `msgspec.ValidationError` if it is malformed."""
    event = {name: encoded[name] for name in ("key", *EVENT_FIELDS) if name in encoded}
    if encoded.get("host") is not None:
        event["execution"] = {name: encoded[name] for name in EXECUTION_FIELDS if name in encoded}
    return msgspec.convert(event, Event)


def without_none(encoded: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in encoded.items() if value is not None}
