"""Tasks and events as rows and JSON. The JSON omits default values.

All fields of the structs `Task`, `Event` and `Execution` are stored. A field must not be renamed: ledgers of
earlier versions have the old name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from hashlib import blake2b
from operator import attrgetter
from typing import Any, TypeVar

import msgspec
from msgspec import Struct
from msgspec.structs import fields

from celeriac.errors import InvalidTask, describe_error
from celeriac.executor.interfaces import TaskRecord, UnfinishedTask
from celeriac.log_lines import logger_for
from celeriac.task.event import Event
from celeriac.task.result import Execution
from celeriac.task.state import State
from celeriac.task.task import NO_ENV, Secret, Task, is_unicode

T = TypeVar("T")

END_OF_TIME = 2.0**37  # seconds: the year 6325
logger = logger_for(__name__)

TASK_COLUMNS = ("key", "id", "priority", "attempt", "lost")
"""The fields of `Task` that have a column of their own: queries use them, or they change."""

EVENT_COLUMNS = ("key", "number")
"""The same for `Event`."""


class MalformedRow(Exception):
    """A row of the ledger that cannot be decoded, because another program has written it, or the disk is damaged."""

    def __init__(self, key: object, column: str, error: Exception) -> None:
        super().__init__(key, column, error)
        self.key, self.column, self.error = key, column, error

    def __str__(self) -> str:
        return f"the row of task {self.key!r} is malformed in column {self.column}: {describe_error(self.error)}"


@contextmanager
def decoding(key: object, column: str) -> Iterator[None]:
    """Raise `MalformedRow` in place of any error of the block."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - a decoder can raise anything
        raise MalformedRow(key, column, error) from None


def readable(rows: Iterable[Any], decode_row: Callable[[Any], T]) -> Iterator[T]:
    """Yield the decoded rows. Leave the malformed ones out, with a line in the log for each."""
    for row in rows:
        try:
            decoded = decode_row(row)
        except MalformedRow as malformed:
            logger.warning("run %s: %s; it is left out", row.run, malformed)
        else:
            yield decoded


class StoredSecret(msgspec.Struct):
    """A secret. It is stored because the task may have to run again."""

    secret: str


class StoredSentFile(msgspec.Struct):
    """A `SentFile`."""

    sent_file: str


def struct_of(name: str, struct: type[Struct], *, columns: tuple[str, ...], types: dict[str, Any]) -> type[Any]:
    """Return a struct with the fields of another one, except those with a column of their own.

    `types` replaces the annotations that msgspec cannot decode. A field with a default factory gets an empty dict.
    """
    stored: list[Any] = []
    for attribute in fields(struct):
        name_and_type = (attribute.name, types.get(attribute.name, attribute.type))
        if attribute.name in columns:
            continue
        if attribute.default_factory is not msgspec.NODEFAULT:
            stored.append((*name_and_type, msgspec.field(default_factory=dict)))
        elif attribute.default is not msgspec.NODEFAULT:
            stored.append((*name_and_type, attribute.default))
        else:
            stored.append(name_and_type)
    return msgspec.defstruct(name, stored, omit_defaults=True)


StoredTask = struct_of(
    "StoredTask",
    Task,
    columns=TASK_COLUMNS,
    types={
        "env": dict[str, str | StoredSecret],
        "needs": tuple[str, ...],
        "stdin": str | StoredSecret | None,
        "stdin_file": str | StoredSentFile | None,
    },
)
StoredEvent = struct_of("StoredEvent", Event, columns=EVENT_COLUMNS, types={})

TASK_FIELDS = StoredTask.__struct_fields__
EVENT_FIELDS = StoredEvent.__struct_fields__
task_values, event_values = attrgetter(*TASK_FIELDS), attrgetter(*EVENT_FIELDS)

ENCODER = msgspec.json.Encoder()
TASK_DECODER = msgspec.json.Decoder(StoredTask)
EVENT_DECODER = msgspec.json.Decoder(StoredEvent)


def check_key(key: object) -> None:
    """Raise `InvalidTask` for a key that is not text: a ledger cannot store other objects."""
    remedy = "with a ledger, use strings of Unicode without NUL as keys"
    if not isinstance(key, str):
        raise InvalidTask("key", f"{key!r} is not a string", remedy)
    if "\0" in key or not is_unicode(key):
        raise InvalidTask("key", f"{key!r} cannot be stored", remedy)


# — JSON —


def encode(value: Any) -> str:
    """Return JSON. Lone surrogates, which a command line may hold, are escaped; `decode` reads them."""
    try:
        return ENCODER.encode(value).decode()
    except UnicodeEncodeError:
        return json.dumps(msgspec.to_builtins(value))


def decode(decoder: msgspec.json.Decoder[T], text: str) -> T:
    """Return the value of JSON that `encode` wrote."""
    try:
        return decoder.decode(text)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        return msgspec.convert(json.loads(text), decoder.type)


def encode_execution(execution: Execution) -> str:
    """Return the JSON of an execution."""
    return encode(without_defaults(execution))


def without_defaults(value: Any) -> dict[str, Any]:
    """Return the fields of a struct, and of structs in it, that differ from their defaults."""
    different: dict[str, Any] = {}
    for name, default in defaults_of(value.__class__):
        field_value = getattr(value, name)
        if field_value != default:
            different[name] = without_defaults(field_value) if isinstance(field_value, Struct) else field_value
    return different


