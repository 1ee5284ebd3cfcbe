"""The gate: messages of publishers pass; each malformed form is refused, and no content is shown."""

from __future__ import annotations

import bz2
import json
import lzma
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from celery import Celery

from celeriac.broker.command_message import TASK_NAME
from celeriac.task.task import MAX_ID_LENGTH, Task
from celeriac.worker.gate import (
    Accepted,
    Delivery,
    Gate,
    Rejected,
    check_json_object,
    envelope_problem,
    usable_id,
)
from celeriac.worker.intake import EnvelopeHead, describe
from tests.support.malformed import MALFORMED, MAX_SIZE, Message, argument, header, message_of, on_redis_only

pytestmark = pytest.mark.celery

SECRET = "hunter2-hunter2"
GATE = Gate(max_size=MAX_SIZE)
TASK = Task(key="k", command=("echo", SECRET), env={"PASSWORD": SECRET})


def test_there_are_more_than_113_malformed_forms():
    assert len(MALFORMED) > 200


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_message_is_refused_and_its_content_is_not_shown(name):
    message = MALFORMED[name](message_of(TASK))
    verdict = GATE.check(message.delivery())
    assert isinstance(verdict, Rejected), name
    assert SECRET not in verdict.why + describe(message)
    assert (verdict.why + describe(message)).isprintable()
    assert len(verdict.why) < 300


@pytest.mark.parametrize(
    "task",
    [
        Task(key="k", command="true"),
        Task(key=("a", 1), command=("true", "", "\n", "\udcff"), attempt=3, lost=1),
        Task(key="\udcff ü \0", command="x", env={"A": "", "Ü": "\udcff"}, cwd="/ü", timeout=5, grace=0),
        Task(key="k", command="ls \udcff"),
        Task(key="", command=(" ",), timeout=0.1, id="x" * 144, attempt=2**31 - 1),
    ],
)
def test_what_a_publisher_sends_passes(task):
    message = message_of(task)
    verdict = GATE.check(message.delivery())
    assert isinstance(verdict, Accepted), verdict
    assert verdict.payload == message.payload
    assert usable_id(message.headers, TASK_NAME) == task.message_id
    assert envelope_problem(message.envelope()) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("celeriac_signature", "x"),
        ("redelivered", True),
        ("x-death", [{"count": 1}]),
        ("x-delivery-count", 3),
        ("traceparent", "00-x"),
        ("headers", {"sentry-trace": "x"}),
        ("timelimit", None),
        ("timelimit", (None, None)),
        ("ignore_result", None),
        ("retries", 3),
        ("shadow", "a name"),
        ("a-later-header", {"any": "value"}),
    ],
)
def test_headers_that_change_nothing_pass(name, value):
    assert isinstance(GATE.check(header(name, value)(message_of(TASK)).delivery()), Accepted)


def nested(depth: int) -> Any:
    value: Any = 5
    for n in range(depth):
        value = [value] if n % 2 else {"a": value}
    return value


@pytest.mark.parametrize(
    ("value", "is_accepted"),
    [
        (datetime(2030, 1, 1, tzinfo=UTC), True),
        (Decimal(5), True),
        (b"x", True),
        (nested(19), True),
        (nested(20), False),
        (nested(5_000), False),
        (memoryview(b"x"), False),
        ({5: 6}, False),
        (object(), False),
    ],
)
def test_the_value_of_any_header_is_plain_data(value, is_accepted):
    verdict = GATE.check(header("x-another", value)(message_of(TASK)).delivery())
    assert isinstance(verdict, Accepted) == is_accepted


def test_what_celery_sends_passes():
    app = Celery("a", broker="memory://", backend="cache+memory://", set_as_current=False)
    sent = app.amqp.as_task_v2("an id", TASK_NAME, message_of(TASK).payload[0], {})
    delivery = replace(message_of(TASK).delivery(), headers=sent.headers, body=json.dumps(sent.body).encode())
    assert isinstance(GATE.check(replace(delivery, properties=sent.properties)), Accepted)


def test_a_field_of_a_later_version_passes():
    assert isinstance(GATE.check(argument("of a later version", {"x": [1]})(message_of(TASK)).delivery()), Accepted)


@pytest.mark.parametrize("body", [memoryview, bytes.decode, bytes])
def test_a_body_may_have_any_type_that_a_client_delivers(body: Any):
    message = message_of(TASK)
    assert isinstance(GATE.check(replace(message.delivery(), body=body(message.body))), Accepted)


