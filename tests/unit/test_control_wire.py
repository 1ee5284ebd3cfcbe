"""Requests and replies of the control channels as JSON: callers and executors of other versions read the same names."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from celeriac.control.wire import (
    ReplyMessage,
    RequestMessage,
    addressed,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
)
from celeriac.executor.requests import (
    CancelOutcome,
    CancelReply,
    CancelRequest,
    CancelResult,
    CurrentStatus,
    ErrorReply,
    ExplainReply,
    ExplainRequest,
    Explanation,
    OwnerRequest,
    PriorityOutcome,
    PriorityReply,
    PriorityRequest,
    Reply,
    Request,
    WaitReason,
)
from celeriac.task.event import Event
from celeriac.task.result import Execution, Output, Reason
from celeriac.task.state import State

STARTED = Event(
    key=("a", 2),
    state=State.RUNNING,
    when=2.0,
    id="i",
    attempt=1,
    execution=Execution(host="h", pid=7, started=2.0),
)
FAILED = Event(
    key=("a", 2),
    state=State.WAITING,
    when=3.0,
    id="i",
    attempt=1,
    reason=Reason.EXIT_CODE,
    detail="exit code 1",
    execution=Execution(host="h", pid=7, started=2.0, duration=1.0, exit_code=1, stdout=Output(size=7, tail="hunter2")),
    retry_in=0.5,
    number=9,
)
EXPLANATION = Explanation(
    key=("a", 2),
    state=State.WAITING,
    id="i.2",
    attempt=2,
    queue="q",
    priority=0,
    arrived=1.5,
    moves=(STARTED, FAILED),
    left_out=3,
    now=CurrentStatus(waits_for=WaitReason.RETRY, words="again in 0.5 s", facts={"retry_in": 0.5}),
)
EXPLANATION_AS_JSON = """
    {"key": "('a', 2)", "state": "waiting", "id": "i.2", "attempt": 2, "queue": "q", "priority": 0, "arrived": 1.5,
     "moves": [
       {"state": "running", "when": 2.0, "attempt": 1, "id": "i", "host": "h", "pid": 7},
       {"state": "waiting", "when": 3.0, "attempt": 1, "id": "i", "reason": "exit_code", "detail": "exit code 1",
        "host": "h", "pid": 7, "exit_code": 1, "duration": 1.0, "retry_in": 0.5}],
     "left_out": 3,
     "now": {"waits_for": "retry", "words": "again in 0.5 s", "facts": {"retry_in": 0.5}}}
"""
CANCELLED = CancelReply(
    fates=(CancelResult(name="a", outcome=CancelOutcome.REVOKED, state=State.REVOKED),),
    emptied={"q": 2},
    is_last=False,
)
CANCELLED_AS_JSON = """
    {"fates": [{"name": "a", "outcome": "revoked", "state": "revoked", "detail": null, "queue": null}],
     "emptied": {"q": 2}, "is_last": false}
