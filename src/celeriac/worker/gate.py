"""Decide whether a delivered message may reach Celery: the gate in front of Celery's consumer.

    headers ─► size ─► content type, compression ─► body: arguments, no callbacks ─► Accepted
        └────────┴──────────────┴───────────────────────┴─► Rejected

Celery trusts each message of its queues: a header of a wrong type ends the worker, and an `eta` or an `errbacks` is
obeyed. So only messages pass that our publishers, or Celery's `apply_async` without options, can have sent. The
decision is pure; `celeriac.worker.intake` carries it out.

The tables below are the types of a message. A name that is not in its table is ignored, because a later version may
send more; but no unknown header may replace something that Celery reads from a request.
"""

from __future__ import annotations

import binascii
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import cache
from typing import Annotated, Any

import msgspec
from celery.app.task import Context
from kombu.exceptions import ContentDisallowed, DecodeError
from kombu.serialization import loads
from msgspec import UNSET, Meta, UnsetType

from celeriac.broker.command_message import TASK_NAME
from celeriac.broker.compression import DECOMPRESSORS, ERRORS, decompress
from celeriac.config.schema import DEFAULT_MAX_MESSAGE_SIZE
from celeriac.task.artifacts import MAX_PATTERNS, problem_of
from celeriac.task.resources import MAX_CPUS, MAX_MEMORY
from celeriac.task.task import MAX_ID_LENGTH, MAX_PRIORITY, MAX_STDIN, MAX_WAIT

JSON, JSON_ENCODING = "application/json", "utf-8"
OTHER_ENCODINGS = ("utf-8", "binary")
"""For formats other than JSON, which only a user's own settings allow."""

REFUSED_HEADER = "celeriac_refused"
"""In this header, `celeriac.worker.intake` gives the task the reason of a refusal. No sender may set it."""

ENVELOPE_OVERHEAD = 256 * 1024  # bytes around a body on Redis: headers and properties
MAX_DEPTH = 20  # tables and lists around a part of a header
PLAIN_TYPES = (bool, int, float, str, bytes, datetime, Decimal)
MAX_MISMATCH = 200  # characters that describe a value of a wrong type

# — the types of an envelope on Redis —


class DeliveryInfo(msgspec.Struct):
    exchange: str
    routing_key: str


class EnvelopeProperties(msgspec.Struct):
    delivery_tag: Annotated[str, Meta(min_length=1, max_length=255)]
    delivery_info: DeliveryInfo
    body_encoding: str | None = None
    priority: int | None = None


class Envelope(msgspec.Struct):
    """The JSON text in which Kombu keeps a message in a list of Redis."""

    body: str
    properties: EnvelopeProperties
    headers: dict[str, Any] | None = None
    content_type: str | None = msgspec.field(name="content-type", default=None)
    content_encoding: str | None = msgspec.field(name="content-encoding", default=None)


def envelope_problem(values: Any) -> str | None:
    """Return what is wrong with a decoded envelope."""
    try:
        convert(values, Envelope, "its envelope is malformed")
    except Malformed as malformed:
        return str(malformed)
    return None


def max_item_size(max_size: int) -> int:
    """Return the largest text of an envelope whose body has at most `max_size` bytes, encoded as base64."""
    return max_size * 4 // 3 + ENVELOPE_OVERHEAD


# — the types of headers and properties —

Count = Annotated[int, Meta(ge=0, le=MAX_PRIORITY)]
Empty = Annotated[list[Any], Meta(max_length=0)] | None
EmptyTable = Annotated[dict[Any, Any], Meta(max_length=0)]
MessageId = Annotated[str, Meta(min_length=1, max_length=MAX_ID_LENGTH, pattern=r"\A[ -~]*\Z")]


class Headers(msgspec.Struct):
    """The headers of Celery's protocol 2. Those that would change how a task runs must be empty."""

    task: str
    id: MessageId
    lang: str | None = None
    shadow: str | None = None
    root_id: str | None = None
    parent_id: str | None = None
    argsrepr: str | None = None
    kwargsrepr: str | None = None
    origin: str | None = None
    retries: Count | None = None
    replaced_task_nesting: Count | None = None
    headers: dict[str, Any] | None = None
    compression: str | None = None
    ignore_result: bool | None = None
    timelimit: tuple[None, None] | None = None
    eta: None = None
    expires: None = None
    group: None = None
    group_index: None = None
    stamped_headers: Empty = None
    stamps: EmptyTable | None = None


class Properties(msgspec.Struct):
    """The properties that Celery reads."""

    correlation_id: str | None = None
    reply_to: str | None = None
    priority: int | None = None


# — the types of a body —

