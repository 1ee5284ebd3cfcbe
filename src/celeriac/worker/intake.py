"""Carry out the decisions of the gate: for our workers before Celery's consumer, for others before the task's strategy.

message ─► Gate.check ─► Accepted ─► Celery
                     └─► Rejected ─► recorded ─► acknowledged
                                            └─► Celery, if it has a usable id: as a message that only ends its task

A refused message with a usable id may belong to a task that an executor waits for. Its content is replaced, and the
task ends as refused, unless it has been claimed under that id.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from celery.worker.strategy import default as celery_strategy

from celeriac.server_errors import is_server_error
from celeriac.worker.acks import Acks
from celeriac.worker.celery_internals import set_payload
from celeriac.worker.gate import (
    JSON,
    JSON_ENCODING,
    REFUSED_HEADER,
    Accepted,
    Delivery,
    EnvelopeProperties,
    Gate,
    max_item_size,
    usable_id,
)
from celeriac.worker.log import logger
from celeriac.worker.refusals import Refusals

NO_BODY = b"[[{}], {}, {}]"
MAX_ABOUT = 500  # characters that describe a refused message
MAX_NAMES, MAX_NAME = 25, 40  # header names in that description, and characters of each


class Intake:
    """Takes the messages of one worker. For the thread of the worker's event loop."""

    def __init__(self, gate: Gate, refusals: Refusals, acks: Acks) -> None:
        self._gate, self._refusals, self._acks = gate, refusals, acks
        self.max_item_size = max_item_size(gate.max_size)
        self._too_large: dict[str, str] = {}
        """By delivery tag, why a message was refused whose place a small one has taken."""

        self.worker = ""
        """Celery's name of the worker; known once it is built."""

    def take(self, message: Any, handle: Callable[[Any], object]) -> None:
        """Let `handle` handle a message that the gate accepts."""
        if (why := self._too_large.pop(message.delivery_tag, None)) is not None:
            end_task(message, message.headers["id"], self._gate.task_name, why)
        elif not admit(message, self._gate, self._refuse):
            self._acknowledge(message)
            return
        try:
            handle(message)
        except Exception as error:
            if is_server_error(error):
                raise
            self.drop(message, error)

    def drop(self, message: Any, error: Exception | None = None) -> None:
        """Refuse a message that Celery or Kombu cannot handle."""
        if error is not None:
            logger.error("a message could not be handled", exc_info=error)
        why = "it cannot be decoded" if error is None else f"it cannot be handled: {type(error).__name__}"
        self._refuse(message, why, None)
        self._acknowledge(message)

    def _refuse(self, message: Any, why: str, task_id: str | None) -> None:
        record(self._refusals, message, why, task_id, self.worker)

    def _acknowledge(self, message: Any) -> None:
        if self._acks.supports(message.channel):
            self._acks.answer(message, put_back=False)
        elif not getattr(message, "acknowledged", False):
            message.ack()

    # — messages that do not become one of Kombu's: the methods of `BadMessageHandler` —

    def refuse(self, why: str, *, queue: str, size: int | None = None) -> None:
        self._refusals.record(why, queue=queue, worker=self.worker, size=size)

    def refuse_too_large(self, item: bytes, *, queue: str) -> bytes | None:
        task_id, envelope = None, None
        try:
            envelope = msgspec.json.decode(item, type=EnvelopeHead)
            task_id = usable_id(envelope.headers, self._gate.task_name)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass
        why = f"it is larger than {self._gate.max_size:,} bytes: raise max_message_size, or send less"
        self._refusals.record(why, queue=queue, worker=self.worker, id=task_id, size=len(item))
        if task_id is None or envelope is None:
            return None
        self._too_large[envelope.properties.delivery_tag] = why
        small = {
            "body": base64.b64encode(NO_BODY).decode(),
            "content-type": JSON,
            "content-encoding": JSON_ENCODING,
            "headers": {"lang": "py", "task": self._gate.task_name, "id": task_id},
            "properties": msgspec.to_builtins(envelope.properties),
        }
        return json.dumps(small).encode()

    def on_error(self, error: Exception, *, queue: str, size: int | None = None) -> None:
        logger.error("a message could not be handled", exc_info=error)
        self.refuse(f"it cannot be handled: {type(error).__name__}", queue=queue, size=size)


class EnvelopeHead(msgspec.Struct):
    """The part of an envelope that is read if its body is too large."""

    headers: Any
    properties: EnvelopeProperties


def gated_strategy(gate: Gate, refusals: Refusals) -> Callable[..., Any]:
    """Return a strategy for Celery's task: the gate before Celery's own strategy."""

    def strategy(task: Any, app: Any, consumer: Any, **options: Any) -> Any:
        handle = celery_strategy(task, app, consumer, **options)

        def refuse(message: Any, why: str, task_id: str | None) -> None:
            record(refusals, message, why, task_id, consumer.hostname)

        def on_message(message: Any, _body: Any, ack: Any, reject: Any, callbacks: Any, **others: Any) -> Any:
            if not admit(message, gate, refuse):
                return ack(logger, consumer.connection_errors)
            return handle(message, None, ack, reject, callbacks, **others)

        return on_message

    return strategy


def admit(message: Any, gate: Gate, refuse: Callable[[Any, str, str | None], None]) -> bool:
    """Return whether Celery may have a message: one that the gate accepts, or one that ends a refused task."""
    verdict = gate.check(
        Delivery(
            headers=message.headers,
            properties=message.properties,
            content_type=message.content_type,
            content_encoding=message.content_encoding,
            body=message.body,
        )
    )
    if isinstance(verdict, Accepted):
        if verdict.body is not message.body:
            message.body = verdict.body
            message.headers = {name: value for name, value in message.headers.items() if name != "compression"}
        set_payload(message, verdict.payload)
        return True
    task_id = usable_id(message.headers, gate.task_name)
    refuse(message, verdict.why, task_id)
    if task_id is None:
        return False
    end_task(message, task_id, gate.task_name, verdict.why)
    return True


def end_task(message: Any, task_id: str, task_name: str, why: str) -> None:
    """Replace the content of a message, so that it only ends its task."""
    message.headers = {"lang": "py", "task": task_name, "id": task_id, "root_id": task_id, REFUSED_HEADER: why}
    message.properties, message.content_type, message.content_encoding = {}, JSON, JSON_ENCODING
    message.body = NO_BODY
    set_payload(message, None)


def record(refusals: Refusals, message: Any, why: str, task_id: str | None, worker: str) -> None:
    delivery_info = message.delivery_info if isinstance(message.delivery_info, Mapping) else {}
    refusals.record(
        why,
        queue=str(delivery_info.get("routing_key") or ""),
        worker=worker,
        id=task_id,
        size=len(message.body) if isinstance(message.body, (bytes, str, memoryview)) else None,
        about=describe(message),
    )


def describe(message: Any) -> str:
    """Return the names and types of a message's headers: no content but the name of its task."""
    headers = getattr(message, "headers", None)
    if not isinstance(headers, Mapping):
        return f"headers: {type(headers).__name__}"
    names = [f"{shorten(name)} {type(value).__name__}" for name, value in list(headers.items())[:MAX_NAMES]]
    text = f"task {shorten(headers.get('task'))}; headers: {', '.join(names) or 'none'}"
    return text[:MAX_ABOUT]


def shorten(value: Any) -> str:
    """Return a value of any type as short ASCII text."""
    if not isinstance(value, str):
        return type(value).__name__
    return ascii(value[:MAX_NAME])
