"""Messages for a worker's queue: one that a publisher can have sent, and many that none can have sent."""

from __future__ import annotations

import base64
import json
import pickle
import struct
import zlib
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import uuid4

import amqp

from celeriac.broker.command_message import TASK_NAME, command_message
from celeriac.config.signing import SIGNATURE, SigningKeys
from celeriac.task.task import Task
from celeriac.worker.gate import Delivery

MAX_SIZE = 200_000
"""The limit, in bytes, that workers of these tests get. It makes a message that is too large a small one."""

NO_CALLBACKS = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
SURROGATE = "\ud800"


@dataclass(frozen=True)
class Message:
    """A message as Celery gives it to a broker's client."""

    headers: Any
    body: Any
    """Bytes, or a text that the envelope on Redis holds as it is."""

    properties: Any = field(default_factory=dict)
    content_type: Any = "application/json"
    content_encoding: Any = "utf-8"
    body_encoding: Any = "base64"

    @property
    def payload(self) -> Any:
        return json.loads(self.body)

    def delivery(self) -> Delivery:
        return Delivery(
            headers=self.headers,
            properties=self.properties,
            content_type=self.content_type,
            content_encoding=self.content_encoding,
            body=self.body,
        )

    def on_redis(self, queue: str = "default") -> bytes:
        """Return the text that Kombu keeps in a list of Redis."""
        return json.dumps(self.envelope(queue)).encode()

    def envelope(self, queue: str = "default") -> dict[str, Any]:
        body = base64.b64encode(self.body).decode() if isinstance(self.body, bytes) else self.body
        own: dict[str, Any] = {
            "body_encoding": self.body_encoding,
            "delivery_mode": 2,
            "delivery_tag": str(uuid4()),
            "delivery_info": {"exchange": "", "routing_key": queue},
            "priority": 0,
        }
        return {
            "body": body,
            "content-type": self.content_type,
            "content-encoding": self.content_encoding,
            "headers": self.headers,
            "properties": {**own, **self.properties} if isinstance(self.properties, dict) else self.properties,
        }

    def on_rabbit(self) -> amqp.Message:
        """Return the message for py-amqp. Raises an error of any kind if AMQP cannot carry it."""
        message = amqp.Message(
            self.body,
            application_headers=self.headers,
            content_type=self.content_type,
            content_encoding=self.content_encoding,
            **self.properties,
        )
        message._serialize_properties()
        return message


def message_of(task: Task, keys: SigningKeys | None = None) -> Message:
    """Return the message that a publisher sends for a task."""
    argument = command_message(task)
    if keys is not None:
        argument[SIGNATURE] = keys.sign(TASK_NAME, argument)
    return Message(
        headers={
            "lang": "py",
            "task": TASK_NAME,
            "id": task.message_id,
            "shadow": None,
            "eta": None,
            "expires": None,
            "group": None,
            "group_index": None,
            "retries": 0,
            "timelimit": [None, None],
            "root_id": task.message_id,
            "parent_id": None,
            "argsrepr": f"({task.key!r},)",
            "kwargsrepr": "{}",
            "origin": "1@host",
            "ignore_result": False,
            "replaced_task_nesting": 0,
            "stamped_headers": None,
            "stamps": {},
        },
        body=json.dumps([[argument], {}, NO_CALLBACKS]).encode(),
        properties={"correlation_id": task.message_id, "reply_to": str(uuid4())},
    )


Change = Callable[[Message], Message]


def header(name: str, value: Any) -> Change:
    return lambda message: replace(message, headers={**message.headers, name: value})


def no_header(name: str) -> Change:
    return lambda message: replace(message, headers={n: v for n, v in message.headers.items() if n != name})


def prop(name: str, value: Any) -> Change:
    return lambda message: replace(message, properties={**message.properties, name: value})


def put(name: str, value: Any) -> Change:
    """Replace a part of the message itself."""
    return lambda message: replace(message, **{name: value})


def payload(change: Callable[[Any], Any]) -> Change:
    """Change the decoded body, in place or by returning another one."""

    def apply(message: Message) -> Message:
        decoded = deepcopy(message.payload)
        changed = change(decoded)
        return replace(message, body=json.dumps(decoded if changed is None else changed).encode())

    return apply


