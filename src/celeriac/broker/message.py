"""Turn a `TaskMessage` into the message on the wire: Celery and Kombu write it, and it is captured instead of sent.

    TaskMessage ─► router ─► create_task_message ─► send_task_message ─► Producer ─► channel.basic_publish ─► Published
                   (routing, headers)   (queue, exchange, signals)       (serializer,     (captured here)
                                                                          compression)

Celery takes 80 µs or more for each message, and repeats nearly the same work for all messages of a kind. So Celery
writes one message of each kind, with placeholders for the id and the arguments: a `MessageTemplate`. For the other
messages only the placeholders are replaced. Celery builds each message that depends on the time or on its arguments (an
expiry, a router function, a signal handler, another serializer).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
from celery import Celery, signals
from celery.app.routes import MapRoute
from celery.exceptions import QueueNotFound
from celery.utils.nodenames import anon_nodename
from celery.utils.time import maybe_make_aware
from kombu.exceptions import KombuError
from msgspec.structs import replace

from celeriac.broker.celery_internals import forget_declarations
from celeriac.broker.task_message import TaskMessage
from celeriac.config.signing import HEADER
from celeriac.executor.interfaces import NotSent
from celeriac.log_lines import logger_for
from celeriac.task.task import Task

logger = logger_for(__name__)

UNSENDABLE = (KombuError, QueueNotFound, TypeError, ValueError, struct.error)
"""The errors that Celery and its clients raise for a message that can never be sent."""

ID_PLACEHOLDER, ARGS_PLACEHOLDER = "celeriac-the-id", "celeriac-the-arguments"
ARGSREPR_PLACEHOLDER, SIGNATURE_PLACEHOLDER = "celeriac-the-arguments-in-words", "celeriac-the-signature"

MESSAGE_OPTIONS = {
    *("countdown", "eta", "expires", "retries", "chord", "callbacks", "errbacks", "reply_to", "time_limit"),
    *("soft_time_limit", "root_id", "parent_id", "group_id", "group_index", "shadow", "chain", "ignore_result"),
    *("stamped_headers", "kwargsrepr", "replaced_task_nesting"),
}
"""The options of `apply_async` that Celery writes into the message. The other options decide where the message goes."""

TEMPLATE_OPTIONS = {
    "queue",
    "priority",
    "exchange",
    "routing_key",
    "delivery_mode",
    "retries",
    "time_limit",
    "soft_time_limit",
}
"""Options that are the same for every message of a kind. A message with another option is built each time."""


class Published(NamedTuple):
    """A call of a channel's `basic_publish`."""

    message: Any
    exchange: str
    routing_key: str


class CapturingChannel:
    """A channel that declares queues and exchanges, and captures messages instead of publishing them."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self.captured: list[Published] = []

    def basic_publish(self, message: Any, exchange: str = "", routing_key: str = "", **_: Any) -> None:
        self.captured.append(Published(message, exchange, routing_key))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)


@dataclass(slots=True)
class MessageTemplate:
    """The message of a kind, with placeholders for the id, the arguments and the signature."""

    published: Published
    body: tuple[bytes, bytes]
    """The body before and after the list of arguments."""

    compiled: Any = None
    """The publisher's own template, which is faster to fill in; None if each message of this kind must be built."""


def send(app: Celery, producer: Any, message: TaskMessage, task_id: str) -> None:
    """Send a message as `apply_async` does, without its preparations for a caller that waits for the result."""
    options = app.amqp.router.route({"priority": None, **message.options}, message.name, message.args, {})
    if (expires := options.get("expires")) is not None:
        options["expiration"] = seconds_until(app, expires)
    celery_message = app.amqp.create_task_message(
        task_id,
        message.name,
        message.args,
        {},
        argsrepr=message.argsrepr,
        **{
            "root_id": task_id,
            "kwargsrepr": "{}",
            "reply_to": app.thread_oid,
            "origin": anon_nodename(),
            "ignore_result": False,
            "create_sent_event": app.conf.task_send_sent_event,
            **{name: options[name] for name in MESSAGE_OPTIONS & options.keys()},
        },
    )
    publish_options = {name: value for name, value in options.items() if name not in MESSAGE_OPTIONS}
    if message.signature is not None:
        publish_options["headers"] = {**(publish_options.get("headers") or {}), HEADER: message.signature}
    app.amqp.send_task_message(producer, message.name, celery_message, retry=False, **publish_options)


