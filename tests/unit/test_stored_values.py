"""Decoders of stored claims, leases and results: malformed values in, and bounded time and memory."""

from __future__ import annotations

import bz2
import json
import lzma
import pickle
import sys
import zlib
from typing import Any

import msgspec
import pytest
from celery import states

from celeriac.backend.claims import stored
from celeriac.backend.claims.claim import Claim, Lease, LeaseRecord, LeaseState
from celeriac.backend.claims.stored import (
    LeaseDecoder,
    MalformedLog,
    bytes_of,
    decode_claim,
    decode_lease,
    storable,
    text_of,
)
from celeriac.backend.results import compressed, plain_pickle
from celeriac.backend.results.decode import decode_all, decode_meta_json
from celeriac.broker.app import make_app
from celeriac.executor.interfaces import Unreadable
from celeriac.task.amounts import Amounts
from celeriac.task.result import Execution, Output, Reason

LEASE = Lease(holder="w1", name="one@here", host="here", pid=1, boot_id="b", queues=("default",), slots=4)
REPORT = {
    "reason": Reason.EXIT_CODE,
    "detail": "exit code 3",
    "execution": msgspec.to_builtins(Execution(host="h", stdout=Output(tail="x" * 9), stderr=Output(path="/e"))),
}


def encoded(**changes: Any) -> bytes:
    return json.dumps({**msgspec.to_builtins(LEASE), **changes}).encode()


def test_a_lease_is_decoded():
    assert decode_lease("w1", encoded(), b"7", b"live") == LeaseRecord(LEASE, 7, LeaseState.LIVE)
    record = decode_lease("w1", encoded(resources={"milli_cpus": 500, "gpus": 2}), b"7", b"live")
    assert record.lease is not None
    assert record.lease.resources == Amounts(500, 0, 2)


@pytest.mark.parametrize(
    "content",
    [
        b"x",
        b"null",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        encoded(slots=10**18),
        encoded(slots=10**30),
        encoded(slots=-1),
        encoded(slots="4"),
        encoded(number=-1),
        encoded(queues=5),
        encoded(queues=["q"] * 1_000_000),
        encoded(running=["id"] * 1_000_000),
        encoded(running=[5]),
        encoded(resources={"milli_cpus": -1}),
        encoded(resources={"memory": 2**63}),
        encoded(resources={"gpus": "one"}),
        encoded(holder="another"),
        encoded(host="x" * 5_000_000),
    ],
    ids=range(20),
)
def test_a_lease_with_malformed_content_keeps_its_heartbeats(content):
    assert decode_lease("w1", content, b"7", b"live") == LeaseRecord(None, 7, LeaseState.LIVE)


@pytest.mark.parametrize(
    ("count", "state"),
    [
        (b"x", b"live"),
        (b"", b"live"),
        (b"-1", b"live"),
        (b"9" * 30, b"live"),
        (b"9" * 1_000_000, b"live"),
        (b"1.5", b"live"),
        (None, b"live"),
        (2**70, "live"),
        (1.5, "live"),
        (b"1", b"evil"),
        (b"1", b"\xff"),
        (b"1", b""),
    ],
    ids=range(12),
)
def test_a_lease_without_a_usable_count_or_state_is_refused(count, state):
    with pytest.raises(ValueError, match=r"."):
        decode_lease("w1", encoded(), count, state)


def test_a_claim_is_decoded_whatever_its_token_is():
    assert decode_claim("t", b"3", None, b"1", b"w1") == Claim("t", "w1", 3, cancelled=False, fenced=True)
    assert decode_claim("t", b"x", None, None, b"w1") == Claim("t", "w1", 0)
    assert decode_claim("t", b"9" * 10_000, None, None, b"w1").token == 0


def test_a_holder_that_is_not_utf_8_keeps_its_bytes():
    holder = decode_claim("t", b"1", None, None, b"\xff\xfew").holder
    assert bytes_of(holder) == b"\xff\xfew"
    assert text_of(bytes_of(holder)) == holder


def test_ids_that_cannot_be_stored_are_left_out_of_a_lease():
    lease = msgspec.structs.replace(LEASE, running=("a", "\ud800", 5), held=([], "b"))
    assert storable(lease) == msgspec.structs.replace(LEASE, running=("a",), held=("b",))


def test_a_malformed_value_is_logged_once(caplog, monkeypatch):
    monkeypatch.setattr(stored, "MAX_LOGGED", 2)
    log = MalformedLog()
    for name in ("one", "one", "two" * 1_000_000, "three", "one"):
        log.record(name, ValueError("bad\n\x1b[31m"))
    assert len(caplog.records) == 2
    assert max(len(record.getMessage()) for record in caplog.records) < 300
    assert "\x1b" not in caplog.text


# — results —


@pytest.fixture(scope="module")
def load() -> Any:
    return make_app(broker_url="memory://", result_backend="cache+memory://").backend.decode_result


def decoded(load: Any, value: bytes) -> Any:
    return decode_all(load, {"t": value}, decode_fast=decode_meta_json).get("t")