def argument(name: str, value: Any) -> Change:
    return payload(lambda body: body[0][0].__setitem__(name, value))


def no_argument(name: str) -> Change:
    return payload(lambda body: body[0][0].__delitem__(name))


def callback(name: str, value: Any) -> Change:
    return payload(lambda body: body[2].__setitem__(name, value))


def compressed(kind: str = "application/x-gzip") -> Change:
    return lambda message: replace(
        message, body=zlib.compress(message.body), headers={**message.headers, "compression": kind}
    )


SIGNATURE_OF_A_TASK = {"task": "celery.backend_cleanup", "args": [], "kwargs": {}, "options": {}}


def header_forms() -> Iterator[tuple[str, Change]]:
    wrong: dict[str, list[Any]] = {
        "task": [
            None,
            5,
            ["x"],
            {"a": 1},
            "",
            "celery.chord_unlock",
            "celery.backend_cleanup",
            "no.such.task",
            SURROGATE,
        ],
        "id": [None, 5, 1.5, ["x"], {"a": 1}, True, "", SURROGATE, "a\nb", "\x1b[31m", "ü", "x" * 156, "a\0"],
        "timelimit": ["x", 5, [5, None], [None, 5], [None], [None, None, None], ["x", "y"], {}],
        "eta": ["2030-01-01T00:00:00", "x", 5, [], {}, "9999-12-31T23:59:59+00:00"],
        "expires": ["2000-01-01T00:00:00", "x", 5, [1]],
        "retries": ["x", -1, 1.5, [], 2**40],
        "ignore_result": [True, "x", 1, []],
        "group": ["a-group", 5],
        "group_index": [0, "x"],
        "shadow": [5, ["x"]],
        "root_id": [5, ["x"]],
        "parent_id": [5, {}],
        "argsrepr": [5, ["x"]],
        "kwargsrepr": [5],
        "origin": [5, ["x"]],
        "lang": [5],
        "stamped_headers": [["a"], "x", 5],
        "stamps": [{"a": 1}, [], "x"],
        "replaced_task_nesting": ["x", -1],
        "headers": ["x", 5, ["a"]],
        "compression": ["zlib", "x", 5, ["x"]],
        "errbacks": [5, [SIGNATURE_OF_A_TASK]],
        "callbacks": [[SIGNATURE_OF_A_TASK]],
        "chain": [[SIGNATURE_OF_A_TASK]],
        "chord": [SIGNATURE_OF_A_TASK],
        "args": [[]],
        "kwargs": [{}],
        "hostname": ["x"],
        "delivery_info": [{}],
        "reply_to": ["x"],
        "properties": [{}],
        "is_eager": [True],
        "called_directly": [True],
        "loglevel": ["x"],
        "utc": [False],
        "update": ["x"],
        "get": ["x"],
        "__class__": ["x"],
        "__dict__": [{}],
        "celeriac_refused": ["x"],
    }
    for name, values in wrong.items():
        for number, value in enumerate(values, 1):
            yield f"header {name} {number}", header(name, value)
    yield "no header task", no_header("task")
    yield "no header id", no_header("id")
    yield "no headers", put("headers", {})


