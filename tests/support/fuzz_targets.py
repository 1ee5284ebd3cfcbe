"""The decoders that read what any program may have written, each as a function of bytes that must not raise.

`tests/faults/test_fuzz.py` gives them random values, `tools/fuzz.py` gives them those of a fuzzer that sees the code.
"""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import msgspec

from celeriac.backend.claims.claim import Claim, Lease, LeaseRecord
from celeriac.backend.claims.stored import MAX_SLOTS, bytes_of, decode_claim, decode_lease, storable
from celeriac.backend.results import plain_pickle
from celeriac.backend.results.compressed import MARK, MAX_SIZE, limited
from celeriac.backend.results.decode import decode_all, decode_meta_json, decode_status
from celeriac.broker.app import make_app
from celeriac.broker.command_message import TASK_NAME, command_message
from celeriac.cluster.worker_registry import WorkerRegistry
from celeriac.control.mailbox import is_answerable
from celeriac.control.wire import ReplyMessage, RequestMessage, decode_reply, decode_request
from celeriac.executor.interfaces import Unreadable
from celeriac.executor.requests import CancelRequest, ErrorReply, ExplainRequest
from celeriac.ledger.codec import encode_payload, event_of, readable, unfinished_task
from celeriac.ledger.views import task_view
from celeriac.task.result import Reason, Result
from celeriac.task.task import Task
from celeriac.worker.gate import Accepted, Delivery, Gate, Rejected, envelope_problem

HOLDER = "w1"
PICKLE_ERRORS = (
    *(pickle.PickleError, EOFError, IndexError, KeyError, TypeError, ValueError, AttributeError),
    *(MemoryError, OverflowError, RecursionError),
)
GATE = Gate(max_size=65_536)


def fuzz_lease(data: bytes) -> None:
    count, _, rest = data.partition(b"\n")
    state, _, content = rest.partition(b"\n")
    with suppress(ValueError):
        record = decode_lease(HOLDER, content, count, state)
        assert isinstance(record, LeaseRecord)
        assert record.heartbeat_count >= 0
        if record.lease is not None:
            assert 0 <= record.lease.slots <= MAX_SLOTS
            msgspec.json.encode(storable(record.lease))


def fuzz_claim(data: bytes) -> None:
    token, _, holder = data.partition(b"\n")
    claim = decode_claim("t", token, None, b"1", holder)
    assert isinstance(claim, Claim)
    assert bytes_of(claim.holder) == holder


@cache
def load() -> Callable[[Any], Any]:
    decode: Callable[[Any], Any] = make_app(
        broker_url="memory://", result_backend="cache+memory://"
    ).backend.decode_result
    return lambda value: decode(limited(value))


def fuzz_result(data: bytes) -> None:
    result = decode_all(load(), {"t": data}, decode_fast=decode_meta_json).get("t")
    assert result is None or isinstance(result, Result | Unreadable)
    assert not isinstance(result, Result) or len(result.detail or "") <= MAX_SIZE


def fuzz_result_row(data: bytes) -> None:
    status, _, value = data.partition(b"\n")
    with suppress(msgspec.MsgspecError, RecursionError, ValueError):
        result = decode_status(status.decode(errors="replace"), value)
        assert result is None or isinstance(result, Result)


def fuzz_pickle(data: bytes) -> None:
    with suppress(*PICKLE_ERRORS):
        check_plain(plain_pickle.loads(b"\x80" + data))


def check_plain(value: Any) -> None:
    pending, seen = [value], 0
    while pending:
        each = pending.pop()
        seen += 1
        assert seen <= plain_pickle.MAX_STEPS * 2
        is_plain = isinstance(each, dict | list | tuple | str | bytes | int | float | Reason | None)
        assert is_plain or each is Reason, type(each)  # a pickle can hold the class alone
        if isinstance(each, dict):
            pending += [*each.keys(), *each.values()]
        elif isinstance(each, list | tuple):
            pending += each


def fuzz_control(data: bytes) -> None:
    request = decode_request(partial(msgspec.json.decode, data, type=RequestMessage))
    assert isinstance(request, CancelRequest | ExplainRequest | ErrorReply)
    reply = decode_reply(partial(msgspec.json.decode, data, type=ReplyMessage), channel="c")
    reply.explanations()
    assert len(reply.error or "") <= max(500, len(data))
    with suppress(msgspec.MsgspecError, RecursionError, ValueError):
        body = msgspec.json.decode(data)
        is_answerable(body)
        registry = WorkerRegistry()
        registry.stats_replied(body, 1.0)
        registry.queues_replied(body, 1.0)
        assert all(0 <= number <= MAX_SLOTS for number in (registry.capacity((), ()) or {}).values())