@pytest.mark.parametrize(
    "value",
    [
        b"garbage",
        b"",
        b"null",
        b"[]",
        b"{}",
        b"5",
        b"\xff",
        b"[" * 100_000,
        b'{"status":"SUCCESS","result":' + b"[" * 100_000,
        b'{"status":"SUCCESS","result":5}',
        b'{"status":"SUCCESS","result":{"reason":"?","detail":null,"execution":{"host":"h"}}}',
        b'{"status":["SUCCESS"],"result":null}',
        b'{"status":{"a":1},"result":null}',
        b'{"status":"STARTED","result":{"hostname":"' + b"\\ud800" * 10 + b'"}, "x":1e999, "y":' + b"9" * 5_000 + b"}",
        b'{"status":"FAILURE","result":5}',
        b'{"status":"FAILURE","result":{"exc_type":"system","exc_module":"os","exc_message":"true"}}',
        b'{"status":"FAILURE","result":{"exc_type":["a"],"exc_module":[1],"exc_message":{}}}',
        b'{"status":"FAILURE","result":{"exc_type":"CommandFailed","exc_module":"celeriac.errors","exc_message":[[]]}}',
    ],
    ids=range(18),
)
def test_a_malformed_result_is_unreadable(load, value):
    assert isinstance(decoded(load, value), Unreadable)


def test_a_state_of_another_program_is_no_result(load):
    assert decoded(load, b'{"status":"PROGRESS","result":5}') is None


def test_no_module_is_imported_for_a_stored_exception(load):
    unused = "this"  # a module of the standard library that prints when it is imported
    assert unused not in sys.modules
    value = {"status": states.FAILURE, "result": {"exc_type": "d", "exc_module": unused, "exc_message": ["x"]}}
    result = decoded(load, json.dumps(value).encode())
    assert result.detail == "d: x"
    assert unused not in sys.modules


def test_the_text_of_a_stored_exception_is_limited(load):
    value = {"status": states.FAILURE, "result": {"exc_type": "E", "exc_module": "m", "exc_message": ["x" * 1_000_000]}}
    assert len(decoded(load, json.dumps(value).encode()).detail) == 10_000


@pytest.mark.parametrize(
    ("method", "compress"),
    [
        (b"application/x-gzip", zlib.compress),
        (b"application/x-bz2", bz2.compress),
        (b"application/x-lzma", lzma.compress),
    ],
)
def test_a_compressed_result_is_decompressed_up_to_a_limit(method, compress):
    def marked(value: bytes) -> Any:
        return compressed.MARK + method + b"\0" + compress(value)

    assert compressed.limited(marked(b"{}")) == b"{}"
    bomb = marked(bytes(200 * 2**20))
    assert len(bomb) < 2**20
    with pytest.raises(ValueError, match="more than 16,777,216 bytes"):
        compressed.limited(bomb)


def test_a_result_that_is_too_large_is_refused():
    with pytest.raises(ValueError, match="16,777,217 bytes"):
        compressed.limited(bytes(2**24 + 1))


# — pickles —


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "value",
    [
        None,
        REPORT,
        {"exc_type": "CommandFailed", "exc_module": "celeriac.errors", "exc_message": (REPORT,)},
        {"a": [1, -1, 300, 70_000, 2**70, 1.5, True, False, None, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)], "b": {}},
        ["the same text", "the same text", "x" * 300],
    ],
)
def test_plain_data_is_unpickled(value, protocol):
    assert plain_pickle.loads(pickle.dumps(value, protocol)) == value


def doubled(levels: int) -> Any:
    value: Any = ()
    for _ in range(levels):
        value = (value, value)
    return value


@pytest.mark.parametrize(
    "value",
    [
        pickle.dumps({doubled(40) and "x": doubled(40)}),
        b"\x80\x04N2220" + b".",  # DUP
        b"\x80\x04K\x01r\xff\xff\xff\xff.",  # a memo of 32 GiB
        b"\x80\x04r\xff\xff\xff\xff.",
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fx.",  # BINBYTES8 of 8 EiB
        b"\x80\x04\x8d\xff\xff\xff\xff\x00\x00\x00\x00x.",
        b"\x80\x04\x8b\xff\xff\xff\x7fx.",  # LONG4
        b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x7fx.",  # BYTEARRAY8
        b"\x80\x04" + b"]" * 20_000 + b"a" * 19_999 + b".",
        b"\x80\x04cos\nsystem\n(S'true'\ntR.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
        b"\x80\x04cos\nsystem",
        b"\x80\x04",
        b"\x80",
        b"\x80\x04h\x00.",
        b"\x80\x04Pabc\n.",
        b"\x80\x04\x82\x01.",
        b"\x80\x04I" + b"9" * 100_000 + b"\n.",
        b"\x80\x04}(.",
        b"\x80\x04tRs.",
        bytes(2**24 + 1),
    ],
    ids=range(21),
)
def test_a_pickle_that_is_not_plain_or_not_bounded_is_refused(value):
    with pytest.raises((pickle.UnpicklingError, EOFError, IndexError, TypeError, ValueError)):
        plain_pickle.loads(value)


def test_lease_that_has_not_changed_is_decoded_once(caplog):
    decoder = LeaseDecoder(MalformedLog())
    first = decoder.decode([("w1", [encoded(), b"1", b"live"])])
    assert decoder.decode([("w1", [encoded(), b"1", b"live"]), ("v", [encoded(), b"1", b"evil"])])["w1"] is first["w1"]
    assert decoder.decode([("w1", [encoded(), b"2", b"live"])])["w1"].heartbeat_count == 2
    assert decoder.decode([]) == {}
    assert "the lease v" in caplog.text