@pytest.mark.parametrize("size", [MAX_SIZE, MAX_SIZE + 1])
def test_the_limit_of_a_body_is_exact(size):
    message = message_of(TASK)
    padded = message.body + b" " * (size - len(message.body))
    assert isinstance(GATE.check(replace(message.delivery(), body=padded)), Accepted) == (size == MAX_SIZE)


# — a message's id —


@pytest.mark.parametrize(
    ("task", "task_id", "expected"),
    [
        (TASK_NAME, "an id", "an id"),
        (TASK_NAME, "x" * MAX_ID_LENGTH, "x" * MAX_ID_LENGTH),
        (TASK_NAME, "x" * (MAX_ID_LENGTH + 1), None),
        (TASK_NAME, "\ud800", None),
        (TASK_NAME, 5, None),
        ("another", "an id", None),
        (["a"], "an id", None),
    ],
)
def test_only_a_short_printable_id_of_this_task_can_be_used(task, task_id, expected):
    assert usable_id({"task": task, "id": task_id}, TASK_NAME) == expected


@pytest.mark.parametrize("headers", [None, [], 5, "x"])
def test_without_headers_there_is_no_id(headers):
    assert usable_id(headers, TASK_NAME) is None


@pytest.mark.parametrize("task_id", ["", "ü", "\n", "x" * 145, 5])
def test_a_task_has_only_an_id_that_workers_accept(task_id):
    with pytest.raises(ValueError, match=r"id: .* is not an id; give 1 to 144 printable ASCII characters, or none"):
        Task(key="k", command="true", id=task_id)


# — envelopes —


def test_each_text_that_kombu_cannot_deliver_has_a_problem():
    texts = dict(on_redis_only(message_of(TASK)))
    delivered = {"body no base64", "body_encoding 'rot13'", "body a surrogate"}  # found when Kombu decodes the body
    for name, text in texts.items():
        try:
            envelope = json.loads(text)
        except (ValueError, RecursionError):
            continue
        assert (envelope_problem(envelope) is None) == (name in delivered), name


def test_the_head_of_a_large_envelope_is_read_without_its_body():
    import msgspec

    text = message_of(TASK).on_redis()
    assert msgspec.json.decode(text, type=EnvelopeHead).headers["task"] == TASK_NAME


# — compression —

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "application/x-gzip": zlib.compress,
    "application/x-bz2": bz2.compress,
    "application/x-lzma": lzma.compress,
}


def compressed(message: Message, kind: str) -> Delivery:
    body = COMPRESSORS[kind](message.body)
    return replace(message.delivery(), body=body, headers={**message.headers, "compression": kind})


@pytest.mark.parametrize("kind", COMPRESSORS)
def test_a_compressed_message_passes_only_if_the_settings_compress(kind):
    message = message_of(TASK)
    assert GATE.check(compressed(message, kind)) == Rejected("it is compressed")
    verdict = replace(GATE, is_compressed=True).check(compressed(message, kind))
    assert isinstance(verdict, Accepted)
    assert verdict.body == message.body


@pytest.mark.parametrize("is_compressed", [False, True])
@pytest.mark.parametrize("kind", COMPRESSORS)
def test_a_bomb_costs_no_memory(kind, is_compressed):
    gate = replace(GATE, is_compressed=is_compressed)
    delivery = compressed(Message(headers=message_of(TASK).headers, body=b" " * 40_000_000), kind)
    tracemalloc.start()
    verdict = gate.check(delivery)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(verdict, Rejected)
    assert peak < 16_000_000  # lzma itself needs 8 MiB


def test_a_body_that_only_claims_to_be_compressed_is_refused():
    message = header("compression", "application/x-gzip")(message_of(TASK))
    assert replace(GATE, is_compressed=True).check(message.delivery()) == Rejected("it cannot be decompressed")


# — workloads of Airflow —

WORKLOADS = Gate(task_name="execute_workload", argument=str, check_argument=check_json_object)


@pytest.mark.parametrize(
    ("argument", "is_accepted"),
    [
        ('{"token": "x"}', True),
        ("{}", True),
        ("[]", False),
        ("x", False),
        ({"a": 1}, False),
        (None, False),
        ("\ud800", False),
    ],
)
def test_a_workload_is_a_json_object_in_a_text(argument, is_accepted):
    message = header("task", "execute_workload")(message_of(TASK))
    body = json.dumps([[argument], {}, {}]).encode()
    verdict = WORKLOADS.check(replace(message.delivery(), body=body))
    assert isinstance(verdict, Accepted) == is_accepted