NoNul = Annotated[str, Meta(pattern=r"\A[^\0]*\Z")]
Variable = Annotated[str, Meta(min_length=1, pattern=r"\A[^\0=]*\Z")]
Name = Annotated[str, Meta(min_length=1, pattern=r"\A[^\0]*\Z")]
Text = Annotated[str, Meta(max_length=MAX_STDIN, pattern=r"\A[^\0]*\Z")]
Command = Annotated[str, Meta(min_length=1, pattern=r"\A[^\0]*\Z")] | Annotated[list[NoNul], Meta(min_length=1)]


LimitOfMessage = tuple[
    Annotated[str, Meta(min_length=1, max_length=400)],
    Annotated[int, Meta(ge=1, le=MAX_PRIORITY)],
    Annotated[float, Meta(gt=0, le=MAX_WAIT)] | None,
]
"""The name, the number and the length of the window of a limit."""

MAX_LIMITS = 8


class CommandMessage(msgspec.Struct):
    """The argument of `celeriac.execute_command`, with the limits of `Task`. `command_message` makes it."""

    key: str
    id: str
    attempt: Annotated[int, Meta(ge=1, le=MAX_PRIORITY)]
    command: Command
    env: dict[Variable, NoNul]
    secrets: list[str]
    cwd: Name | None
    timeout: Annotated[float, Meta(ge=0, le=MAX_WAIT)] | None
    grace: Annotated[float, Meta(ge=0, le=MAX_WAIT)]
    sent_at: float | None = None
    traced: bool = False
    stdin: Text | None = None
    stdin_is_secret: bool = False
    stdin_file: Name | None = None
    stdin_data: str | None = None
    """Base64."""

    scratch: bool = False
    artifacts: Annotated[list[Name], Meta(min_length=1, max_length=MAX_PATTERNS)] | UnsetType = UNSET
    output_cap: Annotated[int, Meta(ge=0)] | None = None
    cpus: Annotated[float, Meta(gt=0, le=MAX_CPUS)] | None = None
    memory: Annotated[int, Meta(ge=1, le=MAX_MEMORY)] | None = None
    gpus: Count = 0
    deadline: float | None = None
    limits: Annotated[list[LimitOfMessage], Meta(max_length=MAX_LIMITS)] = []
    token: UnsetType = UNSET
    """The worker itself adds this field and the next one."""

    start_by: UnsetType = UNSET


class Callbacks(msgspec.Struct, forbid_unknown_fields=True):
    """The third part of a body: what Celery would send after the task. There must be nothing."""

    callbacks: Empty = None
    errbacks: Empty = None
    chain: Empty = None
    chord: None = None


@cache
def body_type(argument: Any) -> Any:
    """Return the type of a body with one argument of this type."""
    return tuple[tuple[argument], EmptyTable, Callbacks]


def is_base64(text: str) -> bool:
    try:
        binascii.a2b_base64(text, strict_mode=True)
    except ValueError:  # also for characters beyond ASCII
        return False
    return True


def check_command(message: CommandMessage) -> str | None:
    """Return what is wrong with the command or the secrets of a message, beyond their types."""
    program = message.command if isinstance(message.command, str) else message.command[0]
    if not program.strip() and (isinstance(message.command, str) or not program):
        return "the command is empty"
    if message.stdin_data is not None and not is_base64(message.stdin_data):
        return "its stdin_data is not base64"
    if not message.env.keys() >= set(message.secrets):
        return "a secret is not a variable"
    if message.artifacts is not UNSET:
        return next((f"an artifact {problem}" for each in message.artifacts if (problem := problem_of(each))), None)
    return None


def check_json_object(text: str) -> str | None:
    """Return what is wrong with an argument that must be a JSON object."""
    try:
        msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeEncodeError):
        return "its argument is not a JSON object"
    return None


# — the decision —


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A message as the broker's client delivers it: of no type that could be trusted."""

    headers: Any
    properties: Any
    content_type: Any
    content_encoding: Any
    body: Any