def seconds_until(app: Celery, expires: Any) -> float:
    """Return the seconds until an expiry that is given in seconds, as a datetime or in ISO 8601.

    Brokers that expire messages need seconds.
    """
    if isinstance(expires, str):
        expires = datetime.fromisoformat(expires)
    if isinstance(expires, datetime):
        expires = (maybe_make_aware(expires) - app.now()).total_seconds()
    return max(0.0, float(expires))


class MessageBuilder:
    """Builds messages for one channel, and declares on it the queues and bindings that a message needs."""

    def __init__(self, app: Celery, channel: Any, priority_of: Callable[[int], int]) -> None:
        """`priority_of` translates an urgency to the broker's priority."""
        self._app, self._priority_of = app, priority_of
        self._channel = CapturingChannel(channel)
        self._producer = app.amqp.Producer(self._channel, auto_declare=False)
        self._templates: dict[Hashable, MessageTemplate] = {}
        conf = app.conf
        self._can_use_templates = (
            conf.task_protocol == 2
            and conf.task_serializer == "json"
            and conf.task_compression is None
            and not conf.task_send_sent_event
            and all(isinstance(router, MapRoute) for router in app.amqp.router.routes)
        )

    def build(self, message: TaskMessage, task_id: str) -> list[Published]:
        """Return the message as Celery writes it, followed by its "task-sent" event if the app sends such events.

        Raise the errors of Celery and Kombu for a message that cannot be encoded, and those of the broker's client.
        """
        if message.urgency is not None:
            message = message.with_priority(self._priority_of(message.urgency))
        self._channel.captured = []
        send(self._app, self._producer, message, task_id)
        return self._channel.captured

    def reset(self) -> None:
        """Forget the templates and what was declared: the next message declares its queue again."""
        self._templates.clear()
        forget_declarations(self._channel)

    def template(self, message: TaskMessage, compile_: Callable[[MessageTemplate], Any]) -> MessageTemplate | None:
        """Return the template for messages of this kind; None if this message must be built. Raise as `build` does.

        `compile_` makes the publisher's own template from a new one.
        """
        if not self._can_use_templates or not TEMPLATE_OPTIONS.issuperset(message.options) or has_signal_receivers():
            return None
        kind = (message.name, message.urgency, message.signature is None, *message.options.items())
        template = self._templates.get(kind)
        if template is None:
            (published,) = self.build(with_placeholders(message), ID_PLACEHOLDER)
            before, after = body_bytes(published).split(f'["{ARGS_PLACEHOLDER}"]'.encode())
            template = MessageTemplate(published, (before, after))
            template.compiled = compile_(template)
            self._templates[kind] = template
        return template


class UnsendableMessages:
    """Makes the receipts of messages that can never be sent."""

    def __init__(self) -> None:
        self._has_logged = False

    def receipt(self, task: Task, error: Exception) -> NotSent:
        """Return the receipt. Log the first error that Celery does not raise for a message: it is a bug."""
        if not isinstance(error, UNSENDABLE) and not self._has_logged:
            self._has_logged = True
            logger.error("the message of task %r cannot be built", task.key, exc_info=error)
        return NotSent(task, error, transient=False)


def with_placeholders(message: TaskMessage) -> TaskMessage:
    signature = None if message.signature is None else SIGNATURE_PLACEHOLDER
    return replace(message, args=(ARGS_PLACEHOLDER,), argsrepr=ARGSREPR_PLACEHOLDER, signature=signature)


def body_bytes(published: Published) -> bytes:
    message = published.message
    body = message["body"] if isinstance(message, Mapping) else message.body
    return body.encode() if isinstance(body, str) else bytes(body)


def fill_body(template: MessageTemplate, message: TaskMessage) -> bytes:
    """Return the body of a message. Raise `UnicodeEncodeError` for text with lone surrogates: only Python's own JSON
    encoder can write it."""
    before, after = template.body
    return b"".join((before, msgspec.json.encode(message.args), after))


def has_signal_receivers() -> bool:
    """Return whether a signal handler sees each message that Celery builds. It may change the message."""
    return bool(
        signals.before_task_publish.receivers or signals.after_task_publish.receivers or signals.task_sent.receivers
    )