@cache
def defaults_of(struct: type[Struct]) -> tuple[tuple[str, Any], ...]:
    """Return the names and defaults of the fields of a struct."""
    return tuple((attribute.name, attribute.default) for attribute in fields(struct))


def encode_payload(task: Task) -> str:
    """Return the JSON of a task, without the fields that have a column."""
    stored = StoredTask(*task_values(task))
    stored.env = stored_env(task.env) if task.env else {}
    if isinstance(task.stdin, Secret):
        stored.stdin = StoredSecret(task.stdin.reveal())
    if task.stdin_file is not None and type(task.stdin_file) is not str:
        stored.stdin_file = StoredSentFile(str.__str__(task.stdin_file))
    return encode(stored)


def stored_env(env: Mapping[str, str]) -> dict[str, str | StoredSecret]:
    """Return the environment with its secrets as `StoredSecret`."""
    return {name: StoredSecret(value.reveal()) if isinstance(value, Secret) else value for name, value in env.items()}


def decode_task(key: Any, row: Any) -> Task:
    """Return the task of a row. Raise `MalformedRow`."""
    with decoding(key, "payload"):
        stored = decode(TASK_DECODER, row.payload)
        values = {name: getattr(stored, name) for name in TASK_FIELDS}
        env = {n: Secret(v.secret) if isinstance(v, StoredSecret) else v for n, v in stored.env.items()}
        values["env"] = env or NO_ENV
        if isinstance(stored.stdin, StoredSecret):
            values["stdin"] = Secret(stored.stdin.secret)
        if isinstance(stored.stdin_file, StoredSentFile):
            from celeriac.task.sent_file import SentFile  # late: few tasks have one

            values["stdin_file"] = SentFile(stored.stdin_file.sent_file)
        return Task(key=key, id=row.id, priority=row.priority, attempt=row.attempt, lost=row.lost, **values)


def encode_event(event: Event) -> str:
    """Return the JSON of an event, without the fields that have a column."""
    stored = StoredEvent(*event_values(event))
    if event.execution is not None:
        stored.execution = without_defaults(event.execution)
    return encode(stored)


def decode_event(key: Any, number: int, text: str) -> Event:
    """Return the event of a row. Raise `MalformedRow`."""
    with decoding(key, "event"):
        stored = decode(EVENT_DECODER, text)
    return Event(key=key, number=number, **{name: getattr(stored, name) for name in EVENT_FIELDS})


def event_of(row: Any) -> Event:
    """Return the event of a row. Raise `MalformedRow`."""
    return decode_event(row.key, row.number, row.event)


def digest_of(task: Task) -> int:
    """Return a digest of the task's command, environment, directory and input. Other fields do not change it."""
    env = {name: str.__str__(value) for name, value in task.env.items()} if task.env else None
    parts: tuple[Any, ...] = (task.command, env, task.cwd)
    if task.stdin is not None or task.stdin_file is not None:
        texts = (task.stdin, task.stdin_file)
        parts += tuple(None if text is None else str.__str__(text) for text in texts)
    content = encode(parts).encode()
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "big", signed=True)


# — rows —


def task_row(run: int, key: str, place: int, task: Task, arrived: float) -> dict[str, Any]:
    """Return the row of a task that was just queued. `arrived` is in seconds since the epoch."""
    return {
        "run": run,
        "key": key,
        "place": place,
        "id": task.id,
        "digest": digest_of(task),
        "payload": encode_payload(task),
        "priority": task.priority,
        "arrived": arrived,
        "state": State.WAITING.value,
        "attempt": task.attempt,
        "lost": task.lost,
        "moved": arrived,
        "not_before": None,
        "revoking": False,
        "reason": None,
        "detail": None,
        "execution": None,
    }


def record_row(run: int, key: str, record: TaskRecord) -> dict[str, Any]:
    """Return the columns of a task that change, for `UPDATE_TASK_STATE`."""
    task = record.task
    return {
        "of_run": run,
        "of_key": key,
        "state": record.state.value,
        "priority": task.priority,
        "attempt": task.attempt,
        "lost": task.lost,
        "moved": record.when,
        "not_before": record.not_before,
        "revoking": record.revoking,
        "reason": record.reason.value if record.reason is not None else None,
        "detail": None if record.detail is None else record.detail.replace("\0", "\N{REPLACEMENT CHARACTER}"),
        "execution": None if record.execution is None else encode_execution(record.execution),
    }


def unfinished_task(key: Any, row: Any) -> UnfinishedTask:
    """Return the unfinished task of a row. Raise `MalformedRow`."""
    return UnfinishedTask(decode_task(key, row), decode_state(row), row.arrived, row.not_before, bool(row.revoking))


def decode_state(row: Any) -> State:
    """Return the state of a task's row. Raise `MalformedRow`."""
    with decoding(row.key, "state"):
        return State(row.state)


def stored_time(value: Any) -> float | None:
    """Return a time, in seconds since the epoch. None for a value that is none, or far outside of any calendar."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0 <= value < END_OF_TIME else None


def stored_text(value: Any) -> str | None:
    """Return a text. A value of another type, which another program has written, becomes one."""
    if value is None or isinstance(value, str):
        return value
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