def body_forms() -> Iterator[tuple[str, Change]]:
    for name, body in {
        "no JSON": b"garbage",
        "empty": b"",
        "null": b"null",
        "a number": b"5",
        "a text": b'"x"',
        "a table": b"{}",
        "protocol 1": json.dumps({"task": TASK_NAME, "id": "x", "args": [], "kwargs": {}}).encode(),
        "an empty list": b"[]",
        "no UTF-8": b"\xff\xfe[[{}],{},{}]",
        "UTF-16": "[[{}],{},{}]".encode("utf-16"),
        "a NUL": b"[[{}],{},{}]\0",
        "deep": b"[" * 50_000 + b"]" * 50_000,
        "deep tables": b'{"a":' * 20_000 + b"1" + b"}" * 20_000,
        "a huge number": b"[[" + b"9" * 5_000 + b"],{},{}]",
        "half": b'[[{"key":',
        "too large": b" " * (MAX_SIZE + 1),
    }.items():
        yield f"body {name}", put("body", body)
    for name, change in {
        "no arguments": lambda body: [[], body[1], body[2]],
        "two arguments": lambda body: [[*body[0], {}], body[1], body[2]],
        "a text argument": lambda body: [["x"], body[1], body[2]],
        "a list argument": lambda body: [[["touch", "x"]], body[1], body[2]],
        "arguments null": lambda body: [None, body[1], body[2]],
        "arguments table": lambda body: [{"0": body[0][0]}, body[1], body[2]],
        "kwargs": lambda body: [body[0], {"x": 1}, body[2]],
        "kwargs list": lambda body: [body[0], [], body[2]],
        "kwargs null": lambda body: [body[0], None, body[2]],
        "embed list": lambda body: [body[0], body[1], [1]],
        "embed null": lambda body: [body[0], body[1], None],
        "embed text": lambda body: [body[0], body[1], "x"],
        "two parts": lambda body: body[:2],
        "four parts": lambda body: [*body, {}],
        "embed hostname": lambda body: [body[0], body[1], {**body[2], "hostname": "x"}],
        "embed loglevel": lambda body: [body[0], body[1], {**body[2], "loglevel": 1}],
    }.items():
        yield f"body {name}", payload(change)
    for name in ("errbacks", "callbacks", "chain", "chord"):
        for number, value in enumerate((5, "x", {"a": 1}, [SIGNATURE_OF_A_TASK]), 1):
            yield f"embed {name} {number}", callback(name, value)


def argument_forms() -> Iterator[tuple[str, Change]]:
    wrong: dict[str, list[Any]] = {
        "key": [None, 5, ["x"], {"__type__": "uuid", "__value__": "x"}],
        "id": [None, 5, ["x"]],
        "attempt": [None, 0, -1, "1", 1.5, True, 2**40, [1]],
        "command": [None, 5, [5], [], "", "  ", [""], ["true", None], {"a": 1}, "a\0b", ["a\0b"]],
        "env": [
            None,
            [],
            "x",
            {"A": 5},
            {"A": None},
            {"": "x"},
            {"A=B": "x"},
            {"A": "\0"},
            {"A\0": "x"},
            {"__type__": "datetime", "__value__": "2020-01-01"},
            {"__type__": "bogus", "__value__": "x"},
        ],
        "secrets": [None, "x", [5], ["NOT_THERE"], {}],
        "cwd": [5, "", "\0", ["x"]],
        "timeout": ["5", -1, [], True, 1e300, float("nan"), float("inf")],
        "grace": [None, "5", -1, [], float("-inf"), float("nan")],
        "sent_at": ["x", []],
        "token": [5, "x"],
        "start_by": ["x", 5.0],
    }
    for name, values in wrong.items():
        for number, value in enumerate(values, 1):
            yield f"argument {name} {number}", argument(name, value)
    for name in ("key", "id", "attempt", "command", "env", "secrets", "cwd", "timeout", "grace"):
        yield f"no argument {name}", no_argument(name)


def other_forms() -> Iterator[tuple[str, Change]]:
    for kind in (None, "", "application/x-python-serialize", "application/x-yaml", "text/plain", "application/JSON"):
        yield f"content type {kind!r}", put("content_type", kind)
    for encoding in (None, "", "binary", "utf-16", "bogus"):
        yield f"content encoding {encoding!r}", put("content_encoding", encoding)
    yield (
        "a pickle",
        lambda message: replace(
            message,
            body=pickle.dumps(message.payload),
            content_type="application/x-python-serialize",
            content_encoding="binary",
        ),
    )
    yield "compressed", compressed()
    yield "compressed, no such kind", compressed("application/x-none")
    yield "a bomb", lambda message: compressed()(replace(message, body=b" " * 20_000_000))
    for name in ("correlation_id", "reply_to"):
        for value in (5, ["x"], {"a": 1}):
            yield f"property {name} {type(value).__name__}", prop(name, value)


MALFORMED: dict[str, Change] = {
    name: change for forms in (header_forms(), body_forms(), argument_forms(), other_forms()) for name, change in forms
}
"""How to make a message that every worker refuses, by a name. A broker may be unable to carry some of them."""


# — texts and frames that no client of Celery writes —