@dataclass(frozen=True, slots=True)
class Accepted:
    """The message may reach Celery."""

    payload: Any
    """The decoded body."""

    body: Any
    """The body, decompressed."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """The message must not reach Celery."""

    why: str
    """For a person. It shows no content of the message."""


class Malformed(Exception):
    """The reason why a message is refused, on its way out of the checks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """The rules of one worker."""

    task_name: str = TASK_NAME
    """The only task that may run."""

    argument: Any = CommandMessage
    """The type of the task's one argument."""

    check_argument: Callable[[Any], str | None] = check_command
    """Returns what is wrong with an argument of this type, if it is wrong."""

    max_size: int = DEFAULT_MAX_MESSAGE_SIZE
    """The largest body, in bytes."""

    accept: frozenset[str] = frozenset({JSON})
    """The content types of the worker's settings."""

    is_compressed: bool = False
    """Whether the worker's settings say that messages are compressed."""

    def check(self, delivery: Delivery) -> Accepted | Rejected:
        """Return whether a message may reach Celery. Raises no error, whatever the message is."""
        try:
            headers = self._check_headers(delivery.headers)
            convert(delivery.properties, Properties, "its properties are malformed")
            body = self._body_of(delivery, headers.compression)
            return Accepted(self._payload_of(delivery, body), body)
        except Malformed as refusal:
            return Rejected(str(refusal))
        except (Exception, RecursionError) as error:  # noqa: BLE001 - such as MemoryError
            return Rejected(f"it cannot be decoded: {type(error).__name__}")

    def _check_headers(self, values: Any) -> Headers:
        if not isinstance(values, Mapping):
            raise Malformed("it has no headers")
        if values.get("task") != self.task_name:
            raise Malformed("it is for another task")
        for name in values:
            if not isinstance(name, str):
                raise Malformed("the name of a header is not text")
            if name == REFUSED_HEADER or (name not in Headers.__struct_fields__ and hasattr(Context, name)):
                raise Malformed(f"a header {name} is not allowed")
        if not is_plain(values, MAX_DEPTH):
            raise Malformed("a header is not plain data")
        headers: Headers = convert(values, Headers, "its headers are malformed")
        if headers.ignore_result:
            raise Malformed("a header ignore_result is not allowed")
        return headers

    def _body_of(self, delivery: Delivery, compression: str | None) -> Any:
        body = delivery.body
        if not isinstance(body, (bytes, str, memoryview)):
            raise Malformed("it has no body")
        self._check_size(len(body))
        if compression is None:
            return body
        if not self.is_compressed:
            raise Malformed("it is compressed")
        body = decompressed(bytes(body) if not isinstance(body, str) else body.encode(), compression, self.max_size)
        self._check_size(len(body))
        return body

    def _check_size(self, size: int) -> None:
        if size > self.max_size:
            raise Malformed(f"it is larger than {self.max_size:,} bytes: raise max_message_size, or send less")

    def _payload_of(self, delivery: Delivery, body: Any) -> Any:
        kind, encoding = delivery.content_type, delivery.content_encoding
        if not isinstance(kind, str) or kind not in self.accept:
            raise Malformed("its content type is not accepted")
        if encoding not in ((JSON_ENCODING,) if kind == JSON else OTHER_ENCODINGS):
            raise Malformed("its content encoding is not accepted")
        try:
            payload = loads(body, kind, encoding, accept=self.accept)
        except (DecodeError, ContentDisallowed):
            raise Malformed("its body cannot be decoded") from None
        decoded = convert(payload, body_type(self.argument), "its body is malformed")
        if (problem := self.check_argument(decoded[0][0])) is not None:
            raise Malformed(f"its body is malformed: {problem}")
        return payload


def is_plain(value: Any, depth: int) -> bool:
    """Return whether a value is plain data, with at most `depth` tables and lists around each part.

    Clients of AMQP also deliver dates and decimals, and bytes that cannot be given to a child process.
    """
    if isinstance(value, Mapping):
        return depth > 0 and all(isinstance(name, str) and is_plain(item, depth - 1) for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return depth > 0 and all(is_plain(item, depth - 1) for item in value)
    return value is None or isinstance(value, PLAIN_TYPES)


def convert(values: Any, kind: Any, problem: str) -> Any:
    """Return values as a type. Raises `Malformed`: the reason names the place and the types, and shows no value."""
    try:
        return msgspec.convert(values, kind)
    except (msgspec.ValidationError, UnicodeEncodeError) as error:  # the second for a text that is not Unicode
        mismatch = str(error) if isinstance(error, msgspec.ValidationError) else "a text in a wrong place"
        # The name of an unknown field comes from the message.
        raise Malformed(f"{problem}: {ascii(mismatch)[1:-1][:MAX_MISMATCH]}") from None


def usable_id(headers: Any, task_name: str) -> str | None:
    """Return the id of a refused message of this task; None if it has none that can be trusted."""
    if not isinstance(headers, Mapping) or headers.get("task") != task_name:
        return None
    try:
        task_id: str = convert(headers.get("id"), MessageId, "")
    except Malformed:
        return None
    return task_id


def decompressed(data: bytes, method: str, max_size: int) -> bytes:
    """Return the content, cut off one byte after `max_size`. Raises `Malformed`."""
    if method not in DECOMPRESSORS:
        raise Malformed("its kind of compression is not supported")
    try:
        return decompress(data, method, max_size)
    except ERRORS:
        raise Malformed("it cannot be decompressed") from None