def fuzz_gate(data: bytes) -> None:
    headers, _, rest = data.partition(b"\n")
    properties, _, body = rest.partition(b"\n")
    values: list[Any] = []
    for part in (headers, properties):
        try:
            values.append(msgspec.json.decode(part))
        except (msgspec.MsgspecError, RecursionError, ValueError):
            values.append({})
    envelope_problem(values[0])
    given = values[1] if isinstance(values[1], dict) else {}
    verdict = GATE.check(
        Delivery(
            headers=values[0],
            properties=values[1],
            content_type=given.get("content-type", "application/json"),
            content_encoding=given.get("content-encoding", "utf-8"),
            body=body,
        )
    )
    assert isinstance(verdict, Accepted | Rejected)


def fuzz_ledger(data: bytes) -> None:
    row = row_of(data)
    for decode in (lambda row: unfinished_task(row.key, row), task_view, event_of):
        for decoded in readable([row], decode):
            assert decoded is not None


def row_of(data: bytes) -> SimpleNamespace:
    text, _, execution = data.decode(errors="replace").partition("\n")
    return SimpleNamespace(
        run=1, key="k", place=0, payload=text, event=text, number=1, id="i", priority=0, attempt=1, lost=0,
        state="waiting", arrived=1.0, moved=1.0, not_before=None, revoking=False, reason=None, detail=None,
        execution=execution or None,
    )  # fmt: skip


TARGETS: dict[str, Callable[[bytes], None]] = {
    "lease": fuzz_lease,
    "claim": fuzz_claim,
    "result": fuzz_result,
    "result-row": fuzz_result_row,
    "pickle": fuzz_pickle,
    "control": fuzz_control,
    "gate": fuzz_gate,
    "ledger": fuzz_ledger,
}

LEASE = Lease(holder=HOLDER, name="w@h", host="h", pid=1, boot_id="b", queues=("q",), slots=4, running=("a", "b"))
REPORT = {"reason": "exit_code", "detail": "exit code 3", "execution": {"host": "h", "exit_code": 3}}
META = {"status": "SUCCESS", "result": REPORT, "task_id": "t"}
FAILED = {"exc_type": "CommandFailed", "exc_module": "celeriac.errors", "exc_message": [REPORT]}
EXPLANATION = {"key": "k", "state": "running", "moves": [{"state": "running", "when": 1.0, "attempt": 1, "host": "h"}]}
encode = msgspec.json.encode

SEEDS: dict[str, list[bytes]] = {
    "lease": [b"7\nlive\n" + encode(LEASE), b"1\ndead\n"],
    "claim": [b"7\nw1", b"7\n\xff"],
    "result": [
        encode(META),
        encode({"status": "STARTED", "result": {"hostname": "w@h", "pid": 1}}),
        encode({"status": "FAILURE", "result": FAILED}),
        MARK + b"application/x-gzip\0" + zlib.compress(encode(META)),
    ],
    "result-row": [b"SUCCESS\n" + encode(REPORT), b'STARTED\n{"hostname":"w@h"}'],
    "pickle": [pickle.dumps({**REPORT, "reason": Reason.LOST}, protocol)[1:] for protocol in (2, 4, 5)],
    "control": [
        encode({"cancel": {"names": ["a"], "wait": 1.0}}),
        encode({"explain": {"key": "a"}}),
        encode({"executor": "1@h", "is_last": True, "tales": [EXPLANATION]}),
        encode({"w@h": {"pool": {"max-concurrency": 4}}}),
        encode({"w@h": [{"name": "q"}]}),
    ],
    "gate": [
        encode({"task": TASK_NAME, "id": "i", "lang": "py", "timelimit": [None, None]})
        + b'\n{"content-type":"application/json","content-encoding":"utf-8","correlation_id":"i"}\n'
        + encode([[command_message(Task(key="k", command=("true",)))], {}, {"callbacks": None, "errbacks": None}]),
    ],
    "ledger": [
        encode_payload(Task(key="k", command=("true",), env={"A": "b"})).encode() + b'\n{"host":"h"}',
        encode({"state": "failed", "when": 1.0, "attempt": 1}),
    ],
}
"""Values of each target that are well-formed: a fuzzer begins with them."""