def on_redis_only(message: Message) -> Iterator[tuple[str, bytes]]:
    """Yield texts for a list of Redis that Kombu cannot deliver. The message is good."""

    def without(name: str) -> bytes:
        return json.dumps({n: v for n, v in message.envelope().items() if n != name}).encode()

    def with_(name: str, value: Any) -> bytes:
        return json.dumps({**message.envelope(), name: value}).encode()

    def property_(name: str, value: Any) -> bytes:
        envelope = message.envelope()
        return json.dumps({**envelope, "properties": {**envelope["properties"], name: value}}).encode()

    yield from {
        "garbage": b"garbage",
        "empty": b"",
        "no UTF-8": b"\xff\xfe\x00",
        "null": b"null",
        "true": b"true",
        "a number": b"5",
        "a text": b'"x"',
        "a list": b"[]",
        "a table": b"{}",
        "half": message.on_redis()[:-20],
        "twice": message.on_redis() * 2,
        "deep": b"[" * 100_000,
        "an unknown type": b'{"__type__": "x", "__value__": "y"}',
        "a bad date": b'{"__type__": "datetime", "__value__": 5}',
        "a huge number": b'{"body": ' + b"9" * 5_000 + b"}",
        "too large, no JSON": b"x" * (2 * MAX_SIZE + 1_000_000),
    }.items()
    value: Any
    for name in ("body", "properties"):
        yield f"no {name}", without(name)
        for value in (None, 5, [], [1], True):
            yield f"{name} {value!r}", with_(name, value)
    for value in (5, [1], "x", [["a", 1]]):
        yield f"headers {value!r}", with_("headers", value)
    for value in (5, ["x"]):
        yield f"content-type {value!r}", with_("content-type", value)
        yield f"content-encoding {value!r}", with_("content-encoding", value)
    for value in (None, 5, ["x"], {}, "", "x" * 300):
        yield f"delivery_tag {str(value)[:9]}", property_("delivery_tag", value)
    for value in (None, 5, [], {}, {"exchange": ""}, {"exchange": 5, "routing_key": "x"}, "x"):
        yield f"delivery_info {value!r}", property_("delivery_info", value)
    for value in (5, "rot13", ["x"]):
        yield f"body_encoding {value!r}", property_("body_encoding", value)
    for value in ("x", 1.5, [], float("inf")):
        yield f"priority {value!r}", property_("priority", value)
    yield "body no base64", with_("body", "%%%")
    yield "body a surrogate", json.dumps({**message.envelope(), "body": SURROGATE}).encode()


class RawProperties(amqp.Message):  # type: ignore[misc]
    """A message of AMQP with a table of headers that py-amqp would not write."""

    def __init__(self, body: bytes, table: bytes) -> None:
        super().__init__(body)
        self.table = table

    def _serialize_properties(self) -> bytes:
        return struct.pack(">HI", 1 << 13, len(self.table)) + self.table


def entry(name: bytes, value: bytes) -> bytes:
    return bytes([len(name)]) + name + value


def nested(depth: int) -> bytes:
    value = b"V"
    for _ in range(depth):
        table = entry(b"a", value)
        value = b"F" + struct.pack(">I", len(table)) + table
    return value


def on_rabbit_only(message: Message) -> Iterator[tuple[str, amqp.Message]]:
    """Yield messages of AMQP whose properties cannot be decoded, or are of strange types."""
    task = entry(b"task", b"S" + struct.pack(">I", len(TASK_NAME)) + TASK_NAME.encode())
    for name, table in {
        "a date far away": task + entry(b"x", b"T" + b"\x7f" + b"\xff" * 7),
        "a negative date": task + entry(b"x", b"T" + b"\xff" * 8),
        "deep headers": task + entry(b"x", nested(8_000)),
        "no UTF-8": entry(b"task", b"S" + struct.pack(">I", 2) + b"\xff\xfe"),
        "a name that is no UTF-8": task + entry(b"\xff\xfe", b"V"),
        "an array": entry(b"task", b"A" + struct.pack(">I", 2) + b"t\x01"),
        "bytes": entry(b"task", b"x" + struct.pack(">I", 2) + b"ab"),
        "a decimal": entry(b"task", b"D\xff" + struct.pack(">i", 5)),
    }.items():
        yield name, RawProperties(message.body, table)
        yield f"{name}, no body", RawProperties(b"", table)
