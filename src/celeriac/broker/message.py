"""From a `Call` to a message on the wire: Celery and Kombu write it, and keep it in hand instead of sending it.

    Call ─► router ─► create_task_message ─► send_task_message ─► Producer ─► channel.basic_publish ─► Published
            (routing, headers)   (queue, exchange, signals)   (serializer,    (caught here)
                                                               compression)

Celery needs 80 µs and more for that, most of it the same for every message of a kind. So of each kind a `Blank` is
made, with marks where the id and the arguments belong, and only those are filled in after. Whatever depends on the
moment or on the arguments (an expiry, a router function, a signal handler, another serializer) is built one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
from celery import Celery, signals
from celery.app.routes import MapRoute
from celery.utils.nodenames import anon_nodename
from celery.utils.time import maybe_make_aware

from celeriac.broker.task_message import TaskMessage
from celeriac.config.signing import HEADER

MARK_ID, MARK_ARGS, MARK_REPR = "celeriac-the-id", "celeriac-the-arguments", "celeriac-the-arguments-in-words"
MARK_SIGNATURE = "celeriac-the-signature"

MESSAGE_OPTIONS = {
    *("countdown", "eta", "expires", "retries", "chord", "callbacks", "errbacks", "reply_to", "time_limit"),
    *("soft_time_limit", "root_id", "parent_id", "group_id", "group_index", "shadow", "chain", "ignore_result"),
    *("stamped_headers", "kwargsrepr", "replaced_task_nesting"),
}
"""The options of `apply_async` that are written into the message; the others say where it goes."""

OF_A_KIND = {
    "queue",
    "priority",
    "exchange",
    "routing_key",
    "delivery_mode",
    "retries",
    "time_limit",
    "soft_time_limit",
}
"""Options that are the same for every message of a kind."""


class Published(NamedTuple):
    """What a channel was told to publish."""

    message: Any
    exchange: str
    routing_key: str


class CatchingChannel:
    """A channel that declares what is to be declared, and keeps what is to be published."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self.caught: list[Published] = []

    def basic_publish(self, message: Any, exchange: str = "", routing_key: str = "", **_: Any) -> None:
        self.caught.append(Published(message, exchange, routing_key))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)


@dataclass(slots=True)
class MessageTemplate:
    """The message of a kind, with marks where the id and the arguments belong."""

    published: Published
    body: tuple[bytes, bytes]
    """The text of the body before and after the list of arguments."""

    form: Any = None
    """What a publisher made of it, to be filled in fast; None if there is more to do for such a message."""


def send(app: Celery, producer: Any, call: TaskMessage, task_id: str) -> None:
    """As `apply_async` would, less what it does for a caller who waits for one result."""
    routed = app.amqp.router.route({"priority": None, **call.options}, call.name, call.args, {})
    if (expires := routed.get("expires")) is not None:
        routed["expiration"] = seconds_until(app, expires)
    written = {name: routed[name] for name in MESSAGE_OPTIONS & routed.keys()}
    message = app.amqp.create_task_message(
        task_id,
        call.name,
        call.args,
        {},
        argsrepr=call.argsrepr,
        **{
            "root_id": task_id,
            "kwargsrepr": "{}",
            "reply_to": app.thread_oid,
            "origin": anon_nodename(),
            "ignore_result": False,
            "create_sent_event": app.conf.task_send_sent_event,
            **written,
        },
    )
    options = {name: value for name, value in routed.items() if name not in MESSAGE_OPTIONS}
    if call.signature is not None:
        options["headers"] = {**(options.get("headers") or {}), HEADER: call.signature}
    app.amqp.send_task_message(producer, call.name, message, retry=False, **options)


def seconds_until(app: Celery, expires: Any) -> float:
    """`expires` is given in seconds, as a moment or in ISO 8601; brokers that expire messages want seconds."""
    if isinstance(expires, str):
        expires = datetime.fromisoformat(expires)
    if isinstance(expires, datetime):
        expires = (maybe_make_aware(expires) - app.now()).total_seconds()
    return max(0.0, float(expires))


class MessageBuilder:
    """For one channel: what a kind of message needs (its queue, its bindings) is declared there when it first comes."""

    def __init__(self, app: Celery, channel: Any, priority_of: Callable[[int], int]) -> None:
        """`priority_of` says the level of a call in the broker's words."""
        self._app, self._priority_of = app, priority_of
        self._channel = CatchingChannel(channel)
        self._producer = app.amqp.Producer(self._channel, auto_declare=False)
        self._blanks: dict[Hashable, MessageTemplate] = {}
        conf = app.conf
        self._alike = (
            conf.task_protocol == 2
            and conf.task_serializer == "json"
            and conf.task_compression is None
            and not conf.task_send_sent_event
            and all(isinstance(router, MapRoute) for router in app.amqp.router.routes)
        )

    def build(self, call: TaskMessage, task_id: str) -> list[Published]:
        """The message, as Celery writes it, and the event that it was sent, if that is wanted.

        Raises what Celery and Kombu raise for a message nobody can encode, and what the broker's client does.
        """
        if call.level is not None:
            call = call.at_priority(self._priority_of(call.level))
        self._channel.caught = []
        send(self._app, self._producer, call, task_id)
        return self._channel.caught

    def forget(self) -> None:
        """Declare again what the next message needs."""
        self._blanks.clear()
        self._channel.connection.client.declared_entities.clear()

    def template(self, call: TaskMessage, make_form: Callable[[MessageTemplate], Any]) -> MessageTemplate | None:
        """The blank of this kind of call; None if each message is to be built. Raises as `build` does."""
        if not self._alike or not OF_A_KIND.issuperset(call.options) or listened_to():
            return None
        kind = (call.name, call.level, call.signature is None, *call.options.items())
        blank = self._blanks.get(kind)
        if blank is None:
            (published,) = self.build(marked(call), MARK_ID)
            before, after = body_of(published).split(f'["{MARK_ARGS}"]'.encode())
            blank = MessageTemplate(published, (before, after))
            blank.form = make_form(blank)
            self._blanks[kind] = blank
        return blank


def marked(call: TaskMessage) -> TaskMessage:
    return replace(
        call, args=(MARK_ARGS,), argsrepr=MARK_REPR, signature=None if call.signature is None else MARK_SIGNATURE
    )


def body_of(published: Published) -> bytes:
    message = published.message
    body = message["body"] if isinstance(message, Mapping) else message.body
    return body.encode() if isinstance(body, str) else bytes(body)


def filled_body(blank: MessageTemplate, call: TaskMessage) -> bytes:
    """Raises `UnicodeEncodeError` for text that is not Unicode, which JSON can say in its own way only."""
    before, after = blank.body
    return b"".join((before, msgspec.json.encode(call.args), after))


def listened_to() -> bool:
    """Whether somebody wants to see each message as Celery builds it, and may change it."""
    return bool(
        signals.before_task_publish.receivers or signals.after_task_publish.receivers or signals.task_sent.receivers
    )
