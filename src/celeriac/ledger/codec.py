"""Tasks and events as the ledger keeps them: text, without what goes without saying."""

from __future__ import annotations

import json
from dataclasses import fields
from hashlib import blake2b
from typing import Any, TypeVar

import msgspec

from celeriac.errors import InvalidTask
from celeriac.executor.interfaces import TaskRecord, UnfinishedTask
from celeriac.task.event import Event
from celeriac.task.result import Execution, Output, Reason
from celeriac.task.state import State
from celeriac.task.task import (
    DEFAULT_GRACE,
    DEFAULT_MAX_LOST,
    DEFAULT_QUEUE,
    DEFAULT_RETRY_DELAY,
    NO_ENV,
    OnNeedFailed,
    OnWorkerLost,
    Secret,
    Task,
)

T = TypeVar("T")


class StoredSecret(msgspec.Struct):
    """A secret. It must be known to run the task again."""

    secret: str


class Payload(msgspec.Struct, omit_defaults=True):
    """What is asked for."""

    command: str | tuple[str, ...]
    queue: str = DEFAULT_QUEUE
    slots: int = 1
    env: dict[str, str | StoredSecret] = {}
    cwd: str | None = None
    timeout: float | None = None
    grace: float = DEFAULT_GRACE
    retries: int = 0
    retry_delay: float = DEFAULT_RETRY_DELAY
    on_worker_lost: OnWorkerLost = OnWorkerLost.RETRY
    max_lost: int = DEFAULT_MAX_LOST
    needs: tuple[str, ...] = ()
    on_need_failed: OnNeedFailed = OnNeedFailed.SKIP


class StoredEvent(msgspec.Struct, omit_defaults=True):
    """An event, without the key of its task and its number."""

    state: State
    when: float
    id: str
    attempt: int
    reason: Reason | None = None
    detail: str | None = None
    execution: dict[str, Any] | None = None
    retry_in: float | None = None


ENCODER = msgspec.json.Encoder()
PAYLOAD = msgspec.json.Decoder(Payload)
SAID = msgspec.json.Decoder(StoredEvent)
NAMES = Payload.__struct_fields__
EXECUTION = {field.name: field.default for field in fields(Execution)}
OUTPUT = {field.name: field.default for field in fields(Output)}


def check_key(key: object) -> None:
    """Raises `InvalidTask` for one that is no text: a ledger outlives what else might be a key."""
    remedy = "give strings of Unicode without NUL as keys, where a ledger is kept"
    if not isinstance(key, str):
        raise InvalidTask("key", f"{key!r} is not a string", remedy)
    if "\0" in key or not is_encodable(key):
        raise InvalidTask("key", f"{key!r} cannot be written down", remedy)


def is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def encode(value: Any) -> str:
    """As JSON. What a command line holds that is no Unicode is written too, and `read` again."""
    try:
        return ENCODER.encode(value).decode()
    except UnicodeEncodeError:
        return json.dumps(msgspec.to_builtins(value))


def decode(decoder: msgspec.json.Decoder[T], text: str) -> T:
    try:
        return decoder.decode(text)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        return msgspec.convert(json.loads(text), decoder.type)


def encode_payload(task: Task) -> str:
    env: dict[str, str | StoredSecret] = {}
    if task.env:
        env = {
            name: StoredSecret(value.reveal()) if isinstance(value, Secret) else value
            for name, value in task.env.items()
        }
    payload = Payload(
        command=task.command,
        queue=task.queue,
        slots=task.slots,
        env=env,
        cwd=task.cwd,
        timeout=task.timeout,
        grace=task.grace,
        retries=task.retries,
        retry_delay=task.retry_delay,
        on_worker_lost=task.on_worker_lost,
        max_lost=task.max_lost,
        needs=task.needs,  # type: ignore[arg-type]  # keys of tasks that have all been checked to be text
        on_need_failed=task.on_need_failed,
    )
    return encode(payload)


def digest_of(task: Task) -> int:
    """Of what the task runs: its command, environment and directory. What else is asked for does not change that."""
    env = {name: str.__str__(value) for name, value in task.env.items()} if task.env else None
    content = encode((task.command, env, task.cwd)).encode()
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "big", signed=True)


def task_row(run: int, key: str, place: int, task: Task, arrived: float) -> dict[str, Any]:
    """A task that has just been queued."""
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


def record_row(run: int, key: str, standing: TaskRecord) -> dict[str, Any]:
    task = standing.task
    return {
        "of_run": run,
        "of_key": key,
        "state": standing.state.value,
        "priority": task.priority,
        "attempt": task.attempt,
        "lost": task.lost,
        "moved": standing.when,
        "not_before": standing.not_before,
        "revoking": standing.revoking,
        "reason": standing.reason.value if standing.reason is not None else None,
        "detail": None if standing.detail is None else standing.detail.replace("\0", "\N{REPLACEMENT CHARACTER}"),
        "execution": None if standing.execution is None else encode(compact(standing.execution)),
    }


def decode_task(key: Any, row: Any) -> Task:
    payload = decode(PAYLOAD, row.payload)
    asked = {name: getattr(payload, name) for name in NAMES}
    env = {n: Secret(v.secret) if isinstance(v, StoredSecret) else v for n, v in payload.env.items()}
    asked["env"] = env or NO_ENV
    return Task(key=key, id=row.id, priority=row.priority, attempt=row.attempt, lost=row.lost, **asked)


def unfinished_task(key: Any, row: Any) -> UnfinishedTask:
    return UnfinishedTask(decode_task(key, row), State(row.state), row.arrived, row.not_before, row.revoking)


def encode_event(event: Event) -> str:
    said = StoredEvent(
        state=event.state,
        when=event.when,
        id=event.id,
        attempt=event.attempt,
        reason=event.reason,
        detail=event.detail,
        execution=None if event.execution is None else compact(event.execution),
        retry_in=event.retry_in,
    )
    return encode(said)


def decode_event(key: Any, number: int, text: str) -> Event:
    said = decode(SAID, text)
    return Event(
        key=key,
        state=said.state,
        when=said.when,
        id=said.id,
        attempt=said.attempt,
        reason=said.reason,
        detail=said.detail,
        execution=None if said.execution is None else execution_of(said.execution),
        retry_in=said.retry_in,
        number=number,
    )


def compact(execution: Execution) -> dict[str, Any]:
    """Without what is at its default."""
    said: dict[str, Any] = {}
    for name, default in EXECUTION.items():
        value = getattr(execution, name)
        if value != default:
            said[name] = of_output(value) if isinstance(value, Output) else value
    return said


def of_output(output: Output) -> dict[str, Any]:
    return {name: value for name, default in OUTPUT.items() if (value := getattr(output, name)) != default}


def execution_of(said: Any) -> Execution:
    return msgspec.convert(said, Execution)