"""
CHANNEL_KEY = "\x64esk"  # the JSON key of version 0.1


def encoded(message: RequestMessage | ReplyMessage) -> Any:
    return json.loads(msgspec.json.encode(message))


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (CancelRequest(names=("a",), wait=2.0), '{"cancel": {"names": ["a"], "queues": [], "wait": 2.0}}'),
        (ExplainRequest(name="a"), '{"explain": {"name": "a"}}'),
        (ExplainRequest(name="a", others=("b",)), '{"explain": {"name": "a", "others": ["b"]}}'),
    ],
)
def test_requests_have_the_json_of_version_0_1(request_: Request, text: str):
    assert encoded(encode_request(request_)) == json.loads(text)
    assert decode_request(lambda: msgspec.json.decode(text, type=RequestMessage)) == request_


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (ExplainReply((EXPLANATION,)), f'{{"tales": [{EXPLANATION_AS_JSON}]}}'),
        (ExplainReply(()), '{"tales": []}'),
        (CANCELLED, f'{{"is_last": false, "cancelled": {CANCELLED_AS_JSON}}}'),
        (ErrorReply("no"), '{"error": "no"}'),
    ],
)
def test_replies_have_the_json_of_version_0_1(reply: Reply, text: str):
    message = encode_reply(reply, executor="1@h", channel="c")
    expected = {"executor": "1@h", CHANNEL_KEY: "c", **json.loads(text)}
    assert encoded(message) == expected
    assert json.loads(json.dumps(msgspec.to_builtins(message))) == expected
    assert msgspec.convert(expected, ReplyMessage) == message


def test_a_request_to_an_owner_is_for_no_other_executor():
    request = OwnerRequest(executor="7@host", run="jobs", asked_by="REST (operator)", cancel=CancelRequest())
    text = json.dumps(encoded(encode_request(request)))
    assert [*json.loads(text)] == ["owner"]  # an executor that does not know it finds neither cancel nor explain
    decoded = decode_request(lambda: msgspec.json.decode(text, type=RequestMessage))
    assert addressed(decoded, "7@host") == request
    assert addressed(decoded, "8@host") == ErrorReply("the request is for executor 7@host")
    assert addressed(CancelRequest(names=("a",)), "8@host") == CancelRequest(names=("a",))


def test_a_priority_request_and_its_reply_have_fields_that_an_older_executor_ignores():
    request, text = PriorityRequest(name="a", priority=5), '{"priority": {"name": "a", "priority": 5}}'
    asked = PriorityRequest(name="a", priority=5, asked_by="REST (operator)")
    assert encoded(encode_request(asked))["priority"] == {"name": "a", "priority": 5, "asked_by": "REST (operator)"}
    assert decode_request(lambda: msgspec.json.decode(text, type=RequestMessage)) == request
    message = encode_reply(PriorityReply(PriorityOutcome.CHANGED), executor="1@h", channel="c")
    assert encoded(message) == {"executor": "1@h", CHANNEL_KEY: "c", "priority": "changed"}


def test_acknowledgements_have_the_json_of_version_0_1():
    message = ReplyMessage(executor="1@h", channel="c", is_acknowledgement=True, is_last=False)
    assert encoded(message) == {"executor": "1@h", CHANNEL_KEY: "c", "is_last": False, "is_here": True}


def test_a_caller_reads_an_explanation_without_the_output_of_its_commands():
    text = f'{{"executor": "1@h", "tales": [{EXPLANATION_AS_JSON}]}}'
    (explanation,) = msgspec.json.decode(text, type=ReplyMessage).explanations()
    first, second = explanation.moves
    assert (explanation.key, explanation.queue, explanation.left_out) == ("('a', 2)", "q", 3)
    assert (first.state, first.key, first.execution) == (State.RUNNING, "('a', 2)", Execution(host="h", pid=7))
    assert second.reason is Reason.EXIT_CODE
    assert second.execution == Execution(host="h", pid=7, duration=1.0, exit_code=1)


@pytest.mark.parametrize("damage", [{"moves": 5}, {"moves": [5]}, {"state": "asleep"}, {"moves": [{"when": 1.0}]}])
def test_a_malformed_explanation_is_left_out(damage: dict[str, Any]):
    good = json.loads(EXPLANATION_AS_JSON)
    message = ReplyMessage(executor="1@h", encoded_explanations=[{**good, **damage}, good])
    assert len(message.explanations()) == 1


@pytest.mark.parametrize("line", ["x", "[]", "null", "[" * 100_000, '{"executor":5}', '{"executor":"\\ud800"}'])
def test_a_malformed_reply_is_an_error_of_its_channel(line: str):
    reply = decode_reply(lambda: msgspec.json.decode(line, type=ReplyMessage), channel="c")
    assert (reply.channel, reply.is_last) == ("c", True)
    assert reply.error is not None
    assert reply.error.startswith("its reply is malformed: ")


@pytest.mark.parametrize("line", ["x", "[]", "null", "[" * 100_000, '{"cancel":5}', '{"explain":{"key":"\\ud800"}}'])
def test_a_malformed_request_gets_an_error_as_its_reply(line: str):
    request = decode_request(lambda: msgspec.json.decode(line, type=RequestMessage))
    assert isinstance(request, ErrorReply)
    assert len(request.error) <= 500
